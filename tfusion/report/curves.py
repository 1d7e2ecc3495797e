"""Which curves of a run the page shows, and of what layers each is made.

Owns: the sections of curves and their words, smoothing. Not: the numbers, which
training writes (metrics.jsonl, speed.jsonl, validation.jsonl); the drawing (plot.py).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from tfusion.report.plot import Layer, plot
from tfusion.report.run import Reference, Run, series


class Curve(NamedTuple):
  """One plot."""

  file: str  # "metrics", "speed" or "validation"
  key: str
  title: str
  unit: str
  colour: str  # of theme.css


class Section(NamedTuple):
  """Plots that belong together, below a sentence."""

  title: str
  sentence: str
  curves: tuple[Curve, ...]


class Sections(NamedTuple):
  """The sections of curves of a run."""

  training: Section
  held_out: Section
  optimiser: Section


SPEED = Section(
  "Optimiser and speed",
  "A healthy gradient settles; waiting for data stays near 0.",
  (
    Curve("metrics", "grad_norm", "Gradient", "norm before clipping", "ink"),
    Curve("metrics", "lr", "Learning rate", "per update", "ink"),
    Curve("speed", "elements_per_s", "Speed", "elements per second", "ink"),
    Curve("speed", "images_per_s", "Speed", "images per second", "ink"),
    Curve("speed", "step_ms", "Time", "ms per update", "ink"),
    Curve("speed", "mfu", "Use", "share of the matmul rate", "ink"),
    Curve("speed", "data_wait_share", "Data wait", "share of the time", "ink"),
  ),
)
OF_TRAIN = Sections(
  Section(
    "Training loss",
    "The loss is text + image_weight x image. Strong: smoothed; faint: every logged"
    " update. The highest values, those of the first updates, lie above the axes.",
    (
      Curve("metrics", "loss_text", "Text loss", "nats per token", "text"),
      Curve("metrics", "loss_image", "Image loss", "squared error", "image"),
      Curve("metrics", "loss", "Loss", "what training lowers", "ink"),
    ),
  ),
  Section(
    "Held-out loss",
    "Rows the run never trains on, always with the same noise. Faint: the training"
    " loss; where it falls while the dots rise, the model memorises. By noise: t = 0"
    " is the clean image, t = T noise alone, 1 a blind guess; faint: earlier ones.",
    (
      Curve("validation", "loss_text", "Text loss", "nats per token", "text"),
      Curve("validation", "loss_image", "Image loss", "squared error", "image"),
      Curve("validation", "loss_image_bins", "By noise", "squared error", "image"),
    ),
  ),
  SPEED,
)
OF_AUTOENCODER = Sections(
  Section(
    "Training loss",
    "The loss is the sum of these terms, weighed. Strong: smoothed; faint: every one.",
    (
      Curve("metrics", "loss", "Loss", "what training lowers", "ink"),
      Curve("metrics", "loss_pixel", "L1", "of pixels from -1 to 1", "image"),
      Curve("metrics", "loss_perceptual", "Perceptual", "feature distance", "image"),
      Curve("metrics", "kl_nats", "KL", "nats per image", "text"),
      Curve("metrics", "loss_codebook", "Codebook", "squared distance to it", "text"),
      Curve("metrics", "loss_discriminator", "Discriminator", "1: blind guess", "ink"),
    ),
  ),
  Section(
    "Held-out images",
    "Faint: in training, with latents drawn. A rate of codes is what they can carry.",
    (
      Curve("validation", "psnr", "Held-out PSNR", "dB", "image"),
      Curve("validation", "bits_per_pixel", "Rate", "bits per pixel", "text"),
      Curve("validation", "codes_used", "Codes used", "share of the codebook", "text"),
    ),
  ),
  SPEED,
)


def of(run: Run) -> Sections:
  """Returns the sections of curves of a run, of a model or of an autoencoder."""
  if run.is_autoencoder:
    return OF_AUTOENCODER
  specs = run.config.get("model", {}).get("kinds", ())
  names = [spec.partition(":")[0] for spec in specs]
  train, heldout, *rest = OF_TRAIN
  return Sections(_of_kinds(train, names), _of_kinds(heldout, names), *rest)


def _of_kinds(section: Section, names: Sequence[str]) -> Section:
  """The section with a curve of the loss of each kind that a run has beside images."""
  source = section.curves[0].file
  more = [
    Curve(source, f"loss_{name}", f"Loss of {name}", "squared error", "image")
    for name in names
  ]
  return section._replace(curves=(*section.curves, *more))


def figures(
  section: Section, run: Run, known: Reference | None
) -> dict[str, Any] | None:
  """Returns the plots of a section for its macro; None if nothing is there to plot."""
  made = [_figure(section, curve, run, known) for curve in section.curves]
  found = [figure for figure in made if figure]
  return {"sentence": section.sentence, "figures": found} if found else None


def layers(curve: Curve, run: Run, known: Reference | None) -> list[Layer]:
  """Returns what to plot, from the back to the front: layers that have points. The last
  is the run's own newest; without it there is none."""
  key, colour = curve.key, curve.colour
  lines, old = getattr(run, curve.file), getattr(known, curve.file, [])
  (x, y), (old_x, old_y) = series(lines, key), series(old, key)
  if key == "loss_image_bins":
    found = [Layer(*_bins(line), "known", "known") for line in old[-1:]]
    found += [Layer(*_bins(line), colour, "faint") for line in lines[-5:-1]]
    found += [Layer(*_bins(line), colour, "dots") for line in lines[-1:]]
  elif curve.file == "validation":
    train_x, train_y = series(run.metrics, key)
    found = [
      Layer(old_x, old_y, "known", "known"),
      Layer(train_x, smooth(train_y), colour, "faint"),
      Layer(x, y, colour, "dots"),
    ]
  else:
    found = [
      Layer(old_x, smooth(old_y), "known", "known"),
      Layer(x, y, colour, "faint"),
      Layer(x, y if key == "lr" else smooth(y), colour, "line"),
    ]
  if not lines or not found[-1].x.size:
    return []  # a plot of the reference alone says nothing
  return [layer for layer in found if layer.x.size]


def smooth(y: np.ndarray) -> np.ndarray:
  """Means over a twelfth of the run; symmetric where the curve begins to fall."""
  i, half = np.arange(y.size), max(1, y.size // 24)
  low, high = np.maximum(i - half, 0), np.minimum(i + np.minimum(half, i) + 1, y.size)
  sums = np.append(0.0, np.cumsum(y))
  return (sums[high] - sums[low]) / (high - low)


def number(value: float) -> str:
  """A value in three digits or so."""
  return f"{value:,.0f}" if abs(value) >= 100 else f"{value:#.3g}"


def _figure(
  section: Section, curve: Curve, run: Run, known: Reference | None
) -> dict[str, Any] | None:
  shown = layers(curve, run, known)
  if not shown:
    return None
  x_label, x_max, newest, reference = "t / T", 1, "", ""
  if curve.key != "loss_image_bins":
    behind, own = shown[0], shown[-1]
    x_label, x_max, newest = "update", run.steps, number(own.y[-1])
    if behind.style == "known" and behind.x[0] <= own.x[-1] <= behind.x[-1]:
      reference = number(np.interp(own.x[-1], behind.x, behind.y))
  from_zero = curve.file == "speed"
  marks = _spikes(curve, run)
  return {
    "title": curve.title,
    "unit": curve.unit,
    "colour": curve.colour,
    "newest": newest,
    "reference": reference,
    "spikes": sum(each.x.size for each in marks),
    "alt": f"{section.title}: {curve.title}, {curve.unit}",
    "source": plot(shown + marks, x_label=x_label, x_max=x_max, from_zero=from_zero),
  }


def _spikes(curve: Curve, run: Run) -> list[Layer]:
  """The marks of the spikes of a curve, if it has any."""
  if curve.file != "metrics":
    return []
  x, y = series([line for line in run.spikes if line.get("key") == curve.key], "value")
  return [Layer(x, y, "hue7", "marks")] if x.size else []


def _bins(line: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
  """Middles of the bins of noise, and the loss in those that were measured."""
  y = np.array(line.get("loss_image_bins", []), float)
  x = (np.arange(y.size) + 0.5) / max(y.size, 1)
  return x[np.isfinite(y)], y[np.isfinite(y)]
