"""What `tfusion inspect shards` shows: everything in the files, and what they lack."""

import numpy as np
import pytest
import tiny_shards
from PIL import Image

from tfusion import cli
from tfusion.autoencoder import codec, network
from tfusion.autoencoder_config import AutoencoderModelConfig
from tfusion.inspect import shards


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  """A folder for each kind."""
  path = tmp_path_factory.mktemp("shards")
  tiny_shards.make(path / "mean")
  tiny_shards.make(path / "pixels", kind="pixels", shape=(4, 4, 3))
  tiny_shards.make(path / "codes", kind="codes", shape=(16,))
  tiny_shards.make(path / "text", kind=None)
  return path


def shown(capsys, *args) -> str:
  """What the command prints."""
  assert cli.main(["inspect", "shards", *map(str, args)]) == 0
  return " ".join(capsys.readouterr().out.split())


def test_a_manifest_is_a_table_of_all_it_says(folders, capsys):
  text = shown(capsys, folders / "mean")
  assert "schema 1, made from folder:photos" in text
  assert "19 read = 16 kept + 3 rejected 2 rejected: empty caption 1 rej" in text
  assert f"320 pieces, sha256 {tiny_shards.tokenizer().sha256[:16]}" in text
  assert "mean of 4 x 4 x 2 shift 1 0 (per channel) scale 2 3 (per channel)" in text
  assert "train 12 66 12 0.4 3 shards test 4 27 4 0.1 1 shards" in text
  assert "train 2 15 2 0.1 train-0002.array_record whole" in text
  assert "NOT WHOLE" not in text
  assert "images codes of 16, 16 codes" in shown(capsys, folders / "codes")
  assert "images none" in shown(capsys, folders / "text")


def test_a_manifest_shows_which_shards_are_not_whole(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(shards, "LISTED", 1)
  made = tiny_shards.make(tmp_path)
  path = tmp_path / "train-0001.array_record"
  whole = path.read_bytes()
  path.write_bytes(whole[:1000])
  text = shown(capsys, tmp_path)
  assert f"train-0001.array_record 1,000 BYTES OF {made.shards[1].bytes:,}" in text
  assert "train-0002" not in text and "and 2 more whole shards" in text
  assert "NOT WHOLE" in text and "run `tfusion prepare` again" in text
  path.write_bytes(whole[: 1 << 16] + bytes(len(whole) - (1 << 16)))
  assert "damaged at its end" in shown(capsys, tmp_path)
  path.unlink()
  assert "train-0001.array_record MISSING" in shown(capsys, tmp_path)


def test_a_shard_shows_its_records_and_their_damage(tmp_path, capsys):
  tiny_shards.make(tmp_path)
  path = tmp_path / "train-0001.array_record"
  flipped = bytearray(path.read_bytes())
  flipped[120] ^= 1
  path.write_bytes(flipped)
  text = shown(capsys, path)
  assert f"0 {path}: record 0 is damaged: " in text
  assert "1 titi 8 album/0006 2 t 4 album/0007 3 ti" in text
  assert f"{path}: 4 records, 1 damaged" in text


def test_a_record_shows_its_text_and_writes_its_pixels(folders, tmp_path, capsys):
  args = [folders / "pixels", "--record", "2", "--split", "test"]
  text = shown(capsys, *args, "--out", tmp_path / "new")
  assert "record 2, id album/0014" in text
  assert "text of 5 tokens: 'picture 14 blue' image: pixels of 4 x 4 x 3, as it" in text
  expected = tiny_shards.record(14, kind="pixels", shape=(4, 4, 3)).images["pixels"]
  for n in range(2):
    with Image.open(tmp_path / "new" / f"test-0000-2-{n}.png") as image:
      np.testing.assert_array_equal(np.asarray(image), expected[n])


def test_a_record_of_a_shard_is_counted_from_its_own_start(folders, tmp_path, capsys):
  path = folders / "pixels" / "train-0001.array_record"
  text = shown(capsys, path, "--record", "2", "--out", tmp_path)
  assert "record 2, id album/0007 text of 4 tokens: 'picture 7 green'" in text
  assert list(tmp_path.iterdir()) == []  # it has no image


def test_latents_without_an_autoencoder_come_in_false_colours(tmp_path, capsys):
  tiny_shards.make(tmp_path / "a", autoencoder=None)
  text = shown(capsys, tmp_path / "a", "--record", "0", "--out", tmp_path)
  assert "mean of 4 x 4 x 2, in false colours (channels 0, 1, 2): " in text
  with Image.open(tmp_path / "train-0000-0-0.png") as image:
    drawn = np.asarray(image)
  assert drawn.shape == (32, 32, 3)
  latent = tiny_shards.record(0).images["mean"][0].astype(np.float64)
  normal = (latent - [1, 0]) / [2, 3]  # shift and scale of tiny_shards
  shades = np.clip(np.round(127.5 + 127.5 / 2 * normal), 0, 255)
  np.testing.assert_allclose(drawn[::8, ::8, :2], shades, atol=1)  # a half, rounded
  np.testing.assert_array_equal(drawn[..., 2], drawn[..., 0])  # two channels only


def test_codes_without_an_autoencoder_are_shown_as_numbers(tmp_path, capsys):
  tiny_shards.make(tmp_path / "a", kind="codes", shape=(16,), autoencoder=None)
  text = shown(capsys, tmp_path / "a", "--record", "0", "--out", tmp_path)
  codes = tiny_shards.record(0, kind="codes", shape=(16,)).images["codes"][0]
  assert "codes of 16, not shown, without an autoencoder: " in text
  assert f"{codes[:8].tolist()}..." in text


@pytest.mark.slow
@pytest.mark.parametrize("codes", [0, tiny_shards.CODEBOOK])
def test_latents_and_codes_are_decoded_by_the_autoencoder_beside(
  tmp_path, capsys, codes
):
  config = AutoencoderModelConfig(
    widths=(4, 8),
    blocks=1,
    encoder_out=6,
    decoder_in=6,
    latent_channels=2,
    codes=codes,
  )
  rng = np.random.default_rng(0)
  params = {
    name: rng.normal(size=x.shape, scale=0.3).astype(np.float32)
    for name, x in sorted(network.abstract(config).items())
  }
  coder = codec.Codec(config, params)
  coder.save(tmp_path / "one")
  kind, shape = ("codes", (16,)) if codes else ("mean", (4, 4, 2))
  own = (tmp_path / "one").read_bytes()
  tiny_shards.make(tmp_path / "a", kind=kind, shape=shape, autoencoder=own)
  text = shown(capsys, tmp_path / "a", "--record", "2", "--out", tmp_path)
  assert text.count(", decoded: ") == 2
  stored = tiny_shards.record(2, kind=kind, shape=shape).images[kind]
  decoded = coder.decode(stored if codes else stored.astype(np.float32))
  for n in range(2):
    with Image.open(tmp_path / f"train-0000-2-{n}.png") as image:
      # Another batch size may round to the byte beside.
      np.testing.assert_allclose(np.asarray(image, int), decoded[n], atol=1)


@pytest.mark.parametrize(
  ("args", "message"),
  [
    (["nothing"], "nothing: no such folder or shard"),
    (["."], "holds no manifest.json"),
    (["mean", "--record", "12"], "--record=12: .* holds records 0 to 11"),
    (["mean", "--record", "-1"], "--record=-1"),
    (["mean/manifest.json"], "manifest.json: no shard, or damaged at its end"),
    (["mean/manifest.json", "--record", "0"], "is not listed in"),
  ],
)
def test_what_cannot_be_shown_is_said_in_one_line(folders, args, message):
  path, *rest = args
  with pytest.raises(ValueError, match=message):
    list_all(folders / path, rest)


def list_all(path, rest):
  record = int(rest[1]) if rest else None
  return list(shards.lines(path, record=record, split="train", out=path))
