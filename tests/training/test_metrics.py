"""Promises of tfusion/training/metrics.py and of the speeds that the loop writes."""

import importlib.machinery
import os
import pathlib
import sys
import types

import jax
import numpy as np
import pytest
import tiny

from tfusion import sequence
from tfusion.training import loop, metrics
from tfusion.training.optim import decay_mask

CONFIG = tiny.config()


def clock_that_reads(*seconds: float) -> types.SimpleNamespace:
  """Stands for the module `time`; every look at the clock takes the next reading."""
  return types.SimpleNamespace(perf_counter=iter(seconds).__next__)


# Floating-point operations.


def test_operations_of_one_row_are_those_counted_by_hand():
  rng = np.random.default_rng(0)
  document = tiny.text(rng, 3), tiny.image(rng)
  batch = sequence.stack([tiny.pack([document], CONFIG)])
  # BOS, 3 tokens, BOI, 4 patches, EOI; what is left of the row is padding.
  text, patches, layers = 6, 4, 2
  # Queries and outputs, keys and values of half as many heads, the three of SwiGLU.
  layer = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48
  # A text element meets the head of 32 tokens, a patch of 8 numbers enters and leaves.
  multiplied = (text + patches) * layers * layer + text * 32 * 32 + patches * 2 * 8 * 32
  # Text sees what is before it and itself, a patch all up to the last patch.
  pairs = (1 + 2 + 3 + 4 + 5) + 4 * 9 + 10
  # Scores and the mean of the values: 4 heads of 8 numbers each time.
  multiplied += layers * pairs * 2 * 4 * 8
  # A product and a sum; forward once, backward twice.
  assert metrics.batch_flops(CONFIG.model, batch) == 3 * 2 * multiplied
  # The matrices of a layer are those of the model, none forgotten.
  blocks = tiny.params(CONFIG.model)["transformer"]
  sizes = jax.tree.map(lambda x, matrix: x.size * matrix, blocks, decay_mask(blocks))
  assert sum(jax.tree.leaves(sizes)) == layers * layer


def test_padding_and_neighbours_in_a_row_cost_nothing():
  rng = np.random.default_rng(0)
  documents = (tiny.text(rng, 3), tiny.image(rng)), (tiny.image(rng), tiny.text(rng, 2))
  rows = [[documents[0]], [documents[1]], list(documents), []]
  alone, other, together, empty = (
    metrics.batch_flops(CONFIG.model, sequence.stack([tiny.pack(row, CONFIG)]))
    for row in rows
  )
  assert together == alone + other and empty == 0


def test_the_matmul_rate_is_that_of_the_best_run(monkeypatch):
  # Begin; look, start and end of runs of 2 s, 0.5 s and 1 s; a last look.
  readings = 0.0, 0.1, 1.0, 3.0, 3.1, 4.0, 4.5, 4.6, 5.0, 6.0, 10.0
  monkeypatch.setattr(metrics, "time", clock_that_reads(*readings))
  assert metrics.measure_matmul(size=16, seconds=9.0) == 2 * 16**3 / 0.5


@pytest.mark.parametrize(
  "kind, peak",
  [
    ("TPU v4", 275e12),
    ("TPU v4 lite", 138e12),
    ("TPU v5 lite", 197e12),
    ("TPU v5e", 197e12),
    ("TPU v5", 459e12),
    ("TPU v5p", 459e12),
    ("TPU v6 lite", 918e12),
    ("TPU v6e", 918e12),
    ("NVIDIA H100 80GB HBM3", 989e12),
  ],
)
def test_the_peak_of_an_accelerator_is_its_own_whatever_name_jax_gives_it(
  monkeypatch, kind, peak
):
  device = types.SimpleNamespace(device_kind=kind)
  monkeypatch.setattr(jax, "devices", lambda: [device])
  found, source = metrics.peak_flops()
  assert found == peak and "data sheet" in source


def test_the_peak_of_a_cpu_is_measured_and_shared_by_its_devices(monkeypatch):
  monkeypatch.setattr(metrics, "measure_matmul", lambda: 12e9)
  monkeypatch.setattr(jax, "local_device_count", lambda: 4)
  assert metrics.peak_flops() == (3e9, "matmul measured at the start")
  # Accelerators that no data sheet is known of have their own units each.
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  assert metrics.peak_flops() == (12e9, "matmul measured at the start")


# Time.


@pytest.mark.parametrize(
  "ready, waited",
  [((True, True), 3.0), ((True, False), 0.0), ((False, False), 0.0), ((), 3.0)],
)
def test_waiting_for_rows_counts_only_if_the_device_had_nothing_left_to_do(
  monkeypatch, ready, waited
):
  class Array:
    def __init__(self, ready):
      self.is_ready = lambda: ready

  monkeypatch.setattr(jax, "Array", Array)
  monkeypatch.setattr(metrics, "time", clock_that_reads(0.0, 10.0, 13.0))
  clock = metrics.Clock()
  device = (7, [Array(x) for x in ready]) if ready else None  # 7: a step, no array
  assert clock.wait_for(iter(["rows"]), device=device) == "rows"
  assert clock.seconds["data"] == waited


def test_no_share_of_the_machines_rate_is_above_all_of_it(monkeypatch):
  said, facts = [], {}
  run = object.__new__(loop._ModelRun)
  run.__dict__ |= dict(
    peak=1e9,
    facts={"device": "cpu", "peak_flops": 1e9},
    say=said.append,
    write_json=lambda name, values: facts.update({name: dict(values)}),
  )
  monkeypatch.setattr(metrics, "peak_flops", lambda: (4e9, "matmul"))  # less busy now
  devices = jax.device_count()
  assert run.speed(2.0, (100, 1e9 * devices))["mfu"] == 0.5 and not said
  # Six times what was measured at the start; then more than can be measured at all.
  assert run.speed(1.0, (100, 6e9 * devices))["mfu"] == 1.0
  assert run.speed(1.0, (100, 3e9 * devices))["mfu"] == 0.5
  assert run.peak == 6e9 and facts["run.json"]["peak_flops"] == 6e9 * devices
  assert "MFU is counted from" in said[0] and len(said) == 1
  run.peak = 1e9
  assert run.speed(1.0, (100, 2e9 * devices))["mfu"] == 0.5  # of the 4e9 of now


def test_speed_is_that_since_the_last_line_without_what_is_no_training():
  seconds = {"init": 1.0, "compile": 2.0, "save": 3.0, "evaluate": 4.0, "data": 0.5}
  said, written = [], []
  run = object.__new__(loop._ModelRun)
  run.__dict__ |= dict(
    config=tiny.config(train__steps=30),
    clock=types.SimpleNamespace(elapsed=20.0, seconds=seconds),
    peak=1e9 / jax.device_count(),
    done=np.asarray([0, 0, 10.0, 1000, 5e9]),
    logged=np.zeros(5),
    files={"metrics": [], "speed": []},
    board=types.SimpleNamespace(write=lambda *line: written.append(line)),
    say=said.append,
    held=types.SimpleNamespace(check=lambda: None),
  )
  losses = {"loss": 2.0, "loss_text": 1.5, "loss_image": 0.1}
  run.log({"step": 10} | losses)
  run.clock.elapsed = 50.0
  seconds |= {"save": 10.0, "evaluate": 12.0, "data": 3.5}
  run.done[2:] += 5, 4500, 3e9
  run.log({"step": 15} | losses)
  first, second = run.files["speed"]
  assert first == {
    "step": 10,
    "seconds": 20.0,
    "elements_per_s": 100.0,
    "step_ms": 1000.0,
    "mfu": pytest.approx(0.5),
    "data_wait_share": 0.05,
    "eta_seconds": 20.0,
  }
  assert second == {
    "step": 15,
    "seconds": 50.0,
    "elements_per_s": 300.0,
    "step_ms": 3000.0,
    "mfu": pytest.approx(0.2),
    "data_wait_share": 0.2,
    "eta_seconds": 45.0,
  }
  assert [line["step"] for line in run.files["metrics"]] == [10, 15]
  assert written[2:] == [
    ("metrics", {"step": 15} | losses),
    ("speed", second),
  ]
  assert said[1].startswith("step 15/30  loss 2.000") and said[1].endswith("left 0:45")


def test_the_line_on_the_console_holds_losses_rates_and_the_time_left():
  values = {"loss": 1.23456, "loss_text": 0.5, "loss_image": 0.14691}
  speed = {
    "elements_per_s": 12345.6,
    "step_ms": 130.6,
    "mfu": 0.434,
    "data_wait_share": 0.0123,
    "eta_seconds": 724.9,
  }
  assert metrics.progress_line(20, 2000, values, speed) == (
    "step 20/2000  loss 1.235  text 0.500  image 0.1469  12,346 elements/s  131 ms"
    "  MFU 43%  data wait 1.2%  left 12:04"
  )


# Files.


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
def test_a_line_that_finds_the_disk_full_names_its_file(tmp_path):
  path = tmp_path / "metrics.jsonl"
  path.write_text('{"step": 0}\n')
  file = metrics.JsonLines(path, last_step=0, writes=True)
  path.with_suffix(".tmp").symlink_to("/dev/full")
  with pytest.raises(OSError, match="No space left on device") as error:
    metrics.JsonLines(path, last_step=0, writes=True)
  assert str(path) in str(error.value) and path.read_text() == '{"step": 0}\n'
  path.unlink()
  path.symlink_to("/dev/full")
  with pytest.raises(OSError, match="No space left on device") as error:
    file.append({"step": 1})
  assert str(path) in str(error.value)


# TensorBoard.


class Writer:
  """Stands for tensorboardX.SummaryWriter."""

  made = []

  def __init__(self, directory):
    self.directory, self.scalars, self.flushed = directory, [], []
    self.made.append(self)

  def add_scalar(self, name, value, step):
    self.scalars.append((name, value, step))

  def flush(self):
    self.flushed.append(len(self.scalars))


@pytest.fixture
def writers(monkeypatch):
  """The writers that are made of a tensorboardX that is installed."""
  module = types.ModuleType("tensorboardX")
  module.__spec__ = importlib.machinery.ModuleSpec("tensorboardX", None)
  module.SummaryWriter = Writer
  monkeypatch.setitem(sys.modules, "tensorboardX", module)
  monkeypatch.setattr(Writer, "made", [])
  return Writer.made


LINE = {"step": 3, "loss": 1.5, "images": 2, "bins": [1.0, None], "empty": None}


def test_tensorboard_gets_every_number_of_a_line_at_its_step(writers):
  metrics.TensorBoard(pathlib.Path("runs/a"), writes=True).write("metrics", LINE)
  (writer,) = writers
  assert writer.directory == "runs/a"
  assert writer.scalars == [("metrics/loss", 1.5, 3), ("metrics/images", 2, 3)]
  assert writer.flushed == [2]  # so that a killed run loses nothing


def test_a_host_that_does_not_write_makes_no_tensorboard(writers):
  metrics.TensorBoard(pathlib.Path("runs/a"), writes=False).write("metrics", LINE)
  assert writers == []


def test_without_tensorboard_nothing_breaks(monkeypatch, tmp_path):
  monkeypatch.setitem(sys.modules, "tensorboardX", None)
  metrics.TensorBoard(tmp_path / "tensorboard", writes=True).write("metrics", LINE)
  assert list(tmp_path.iterdir()) == []
