"""From raw files to shards to a trained model: the whole way, at its smallest."""

import importlib.util
import io
import json
import pathlib
import tarfile

import numpy as np
import pytest
from PIL import Image

from tfusion import cli
from tfusion import config as config_lib
from tfusion.autoencoder import codec, network
from tfusion.autoencoder_config import AutoencoderModelConfig
from tfusion.data import pipeline
from tfusion.data.shards.manifest import load
from tfusion.prepare import job

pytestmark = pytest.mark.slow

pytest.importorskip("apache_beam")

EXPERIMENT = str(pathlib.Path(__file__).parents[2] / "experiments" / "folder.py")


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
  """Forty documents of one caption, or of two pictures between words."""
  path = tmp_path_factory.mktemp("tar") / "photos.tar"
  with tarfile.open(path, "w") as out:

    def add(name, data):
      member = tarfile.TarInfo(name)
      member.size = len(data)
      out.addfile(member, io.BytesIO(data))

    for i in range(40):
      for name in ("0.png", "1.png")[: 1 + i % 2]:
        data = io.BytesIO()
        Image.new("RGB", (20, 16), (i, 5 * i, 100)).save(data, "PNG")
        add(f"{i}.{name}", data.getvalue())
      spans = [{"image": "0.png"}, {"text": "and then"}, {"image": "1.png"}]
      row = {"spans": spans} if i % 2 else {"caption": f"a shade, number {i}"}
      add(f"{i}.json", json.dumps(row | {"split": "train"}).encode())
    for i in range(4):
      add(f"test{i}.0.png", data.getvalue())
      add(
        f"test{i}.json",
        b'{"spans": [{"text": "a held out shade"}, '
        b'{"image": "0.png"}], "split": "test"}',
      )
  return path


def get_config(arg):
  spec = importlib.util.spec_from_file_location("folder_experiment", EXPERIMENT)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(arg)


@pytest.mark.long
def test_a_tar_becomes_shards_and_these_a_model_and_a_report(archive, tmp_path, capsys):
  shards, run = tmp_path / "shards", tmp_path / "run"
  args = ["--source", f"tar:{archive}", "--out", str(shards), "--image-px", "8"]
  assert cli.main(["prepare", *args]) == 0
  assert "44 documents read, 44 kept, 0 rejected" in capsys.readouterr().out
  assert load(shards).images.shape == (8, 8, 3)
  # No drawings: compiling the sampler would take as long as all the rest.
  sizes = ("model.layers=1", "train.steps=2", "train.eval_every_steps=2")
  train = [
    "train",
    "--config",
    f"{EXPERIMENT}:data={shards},smoke",
    "--workdir",
    str(run),
  ]
  knobs = [
    f"--config.{size}"
    for size in (*sizes, "train.save_every_steps=2", "eval.prompts=()")
  ]
  assert cli.main([*train, *knobs]) == 0
  said = capsys.readouterr().out
  assert "40 documents with 60 images" in said
  assert f"shards:{shards}" in (run / "data.json").read_text()
  assert "held out: text" in said and (run / "report.html").is_file()


@pytest.mark.parametrize("kind", ["mean", "codes", "text"])
def test_the_experiment_takes_shards_of_any_kind(archive, tmp_path, kind):
  request = dict(source=f"tar:{archive}", out=str(tmp_path / "shards"), image_px=16)
  if kind == "text":
    request |= dict(source="pydoc", image_px=0)
  else:
    config = AutoencoderModelConfig(
      widths=(4, 8),
      blocks=1,
      groups=2,
      encoder_out=4,
      decoder_in=4,
      latent_channels=2,
      codes=32 * (kind == "codes"),
    )
    params = {
      name: np.full(x.shape, 0.1, np.float32)
      for name, x in network.abstract(config).items()
    }
    codec.Codec(config, params).save(tmp_path / "autoencoder.safetensors")
    request |= dict(autoencoder=str(tmp_path / "autoencoder.safetensors"))
  made = job.prepare(job.Request(**request))
  config = get_config(f"data={request['out']},smoke")
  config.data.workers = 0
  config = config_lib.from_dict(config)
  codebook = 32 if kind == "codes" else 0
  assert config.model.vocab_size >= made.vocabulary + codebook
  if kind == "mean":
    assert config.model.image_shape == (8, 8, 2) and config.model.patch == 1
  corpus = pipeline.open_corpus(config, tmp_path)
  batches = pipeline.HostBatches(corpus, config, host=0, hosts=1)
  batch = next(batches)
  batches.close()
  assert batch.tokens_bl.shape[1] == config.data.row_length
  ids = batch.tokens_bl[batch.patch_bl < 0]
  assert (ids >= made.vocabulary).any() == (kind == "codes")
  assert (batch.patch_bl >= 0).any() == (kind == "mean")
