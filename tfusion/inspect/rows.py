"""The rows that training took at a step, or will take, for people to look at.

Owns: where replaying begins, the files. Not: the replay (replay.py), the page
(row_page.py), what latents look like (generate/canvas.py).
"""

from pathlib import Path

from tfusion import files
from tfusion.checkpoint import Checkpoints
from tfusion.config import Config
from tfusion.data.pipeline import open_corpus
from tfusion.generate.canvas import open_canvas
from tfusion.inspect import replay, row_page
from tfusion.progress import Progress


def write_pages(
  config: Config, workdir: str | Path, step: int, *, out: str | Path
) -> list[Path]:
  """Writes the rows of the global batch of update `step`, one HTML page each.

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
  workdir, out = files.to_path(workdir), files.to_path(out)
  corpus = open_corpus(config, workdir)
  done, states = _nearest(workdir / "checkpoints", step)
  print(f"replays {step - done} updates, from update {done} on", flush=True)
  total = (step - done) * config.train.batch_rows
  progress = Progress("rows replayed", total).show
  rows = replay.rows_of_step(
    corpus, config, step, states=states, done=done, progress=progress
  )
  out.mkdir(parents=True, exist_ok=True)
  canvas, paths = open_canvas(config, workdir, look_only=True), []
  for n, row in enumerate(rows):
    text = row_page.page(
      row,
      corpus.tokenizer,
      title=f"Step {step}, row {n}",
      show=canvas.show,
      kinds=[kind.name for kind in config.model.every_kind],
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
