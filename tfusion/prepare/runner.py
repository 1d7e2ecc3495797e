"""Parts on Beam: on this machine by default, elsewhere by Beam's own options.

Owns: the pipeline, progress, one line that says what stopped it. Not: what a part does
(part.py).
"""

import contextlib
import logging
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfusion import buckets, files
from tfusion.prepare import dask_cluster, raw, worker
from tfusion.prepare import part as part_lib

# Beam's own default on a single machine. The name DirectRunner stands for Prism first,
# a program that Beam would download.
LOCAL = "FnApiRunner"
EVERY_SECONDS = 3.0
POLL_SECONDS = 0.2
SAID = "workers.log"  # in the folder, of a job that a worker process stopped
NAMED = re.compile(r"\b(?:OS|Value|Permission|FileNotFound)Error: ")


def parse(args: Sequence[str]) -> Any:
  """Reads Beam's options.

  Args:
    args: such as --runner=FlinkRunner, --direct_num_workers=2.

  Returns:
    Beam's PipelineOptions.

  Raises:
    ValueError: an option that nobody knows.
  """
  # It warns about parts of Google's cloud that are not installed.
  logging.disable(logging.WARNING)
  from apache_beam.options import pipeline_options

  logging.disable(logging.NOTSET)
  logging.getLogger("apache_beam").setLevel(logging.CRITICAL)  # run() says it
  options = pipeline_options.PipelineOptions(list(args))
  standard = options.view_as(pipeline_options.StandardOptions)
  if standard.runner is None:
    standard.runner = LOCAL
  if dask_cluster.is_named(standard.runner):
    standard.runner = dask_cluster.RUNNER
    dask_cluster.parse(options)
  unknown = set(options.get_all_options(drop_default=True, retain_unknown_options=True))
  unknown -= set(options.get_all_options(drop_default=True))
  # Other runners have options that only their own servers know.
  if unknown and standard.runner in (LOCAL, "DirectRunner", dask_cluster.RUNNER):
    raise ValueError(f"unknown options: {', '.join(sorted(unknown))}")
  direct = options.view_as(pipeline_options.DirectOptions)
  if direct.direct_num_workers != 1 and direct.direct_running_mode == "in_memory":
    direct.direct_running_mode = "multi_processing"
  harness = options.view_as(pipeline_options.WorkerOptions)
  if not harness.default_sdk_harness_log_level:
    harness.default_sdk_harness_log_level = "ERROR"
  return options


def run(parts: list[raw.Part], job: part_lib.Job, options: Any) -> None:
  """Does the parts that are not done yet, and shows how far they are.

  Raises:
    OSError: a part stopped, or a worker process died; what is done stays done.
  """
  left = [i for i in range(len(parts)) if part_lib.read_account(job.out, i) is None]
  if len(left) < len(parts):
    print(f"{job.out}: {len(parts) - len(left):,} parts were done before", flush=True)
  if not left:
    return
  needs = worker.needs_of(job)
  if _is_dask(options):
    dask_cluster.check(options, needs)
  failed: list[BaseException] = []

  def work() -> None:
    import apache_beam as beam

    try:
      pipeline = beam.Pipeline(_runner(options), options=options)
      # Reshuffled, or a runner would give all parts to one worker.
      numbered = beam.Create([(i, parts[i]) for i in left], reshuffle=True)
      _ = pipeline | numbered | beam.Map(worker.write, job, needs)
      result = pipeline.run()
      if _is_dask(options):
        dask_cluster.wait(result)
      else:
        result.wait_until_finish()
    except BaseException as error:
      failed.append(error)

  def died(args: threading.ExceptHookArgs) -> None:
    # Beam waits for ever for a worker process that is gone; this is how it shows.
    if args.thread is not None and args.thread.name == "run_worker":
      failed.append(args.exc_value or args.exc_type())

  hook, threading.excepthook = threading.excepthook, died
  thread = threading.Thread(target=work, name="beam", daemon=True)
  progress, said = _Progress(job, left), _said(job)
  with _workers_write_to(said):
    thread.start()
    try:
      while thread.is_alive() and not failed:
        thread.join(POLL_SECONDS)
        progress.show()
    finally:
      threading.excepthook = hook
  if failed:
    raise _told(failed[0], job, options) from failed[0]
  said.unlink(missing_ok=True)


@contextlib.contextmanager
def _workers_write_to(path: Path) -> Iterator[None]:
  """Keeps what worker processes write to standard error off the terminal.

  Beam starts them with this process's own. When one of them dies, the others follow and
  write tracebacks of their broken connections, some after this process has ended.
  """
  sys.stderr.flush()
  before = os.dup(2)
  log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
  os.dup2(log, 2)
  os.close(log)
  try:
    yield
  finally:
    sys.stderr.flush()
    os.dup2(before, 2)
    os.close(before)


def _said(job: part_lib.Job) -> Path:
  """The file for what workers say; of this machine, as it is written line by line."""
  if not buckets.is_bucket(job.out):
    return Path(job.out) / SAID
  cache = files.cache_of(job.out)
  cache.mkdir(parents=True, exist_ok=True)
  return cache / SAID


def _runner(options: Any) -> Any:
  """The runner to be used; None where the options name it."""
  from apache_beam.options import pipeline_options
  from apache_beam.portability.api import beam_provision_api_pb2
  from apache_beam.runners.portability.fn_api_runner import fn_runner
  from apache_beam.runners.portability.portable_runner import JobServiceHandle

  if _is_dask(options):
    return dask_cluster.runner()
  if options.view_as(pipeline_options.StandardOptions).runner != LOCAL:
    return None
  # By its name alone it would not hand the options on to worker processes.
  encoded = JobServiceHandle.encode_pipeline_options(options.get_all_options())
  provision = beam_provision_api_pb2.ProvisionInfo(pipeline_options=encoded)
  return fn_runner.FnApiRunner(
    provision_info=fn_runner.ExtendedProvisionInfo(provision)
  )


def _is_dask(options: Any) -> bool:
  from apache_beam.options import pipeline_options

  return options.view_as(pipeline_options.StandardOptions).runner == dask_cluster.RUNNER


class _Progress:
  """A line every few seconds, from the accounts of parts and the counts of others."""

  def __init__(self, job: part_lib.Job, left: list[int]):
    self._job, self._left, self._of = job, set(left), len(left)
    self._done = np.zeros(3, int)  # documents, rejected ones, images
    self._start = self._shown = time.monotonic()

  def show(self) -> None:
    now = time.monotonic()
    if now - self._shown < EVERY_SECONDS:
      return
    self._shown = now
    accounts = files.to_path(self._job.out).glob("parts/*.json")
    there = {int(path.stem) for path in accounts}
    for number in sorted(self._left & there):
      if (account := part_lib.read_account(self._job.out, number)) is not None:
        self._left.remove(number)
        self._done += account.counts
    begun = self._done.copy()
    for number, counts in part_lib.read_counts(self._job.out).items():
      begun += counts if number in self._left else 0
    if not begun[0]:
      return
    (documents, rejected, images), seconds = begun, now - self._start
    left = "?"
    if done := self._of - len(self._left):
      more = max(self._done[0] / done * self._of - documents, 0) / documents * seconds
      left = f"{int(more) // 60}:{int(more) % 60:02d}"
    print(
      f"{self._job.out}: parts {done:,} of {self._of:,}, documents {documents:,}"
      f" ({documents / seconds:,.1f}/s, {rejected:,} rejected), images {images:,}"
      f" ({images / seconds:,.1f}/s), left {left}",
      flush=True,
    )


def _told(error: BaseException, job: part_lib.Job, options: Any) -> BaseException:
  """The error as the user should read it: Beam buries it in its own traceback."""
  said = _said(job)
  again = "done parts are kept; mend that and repeat the command"
  if found := re.findall(
    r"Worker subprocess exited with return code (-?\d+)", str(error)
  ):
    return OSError(
      f"{job.out}: a worker process died ({_exit_of(int(found[0]))}), as when memory is"
      " short: repeat the command, with fewer --direct_num_workers or a smaller"
      f" --batch; done parts are kept, and {said} holds what the workers said"
    )
  if _is_dask(options) and (why := dask_cluster.explain(error)):
    return OSError(f"{job.out}: {why}; {again}")
  before, where, _ = str(error).rpartition(" [while running")
  if not isinstance(error, (OSError, ValueError)):
    # Of its traceback the last line that names one of those.
    _, named, before = re.sub(NAMED, "\0", before).rpartition("\0")
    where = where and named
  if not where:
    return error  # not the user's to mend
  return OSError(f"{job.out}: {' '.join(before.split())}; {again}")


def _exit_of(code: int) -> str:
  """What an exit status says: below 0, or above 128 from a shell, it is a signal's."""
  number = -code if code < 0 else code - 128
  known = number in set(signal.Signals)
  return f"killed by {signal.Signals(number).name}" if known else f"exit status {code}"
