"""Workdirs of runs that never were, and pages as their readers see them.

Not a test: shared by tests/report and tests/inspect.
"""

import base64
import html.parser
import json
import math
from pathlib import Path

import numpy as np
from PIL import Image

STEPS = 480
EVAL = {
  "step": STEPS,
  "caption_accuracy": 291 / 297,
  "captions_right": 291,
  "captions": 297,
  "image_accuracy": 0.992,
  "images_right": 496,
  "images": 500,
  "classifier_accuracy": 0.9663,
  "classifier_right": 287,
  "classifier_scans": 297,
  "text_perplexity": 3.25,
  "text_perplexity_per_byte": 1.75,
  "text_tokens": 30_000,
  "text_bytes": 61_000,
}
FILES = (
  "config.json run.json data.json skipped.json eval.json metrics.jsonl speed.jsonl"
  " validation.jsonl"
).split()
SECONDS = {"init": 20.0, "compile": 10.0, "step": 60.0, "lost": 7.5, "down": 2.5}


class Page(html.parser.HTMLParser):
  """The tags of a page, its text, and the images in it."""

  def __init__(self, path: Path):
    super().__init__()
    self.source = path.read_text()
    self.tags, self.text, self.images = [], "", {}
    self.feed(self.source)

  def handle_starttag(self, tag, attrs):
    attrs = dict(attrs)
    self.tags.append((tag, attrs))
    if tag == "img":
      kind, _, data = attrs["src"].partition(";base64,")
      self.images[attrs["alt"]] = kind, base64.b64decode(data)

  def handle_data(self, data):
    if data.strip():  # not the indentation of the tags
      self.text += data.strip() + "\n"

  def plots(self) -> list[str]:
    return [d.decode() for kind, d in self.images.values() if kind.endswith("+xml")]


def write_run(workdir: Path, *, lines: int = 48, loss: float = 1.0) -> Path:
  """A finished run whose text loss falls to `loss`."""
  workdir.mkdir(parents=True)
  every = STEPS // lines
  steps = range(every, STEPS + 1, every)
  metrics = [
    {
      "step": step,
      "loss": 6 * loss + 5 / step,
      "loss_text": loss + 5 / step,
      "loss_image": loss,
      "grad_norm": 1 + 1 / step,
      "lr": 1e-3,
      "elements": 2048.0,
      "skipped": 0.0,
      "skipped_total": 2.0,
    }
    for step in steps
  ]
  speed = [
    {
      "step": step,
      "seconds": step / 4,
      "elements_per_s": 15_000.0,
      "step_ms": 130.0,
      "mfu": 0.4,
      "data_wait_share": 0.01,
      "eta_seconds": (STEPS - step) / 4,
    }
    for step in steps
  ]
  validation = [
    {
      "step": step,
      "loss_text": loss + 0.1,
      "loss_image": loss,
      "perplexity": math.exp(loss),
      "loss_image_bins": [loss / (i + 1) for i in range(10)],
    }
    for step in (STEPS // 2, STEPS)
  ]
  config = {"seed": 0, "model": {"width": 192}, "train": {"steps": STEPS}}
  run = {"device": "cpu", "devices": 1, "cores": 2, "cpu": "Some CPU", "jax": "0.10.2"}
  data = {"sources": {"digits": {"elements": 12_345_678}}, "row_fill": 0.98}
  skipped = {"folder": {"broken.png": "image file is truncated"}}
  for name, value in zip(FILES, (config, run, data, skipped, EVAL)):
    (workdir / name).write_text(json.dumps(value, indent=2))
  for name, value in zip(FILES[5:], (metrics, speed, validation)):
    write_lines(workdir / name, value)
  goodput = {"seconds": SECONDS, "goodput": 0.6, "starts": [{}, {}]}
  (workdir / "goodput.json").write_text(json.dumps(goodput))
  for folder, stem in (("samples", "step_00000240"), ("samples", "step_00000480")):
    write_image(workdir / folder / f"{stem}.png", np.zeros((19, 91, 3), np.uint8))
  write_image(workdir / "eval" / "digits.png", np.zeros((91, 451, 3), np.uint8))
  return workdir


def write_lines(path: Path, lines: list[dict]) -> None:
  path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_image(path: Path, pixels: np.ndarray) -> None:
  path.parent.mkdir(exist_ok=True)
  Image.fromarray(pixels).save(path)
