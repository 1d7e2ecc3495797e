"""Objects of gs:// and s3:// buckets as paths, with those methods of pathlib in use.

Owns: BucketPath, which library speaks to a store, what a person is told when it fails.
Not: which files there are (their writers), arrays of checkpoints (checkpoint.py).

A bucket has objects and no folders, no renames and no appending. One thing it does give
is worth more: an object is there whole or not at all, and whoever reads after a write
sees it. So a write is one request, and `create` makes an object only if there is none.

The libraries are those of the extra `buckets`. What they would remember of listings is
switched off: several processes write to one bucket. etils.epath is not used: its `walk`
loses the scheme, its `resolve` takes a bucket for a folder of this disk, and where
TensorFlow is installed it speaks to buckets by that.
"""

import contextlib
import errno
import fnmatch
import functools
import importlib.util
import io
import logging
import os
import posixpath
import threading
from collections.abc import Iterator
from typing import IO, Any

LIBRARIES = {"gs": "gcsfs", "s3": "s3fs"}
MAKES = {"gs": "gcloud storage buckets create gs://", "s3": "aws s3 mb s3://"}
SIGN_IN = {
  "gs": "`gcloud auth application-default login`, or run where a service account may"
  " use the bucket",
  "s3": "`aws configure`, set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or run where"
  " a role may use the bucket",
}
# How the libraries name what a person can mend; their classes lie in other packages.
NO_CREDENTIALS = (
  "NoCredentialsError",
  "PartialCredentialsError",
  "TokenRetrievalError",
  "DefaultCredentialsError",
  "RefreshError",
)
# What stores and certificates say to a clock that is wrong.
OF_CLOCK = (
  "RequestTimeTooSkewed",
  "RequestExpired",
  "Token must be a short-lived token",
  "certificate is not yet valid",
)
DENIED = ("401", "403", "Forbidden", "AccessDenied", "Anonymous", "InvalidAccessKeyId")
# Where stores are found, and by what they are sought elsewhere.
STORES = {
  "gs": ("https://storage.googleapis.com", "STORAGE_EMULATOR_HOST"),
  "s3": ("https://s3.amazonaws.com", "AWS_ENDPOINT_URL"),
}
TOGETHER = 16  # requests at a time, of work on many objects
ANSWER_SECONDS = 20.0  # for a bucket's first answer; the libraries try for minutes


def is_bucket(path: object) -> bool:
  """Whether a path, or what a person wrote for one, is of a bucket."""
  return str(path).startswith(tuple(f"{scheme}://" for scheme in LIBRARIES))


def of(path: object) -> "BucketPath | None":
  """The path as one of a bucket; None if it is of this machine."""
  return path if isinstance(path, BucketPath) else None


class BucketPath:
  """An object of a bucket, or the beginning of the names of several, as a path.

  It is no os.PathLike: a library that would take it for a file of this machine fails at
  once. All methods raise OSError, with the address in it, for what the store answers;
  and ValueError where a library is not installed or the address names no bucket.
  """

  def __init__(self, address: str):
    """Takes an address such as gs://bucket/runs/x; asks the store nothing."""
    scheme, _, rest = address.partition("://")
    parts = [part for part in rest.split("/") if part not in ("", ".")]
    if scheme not in LIBRARIES or not parts or ".." in parts:
      raise ValueError(f"{address}: no address of a bucket, such as gs://BUCKET/runs/x")
    self._scheme, self._parts = scheme, tuple(parts)

  def __str__(self) -> str:
    return f"{self._scheme}://{self._key}"

  def __repr__(self) -> str:
    return f"BucketPath({str(self)!r})"

  def __eq__(self, other: object) -> bool:
    return isinstance(other, BucketPath) and str(self) == str(other)

  def __lt__(self, other: "BucketPath") -> bool:
    return str(self) < str(other)

  def __hash__(self) -> int:
    return hash(str(self))

  def __truediv__(self, name: object) -> "BucketPath":
    return BucketPath(f"{self}/{name}")

  @property
  def bucket(self) -> str:
    """The name of the bucket."""
    return self._parts[0]

  @property
  def name(self) -> str:
    """The last part."""
    return self._parts[-1]

  @property
  def stem(self) -> str:
    """The name without its suffix."""
    return posixpath.splitext(self.name)[0]

  @property
  def suffix(self) -> str:
    """The last suffix of the name."""
    return posixpath.splitext(self.name)[1]

  @property
  def parent(self) -> "BucketPath":
    """What lies above; of a bucket itself, the bucket."""
    return BucketPath(f"{self._scheme}://{'/'.join(self._parts[:-1] or self._parts)}")

  def with_name(self, name: str) -> "BucketPath":
    """Another one beside this."""
    return self.parent / name

  def with_suffix(self, suffix: str) -> "BucketPath":
    """The same with another suffix."""
    return self.with_name(self.stem + suffix)

  def relative_to(self, other: "BucketPath") -> str:
    """The rest of the address behind that of `other`."""
    whole, start = str(self), f"{other}/"
    if not whole.startswith(start):
      raise ValueError(f"{self}: does not lie below {other}")
    return whole.removeprefix(start)

  def expanduser(self) -> "BucketPath":
    """Itself: there are no homes in a bucket."""
    return self

  def resolve(self) -> "BucketPath":
    """Itself: there are no links in a bucket."""
    return self

  absolute = resolve

  def is_file(self) -> bool:
    """Whether there is an object of this name."""
    return self._kind() == "file"

  def is_dir(self) -> bool:
    """Whether there are objects below this name."""
    return self._kind() == "directory"

  def exists(self) -> bool:
    """Whether there is an object of this name or below it."""
    return self._kind() != ""

  def stat(self) -> os.stat_result:
    """The size of an object, as `st_size`; nothing else of it is known."""
    with self._asked() as store:
      size = store.info(self._key)["size"] or 0
    return os.stat_result((0, 0, 0, 0, 0, 0, size, 0, 0, 0))

  def iterdir(self) -> Iterator["BucketPath"]:
    """What lies directly below; nothing is no error."""
    try:
      with self._asked() as store:
        found = store.ls(self._key, detail=False)
    except FileNotFoundError:
      return
    names = {posixpath.basename(one.rstrip("/")) for one in found if self._below(one)}
    yield from (self / name for name in sorted(names))

  def glob(self, pattern: str) -> Iterator["BucketPath"]:
    """What matches; * stands for a part of one name."""
    folder, _, last = pattern.rpartition("/")
    for path in (self / folder if folder else self).iterdir():
      if fnmatch.fnmatchcase(path.name, last):
        yield path

  def files(self) -> list["BucketPath"]:
    """All objects below, however deep."""
    with self._asked() as store:
      found = store.find(self._key)
    return [BucketPath(f"{self._scheme}://{one}") for one in found if self._below(one)]

  def open(self, mode: str = "rb") -> IO[bytes]:
    """Opens an object to read, part by part."""
    assert mode == "rb", "an object is written at once, by write_bytes"
    with self._asked() as store:
      return store.open(self._key, "rb")

  def read_bytes(self) -> bytes:
    """The object."""
    with self._asked() as store:
      return store.cat_file(self._key)

  def read_text(self, encoding: str = "utf-8", errors: str = "strict") -> str:
    """The object as text, line ends as pathlib reads them."""
    return io.TextIOWrapper(io.BytesIO(self.read_bytes()), encoding, errors).read()

  def write_bytes(self, data: bytes) -> int:
    """Writes the object, whole or not at all; replaces one that is there."""
    with self._asked() as store:
      store.pipe_file(self._key, data)
    return len(data)

  def write_text(self, text: str) -> int:
    """As write_bytes, in UTF-8."""
    return self.write_bytes(text.encode())

  def create(self, data: bytes) -> None:
    """Writes the object if there is none; of several that try, one succeeds.

    Raises:
      FileExistsError: there is one. After a fault of the network it may be this one.
    """
    with self._asked() as store:
      store.pipe_file(self._key, data, mode="create")

  def touch(self, mode: int = 0o666, exist_ok: bool = True) -> None:
    """Makes an empty object; there are no modes."""
    del mode
    if exist_ok:
      self.write_bytes(b"")
    else:
      self.create(b"")

  def upload(self, file: str | os.PathLike[str]) -> None:
    """Writes a file of this machine as the object, whole or not at all."""
    with self._asked() as store:
      store.put_file(os.fspath(file), self._key)

  def download(self, file: str | os.PathLike[str]) -> None:
    """Writes the object to a file of this machine."""
    with self._asked() as store:
      store.get_file(self._key, os.fspath(file))

  def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
    """Does nothing: what has no objects needs no folder, and no bucket is made."""

  def unlink(self, missing_ok: bool = False) -> None:
    """Deletes the object."""
    try:
      with self._asked() as store:
        store.rm_file(self._key)
    except FileNotFoundError:
      if not missing_ok:
        raise

  def rmtree(self, missing_ok: bool = False) -> None:
    """Deletes all objects below."""
    try:
      with self._asked() as store:
        store.rm(self._key, recursive=True)
    except FileNotFoundError:
      if not missing_ok:
        raise

  def rename(self, target: "BucketPath") -> None:
    """Copies all objects below to another name, then deletes them; not at once."""
    for path in self.files():
      with path._asked() as store:
        store.cp_file(path._key, (target / path.relative_to(self))._key)
    self.rmtree()

  @property
  def _key(self) -> str:
    """As fsspec wants it: the bucket and the rest."""
    return "/".join(self._parts)

  def _below(self, key: str) -> bool:
    # A store may list a name itself, as where a console has made a "folder".
    return key.rstrip("/") != self._key and not key.endswith("/")

  def _kind(self) -> str:
    try:
      with self._asked() as store:
        return str(store.info(self._key)["type"])
    except FileNotFoundError:
      return ""

  @contextlib.contextmanager
  def _asked(self) -> Iterator[Any]:
    """The library, for one request; its errors as a person can mend them."""
    _meet(self._scheme, self.bucket)
    try:
      yield store(self._scheme)
    except FileNotFoundError as error:
      said = "there is no such object"
      raise FileNotFoundError(errno.ENOENT, said, str(self)) from error
    except FileExistsError as error:
      said = "there is such an object already"
      raise FileExistsError(errno.EEXIST, said, str(self)) from error
    except ValueError:
      raise
    except Exception as error:
      raise _explained(error, self._scheme, str(self)) from error


def check(path: BucketPath, *, option: str) -> None:
  """Refuses a bucket that is not there or may not be read.

  Args:
    path: in the bucket.
    option: by which the user named it.

  Raises:
    ValueError: names the bucket and what to do.
  """
  scheme = str(path).partition("://")[0]
  try:
    next(BucketPath(f"{scheme}://{path.bucket}").iterdir(), None)
    with path._asked() as found:  # a listing of no bucket may look like an empty one
      found.info(path.bucket)
  except FileNotFoundError as error:
    raise _no_bucket(path, option) from error
  except OSError as error:
    raise ValueError(f"{option}={path}: {error.strerror or error}") from error


def check_writable(path: BucketPath, probe: str, *, option: str) -> None:
  """Proves that objects can be written and deleted below a path.

  Args:
    path: in the bucket.
    probe: the name of an object that is written and deleted.
    option: by which the user named it.

  Raises:
    ValueError: names the bucket and what to do.
  """
  try:
    (path / probe).write_bytes(b"ok")
    (path / probe).unlink(missing_ok=True)  # several hosts probe at once
  except FileNotFoundError as error:
    raise _no_bucket(path, option) from error
  except OSError as error:
    said = error.strerror or error
    raise ValueError(f"{option}={path}: cannot be written: {said}") from error


def _no_bucket(path: BucketPath, option: str) -> ValueError:
  scheme = str(path).partition("://")[0]
  return ValueError(
    f"{option}={path}: there is no bucket {path.bucket!r}; make it with"
    f" `{MAKES[scheme]}{path.bucket}`, or correct the name"
  )


@functools.lru_cache
def store(scheme: str) -> Any:
  """The library that speaks to buckets of a scheme.

  Raises:
    ValueError: it is not installed.
  """
  library = LIBRARIES[scheme]
  if importlib.util.find_spec(library) is None:
    raise ValueError(
      f"{scheme}:// needs {library}, which is not installed: pip install"
      " 'tfusion[buckets]'"
    )
  # Else it asks a second service, for which there may be no right, of every bucket.
  os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
  # An emulator's address, by which the library goes, for that of arrays as well.
  if emulator := os.environ.get("STORAGE_EMULATOR_HOST"):
    os.environ.setdefault("TENSORSTORE_GCS_HTTP_URL", emulator)
  # It logs whole tracebacks of what it raises anyway.
  logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
  import fsspec

  for name in ("gs", "gcs", "s3"):  # of orbax too, which opens one of its own
    fsspec.config.conf.setdefault(name, {})["use_listings_cache"] = False
  return fsspec.filesystem(scheme, use_listings_cache=False)


@functools.lru_cache
def _meet(scheme: str, bucket: str) -> None:
  """Waits for the first answer of a bucket, of whatever kind: the request that follows
  says what is wrong with it.

  Raises:
    TimeoutError: there was none within ANSWER_SECONDS.
  """
  answered = threading.Event()

  def ask() -> None:
    with contextlib.suppress(Exception):
      store(scheme).info(bucket)
    answered.set()

  # Not of a pool, whose threads would be waited for when the process ends.
  threading.Thread(target=ask, daemon=True, name="bucket").start()
  if answered.wait(ANSWER_SECONDS):
    return
  where, variable = STORES[scheme]
  other = os.environ.get(variable)
  said = f"no answer within {ANSWER_SECONDS:.0f} s; look whether this machine has a"
  said += f" network and reaches {other or where}, and at "
  said += f"{variable}, which names it" if other else "HTTPS_PROXY if you need one"
  raise TimeoutError(errno.ETIMEDOUT, said, f"{scheme}://{bucket}")


def _explained(error: Exception, scheme: str, address: str) -> OSError:
  """What a library says, and what helps."""
  said = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
  if any(text in str(error) for text in OF_CLOCK):
    said = f"the clock of this machine is wrong ({said}); set it, as with `sudo"
    said += " timedatectl set-ntp true`, then start again"
    return OSError(errno.EACCES, said, address)
  if type(error).__name__ in NO_CREDENTIALS:
    said = f"no credentials were found or they have expired ({said}); sign in with"
    return PermissionError(errno.EACCES, f"{said} {SIGN_IN[scheme]}", address)
  if isinstance(error, PermissionError) or any(code in said for code in DENIED):
    said = f"the store denies access ({said}); ask for the right to read and write"
    said += f" objects in this bucket, or sign in with {SIGN_IN[scheme]}"
    return PermissionError(errno.EACCES, said, address)
  return OSError(f"{address}: the store did not answer as it should ({said})")
