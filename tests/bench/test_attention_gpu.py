"""The GPU attention benchmark runs to the end, and says what it counts and skips."""

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from bench import attention_gpu

from tfusion.attention import intervals

SCRIPT = Path(__file__).parent / "attention_gpu.py"


def run(*arguments: str) -> subprocess.CompletedProcess:
  root = str(Path(__file__).parents[2])
  env = dict(os.environ, JAX_PLATFORMS="cpu", PYTHONPATH=root)
  command = [sys.executable, str(SCRIPT), *arguments]
  return subprocess.run(command, capture_output=True, text=True, env=env)


@pytest.mark.slow
def test_a_smoke_run_prints_every_program_or_why_not():
  done = run("--smoke")
  assert done.returncode == 0, done.stderr[-2000:]
  ours, cudnn, masked, tokamax, flex = done.stdout.splitlines()[-5:]
  for line, name in ((ours, "ours"), (masked, "jax.nn, mask")):
    numbers = re.findall(r"[\d.]+", line.removeprefix(f"  {name}"))
    assert len(numbers) == 9 and all(float(x) >= 0 for x in numbers)
  assert ours.count(" 1.00x") == 3
  assert "not run: needs a GPU" in cudnn
  assert tokamax.startswith("  tokamax, mask")
  assert "not run: give --torch-python" in flex


@pytest.mark.slow
def test_without_a_gpu_it_says_what_to_do():
  done = run()
  assert done.returncode == 2 and "--smoke" in done.stderr


def test_live_pairs_are_those_of_the_mask():
  for documents in attention_gpu.MASKS.values():
    lo, hi = attention_gpu.pack(np.random.default_rng(1), 2, 600, documents)
    sees = intervals.sees(lo, hi, keys=600)
    assert int(np.sum(sees)) == np.sum(hi - lo + 1)
    assert (np.diff(lo) >= 0).all() and (np.diff(hi) >= 0).all()
    assert len(np.unique(lo[0])) == max(documents, 1)


def test_flex_attention_runs_on_the_same_intervals():
  pytest.importorskip("torch", reason="attention_torch.py runs in PyTorch")
  flags = argparse.Namespace(torch_python=sys.executable, rounds=2, repeat=1)
  lo, hi = attention_gpu.pack(np.random.default_rng(1), 1, 256, 4)
  times = attention_gpu.torch_times(lo, hi, np.zeros((1, 256, 2, 16)), flags)
  assert len(times["forward"]) == 2 and min(times["forward"]) > 0
