"""What a person is told of an error: one line with the place, the fault, the remedy.

Owns: which errors are a person's to mend, what is said of those that name no remedy
themselves. Not: the checks that find them (their files raise ValueError), exit statuses
(cli.py).
"""

import errno
import json
import os

FULL = (errno.ENOSPC, errno.EDQUOT)
OF_SYSTEM = {  # errno: what is said of the file
  errno.ENOENT: "there is no such file or folder; restore it, or name another",
  errno.EACCES: "access is denied; ask for the right to it, or name another",
  errno.EPERM: "access is denied; ask for the right to it, or name another",
  errno.EROFS: "lies on a disk that cannot be written to; name another place",
  errno.EISDIR: "is a folder, and a file is needed; name a file",
  errno.ENOTDIR: "a part of its path is a file; name a folder",
  errno.EIO: "the disk fails to read or write it; look at the disk, then start again",
  errno.ESTALE: "is gone from the shared disk; mount it anew, then start again",
  errno.EMFILE: "too many files are open; raise the limit with `ulimit -n 65536`",
  errno.ENFILE: "the system has too many open files; close some programs",
  errno.EFBIG: "a file grew larger than is allowed; raise `ulimit -f`, or name a place"
  " on a disk that takes large files",
  errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
}
LESS = (
  "lower train.batch_rows or data.row_length, raise train.accumulate, set model.remat,"
  " or choose a smaller model"
)


def explain(error: BaseException, *, place: str = "") -> str | None:
  """Says in a line what a person can do about an error.

  Args:
    error: whatever a command raised.
    place: the folder that the command writes to, if it has one.

  Returns:
    None for what no one but us can mend: it deserves its traceback.
  """
  said = " ".join(str(error).split("\n")) if isinstance(error, OSError) else str(error)
  if isinstance(error, OSError):
    return _of_system(error, said, place)
  if isinstance(error, json.JSONDecodeError):
    return f"a file is no JSON ({said}): {error.doc[:60]!r}; restore or delete it"
  if isinstance(error, MemoryError):
    return f"the memory of this machine is full ({said or 'no more to be had'}); {LESS}"
  if isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" in said:
    first = said.splitlines()[0]
    return f"the memory of the device is full ({first[:200]}); {LESS}"
  if isinstance(error, (ValueError, FloatingPointError, OverflowError)):
    return said
  return None


def _of_system(error: OSError, said: str, place: str) -> str:
  file = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else ""
  if error.errno in FULL:
    where = file or place or "a disk"
    return f"{where}: the disk is full ({error.strerror}); make room, then start again"
  if error.errno == errno.ENOMEM:
    return f"the memory of this machine is full ({said}); {LESS}"
  known = OF_SYSTEM.get(error.errno or 0)
  where = file or place
  if not where or not error.strerror:
    return said
  return (
    f"{where}: {known} ({error.strerror})" if known else f"{where}: {error.strerror}"
  )
