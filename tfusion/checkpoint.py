"""Checkpoints of a run: save, restore, list, refuse. The only file that imports orbax.

Owns: the directory <workdir>/checkpoints. Not: what a state is or when to save it
(training/), nor what a data lane's state means (data/pipeline.py).

  1200/                  a checkpoint; the label is the number of updates done
    state/...            the arrays, written by orbax
    record.0-of-2        one per process, written last: JSON with leaves, versions, its
                         data lanes, size and CRC-32 of its files, then its own CRC-32
  1400.partial           marks 1400 as being written or deleted: it does not count
  900.corrupt/           failed its check and was moved aside

Orbax and tensorstore check their indexes only: a flipped bit in the numbers loads in
silence. So every byte is checked against the records before anything is loaded.

Nothing here needs a rename: a checkpoint counts when its mark is gone, and that is one
request in a bucket. Orbax writes to gs:// itself. It knows no s3://, so there a
checkpoint is written to a folder of this machine and copied; see `_Staging`.
"""

import asyncio
import contextlib
import itertools
import json
import logging as std_logging
import os
import re
import shutil
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from typing import Any, NamedTuple, TypeAlias, cast

import flax
import jax
import numpy as np
import orbax.checkpoint
from absl import logging
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from tfusion import buckets, files
from tfusion.buckets import BucketPath
from tfusion.lock import Lost
from tfusion.version import __version__

Path: TypeAlias = ocp.path.Path
FAULT_BYTES = 1000  # of what one process tells the others of a file, at most
SLICE_BYTES = 1 << 20  # of an array that several replicas write together, at least
_SAVES = itertools.count()  # a barrier's name may be used only once per program
# What the system or orbax says, and what then helps.
_REMEDIES = {
  "No space left|[Qq]uota": "make room there",
  "File too large": "raise `ulimit -f`, or choose a disk that takes large files",
  "Permission denied|Read-only|not permitted": "make it writable",
  "": "mend what that names",
}
_VERSIONS = {m.__name__: m.__version__ for m in (jax, flax, orbax.checkpoint)}
_VERSIONS["tfusion"] = __version__


class Restored(NamedTuple):
  """What `Checkpoints.restore` found."""

  step: int  # updates done
  state: Any  # like the abstract tree
  lanes: dict[int, dict]  # of all lanes, whichever process saved them
  skipped: dict[int, str]  # newer step -> why it could not be used


class Checkpoints:
  """The checkpoints of one run; a context manager that waits for the last save.

  With several processes, all of them call every method, in the same order, on one
  shared directory. `blocked_seconds` sums the time that callers waited for saves.
  """

  def __init__(
    self,
    directory: str | os.PathLike[str] | BucketPath,
    *,
    keep_last: int = 3,
    keep_every_steps: int = 0,
    read_only: bool = False,
    check_lock: Callable[[], None] = lambda: None,
  ):
    """Opens `directory`, which need not exist yet.

    After a save the newest `keep_last` checkpoints stay, and every multiple of
    `keep_every_steps` (0: none). `read_only` is for readers of a run that may still
    be training: nothing is moved or deleted. `check_lock` is asked before a save begins
    and before it ends, and raises lock.Lost where the directory is another run's by
    then. Raises ValueError if out of range.
    """
    if keep_last < 1 or keep_every_steps < 0:
      raise ValueError(f"{keep_last=} must be >= 1 and {keep_every_steps=} >= 0")
    if buckets.is_bucket(directory):
      self.directory = cast(Path, files.to_path(directory))
    else:
      self.directory = Path(str(directory)).expanduser().resolve()
    self._staging = _Staging(self.directory) if _needs_staging(self.directory) else None
    self.blocked_seconds = 0.0
    self._keep_last, self._keep_every_steps = keep_last, keep_every_steps
    self._read_only = read_only
    self._tidies = jax.process_index() == 0 and not read_only
    self._check_lock = check_lock
    self._context = ocp.Context()
    # zstd saves a tenth of the bytes of fp32 weights and takes three times as long.
    self._context.array.saving.use_compression = False
    # What replicas share out among them is cut by programs, compiled at the first save.
    self._context.array.saving.min_slice_bytes_for_replica_parallel = SLICE_BYTES
    self._thread = futures.ThreadPoolExecutor(max_workers=1)
    self._pending: tuple[int, int, futures.Future] | None = None  # step, bytes, save
    logging.get_absl_logger().addFilter(_is_worth_reading)

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, error_type: type | None, *_: Any) -> None:
    try:
      self.close()
    except OSError as error:
      if error_type is None:
        raise
      logging.error("%s", error)  # must not hide the error that ended the block

  def steps(self) -> list[int]:
    """Returns the finished steps, ascending, without checking their contents."""
    have = self._names()
    steps = {int(name) for name in have if name.isdecimal()}
    # 007 is no checkpoint of ours, nor is one of which a part is missing.
    return sorted(n for n in steps if f"{n}" in have and f"{n}.partial" not in have)

  @property
  def latest(self) -> int | None:
    """The newest finished step, or None."""
    return max(self.steps(), default=None)

  @property
  def under_way(self) -> int | None:
    """The step that is being saved beside the caller; None: there is none. Another
    thread may ask."""
    pending = self._pending
    return pending[0] if pending and not pending[2].done() else None

  def save(
    self, step: int, state: Any, lanes: dict[int, dict], *, wait: bool = False
  ) -> bool:
    """Starts to save `state` after `step` updates; returns once it may be donated.

    `state` is a tree of jax.Arrays with any sharding, `lanes` the JSON-able iterator
    state of this process's data lanes (tuples come back as lists). A step that exists
    is left as it is and False is returned: a periodic save and one at exit may meet.
    Waits for the previous save first, and with `wait` for this one.

    Raises OSError, naming the directory, if this or the previous save failed, and
    lock.Lost if the directory has become another run's.
    """
    assert not self._read_only, "opened read_only"
    with self._blocking():
      self._join()
      self._check_lock()
      if _from_first_process(step in self.steps()):
        logging.info("checkpoint %s exists and is not saved again", self._at(step))
        return False
      leaves = _leaves(state)
      record = {
        "step": step,
        "process": jax.process_index(),
        "processes": jax.process_count(),
        "unix_seconds": time.time(),
        "versions": _VERSIONS,
        "leaves": _specs(leaves),
        # Copied now: the iterator moves on while the arrays are written.
        "lanes": json.loads(json.dumps(lanes)),
      }
      n_bytes = sum(x.nbytes for x in leaves.values())
      try:
        self._clear_partial()
        if self._tidies:
          self.directory.mkdir(parents=True, exist_ok=True)
          self._at(step, ".partial").touch()
        with self._context:
          response = ocp.save_async(self._of_orbax(step), leaves)
      except OSError as error:
        raise self._failure(step, n_bytes, error) from error
      save = self._thread.submit(self._finish, response, record, next(_SAVES))
      self._pending = step, n_bytes, save
      if wait:
        self._join()
    return True

  def wait(self) -> None:
    """Waits for the save in progress. Raises OSError if it failed."""
    with self._blocking():
      self._join()

  def close(self) -> None:
    """Waits like `wait` and ends the thread; the object is not used again."""
    try:
      self.wait()
    finally:
      self._thread.shutdown()
      if self._staging:
        self._staging.close()

  def restore(
    self, abstract_state: Any, *, partial: bool = False, step: int | None = None
  ) -> Restored | None:
    """Loads the newest good checkpoint, or returns None if there is none at all.

    `abstract_state` is a tree of jax.ShapeDtypeStruct with sharding; the mesh and the
    number of processes may differ from those of the save. With `partial` it may leave
    out leaves of the checkpoint, say the optimizer's. Checkpoints with a missing,
    truncated or altered file are skipped with a warning and renamed `<step>.corrupt`.
    With `step` that checkpoint is loaded and no other.

    Raises ValueError if there is no such `step`, if checkpoints exist and none is good,
    and if names, shapes or dtypes differ from those saved (orbax alone would cast
    dtypes in silence).
    """
    self.wait()
    self._clear_partial()
    before = self.steps()
    try:
      return self._restore(abstract_state, partial, step)
    except (OSError, ValueError):
      if not self._read_only or self.steps() == before:
        raise
    # The run has saved a newer one meanwhile, and deleted what was being read.
    return self.restore(abstract_state, partial=partial, step=step)

  def _restore(
    self, abstract_state: Any, partial: bool, wanted: int | None
  ) -> Restored | None:
    skipped, candidates = {}, self.steps()
    if wanted is not None:
      self._check_step(wanted)
      candidates = [wanted]
    while (step := _from_first_process(candidates.pop() if candidates else -1)) >= 0:
      records, fault = self._check(step)
      if not fault:
        break
      skipped[step] = fault
      logging.warning("checkpoint %s is skipped: %s", self._at(step), fault)
    else:
      aside = sorted(name for name in self._names() if name.endswith(".corrupt"))
      if _from_first_process(not skipped and not aside):
        return None
      scratch = "" if self._read_only else ", or remove the directory to start anew"
      raise ValueError(
        f"no checkpoint in {self.directory} can be read ({skipped or aside}): put "
        f"back a good copy{scratch}"
      )
    leaves = _leaves(abstract_state)
    _refuse_other_tree(self._at(step), records[0]["leaves"], _specs(leaves), partial)
    context = ocp.Context(self._context)
    context.pytree.loading.partial_load = partial
    with context:
      loaded = ocp.load(self._of_orbax(step), leaves)
    if self._staging:
      self._staging.close()
    treedef = jax.tree.structure(abstract_state)
    state = jax.tree.unflatten(treedef, map(loaded.__getitem__, leaves))
    for bad in skipped if self._tidies else ():
      aside = self._at(bad, ".corrupt")
      aside.rmtree(missing_ok=True)
      self._at(bad).rename(aside)
      logging.warning("it was moved to %s", aside)
    return Restored(step, state, _lanes(records), skipped)

  def describe(self, step: int) -> dict[str, Any]:
    """Returns what `step` holds, JSON-able, without reading arrays.

    Keys: step, directory, bytes, unix_seconds (of the save), processes, versions,
    lanes (of all processes) and leaves: path -> {dtype, shape, bytes}. Raises
    ValueError if there is no such step; that or OSError if a record is not sound.
    """
    self._check_step(step)
    records = self._records(step)
    kept = ("step", "unix_seconds", "processes", "versions", "leaves")
    return {key: records[0][key] for key in kept} | {
      "directory": str(self._at(step)),
      "bytes": sum(leaf["bytes"] for leaf in records[0]["leaves"].values()),
      "lanes": _lanes(records),
    }

  def _check_step(self, step: int) -> None:
    if step not in self.steps():
      raise ValueError(f"no step {step} in {self.directory}: it has {self.steps()}")

  def _at(self, step: int, suffix: str = "") -> Path:
    return self.directory / f"{step}{suffix}"

  def _of_orbax(self, step: int) -> Path:
    """Where orbax writes and reads the arrays of a step."""
    return self._staging.at(step) if self._staging else Path(str(self._at(step)))

  def _names(self, step: int | None = None) -> set[str]:
    directory = self.directory if step is None else self._at(step)
    return {p.name for p in directory.iterdir()} if directory.exists() else set()

  @contextlib.contextmanager
  def _blocking(self) -> Iterator[None]:
    start = time.monotonic()
    try:
      yield
    finally:
      self.blocked_seconds += time.monotonic() - start

  def _join(self) -> None:
    if self._pending is not None:
      step, n_bytes, save = self._pending
      futures.wait([save])  # an interrupt here leaves the save pending
      self._pending = None
      if isinstance(error := save.exception(), Lost):
        raise error
      if error:
        raise self._failure(step, n_bytes, error) from error

  def _failure(self, step: int, n_bytes: int, error: BaseException) -> OSError:
    space = f"it needs {n_bytes / 2**20:.1f} MiB"
    if not buckets.is_bucket(self.directory) and os.path.isdir(self.directory):
      free = shutil.disk_usage(self.directory).free
      space += f", {free / 2**20:.1f} MiB are free"
    kept, resumes = "There is no earlier one", ""
    if steps := self.steps():
      kept = f"The earlier checkpoints {steps} are intact"
      resumes = " to resume from the newest"
    remedy = next(r for said, r in _REMEDIES.items() if re.search(said, str(error)))
    return OSError(
      f"checkpoint of step {step} could not be written to {self.directory} ({space}): "
      f"{str(error)[:500]}. {kept}: {remedy}, and start again{resumes}"
    )

  def _finish(self, response: ocp.AsyncResponse[None], record: dict, save: int) -> None:
    """Runs in the thread: waits for orbax, writes the record, commits, deletes old."""
    step, process, n = record["step"], record["process"], record["processes"]
    try:
      response.result()
      root = self._at(step)
      if self._staging:
        self._staging.upload(step, root)
      mine = [f for f in _files_below(root) if _writer(f) == process]
      record["files"] = {str(f.relative_to(root)): _size_and_crc(f) for f in mine}
      text = json.dumps(record)
      text += f"\n{zlib.crc32(text.encode()):08x}"
      (root / f"record.{process}-of-{n}").write_text(text)
      _barrier(f"{save}.recorded")
      self._check_lock()
    except Exception:
      self._check_lock()  # else what lies there is another run's
      self._clear_partial()
      raise
    if self._tidies:
      self._at(step, ".partial").unlink()  # the commit
      for old in self.steps()[: -self._keep_last]:
        if not self._keep_every_steps or old % self._keep_every_steps:
          self._delete(old)
    _barrier(f"{save}.committed")

  def _delete(self, step: int) -> None:
    self._at(step, ".partial").touch()  # half deleted counts as not there
    self._at(step).rmtree(missing_ok=True)
    self._at(step, ".partial").unlink()

  def _clear_partial(self) -> None:
    """Deletes what a killed or failed save, or deletion, left behind."""
    for name in self._names() if self._tidies else ():
      if re.fullmatch(r"\d+\.orbax-checkpoint-tmp.*", name):
        (self.directory / name).rmtree()
      elif re.fullmatch(r"\d+\.partial", name):
        logging.warning("unfinished checkpoint %s is removed", self.directory / name)
        self._delete(int(name.removesuffix(".partial")))

  def _records(self, step: int) -> list[dict]:
    """Reads all records. Raises OSError or ValueError if one is missing or altered."""
    names = [re.fullmatch(r"record\.\d+-of-(\d+)", n) for n in self._names(step)]
    n = max((int(name[1]) for name in names if name), default=1)
    records = []
    for process in range(n):
      path = self._at(step) / f"record.{process}-of-{n}"
      text, _, crc = path.read_bytes().rpartition(b"\n")
      if crc != b"%08x" % zlib.crc32(text):
        raise ValueError(f"{path} fails its checksum")
      records.append(json.loads(text))
    return records

  def _check(self, step: int) -> tuple[list[dict], str]:
    """Reads every file, each process a share; returns the records and what is wrong."""
    records, fault = [], ""
    try:
      records = self._records(step)
      every = sorted(item for record in records for item in record["files"].items())
      mine = dict(every[jax.process_index() :: jax.process_count()])
      root = self._at(step)
      if self._staging:
        root = self._staging.download(step, root, mine)
      with futures.ThreadPoolExecutor(max_workers=8) as pool:
        found = pool.map(_size_and_crc, [root / name for name in mine])
        for (name, want), got in zip(mine.items(), found):
          if want != got:
            raise ValueError(f"{name} has size and CRC-32 {got}, not {want}")
    except FileNotFoundError as error:
      fault = f"{error.filename} is missing"
    except (OSError, ValueError) as error:
      fault = str(error)
    return records, _fault_of_any(fault)


class _Staging:
  """A folder of this machine for what orbax cannot write to a bucket or read from it.

  It holds one checkpoint at a time, in the cache of the bucket's folder. One that a
  killed process left there is deleted.
  """

  def __init__(self, directory: Path):
    """Takes the address of the checkpoints; makes nothing yet."""
    if jax.process_count() > 1:
      raise ValueError(
        f"{directory}: checkpoints of several hosts cannot be written to s3://, for"
        " which orbax has no way; use gs://, or a disk that all hosts share, such as"
        " EFS or FSx for Lustre"
      )
    cache = files.cache_of(str(directory))
    for old in cache.glob("staging-*"):
      if not os.path.exists(f"/proc/{old.name.partition('-')[2]}"):
        shutil.rmtree(old, ignore_errors=True)
    self._folder = cache / f"staging-{os.getpid()}"

  def at(self, step: int) -> Path:
    """The folder of a step."""
    return Path(str(self._folder / str(step)))

  def upload(self, step: int, target: Path) -> None:
    """Copies what orbax wrote to the bucket, then deletes it here."""
    source = self.at(step)
    with futures.ThreadPoolExecutor(buckets.TOGETHER) as pool:
      done = [
        pool.submit(cast(Any, target / file.relative_to(source)).upload, str(file))
        for file in _files_below(source)
      ]
      for one in done:
        one.result()
    source.rmtree()

  def download(self, step: int, source: Path, names: Iterable[str]) -> Path:
    """Copies files of a step from the bucket, for orbax to read; returns its folder."""
    self.close()
    target = self.at(step)

    def fetch(name: str) -> None:
      (target / name).parent.mkdir(parents=True, exist_ok=True)
      cast(Any, source / name).download(str(target / name))

    with futures.ThreadPoolExecutor(buckets.TOGETHER) as pool:
      list(pool.map(fetch, names))
    return target

  def close(self) -> None:
    """Deletes what is here."""
    shutil.rmtree(self._folder, ignore_errors=True)


def _needs_staging(directory: Path) -> bool:
  return str(directory).startswith("s3://")


def _files_below(root: Path) -> list[Path]:
  if there := buckets.of(root):
    return cast(list[Path], there.files())
  return [folder / name for folder, _, names in root.walk() for name in names]


def _lanes(records: list[dict]) -> dict[int, dict]:
  return {int(k): v for record in records for k, v in record["lanes"].items()}


def _leaves(tree: Any) -> dict[str, Any]:
  """Flattens a tree; a leaf's path does not depend on the kind of its containers."""
  flat = jax.tree_util.tree_flatten_with_path(tree)[0]
  return {jax.tree_util.keystr(k, simple=True, separator="/"): leaf for k, leaf in flat}


def _specs(leaves: dict[str, Any]) -> dict[str, dict]:
  return {
    path: dict(dtype=x.dtype.name, shape=[*x.shape], bytes=x.size * x.dtype.itemsize)
    for path, x in leaves.items()
  }


def _refuse_other_tree(path: Path, saved: dict, wanted: dict, partial: bool) -> None:
  """Raises ValueError naming the first leaves that differ from those saved."""
  names = sorted(wanted.keys() if partial else wanted.keys() | saved.keys())
  differ = [
    f"{name}: {_show(saved.get(name))}, here {_show(wanted.get(name))}"
    for name in names
    if saved.get(name) != wanted.get(name)
  ]
  if differ:
    raise ValueError(
      f"checkpoint {path} is of another model or optimizer; {len(differ)} leaves "
      f"differ: {'; '.join(differ[:5])}. Use the config it was saved with, or another "
      "workdir"
    )


def _show(leaf: dict | None) -> str:
  return f"{leaf['dtype']}{leaf['shape']}" if leaf else "absent"


def _writer(path: Path) -> int:
  """The process that records a file: each its own arrays, the first all the rest."""
  if path.name.startswith("record."):
    return -1  # records carry a checksum of their own
  own = re.search(r"/ocdbt\.process_(\d+)/", str(path))
  return int(own[1]) if own else 0


def _size_and_crc(path: Path) -> list[int]:
  size, crc = 0, 0
  with path.open("rb") as file:
    while chunk := file.read(1 << 22):
      size, crc = size + len(chunk), zlib.crc32(chunk, crc)
  return [size, crc]


def _from_first_process(value: int) -> int:
  """Gives every process the first one's value: its view of the directory decides."""
  if jax.process_count() == 1:
    return value
  return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def _fault_of_any(fault: str) -> str:
  """What the first process of all says that says something; all must call it."""
  if jax.process_count() == 1:
    return fault
  said = np.zeros(FAULT_BYTES, np.uint8)
  data = np.frombuffer(fault.encode()[:FAULT_BYTES], np.uint8)
  said[: len(data)] = data
  everyone = multihost_utils.process_allgather(said)
  texts = [one.tobytes().rstrip(b"\0").decode(errors="ignore") for one in everyone]
  return next(filter(None, texts), "")


def _barrier(name: str) -> None:
  """Waits for all processes; fit for a thread, as no device takes part."""
  asyncio.run(ocp.multihost.sync_global_processes(name, operation_id="tfusion"))


def _is_worth_reading(record: std_logging.LogRecord) -> bool:
  """Drops orbax's dozens of lines per save, and tracebacks of what it raises anyway."""
  from_orbax = f"{os.sep}orbax{os.sep}" in record.pathname
  return not from_orbax or not (record.exc_info or record.levelno < std_logging.WARNING)
