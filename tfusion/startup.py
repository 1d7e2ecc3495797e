"""How a program of ours begins: its memory, its noise, its data workers.

Owns: huge pages, what libraries print, where compiled programs are kept, scripts that
data workers would run again. Not: arguments (arguments.py), the workers
(data/pipeline.py).
"""

import ast
import hashlib
import importlib.util
import inspect
import os
import platform
import sys
import traceback
from pathlib import Path

from absl import logging

# Where an accelerator would show itself on Linux.
DEVICES = ("accel*", "vfio/*", "nvidia*", "kfd", "dxg")
PROGRAMS = "JAX_COMPILATION_CACHE_DIR"  # in the environment: where JAX keeps them


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


def keep_programs(workdir: str) -> None:
  """Lets JAX keep in a workdir what it compiles, so that the next start loads it.

  JAX reads this when it is imported. A cache that the user has named, with
  PROGRAMS, stays; a workdir in a bucket has none.
  """
  if "://" not in workdir:
    os.environ.setdefault(PROGRAMS, str(programs_in(workdir)))
    # All of them: sampling has many that take less than the second that JAX asks for.
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")


def programs_in(folder: str | Path) -> Path:
  """Where in a folder compiled programs are kept, of CPUs like this one.

  Programs for one CPU may hold instructions that another lacks.
  """
  path = Path("/proc/cpuinfo")
  lines = path.read_text().splitlines() if path.is_file() else []
  known = [x for x in lines if x.partition(":")[0].strip() in ("flags", "Features")]
  cpu = "".join([platform.machine(), platform.processor(), *known[:1]])
  name = hashlib.sha256(cpu.encode()).hexdigest()[:8]
  return Path(folder).absolute() / "programs" / name


def check_script(workers: int) -> None:
  """Refuses a script that its own data workers would run again.

  Data workers are processes that import the script they are started by. One that trains
  as soon as it is imported would do so in each of them, and wait for ever.

  Args:
    workers: data.workers, how many are to be started.

  Raises:
    ValueError: the script that runs now calls this outside of
      `if __name__ == "__main__":`. Notebooks have no such script.
  """
  stack = traceback.walk_stack(inspect.currentframe()) if workers else ()
  for frame, line in stack:
    code, name = frame.f_code, frame.f_globals.get("__name__")
    script = Path(code.co_filename)
    if (code.co_name, name) == ("<module>", "__main__") and script.is_file():
      if not _is_guarded(script.read_bytes(), line):
        raise ValueError(
          f"{script}, line {line}: each of the data.workers={workers} imports this"
          " script, and would do the same again; put what it does below `if __name__"
          ' == "__main__":`, or set data.workers=0'
        )


def _is_guarded(source: bytes, line: int) -> bool:
  """Whether a line of a script is skipped by who imports the script."""
  return any(
    isinstance(node, ast.If)
    and "__name__" in ast.unparse(node.test)
    and node.lineno <= line <= (node.end_lineno or node.lineno)  # parsed, so it has one
    for node in ast.parse(source).body
  )
