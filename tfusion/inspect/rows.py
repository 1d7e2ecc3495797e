"""The rows that training took at a step, or will take, drawn for people.

Owns: where replaying begins, the pictures of latents and codes, the files. Not: the
replay (replay.py), the page (row_page.py).
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from tfusion.autoencoder import codec as codec_lib
from tfusion.checkpoint import Checkpoints
from tfusion.config import Config
from tfusion.data import prepared
from tfusion.data.pipeline import open_corpus
from tfusion.data.shards import manifest as manifest_lib
from tfusion.inspect import replay, row_page, shards
from tfusion.progress import Progress


def draw_rows(
  config: Config, workdir: str | Path, step: int, *, out: str | Path
) -> list[Path]:
  """Draws the rows of the global batch of update `step`, one HTML page each.

  Args:
    config: of the run.
    workdir: of the run; without a checkpoint, all is replayed from the beginning.
    step: update, from 1 on; what metrics.jsonl calls step.
    out: folder for the pages; is made.

  Returns:
    The pages, in order of the rows.

  Raises:
    ValueError: no such step, or the sources cannot be read as the run read them.
  """
  if step < 1:
    raise ValueError(f"--step={step}: updates are counted from 1")
  workdir, out = Path(workdir), Path(out)
  corpus = open_corpus(config, workdir)
  done, states = _nearest(workdir / "checkpoints", step)
  print(f"replays {step - done} updates, from update {done} on", flush=True)
  total = (step - done) * config.train.batch_rows
  progress = Progress("rows replayed", total).show
  rows = replay.rows_of_step(
    corpus, config, step, states=states, done=done, progress=progress
  )
  out.mkdir(parents=True, exist_ok=True)
  pictures, paths = _pictures(workdir), []
  for n, row in enumerate(rows):
    text = row_page.page(
      row,
      corpus.tokenizer,
      title=f"Step {step}, row {n}",
      pictures=pictures,
      patches_per_image=config.model.patches_per_image,
    )
    paths.append(out / f"step-{step}-row-{n:0{len(str(len(rows)))}d}.html")
    paths[-1].write_text(text)
  return paths


def _nearest(directory: Path, step: int) -> tuple[int, dict[int, dict] | None]:
  """The newest checkpoint before an update that can be read: updates done, states."""
  with Checkpoints(directory, read_only=True) as checkpoints:
    for done in reversed([s for s in checkpoints.steps() if s < step]):
      try:
        return done, checkpoints.describe(done)["lanes"]
      except (OSError, ValueError) as error:
        print(f"checkpoint {done} is passed over: {error}", flush=True)
  return 0, None


def _pictures(workdir: Path) -> Callable[[np.ndarray], np.ndarray]:
  kept = prepared.kept(workdir)
  if kept is None:
    return _pixels
  images, sha256 = kept
  path = workdir / manifest_lib.AUTOENCODER
  if sha256 is None or not path.is_file():
    return shards.false_colours if images.latents else _stripes
  codec = codec_lib.load(path)
  scale, shift = (np.asarray(x, np.float32) for x in (images.scale, images.shift))
  raw = lambda x: x * scale + shift if images.latents else x  # noqa: E731
  # One by one: every other number of images would be compiled anew.
  return lambda x: np.concatenate([codec.decode(raw(one[None])) for one in x])


def _pixels(images: np.ndarray) -> np.ndarray:
  return np.clip(np.round(127.5 * (images + 1)), 0, 255).astype(np.uint8)


def _stripes(codes: np.ndarray) -> np.ndarray:
  """Codes without an autoencoder: a square of grey, equal where codes are."""
  side = int(np.ceil(codes.shape[1] ** 0.5))
  shades = np.zeros((len(codes), side * side), np.uint8)
  shades[:, : codes.shape[1]] = codes * 37 % 256
  return shades.reshape(-1, side, side, 1)
