"""A Dask cluster as the engine of a job: Beam's runner for it, and what that lacks.

Owns: its options, whether its workers can do a job, what its errors mean. Not: the
pipeline (runner.py), what a worker must have (worker.py).
"""

import concurrent.futures
import contextlib
import importlib.util
import logging
import time
from pathlib import Path
from typing import Any

from tfusion.prepare import worker

RUNNER = "DaskRunner"
POLL_SECONDS = 1.0
WORKERLESS_SECONDS = 300.0  # for another to come, as where a cluster grows by itself
HOW = "--runner=DaskRunner --dask_client_address=tcp://HOST:8786"


def is_named(runner: str) -> bool:
  """Whether --runner=... means this one, which Beam knows by its module alone."""
  return runner.rpartition(".")[2].lower() in ("dask", RUNNER.lower())


def parse(options: Any) -> None:
  """Makes Beam know the options of its runner for Dask, and completes them.

  Args:
    options: Beam's PipelineOptions; one part becomes a task, unless they say otherwise.

  Raises:
    ValueError: the extra is not installed, or no scheduler is named, or by a file that
      is not there.
  """
  if importlib.util.find_spec("distributed") is None:
    raise ValueError("distributed is missing: pip install 'tfusion[dask]'")
  from apache_beam.runners.dask import dask_runner

  own = options.view_as(dask_runner.DaskOptions)
  if not own.address and not own.scheduler_file:
    raise ValueError(f"--runner={RUNNER}: name the scheduler too, as in {HOW}")
  if own.scheduler_file and not Path(own.scheduler_file).is_file():  # Dask would wait
    raise ValueError(
      f"--dask_scheduler_file={own.scheduler_file}: there is no such file; name the one"
      " that `dask scheduler --scheduler-file` wrote"
    )
  if not own.npartitions and not own.partition_size:
    own.partition_size = 1  # Beam's 128 would leave most workers without any
  for name in ("distributed", "distributed.client"):  # errors say it
    logging.getLogger(name).setLevel(logging.CRITICAL)


def runner() -> Any:
  """Beam's runner for Dask."""
  from apache_beam.runners.dask import dask_runner

  return dask_runner.DaskRunner()


def check(options: Any, needs: worker.Needs) -> None:
  """Asks every worker whether it can do the job.

  Raises:
    ValueError: the scheduler does not answer, it has no workers, or some cannot.
  """
  import distributed
  from apache_beam.runners.dask import dask_runner

  own = options.view_as(dask_runner.DaskOptions)
  if own.address:
    place = f"--dask_client_address={own.address}"
  else:
    place = f"--dask_scheduler_file={own.scheduler_file}"
  more = {} if own.timeout is None else {"timeout": own.timeout}
  try:
    client = distributed.Client(own.address, scheduler_file=own.scheduler_file, **more)
  except (OSError, ValueError) as error:
    raise ValueError(
      f"{place}: no scheduler answers there ({' '.join(str(error).split())}); start one"
      " with `dask scheduler`, or name the right address"
    ) from error
  with client:
    answers = client.run(worker.fault, needs, on_error="return")
  if not answers:
    raise ValueError(
      f"{place}: the scheduler has no workers; start some on machines that see the"
      " source and --out, with `dask worker ADDRESS --nthreads 1`"
    )
  faults = {name: _fault(answer) for name, answer in answers.items()}
  if cannot := [f"{name}: {said}" for name, said in faults.items() if said]:
    raise ValueError(
      f"{place}: {len(cannot)} of {len(faults)} workers cannot do this job: {cannot[0]}"
    )


def _fault(answer: str | Exception) -> str:
  if isinstance(answer, Exception):  # the worker could not even be asked
    return f"{' '.join(str(answer).split())}; install tfusion there as it is here"
  return answer


def wait(result: Any) -> None:
  """Waits for the end of a pipeline.

  Beam's own wait takes what is cancelled, as when the scheduler is lost, for done; and
  Dask waits for ever for a worker to come.

  Args:
    result: of Beam's runner.

  Raises:
    Exception: whatever stopped a part.
    OSError: no worker was there for a while.
    concurrent.futures.CancelledError: the scheduler was lost.
  """
  import distributed

  with result.client as client:
    seen = time.monotonic()
    while not all(future.done() for future in result.futures):
      with contextlib.suppress(TimeoutError):
        distributed.wait(result.futures, timeout=POLL_SECONDS)
      with contextlib.suppress(OSError):  # a lost scheduler cancels the futures
        if client.nthreads():
          seen = time.monotonic()
      if time.monotonic() - seen > WORKERLESS_SECONDS:
        raise OSError(f"the cluster had no worker for {WORKERLESS_SECONDS:.0f} s")
    for future in result.futures:
      future.result()


def explain(error: BaseException) -> str:
  """What an error of `wait` means; empty for what is not the user's to mend."""
  import distributed

  if isinstance(error, distributed.scheduler.NoWorkerError):
    return f"the cluster had no worker ({error})"
  if isinstance(error, concurrent.futures.CancelledError):
    return "the scheduler of the cluster was lost"
  if isinstance(error, distributed.KilledWorker):
    return (
      f"{error.allowed_failures + 1} workers died over the same part, as when memory is"
      f" short: their logs say more, the last one's was {error.last_worker.address}"
    )
  return str(error) if isinstance(error, (OSError, ValueError)) else ""
