"""What sample.start and diffusion.clip do to drawings of a trained run.

  python tests/bench/sampling_bounds.py --workdir runs/scenes

of a run on images or latents with one image in a document, such as one on the shards of
`shapes:pairs`. It draws the captions of held-out documents at every setting and prints,
beside the same figures of the true images:

  distance   Frechet distance (arXiv 1706.08500) between drawn and true images, of the
             mean and the deviation of each channel in an image: no network is needed
  deviation  of all numbers; too high: drawings are too harsh, too low: too flat
  farthest   number from 0
"""

import argparse
import dataclasses
import itertools

import jax
import numpy as np
from scipy import linalg

from tfusion import workdir as workdir_lib
from tfusion.data.pipeline import open_corpus
from tfusion.generate.interleaved import generate
from tfusion.generate.prompt import Blank
from tfusion.generate.trained import Trained, open_trained
from tfusion.sequence import Image, Text

TRUE = 256  # images that drawings are compared with


def distance(drawn_nhwc: np.ndarray, true_nhwc: np.ndarray) -> float:
  """Frechet distance of the means and deviations of channels."""
  features = [
    np.concatenate([x.mean((1, 2)), x.std((1, 2))], axis=-1)
    for x in (drawn_nhwc.astype(np.float64), true_nhwc.astype(np.float64))
  ]
  apart = features[0].mean(0) - features[1].mean(0)
  a, b = (np.cov(x.T) for x in features)
  return float(apart @ apart + np.trace(a + b - 2 * linalg.sqrtm(a @ b).real))


def figures(drawn_nhwc: np.ndarray, true_nhwc: np.ndarray) -> str:
  """The columns of a row."""
  return (
    f"{distance(drawn_nhwc, true_nhwc):10.3g} {drawn_nhwc.std():9.3f}"
    f" {np.abs(drawn_nhwc).max():9.2f}"
  )


def find_pairs(trained: Trained, workdir: str) -> tuple[list[Text], np.ndarray]:
  """Captions and images of held-out documents."""
  captions, images = [], []
  for source in open_corpus(trained.config, workdir).test:
    for index in range(len(source)):
      spans = source[index]
      image = next((s for s in spans if isinstance(s, Image | np.ndarray)), None)
      text = next((s for s in spans if isinstance(s, Text | str)), None)
      if image is None or text is None or len(images) == TRUE:
        continue
      images.append(image.latent if isinstance(image, Image) else image)
      captions.append(
        Text(trained.tokenizer.encode(text)) if isinstance(text, str) else text
      )
  return captions, np.stack(images)


def draw(trained: Trained, captions: list[Text]) -> np.ndarray:
  """One drawing of each caption, f32[n, h, w, c]."""
  with jax.set_mesh(trained.mesh):
    made = generate(
      trained.config,
      trained.params,
      [(caption, Blank()) for caption in captions],
      special=trained.tokenizer.special,
      key=jax.random.key(0),
    )
  return np.stack([one.made_images[0] for one in made])


def main() -> None:
  """Prints the table."""
  numbers = lambda text: [float(x) for x in text.split(",")]  # noqa: E731
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("--workdir", required=True)
  parser.add_argument("--images", type=int, default=48, help="drawn for a row (48)")
  parser.add_argument("--samplers", default="ddpm,ddim")
  parser.add_argument("--steps", type=numbers, default=[50.0, 250.0])
  parser.add_argument("--guidance", type=numbers, default=[1.0, 3.0, 5.0])
  parser.add_argument("--start", type=numbers, default=[1.0, 0.98, 0.97, 0.95])
  parser.add_argument("--clip", type=numbers, default=[0.0, 3.0, 10.0])
  args = parser.parse_args()
  trained = open_trained(workdir_lib.load_config(args.workdir), args.workdir)
  captions, true = find_pairs(trained, args.workdir)
  captions, some = captions[: args.images], true[: args.images]
  print("sampler steps guidance start  clip   distance deviation  farthest")
  print(f"{f'true, {len(some)} of {len(true)}':37} {figures(some, true)}", flush=True)
  for sampler, steps, guidance, start, clip in itertools.product(
    args.samplers.split(","), args.steps, args.guidance, args.start, args.clip
  ):
    how = dict(sampler=sampler, steps=int(steps), guidance=guidance, start=start)
    config = dataclasses.replace(
      trained.config,
      sample=dataclasses.replace(trained.config.sample, **how),
      diffusion=dataclasses.replace(trained.config.diffusion, clip=clip),
    )
    drawn = draw(trained._replace(config=config), captions)
    row = f"{sampler:7} {int(steps):5} {guidance:8g} {start:5g} {clip:5g}"
    print(f"{row:37} {figures(drawn, true)}", flush=True)


if __name__ == "__main__":
  main()
