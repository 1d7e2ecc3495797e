"""What all runs of an ablation stand on, made once: tokenizer, autoencoders, shards.

Owns: which there are, and the commands that make them. Not: doing them (runner.py).
"""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from tfusion.data.source import TRAIN
from tfusion.data.sources import open_sources
from tfusion.data.tokenizer import Tokenizer
from tfusion.evaluate.compositions import THINGS

PX = 64  # of scenes, along each side
SHAPE = (PX, PX, 3)
PIECES = 512  # of the tokenizer, which knows captions and prose
DOCUMENTS = {"tiny": 16_000, "small": 200_000, "smoke": 120}
SMOKE = (
  "--config.train.steps=4",
  "--config.train.eval_every_steps=4",
  "--config.train.save_every_steps=4",
  "--config.train.eval_images=16",
  "--config.train.log_every_steps=2",
)
NETWORKS = {"latents": "vae", "codes": "vq"}  # of a ground


class Command(NamedTuple):
  """One command of `tfusion`."""

  name: str  # for people
  makes: Path
  arguments: list[str]
  log: Path

  @property
  def done(self) -> Path:
    """Is there once the command has ended well. What it makes may be there before: an
    autoencoder is kept at every save."""
    return self.log.with_suffix(".done")


def make_tokenizer(assets: Path) -> Path:
  """Trains the tokenizer of all grounds on captions and prose, if it is not there."""
  path = assets / "tokenizer.model"
  if not path.is_file():
    names = (f"shapes:pairs,things={THINGS}", "pydoc")
    sources = open_sources(names, split=TRAIN, image_shape=SHAPE, workdir=assets)
    texts = (text for source in sources for text in source.texts())
    assets.mkdir(parents=True, exist_ok=True)
    Tokenizer.train(texts, vocab_size=PIECES, path=path)
  return path


def commands(
  assets: Path, grounds: Iterable[str], *, scale: str, experiments: Path
) -> list[Command]:
  """What makes the shards of grounds, in order; those of text need none."""
  found = []
  for ground in sorted(set(grounds) & set(NETWORKS)):
    network, shards = NETWORKS[ground], assets / ground
    file = f"{experiments / 'autoencoder.py'}{':vq' if network == 'vq' else ''}"
    own = assets / network
    made = own / "autoencoder.safetensors"
    found += [
      Command(
        f"autoencoder of {ground}",
        made,
        [
          "autoencoder",
          f"--config={file}",
          f"--workdir={own}",
          *(SMOKE if scale == "smoke" else ()),
        ],
        assets / f"{network}.log",
      ),
      Command(
        f"shards of {ground}",
        shards / "manifest.json",
        [
          "prepare",
          f"--source=shapes:pairs,things={THINGS},length={DOCUMENTS[scale]}",
          f"--out={shards}",
          f"--autoencoder={made}",
          f"--image-px={PX}",
          f"--tokenizer={assets / 'tokenizer.model'}",
        ],
        assets / f"{ground}.log",
      ),
    ]
  return found
