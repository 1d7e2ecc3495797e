"""Files that are there whole or not at all, a power cut included.

Owns: writing them, making their names last. Not: what is in them.
"""

import contextlib
import errno
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

# What the system answers where a folder cannot be synchronised at all, as on some
# mounted buckets: names last there as soon as they are made.
NO_SYNC = (errno.EINVAL, errno.ENOTSUP)


def write_whole(path: Path, data: str | bytes) -> None:
  """Writes a file that is there whole or not at all, a power cut included.

  Several processes may write the same file: the last one's stays.

  Args:
    path: replaced if it is there.
    data: text is written as UTF-8.

  Raises:
    OSError: it cannot be written, as when the disk is full; what was there stays.
  """
  with whole(path) as aside:
    aside.write_bytes(data.encode() if isinstance(data, str) else data)


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
  """Gives a name to write to; at the end of the block, the file takes its own name.

  If the block raises, or ends without a file, nothing has changed: what was at `path`
  before stays, and nothing is left beside it. The file may be written by a library that
  takes only a name; it has to be closed when the block ends.

  Args:
    path: replaced if it is there.

  Raises:
    OSError: the file cannot be written or moved.
  """
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
