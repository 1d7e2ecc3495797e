"""What a run writes down: values, speed, the console.

Owns: the .jsonl files, the clock, floating-point operations and peak rates. Not: the
page that shows them (report.py).

`metrics.jsonl` and `validation.jsonl` hold values alone, which a resumed run repeats
bit for bit; times stand in `speed.jsonl`.
"""

import importlib.util
import json
import math
import os
import platform
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType

import tfusion
from tfusion.config import ModelConfig
from tfusion.sequence import Batch

# Dense bfloat16 peak, FLOP/s per jax device, by device_kind; public data sheets.
PEAK_FLOPS = {
  "TPU v4": 275e12,
  "TPU v4 lite": 138e12,
  "TPU v5 lite": 197e12,
  "TPU v5e": 197e12,  # jax knows both names
  "TPU v5": 459e12,
  "TPU v6 lite": 918e12,
  "TPU v6e": 918e12,
  "TPU7x": 1153.5e12,
  "NVIDIA A100": 312e12,
  "NVIDIA H100": 989e12,
  "NVIDIA H200": 989e12,
}


class JsonLines:
  """A file of one JSON object a line; each has a `step`."""

  def __init__(self, path: Path, *, last_step: int, writes: bool):
    """Opens for appending; drops lines beyond `last_step`, which are done again, and
    a last line that a killed run left unfinished. Only one host `writes`."""
    self.path, self.writes = path, writes
    kept = [line for line in read_lines(path) if line["step"] <= last_step]
    self.last_step = kept[-1]["step"] if kept else -1
    if writes:
      aside = path.with_suffix(".tmp")
      with _naming(path):
        aside.write_text("".join(json.dumps(line) + "\n" for line in kept))
        os.replace(aside, path)

  def append(self, line: dict[str, Any]):
    """Adds a line; one open and close, so that a killed run loses nothing. What is not
    finite becomes null. Raises OSError, naming the file, if the disk is full."""
    self.last_step = line["step"]
    if self.writes:
      with _naming(self.path), self.path.open("a") as file:
        file.write(json.dumps(_finite(line), allow_nan=False) + "\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
  """Reads the whole lines of a .jsonl file; an unfinished last line is left out.

  Raises:
    ValueError: a whole line is damaged; it is named.
  """
  if not path.is_file():
    return []
  found = []
  for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
    try:
      if line:
        found.append(json.loads(line))
        float(found[-1]["step"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
      raise ValueError(
        f"{path}: line {number} is damaged ({type(error).__name__}: {error}):"
        f" {line[:60]!r}; delete that line, or restore the file"
      ) from error
  return found


@contextmanager
def _naming(path: Path):
  """Names the file in an OSError; a write to a full disk does not say which it was."""
  try:
    yield
  except OSError as error:
    error.filename = error.filename or str(path)
    raise


def _finite(value: Any) -> Any:
  """JSON has no nan and no inf: null stands for them."""
  if isinstance(value, dict):
    return {key: _finite(x) for key, x in value.items()}
  if isinstance(value, list):
    return [_finite(x) for x in value]
  return None if isinstance(value, float) and not math.isfinite(value) else value


class Clock:
  """Seconds of the loop by what they went into."""

  def __init__(self):
    self.start = time.perf_counter()
    self.seconds = defaultdict(float)

  @contextmanager
  def measure(self, name: str):
    """Adds the time inside to `name`."""
    begin = time.perf_counter()
    try:
      yield
    finally:
      self.seconds[name] += time.perf_counter() - begin

  def wait_for(self, rows: Iterator[Batch], *, device: Any) -> Batch:
    """Takes the next rows; counts as `data` the time that the device may have idled.

    That is none if what the device was computing, the tree `device`, still is not
    ready when the rows are there, and else all of it, which is an upper bound.
    """
    start = time.perf_counter()
    batch = next(rows)
    arrays = [x for x in jax.tree.leaves(device) if isinstance(x, jax.Array)]
    if all(x.is_ready() for x in arrays):
      self.seconds["data"] += time.perf_counter() - start
    return batch

  @property
  def elapsed(self) -> float:
    """Seconds since the clock was made."""
    return time.perf_counter() - self.start


def batch_flops(config: ModelConfig, batch: Batch) -> float:
  """Floating-point operations that a training step needs for the live elements.

  Forward and backward matmuls, 6 per parameter and element, and attention over the
  pairs that see each other; not padding, not recomputation, not the embedding lookup.
  """
  d, k = config.width, config.head_dim
  attention = d * k * (2 * config.heads + 2 * config.kv_heads)
  block = attention + 3 * d * config.mlp
  live_bl = batch.hi_bl >= batch.lo_bl
  patches = int(np.sum(batch.patch_bl >= 0))
  text = int(np.sum(live_bl)) - patches
  pairs = int(np.sum(np.where(live_bl, batch.hi_bl - batch.lo_bl + 1, 0)))
  numbers = config.patch**2 * config.image_shape[2]
  matmul = (text + patches) * config.layers * block
  heads = text * d * config.vocab_size + patches * 2 * d * numbers
  return 6.0 * (matmul + heads) + 12.0 * config.layers * config.heads * k * pairs


def peak_flops() -> tuple[float, str]:
  """FLOP/s of one device and where the figure is from.

  Accelerators: the data sheet. Others, and a CPU, whose devices share its cores:
  measured here, float32, 1024 x 1024 matmuls, the best of a few.
  """
  kind = jax.devices()[0].device_kind
  for name, peak in sorted(PEAK_FLOPS.items(), key=lambda item: -len(item[0])):
    if kind.startswith(name):
      return peak, f"data sheet of {name}, bfloat16"
  sharing = jax.local_device_count() if jax.default_backend() == "cpu" else 1
  return measure_matmul() / sharing, "matmul measured at the start"


def measure_matmul(*, size: int = 1024, seconds: float = 0.3) -> float:
  """FLOP/s of float32 matmuls of this size on one local device, the best run.

  On a CPU one device already uses all cores.
  """
  device = jax.local_devices()[0]
  mesh = jax.make_mesh((1,), ("x",), devices=[device], axis_types=(AxisType.Explicit,))
  with jax.set_mesh(mesh):
    x = jnp.ones((size, size), jnp.float32)
    matmul = jax.jit(jnp.matmul)
    matmul(x, x).block_until_ready()
    best, begin = 0.0, time.perf_counter()
    while time.perf_counter() - begin < seconds:
      start = time.perf_counter()
      matmul(x, x).block_until_ready()
      best = max(best, 2.0 * size**3 / (time.perf_counter() - start))
  return best


def environment() -> dict[str, Any]:
  """Hardware and versions of this process, for run.json and printed figures."""
  device = jax.devices()[0]
  cpu = platform.processor() or platform.machine()
  info = Path("/proc/cpuinfo")
  if info.is_file():
    names = [x for x in info.read_text().split("\n") if x.startswith("model name")]
    cpu = names[0].partition(":")[2].strip() if names else cpu
  return {
    "device": device.device_kind,
    "devices": jax.device_count(),
    "hosts": jax.process_count(),
    "cpu": cpu,
    "cores": len(os.sched_getaffinity(0))
    if hasattr(os, "sched_getaffinity")
    else os.cpu_count(),
    "python": platform.python_version(),
    "jax": jax.__version__,
    "tfusion": tfusion.__version__,
  }


class TensorBoard:
  """Writes the same values for TensorBoard, if tensorboardX is installed."""

  def __init__(self, directory: Path, *, writes: bool):
    self.writer = None
    if writes and importlib.util.find_spec("tensorboardX"):
      from tensorboardX import SummaryWriter

      self.writer = SummaryWriter(str(directory))

  def write(self, group: str, values: dict[str, Any]):
    """Writes numbers under `group/name` at values["step"]."""
    if self.writer is None:
      return
    for name, value in values.items():
      if isinstance(value, int | float) and name != "step":
        self.writer.add_scalar(f"{group}/{name}", value, values["step"])
    self.writer.flush()


def progress_line(step: int, steps: int, values: dict, speed: dict) -> str:
  """One line for the console."""
  left = int(speed["eta_seconds"])
  return (
    f"step {step}/{steps}  loss {values['loss']:.3f}"
    f"  text {values['loss_text']:.3f}  image {values['loss_image']:.4f}"
    f"  {speed['elements_per_s']:,.0f} elements/s  {speed['step_ms']:.0f} ms"
    f"  MFU {speed['mfu']:.0%}  data wait {speed['data_wait_share']:.1%}"
    f"  left {left // 60}:{left % 60:02d}"
  )
