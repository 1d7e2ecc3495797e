"""Promises of tfusion/evaluate/pictured.py, on a few images and narrow networks."""

import dataclasses
import json

import numpy as np
import pytest
import tiny_coco
import tiny_networks
import tiny_trained

from tfusion.data.digits import Digits
from tfusion.data.images import decode
from tfusion.data.pipeline import Corpus
from tfusion.evaluate import coco, frechet, gallery, pictured, suite
from tfusion.evaluate.cider import cider, words_of
from tfusion.evaluate.evaluation import Asked
from tfusion.evaluate.networks import network
from tfusion.generate.canvas import open_canvas

pytestmark = pytest.mark.slow  # a model samples
pytest.importorskip("tokenizers", reason="CLIP takes the extra `tokenizers`")

DIGITS = Digits("digits", np.zeros((2, 4, 4, 1), np.uint8), np.asarray([3, 7]))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  """The folder of --data."""
  folder = tmp_path_factory.mktemp("data")
  tiny_coco.write(folder / "coco")
  tiny_networks.inception_file(folder / "inception.safetensors")
  tiny_networks.clip_folder(folder / "clip")
  return folder


@pytest.fixture(scope="module")
def asked(tmp_path_factory, data):
  with (
    pytest.MonkeyPatch.context() as patch,
    tiny_trained.trained(tmp_path_factory.mktemp("trained")) as trained,
  ):
    patch.setattr(network, "BATCH", 4)
    patch.setattr(pictured, "SCALES", (1.0, 2.0))
    sample = dataclasses.replace(trained.config.sample, max_elements=48)
    own = dataclasses.replace(trained.config.eval, batch=4)
    config = dataclasses.replace(trained.config, sample=sample, eval=own)
    trained = trained._replace(config=config)
    corpus = Corpus((), (DIGITS,), trained.tokenizer)
    yield Asked(trained, corpus, tmp_path_factory.mktemp("run"), data)


@pytest.fixture(scope="module")
def results(asked):
  return suite.evaluate(
    asked.trained,
    asked.corpus,
    asked.workdir,
    names=("fid:6", "clip:6", "sweep:6", "cider"),
    data=asked.data,
  )


def test_fid_is_the_distance_of_the_images_from_those_of_val2014(asked, results):
  canvas = open_canvas(asked.trained.config, asked.workdir)
  opened = pictured.open_network(asked)
  names = [f"{i:05d}.png" for i in range(6)]
  folder = asked.out / "coco-6@1-guidance-1"
  (made,) = gallery.read(folder, names, part=9)
  real = coco.read(asked.data / "coco", images="val2014")
  found = [
    frechet.moments_of(opened.features(np.stack(x)), network=opened.name)
    for x in (made, [decode(one.path, (4, 4, 3)) for one in real])
  ]
  assert results["fid"] == pytest.approx(frechet.distance(*found), rel=1e-6)
  assert (results["fid_images"], results["fid_real_images"]) == (6, 4)
  assert results["fid_network"] == opened.name
  assert gallery.side_of(asked.trained.config, canvas) == (4, 4)


def test_statistics_of_real_images_are_kept_and_used_again(asked, results, monkeypatch):
  (path,) = asked.out.glob("coco-*.npz")
  kept = frechet.load(path)
  canvas = open_canvas(asked.trained.config, asked.workdir)
  monkeypatch.setattr(pictured, "decode", None)  # nothing is read again
  opened = pictured.open_network(asked)
  found = pictured.real_moments(asked, opened, canvas)
  np.testing.assert_array_equal(found.mean_d, kept.mean_d)
  monkeypatch.undo()
  other = asked._replace(data=asked.data)
  assert pictured.real_moments(other, opened, canvas).images == 4


def test_the_sweep_says_which_guidance_was_best(asked, results):
  by_scale = results["fid_by_guidance"]
  assert set(by_scale) == {"1", "2"} and by_scale["1"] == results["fid"]
  best = min(by_scale, key=by_scale.get)
  assert results["fid_best_guidance"] == float(best)
  assert results["fid_best_of_sweep"] == by_scale[best]
  assert f"fid_best_guidance  {float(best):.4g}".split() in [
    line.split() for line in suite.table(results).splitlines()
  ]


def test_both_clip_scores_are_of_the_images_of_fid(asked, results):
  assert 0 <= results["clip"] <= 100 and 0 <= results["clip_hessel"] <= 2.5
  assert results["clip_images"] == 6 and results["clip_network"].startswith("clip ")
  folders = sorted(path.name for path in asked.out.iterdir() if path.is_dir())
  assert folders == ["coco-6@1-guidance-1", "coco-6@1-guidance-2"]


def test_cider_is_100_times_that_of_greedy_captions_of_the_test_split(
  asked, results, monkeypatch
):
  assert results["cider_images"] == 2

  def caption(trained, images, *, book):
    assert book is None and images[0].shape == (4, 4, 1)
    return ["Seven and number 0", "a seven, 8"]

  monkeypatch.setattr(pictured.answers, "caption", caption)
  found = pictured.evaluate_cider(asked)["cider"]
  texts = [one.captions for one in coco.read(asked.data / "coco", split="test")]
  want, _ = cider(
    [words_of("seven and number 0"), words_of("a seven 8")],
    [[words_of(text) for text in own] for own in texts],
  )
  assert found == pytest.approx(100 * want) and found > 0


def test_what_the_numbers_depend_on_is_kept(asked, results):
  of = results["finished"]["fid:6@1"]["of"]
  assert set(of["data"]) == {"captions", "inception.safetensors", "model.safetensors"}
  assert json.dumps(of)


@pytest.mark.parametrize(
  "name, argument, says",
  [
    ("fid", "0", "0: give the number of images"),
    ("fid", "many", "many: give the number of images"),
    ("clip", "99", "99 captions are asked for"),
  ],
)
def test_a_number_of_images_that_cannot_be_is_refused(asked, name, argument, says):
  with pytest.raises(ValueError, match=says):
    suite.EVALUATIONS[name].check(asked._replace(argument=argument))


def test_a_suite_says_at_once_all_that_is_missing(asked, tmp_path):
  empty = asked._replace(data=tmp_path)
  with pytest.raises(ValueError) as caught:
    suite.choose(empty, ("paper",))
  said = str(caught.value)
  # Those of `llama2` are missing where lm_eval is.
  assert said.count("\n") in (5, 6)
  for word in ("ppl:wikipedia", "ppl:c4", "dataset_coco.json", "GenEval takes"):
    assert word in said
  tiny_coco.write(tmp_path / "coco")
  with pytest.raises(ValueError) as caught:
    suite.choose(empty, ("fid:4", "clip:4"))
  assert "inception.safetensors: there is no such file; FID needs" in str(caught.value)
  assert "the CLIP score needs the folder of a CLIP model" in str(caught.value)
  none = asked._replace(data=None)
  with pytest.raises(ValueError, match="--data is not given"):
    suite.choose(none, ("fid:4",))


def test_a_model_of_text_alone_makes_no_images(asked):
  text = asked._replace(corpus=Corpus((), (), asked.trained.tokenizer))
  with pytest.raises(ValueError, match="fid:4: data.sources=.* has no images"):
    suite.choose(text, ("fid:4",))
