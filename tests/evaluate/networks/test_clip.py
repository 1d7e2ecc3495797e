"""Promises of tfusion/evaluate/networks/clip.py and of evaluate/clip_score.py."""

import json

import numpy as np
import pytest
import tiny_networks
from safetensors.numpy import save_file

from tfusion.evaluate import clip_score
from tfusion.evaluate.networks import clip as clip_lib
from tfusion.evaluate.networks import network

pytest.importorskip("tokenizers", reason="CLIP takes the extra `tokenizers`")

TEXTS = ["a red ring", "the green star of a ring and the red star", ""]
PIXELS = np.random.default_rng(1).integers(0, 256, (3, 20, 32, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tiny_networks.clip_folder(tmp_path_factory.mktemp("clip"))


@pytest.fixture
def opened(folder, mesh, monkeypatch):
  monkeypatch.setattr(network, "BATCH", 4)
  return clip_lib.open_clip(folder)


def test_texts_begin_end_and_are_cut_to_the_length(opened):
  rows = opened.encode(TEXTS)
  assert rows.shape == (3, 9) and rows.dtype == np.int32
  assert rows[0].tolist() == [30, 0, 3, 5, 31, 31, 31, 31, 31]
  assert rows[1].tolist() == [30, 9, 4, 6, 7, 0, 5, 8, 31]
  assert rows[2].tolist() == [30] + [31] * 8


def test_images_are_scaled_by_their_short_side_and_cut_in_the_middle(opened):
  grey = np.full((10, 40, 1), 128, np.uint8)
  grey[:, :12] = 0  # what is cut off
  (row,) = opened.prepare([grey])
  assert row.shape == (16, 16, 3)
  want = (np.float32(128 / 255) - np.float32(clip_lib.MEAN)) / np.float32(
    clip_lib.DEVIATION
  )
  np.testing.assert_allclose(row, np.broadcast_to(want, row.shape), rtol=1e-5)


@pytest.mark.slow
def test_features_are_those_of_transformers_with_the_same_weights(opened, folder):
  torch = pytest.importorskip("torch", reason="torch comes with the extra `eval`")
  transformers = pytest.importorskip(
    "transformers", reason="transformers comes with the extra `eval`"
  )
  model = transformers.CLIPModel.from_pretrained(folder).eval()
  rows, ids = opened.prepare(list(PIXELS)), opened.encode(TEXTS)
  with torch.no_grad():
    whole = model(
      input_ids=torch.from_numpy(ids).long(),
      pixel_values=torch.from_numpy(rows.transpose(0, 3, 1, 2).copy()),
    )
  for found, want in (
    (opened.images.features(rows), whole.image_embeds),
    (opened.texts.features(ids), whole.text_embeds),
  ):
    found = found / np.linalg.norm(found, axis=1, keepdims=True)
    np.testing.assert_allclose(found, want.numpy(), atol=2e-6)
  processor = transformers.CLIPImageProcessor(
    size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}
  )
  theirs = processor(list(PIXELS), return_tensors="np")["pixel_values"]
  # Bytes that are rounded may differ by one: 1 / 255 / 0.26.
  np.testing.assert_allclose(rows, theirs.transpose(0, 2, 3, 1), atol=0.016)


@pytest.mark.slow
def test_the_score_is_the_mean_cosine_of_each_image_with_its_own_text(opened):
  images = list(PIXELS)
  found = clip_score.score(opened, [images[:1], images[1:]], TEXTS)
  image_nd = opened.images.features(opened.prepare(images))
  each = []
  for prefix in ("", "A photo depicts "):
    text_nd = opened.texts.features(opened.encode([prefix + t for t in TEXTS]))
    cosines = [
      a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(image_nd, text_nd)
    ]
    each.append(np.mean(np.maximum(cosines, 0)))
  assert found.clip == pytest.approx(100 * each[0], rel=1e-5)
  assert found.clip_hessel == pytest.approx(2.5 * each[1], rel=1e-5)
  for texts in (TEXTS[:2], [*TEXTS, "a"]):
    with pytest.raises(ValueError, match="images"):
      clip_score.score(opened, [images], texts)


def test_a_cosine_does_not_know_lengths_and_is_never_below_0():
  image = np.asarray([[3.0, 4.0], [1.0, 0.0], [0.0, 0.0]])
  text = np.asarray([[6.0, 8.0], [-1.0, 0.5], [1.0, 1.0]])
  np.testing.assert_allclose(clip_score.cosines(image, text), [1.0, 0.0, 0.0])


def test_a_folder_that_cannot_serve_is_named_and_so_is_where_to_get_one(tmp_path):
  with pytest.raises(ValueError, match="no such file; the CLIP score needs .*hub"):
    clip_lib.open_clip(tmp_path)
  folder = tiny_networks.clip_folder(tmp_path / "clip")
  config = folder / "config.json"
  text = config.read_text()
  config.write_text(json.dumps({"model_type": "siglip"}))
  with pytest.raises(ValueError, match="model_type is 'siglip', not 'clip'"):
    clip_lib.open_clip(folder)
  config.write_text(text)
  path = folder / "model.safetensors"
  path.write_bytes(path.read_bytes()[:-5])
  with pytest.raises(ValueError, match="is no whole .safetensors"):
    clip_lib.open_clip(folder)
  found = tiny_networks.clip_weights()
  del found["visual_projection.weight"], found["text_projection.weight"]
  save_file(found, path)
  with pytest.raises(ValueError, match="lacks text_proj.*, visual_projection.weight$"):
    clip_lib.open_clip(folder)
