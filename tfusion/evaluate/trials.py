"""How well is a scene read back from a noisy or blurred image of it?

Owns: trials of the classifier of scenes, the plot of them. Not: the classifier
(scenes.py), marks (marks.py).
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from tfusion.data.scenes.render import render
from tfusion.data.scenes.scene import Draws, draw_scene
from tfusion.evaluate.marks import mark_scene, mean_marks
from tfusion.evaluate.scenes import read

NOISES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.6)  # of pixels in [-1, 1], deviations
BLURS = (0.0, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06)  # of the side, deviations


class Trial(NamedTuple):
  """How the classifier fared at one level of noise or blur."""

  px: int
  noise: float
  blur: float
  marks: dict[str, float]  # mean_marks against the scenes that were rendered


def try_classifier(
  px: int,
  *,
  images: int,
  noise: float = 0.0,
  blur: float = 0.0,
  seed: int = 0,
) -> Trial:
  """Has the classifier read rendered scenes, half of them with held-out pairs.

  Args:
    px: pixels along a side.
    images: how many.
    noise: standard deviation of the Gaussian noise on pixels in [-1, 1].
    blur: standard deviation of a Gaussian blur before the noise, a share of the side.
    seed: of the scenes and the noise; they are no documents of the source `shapes`.
  """
  rng, marks = np.random.default_rng(seed), []
  for index in range(images):
    # These words are the seed: with others, other scenes would be tried.
    scene = draw_scene(Draws("judge", seed, px, index), held_out=index % 2 == 1)
    image = render(scene, px).astype(np.float32) / 127.5 - 1
    if blur:
      image = ndimage.gaussian_filter(image, (blur * px, blur * px, 0))
    image = image + noise * rng.normal(size=image.shape)
    marks.append(mark_scene(scene.things, read(image)))
  return Trial(px, noise, blur, mean_marks(marks))


def plot_classifier(path: str | Path, *, images: int = 200) -> list[Trial]:
  """Plots how the classifier fares against noise and blur, at 32 and 64 pixels.

  Args:
    path: the .png to write.
    images: scenes at each of 28 points; 200 take two minutes on one core.

  Returns:
    What is plotted.
  """
  # Here: importing it takes longer than reading an image, and plots nothing else.
  from matplotlib.figure import Figure

  figure = Figure(figsize=(10, 4), layout="constrained")
  trials = []
  for axes, (name, levels) in zip(
    figure.subplots(1, 2, sharey=True), (("noise", NOISES), ("blur", BLURS))
  ):
    for colour, px in (("tab:orange", 32), ("tab:blue", 64)):
      made = [
        try_classifier(px, images=images, noise=level)
        if name == "noise"
        else try_classifier(px, images=images, blur=level)
        for level in levels
      ]
      trials += made
      for mark, style in (("right", "-"), ("count", "--"), ("shape", ":")):
        values = [100 * trial.marks[mark] for trial in made]
        axes.plot(levels, values, style, color=colour, label=f"{px} px, {mark}")
    unit = "pixels in [-1, 1]" if name == "noise" else "side"
    axes.set(xlabel=f"{name}: standard deviation, {unit}", ylim=(0, 102))
    axes.grid(alpha=0.3)
  figure.axes[0].set_ylabel("% of images read right; of things, their shape")
  figure.axes[0].legend(loc="lower left")
  figure.savefig(path)
  return trials
