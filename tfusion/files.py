"""Files that are there whole or not at all, a power cut included.

Owns: writing them, making their names last. Not: what is in them.
"""

import os
import uuid
from pathlib import Path


def write_whole(path: Path, data: bytes) -> None:
  """Writes a file that is there whole or not at all, a power cut included."""
  aside = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
  try:
    with open(aside, "wb") as file:
      file.write(data)
      file.flush()
      os.fsync(file.fileno())
    os.replace(aside, path)
  finally:
    aside.unlink(missing_ok=True)
  sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
  """Makes the names in a folder last: a rename alone may not outlive a power cut."""
  handle = os.open(folder, os.O_RDONLY)
  try:
    os.fsync(handle)
  finally:
    os.close(handle)
