"""Rows of several kinds: pictures of two sizes and waveforms, drawn for this.

It shows model.kinds, and is a start for data of your own: a folder of image files and
.npy arrays with captions.
"""

import sys
from pathlib import Path

import ml_collections
import numpy as np
from PIL import Image, ImageDraw

from tfusion import config as config_lib

COLOURS = {"red": (220, 40, 40), "green": (40, 180, 60), "blue": (50, 80, 230)}
SIZES = {"square": (16, 16), "wide": (24, 10)}  # width and height of the pictures
SIDES = ("left", "right")
WAVES = range(1, 6)  # along a waveform
LENGTH = 64  # numbers of a waveform
COPIES = 24  # of every caption, each drawn a little differently
HELD_OUT = 2  # of these


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  """Discs on pictures of two sizes, and sine waves, each with its caption.

  tfusion train --config experiments/kinds.py:data=runs/drawn --workdir runs/kinds
  The folder is drawn if it is not there.
  """
  arg = config_lib.parse_arg(arg, data="", smoke=False)
  if not arg.data:
    raise ValueError(
      "experiments/kinds.py: a folder to draw into? --config experiments/kinds.py:"
      "data=PATH"
    )
  if not Path(arg.data).exists():
    draw(Path(arg.data))
  c = config_lib.defaults()
  c.model.layers, c.model.width, c.model.mlp = 4, 128, 352
  c.model.vocab_size = 384
  c.model.image_shape = (16, 16, 3)
  c.model.patch = 4
  c.model.kinds = (
    "wide:8x24x3,like=image",  # pictures of 24 x 10 pixels lose a strip
    f"wave:{LENGTH}x1,patch=4,weight=5",
  )
  c.data.sources = (f"folder:{arg.data}",)
  c.data.row_length, c.data.image_slots = 160, 8
  c.data.caption_first = 0.5
  c.diffusion.image_first_noise_cap = 0.5
  c.diffusion.image_first_clean = 0.5
  c.diffusion.clip = 1.0
  c.optim.peak_lr, c.optim.end_lr, c.optim.warmup_steps = 2e-3, 2e-5, 50
  c.optim.ema_decay = 0.99
  c.sample.sampler, c.sample.steps, c.sample.guidance = "ddim", 25, 2.0
  c.sample.max_elements = 96
  c.train.batch_rows, c.train.steps = 16, 2_000
  c.train.eval_every_steps = c.train.save_every_steps = 500
  c.train.eval_rows = 16
  c.eval.prompts = (
    *("a red disc, left <image>", "a blue disc, right <image:wide>"),
    *("a wave of 2 <wave>", "a wave of 5 <wave>"),
  )
  if arg.smoke:
    c.model.layers, c.model.width, c.model.mlp = 1, 32, 64
    c.data.workers = 0
    c.train.batch_rows = c.train.eval_rows = 4
    c.train.steps, c.sample.steps = 6, 2
    c.train.eval_every_steps = c.train.save_every_steps = 3
    c.train.log_every_steps = 1
    c.eval.prompts = c.eval.prompts[1:3]
  return c


def draw(folder: Path) -> None:
  """Writes pictures, waveforms and their captions, the last of each as a test split."""
  rng = np.random.default_rng(0)
  for copy in range(COPIES):
    split = folder / ("test" if copy >= COPIES - HELD_OUT else "train")
    split.mkdir(parents=True, exist_ok=True)
    for name, size in SIZES.items():
      for colour in COLOURS:
        for side in SIDES:
          path = split / f"{name}-{colour}-{side}-{copy}.png"
          _disc(size, colour, side, rng).save(path)
          path.with_suffix(".txt").write_text(f"a {colour} disc, {side}")
    for waves in WAVES:
      path = split / f"wave-{waves}-{copy}.npy"
      np.save(path, _wave(waves, rng))
      path.with_suffix(".txt").write_text(f"a wave of {waves}")


def _disc(
  size: tuple[int, int], colour: str, side: str, rng: np.random.Generator
) -> Image.Image:
  """A disc in one half of a grey picture."""
  (width, height), radius = size, min(size) * rng.uniform(0.22, 0.3)
  x = width * (0.27 if side == "left" else 0.73) + rng.uniform(-0.5, 0.5)
  y = height / 2 + rng.uniform(-0.5, 0.5)
  image = Image.new("RGB", size, (235, 235, 235))
  box = [x - radius, y - radius, x + radius, y + radius]
  ImageDraw.Draw(image).ellipse(box, fill=COLOURS[colour])
  return image


def _wave(waves: int, rng: np.random.Generator) -> np.ndarray:
  """f32[LENGTH, 1] in [-1, 1]: a sine of some amplitude and phase."""
  phase, amplitude = rng.uniform(0, 2 * np.pi), rng.uniform(0.6, 0.95)
  at = np.arange(LENGTH) / LENGTH
  wave = amplitude * np.sin(2 * np.pi * waves * at + phase)
  return wave[:, None].astype(np.float32)


def count_waves(wave: np.ndarray) -> int:
  """How many waves an array [LENGTH, 1] has: the strongest frequency but 0."""
  strength = np.abs(np.fft.rfft(wave[:, 0] - wave.mean()))
  return int(np.argmax(strength[1:])) + 1


def read_disc(pixels: np.ndarray) -> tuple[str, str]:
  """The colour and the side of what differs most from grey, in pixels u8[h, w, 3]."""
  rest = 235.0 - pixels.astype(float)
  far = np.linalg.norm(rest, axis=-1)
  far[far < 60] = 0
  colour = (pixels * far[..., None]).sum((0, 1)) / max(far.sum(), 1e-9)
  names = list(COLOURS)
  nearest = min(names, key=lambda n: float(np.linalg.norm(colour - COLOURS[n])))
  middle = (far.sum(0) * np.arange(far.shape[1])).sum() / max(far.sum(), 1e-9)
  return nearest, SIDES[int(middle > (far.shape[1] - 1) / 2)]


def main(workdir: str, *, count: int = 4) -> None:
  """Samples every caption `count` times and prints how many are what was asked for."""
  import tfusion

  run = tfusion.load(workdir)
  discs = [f"a {colour} disc, {side}" for colour in COLOURS for side in SIDES]
  asked = {
    "image": [f"{caption} <image>" for caption in discs],
    "wide": [f"{caption} <image:wide>" for caption in discs],
    "wave": [f"a wave of {waves} <wave>" for waves in WAVES],
  }
  for name, prompts in asked.items():
    samples = run.sample(prompts, count=count)
    right = sum(map(_is_right, samples))
    print(f"{name}: {right} of {len(samples)} right")


def _is_right(sample) -> bool:
  """Whether the first thing that was made is what its prompt says."""
  place = next(n for n, part in enumerate(sample.parts) if not isinstance(part, str))
  words = sample.prompt.partition(" <")[0].split()
  if words[1] == "wave":
    return count_waves(sample.arrays[place]) == int(words[-1])
  return read_disc(sample.parts[place]) == (words[1], words[-1])


if __name__ == "__main__":
  main(sys.argv[1])
