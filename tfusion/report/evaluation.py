"""What `tfusion eval` measured, in words.

Owns: what each measure is called, what stands behind it, how to read it. Not: the
measures (evaluate/), which are written to eval.json.
"""

import contextlib
from pathlib import Path
from typing import Any, NamedTuple

from tfusion.report import facts, samples
from tfusion.report.curves import number
from tfusion.report.run import Reference, Run

IMAGES = 6  # of those that evaluations leave beside their numbers


class Measure(NamedTuple):
  """How a key of eval.json is shown."""

  name: str
  behind: str  # of other keys
  meaning: str


MEASURES = {
  "caption_accuracy": Measure(
    "Captions right",
    "{captions_right:,} of {captions:,}",
    "Unseen images whose caption, written by the model, names what they show.",
  ),
  "image_accuracy": Measure(
    "Images right",
    "{images_right:,} of {images:,}",
    "Sampled images that a classifier, fitted to real ones alone, takes for what was"
    " asked.",
  ),
  "classifier_accuracy": Measure(
    "The classifier itself",
    "{classifier_right:,} of {classifier_scans:,}",
    "The same classifier on real unseen images: how far to trust the row above.",
  ),
  "nearest_distance_drawn": Measure(
    "Distance to training",
    "real: {nearest_distance_unseen:.3f}",
    "Of sampled images to the nearest training image; copies lie far nearer than real.",
  ),
  "text_perplexity": Measure(
    "Text perplexity",
    "{text_tokens:,} tokens",
    "Among how many next tokens the model wavers on held-out text; 1 is certainty.",
  ),
  "text_perplexity_per_byte": Measure(
    "The same per byte",
    "{text_bytes:,} bytes",
    "Perplexity by bytes of the text, which do not depend on the tokenizer.",
  ),
  "loss_grid": Measure(
    "Diffusion loss on a grid",
    "{loss_grid_images:,} images",
    "Of held-out images at every noise level, with fixed noise: checkpoints compare.",
  ),
  "fid": Measure(
    "FID",
    "{fid_images:,} images",
    "How far sampled images lie from those of MS-COCO, as a network sees both.",
  ),
  "clip": Measure(
    "CLIP score",
    "{clip_images:,} images",
    "How well sampled images fit their captions, as CLIP sees it.",
  ),
  "cider": Measure(
    "CIDEr",
    "{cider_images:,} images",
    "How much captions agree with what people wrote of the same images.",
  ),
  "geneval": Measure(
    "GenEval",
    "{geneval_judge}",
    "The share of images that show what was asked, a mean over six kinds of prompt.",
  ),
}


class Cell(NamedTuple):
  """A measure of one run."""

  value: str
  note: str  # such as "291 of 297"


def table(workdir: Path, run: Run, known: Reference | None) -> dict[str, Any] | None:
  """Returns the values of the macro `evaluation`; None before the first evaluation."""
  if not run.evaluation:
    return None
  columns = {f"update {run.evaluation.get('step', '?')}": run.evaluation}
  if known and known.evaluation:
    columns["reference"] = known.evaluation
  measures = [
    {
      "name": measure.name,
      "meaning": measure.meaning,
      "cells": [cell(values, key) for values in columns.values()],
    }
    for key, measure in MEASURES.items()
    if key in run.evaluation
  ]
  paths = sorted((workdir / "eval").glob("*.png"))[:IMAGES]
  return {
    "columns": list(columns),
    "measures": measures,
    "images": [samples.image(path, width_px=1080) for path in paths],
    "numbers": facts.card("eval.json", run.evaluation),
  }


def cell(values: dict[str, Any], key: str) -> Cell:
  """Returns a measure of eval.json as the page shows it; "-" where it is missing."""
  shown, note = "-", ""
  if isinstance(value := values.get(key), int | float):
    shown = f"{value:.1%}" if key.endswith("accuracy") else number(value)
  with contextlib.suppress(KeyError, ValueError):
    note = MEASURES[key].behind.format_map(values)
  return Cell(shown, note)
