"""Experiment files on four images of 8 x 8 pixels: whole runs of a few seconds.

Not a test: shared by the tests of whatever trains as a user does.
"""

from pathlib import Path

from PIL import Image

MODEL = """
from tfusion import config as config_lib

def get_config(arg=""):
  c = config_lib.defaults()
  c.model.update(layers=1, width=16, heads=1, kv_heads=1, mlp=16, vocab_size=320)
  c.data.update(sources=("folder:{photos}",), row_length=64, lanes=1, workers=0)
  c.train.update(steps=4, batch_rows=4, eval_rows=4, log_every_steps=1)
  c.train.update(save_every_steps=2, eval_every_steps=4)
  c.optim.ema_decay = 0.9
  c.sample.update(steps=2, sampler="ddim", max_elements=64)
  c.eval.update(batch=4, text_rows=4, prompts=("an image <image>",))
  return c
"""
AUTOENCODER = """
from tfusion import autoencoder_config

def get_config(arg=""):
  c = autoencoder_config.defaults()
  c.model.update(widths=(4,), groups=2, blocks=1)
  c.loss.update(features="none", adversary_start=9)
  c.data.update(sources=("folder:{photos}",), image_shape=(8, 8, 3), threads=1)
  c.train.update(steps=4, batch_images=4, eval_images=1, log_every_steps=1)
  c.train.update(save_every_steps=2, eval_every_steps=4)
  return c
"""


def write(folder: Path, text: str) -> Path:
  """Writes the images, with captions, and the experiment; returns its path."""
  photos = folder / "photos"
  photos.mkdir(exist_ok=True)
  for number in range(4):
    for split in ("train", "test"):
      (photos / split).mkdir(exist_ok=True)
      shade = 60 * number + 9 * (split == "test")
      Image.new("L", (8, 8), shade).save(photos / split / f"{number}.png")
      (photos / split / f"{number}.txt").write_text(f"image {number} of {split}")
  path = folder / "experiment.py"
  path.write_text(text.replace("{photos}", str(photos)))
  return path
