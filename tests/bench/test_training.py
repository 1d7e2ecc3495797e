"""What is said of a step's speed, with a step that takes no time."""

import contextlib

import pytest
import tiny

from tfusion.bench import training
from tfusion.data.pipeline import HostBatches, open_corpus
from tfusion.sequence import live_elements
from tfusion.training import machine
from tfusion.training.flops import batch_flops

STEPS = 3


def test_the_figures_fit_together_and_count_the_rows_of_the_loop(tmp_path, monkeypatch):
  config = tiny.config(
    model__image_shape=(8, 8, 1),
    model__vocab_size=320,
    data__sources=("digits",),
    data__row_length=64,
    data__workers=0,
  )
  rates = iter([3e9, 2e9])  # before and after
  monkeypatch.setattr(machine, "measure_matmul", lambda seconds: next(rates))
  program = training.Program(lambda: 0, lambda state, batch: (state + 1, {"loss": 0.0}))
  monkeypatch.setattr(training, "compile_step", lambda *_: program)
  found = training.bench_step(config, steps=STEPS)
  corpus = open_corpus(config, tmp_path)
  with contextlib.closing(HostBatches(corpus, config, host=0, hosts=1)) as data:
    _, *rows = [next(data) for _ in range(1 + STEPS)]  # the first is the step's alone
  seconds = STEPS * found["loop_ms"] / 1e3
  flops = sum(batch_flops(config.model, batch) for batch in rows)
  assert found["gflops"] * 1e9 * seconds == pytest.approx(flops)
  elements = sum(map(live_elements, rows))
  assert found["elements_per_s"] * seconds == pytest.approx(elements)
  assert found["matmul_gflops"] == 3.0 and not list(rates)  # the best of both
  assert found["share"] == pytest.approx(found["gflops"] / found["matmul_gflops"])
  assert found["step_ms"] > 0 and found["llama_ms"] > 0
  overhead = 1 - found["step_ms"] / found["loop_ms"]
  assert found["host_overhead"] == pytest.approx(overhead)


def test_programs_take_turns_and_the_ratio_is_of_those_that_were_neighbours(
  monkeypatch,
):
  milliseconds = {"step": iter([100, 200, 500]), "llama": iter([50, 200, 100])}
  turns = []

  def time_steps(step, state, batch, *, steps):
    assert (state, batch, steps) == ("new", f"rows of {step}", 2)
    turns.append(step)
    return [next(milliseconds[step])] * steps, "old"

  monkeypatch.setattr(training, "time_steps", time_steps)
  programs = {
    name: (training.Program(lambda: "new", name), f"rows of {name}")
    for name in ("step", "llama")
  }
  found = training.time_in_turns(programs, steps=2)
  assert turns == ["step", "llama"] * 3
  assert found == {"step": [100, 200, 500], "llama": [50, 200, 100]}
  assert training.over(found["step"], found["llama"]) == 1.0  # of 1, 0 and 4
