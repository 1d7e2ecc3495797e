"""How a process of ours begins: its memory, its noise, and who may begin at all.

Owns: huge pages, what libraries print, scripts that data workers import. Not: arguments
(cli.py).
"""

import importlib.util
import multiprocessing
import os
import sys
from pathlib import Path

from absl import logging

# Where an accelerator would show itself on Linux.
DEVICES = ("accel*", "vfio/*", "nvidia*", "kfd", "dxg")


def use_huge_pages() -> None:
  """Starts this process anew with memory in huge pages, which glibc reads at start.

  XLA's CPU backend takes its temporaries from malloc anew in every step; in pages of
  4 KiB, looking addresses up costs a quarter of a training step on the digits.
  """
  if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
    os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def quiet(*, verbose: bool) -> None:
  """Lets libraries speak from warnings on, or with `verbose` at length."""
  logging.use_absl_handler()
  logging.set_verbosity(logging.INFO if verbose else logging.WARNING)
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  # Of processes that this one starts: what a killed one leaves in shared memory is
  # taken away, and one need not be told.
  os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker")
  # Where libtpu is installed, to compile for TPUs elsewhere, JAX looks for one here,
  # and libtpu reports at length that there is none.
  if importlib.util.find_spec("libtpu") and not any(
    any(Path("/dev").glob(name)) for name in DEVICES
  ):
    os.environ.setdefault("JAX_PLATFORMS", "cpu")


def refuse_in_data_workers() -> None:
  """Stops a script that a data worker runs again from its first line.

  Data workers are processes that import the script they were started by. If it trains
  as soon as it is imported, each of them would start to train as well.

  Raises:
    RuntimeError: this process is such a worker, in the middle of that import.
  """
  script = sys.modules.get("__mp_main__")  # it replaces __main__ once it is imported
  importing = script is not None and script is not sys.modules["__main__"]
  if importing and multiprocessing.parent_process() is not None:
    raise RuntimeError(
      "a data worker runs this script again when it imports it: put what the script"
      ' does below `if __name__ == "__main__":`, or set data.workers=0'
    )
