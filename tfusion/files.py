"""Files that are there whole or not at all, a power cut included; where they may lie.

Owns: writing them, making their names last, copies of buckets' objects on this machine.
Not: what is in them, the requests to a bucket (buckets.py).
"""

import contextlib
import errno
import hashlib
import os
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from tfusion import buckets
from tfusion.buckets import BucketPath

# What the system answers where a folder cannot be synchronised at all, as on some
# mounted buckets: names last there as soon as they are made.
NO_SYNC = (errno.EINVAL, errno.ENOTSUP)


def to_path(where: Any) -> Path:
  """A path of this machine, or of a bucket where it begins with gs:// or s3://.

  Args:
    where: a path, or what a person wrote for one.

  Returns:
    A pathlib.Path or a BucketPath, which has those methods of it that are used here.
  """
  if not buckets.is_bucket(where):
    return Path(where)
  return cast(Path, where if isinstance(where, BucketPath) else BucketPath(str(where)))


def to_absolute(where: str) -> str:
  """A spelling that does not depend on the folder one is in."""
  return str(to_path(where)) if buckets.is_bucket(where) else os.path.abspath(where)


def check_there(path: Path, *, option: str) -> None:
  """Refuses a path in a bucket that is not there or may not be read.

  Args:
    path: of a file that was not found; of this machine, nothing is asked.
    option: by which the user named it, or its folder.

  Raises:
    ValueError: names the bucket and what to do.
  """
  if there := buckets.of(path):
    buckets.check(there, option=option)


def cache_of(where: str | Path) -> Path:
  """The folder for what can be had again: in a workdir, or on this machine for what
  lies in a bucket, where nothing can be read in place."""
  if not buckets.is_bucket(where):
    return Path(where) / "cache"
  home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
  name = hashlib.sha256(str(to_path(where)).encode()).hexdigest()[:16]
  return Path(home) / "tfusion" / name


@contextlib.contextmanager
def local(path: str | Path) -> Iterator[Path]:
  """A file as one of this machine, for libraries that take only those.

  Raises:
    OSError: it is of a bucket, and cannot be copied from there.
  """
  found = buckets.of(to_path(path))
  if found is None:
    yield Path(path)
    return
  with tempfile.TemporaryDirectory() as folder:
    found.download(copy := Path(folder) / found.name)
    yield copy


def write_whole(path: Path, data: str | bytes) -> None:
  """Writes a file that is there whole or not at all, a power cut included.

  Several processes may write the same file: the last one's stays.

  Args:
    path: replaced if it is there.
    data: text is written as UTF-8.

  Raises:
    OSError: it cannot be written, as when the disk is full; what was there stays.
  """
  if there := buckets.of(path):
    there.write_bytes(data.encode() if isinstance(data, str) else data)
    return
  with whole(path) as aside:
    aside.write_bytes(data.encode() if isinstance(data, str) else data)


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
  """Gives a name to write to; at the end of the block, the file takes its own name.

  If the block raises, or ends without a file, nothing has changed: what was at `path`
  before stays, and nothing is left beside it. The file may be written by a library that
  takes only a name; it has to be closed when the block ends. For a bucket it is written
  on this machine, and becomes an object by one request.

  Args:
    path: replaced if it is there.

  Raises:
    OSError: the file cannot be written or moved.
  """
  if there := buckets.of(path):
    with tempfile.TemporaryDirectory() as folder:
      yield (made := Path(folder) / path.name)
      there.upload(made)
    return
  # Another name for each process: several hosts may write the same file.
  aside = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
  try:
    yield aside
    _sync(aside)  # or a power cut could leave the name of a file without its bytes
    os.replace(aside, path)
  finally:
    aside.unlink(missing_ok=True)
  sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
  """Makes the names in a folder last: a rename alone may not outlive a power cut."""
  try:
    _sync(folder)
  except OSError as error:
    if error.errno not in NO_SYNC:
      raise


def _sync(path: Path) -> None:
  handle = os.open(path, os.O_RDONLY)
  try:
    os.fsync(handle)
  finally:
    os.close(handle)
