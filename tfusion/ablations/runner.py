"""Does the runs of suites: assets, searches, then every seed; what was done is not done
again.

Owns: the order, processes, devices, progress, failures. Not: which runs there are
(plan.py), what they found (results.py, board.py).

Every run is `tfusion train` and `tfusion eval` in processes of their own, so one that
fails takes nothing with it, and a suite that is killed goes on where it was.
"""

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tfusion import files, lock, startup
from tfusion.ablations import assets, board, code, plan, results
from tfusion.ablations.assets import Command
from tfusion.ablations.board import FAILED, Place
from tfusion.ablations.plan import Spec
from tfusion.ablations.suites import Arm, Suite

LOG = "ablate.log"  # in a workdir: what its commands said
TAIL = 12  # lines of a log that say why a run failed
EVERY_SECONDS = 30.0  # between two lines of progress
# Whose environment says which device a process may have.
VISIBLE = {"gpu": "CUDA_VISIBLE_DEVICES", "tpu": "TPU_VISIBLE_CHIPS"}
# What libtpu wants to be told of a process that has one chip.
ONE_CHIP = {"TPU_PROCESS_BOUNDS": "1,1,1", "TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1"}
# Keeps a process on some cores, and all that it starts.
_ON_CORES = (
  "import os, sys;"
  " os.sched_setaffinity(0, map(int, sys.argv[1].split(',')));"
  " os.execv(sys.executable, [sys.executable, '-m', 'tfusion', *sys.argv[2:]])"
)


class Failed(Exception):
  """A command of `tfusion` that did not end well; says why."""


class Job(NamedTuple):
  """A model to train, and all the ways in which it is sampled and measured."""

  key: str
  specs: list[Spec]

  @property
  def cost(self) -> float:
    """About how long it takes, where a run of full length is 1."""
    return 1 / plan.SEARCHED if self.specs[0].search else 1.0


def run(
  place: Place,
  suites: Sequence[Suite],
  *,
  devices: Sequence[str] = (),
  say: Callable[[str], object] = print,
  after: Callable[[], object] = lambda: None,
) -> int:
  """Does all runs of suites that are not done.

  Args:
    place: where they are.
    suites: whose runs.
    devices: one run at a time on each, as `parse_devices` gives them; none: one run at
      a time on the whole machine.
    say: gets lines of progress.
    after: is called whenever a run is done, to show where the suites stand.

  Returns:
    How many runs failed, or could not begin because another did.

  Raises:
    ValueError: a run's config does not fit, or another process is at work there.
    Failed: what all runs stand on could not be made.
  """
  every = plan.arms(suites)
  for arm in every:
    place.spec(arm, 0).config()  # whether its knobs fit, before any work
  place.folder.mkdir(parents=True, exist_ok=True)
  place.results.mkdir(parents=True, exist_ok=True)
  with lock.hold(place.folder):
    work = _Work(place, devices or ("",), say, after)
    with work.stopping():
      work.prepare({arm.ground for arm in every})
      first = [arm for arm in every if arm.start is None]
      later = [arm for arm in every if arm.start is not None]
      for arms in (first, later):
        if place.search:
          work.do([s for arm in arms for s in board.searches(place, arm)], "searches")
        work.do(_seeds(place, arms), "runs")
    known = _seeds(place, every)
    missing = [s for s in known if results.find(place.results, s) is None]
    return len(missing) + place.seeds * len(every) - len(known)


def _seeds(place: Place, arms: Sequence[Arm]) -> list[Spec]:
  """All seeds of arms whose learning rate is known; first of all, seed 0 of each."""
  found = (board.spec_of(place, arm, s) for s in range(place.seeds) for arm in arms)
  return [spec for spec in found if spec]


class _Work:
  """The processes of one call."""

  def __init__(
    self,
    place: Place,
    devices: Sequence[str],
    say: Callable[[str], object],
    after: Callable[[], object],
  ):
    self.place, self.say, self.after = place, say, after
    self.free: queue.Queue[str] = queue.Queue()
    for device in devices:
      self.free.put(device)
    self.at_once = len(devices)
    self.live: set[subprocess.Popen] = set()
    self.stopped = threading.Event()
    self.keeping = threading.Lock()
    self.commit = _commit()
    # All runs of one shape have the same programs, and the first compiles them.
    kept = os.environ.get(startup.PROGRAMS) or str(startup.programs_in(place.folder))
    self.environment = {startup.PROGRAMS: kept}

  @contextlib.contextmanager
  def stopping(self) -> Iterator[None]:
    """Ends all processes when this one is told to, or fails; they save first."""
    before = signal.getsignal(signal.SIGTERM)
    ours = threading.current_thread() is threading.main_thread()
    if ours:
      signal.signal(signal.SIGTERM, _end)
    try:
      yield
    finally:
      self.stopped.set()
      for process in list(self.live):
        process.terminate()
      for process in list(self.live):
        process.wait()
      if ours:
        signal.signal(signal.SIGTERM, before)

  def prepare(self, grounds: set[str]) -> None:
    """Makes the tokenizer and the shards of grounds."""
    own = self.place.folder / "assets"
    assets.make_tokenizer(own)
    experiments = Path(self.place.experiment).parent
    for command in assets.commands(
      own, grounds, scale=self.place.scale, experiments=experiments
    ):
      if not command.done.is_file():
        self.say(f"{command.name}: {command.log} says how far it is")
        self._prepare(command)

  def _prepare(self, command: Command) -> None:
    device = self.free.get()
    try:
      self._command(command.arguments, command.log, device)
    except Failed as error:
      raise Failed(f"{command.name}: {error}") from error
    finally:
      self.free.put(device)
    if not command.makes.is_file():
      raise Failed(f"{command.name}: {command.makes} was not made; see {command.log}")
    command.done.touch()

  def do(self, specs: Sequence[Spec], what: str) -> None:
    """Does the runs that have no result yet."""
    wanted = [s for s in specs if results.find(self.place.results, s) is None]
    jobs: dict[str, list[Spec]] = {}
    for spec in wanted:
      if spec.judged not in [one.judged for one in jobs.get(spec.key, [])]:
        jobs.setdefault(spec.key, []).append(spec)
    if not jobs:
      return
    tally = _Tally(what, [Job(key, own) for key, own in jobs.items()], self)
    with ThreadPoolExecutor(self.at_once) as pool:
      done = [pool.submit(self._do, job, tally) for job in tally.jobs]
      try:
        while not all(one.done() for one in done):
          tally.tell()
          self.stopped.wait(0.5)
      except BaseException:
        self.stopped.set()
        for process in list(self.live):
          process.terminate()
        raise
    for one in done:
      one.result()  # raises what is no failure of a run

  def _do(self, job: Job, tally: "_Tally") -> None:
    if self.stopped.is_set():
      return
    device = self.free.get()
    spec = job.specs[0]
    workdir = self.place.workdir(spec)
    start = time.monotonic()
    tally.begins(spec.name, workdir)
    try:
      weights = self._weights(spec, device)
      workdir.mkdir(parents=True, exist_ok=True)
      (workdir / FAILED).unlink(missing_ok=True)
      self._command(spec.train(workdir, weights), workdir / LOG, device)
      for one in job.specs:
        if one.evaluations:
          self._command(one.evaluate(workdir), workdir / LOG, device)
        with self.keeping:
          results.keep(self.place.results, one, workdir, commit=self.commit)
          self.after()
    except (Failed, ValueError) as error:
      if not self.stopped.is_set():
        workdir.mkdir(parents=True, exist_ok=True)
        files.write_whole(workdir / FAILED, f"{error}\n")
        tally.failed += 1
        self.say(f"{spec.name}: failed; {workdir / LOG} says why\n{error}")
        self.after()
    finally:
      self.free.put(device)
      tally.ends(spec.name, job.cost, time.monotonic() - start)

  def _weights(self, spec: Spec, device: str) -> Path | None:
    """What a run starts from, exported from the run that trained it."""
    if spec.start is None:
      return None
    trained = self.place.workdir(spec.start)
    weights = trained / "exported"
    with self.keeping:
      if not weights.is_dir():
        if results.find(self.place.results, spec.start) is None:
          raise Failed(f"{spec.start.name}: is not done, and this run starts from it")
        export = ["export", f"--workdir={trained}", f"--to={weights}"]
        self._command(export, trained / LOG, device)
    return weights

  def _command(self, arguments: Sequence[str], log: Path, device: str) -> None:
    """Runs `tfusion` with arguments.

    Raises:
      Failed: it did not end well; with the end of what it said.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    argv, environment = _on(device, arguments)
    with log.open("a", encoding="utf-8") as file:
      file.write(f"$ tfusion {' '.join(arguments)}\n")
      file.flush()
      process = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=file,
        stderr=subprocess.STDOUT,
        env=os.environ | self.environment | environment,
      )
      self.live.add(process)
      if self.stopped.is_set():
        process.terminate()
      status = process.wait()
      self.live.discard(process)
    if status or self.stopped.is_set():
      lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
      raise Failed("\n".join([f"status {status}", *lines[-TAIL:]]))


class _Tally:
  """How far the runs of one kind are."""

  def __init__(self, what: str, jobs: list[Job], work: _Work):
    self.what, self.jobs, self.work = what, jobs, work
    self.done = self.failed = 0
    self.left = sum(job.cost for job in jobs)
    self.costs = self.seconds = 0.0  # of those that are done
    self.now: dict[str, tuple[Path, float]] = {}
    self.told = time.monotonic() - EVERY_SECONDS + 5.0

  def begins(self, name: str, workdir: Path) -> None:
    """A run begins."""
    self.now[name] = workdir, time.monotonic()

  def ends(self, name: str, cost: float, seconds: float) -> None:
    """A run ended, well or not."""
    self.now.pop(name, None)
    self.done += 1
    self.left -= cost
    self.costs, self.seconds = self.costs + cost, self.seconds + seconds

  def tell(self) -> None:
    """Says how far they are, if it is time to."""
    if time.monotonic() - self.told < EVERY_SECONDS:
      return
    self.told = time.monotonic()
    now = "; ".join(f"{name} ({_last(path)})" for name, (path, _) in self.now.items())
    failed = f", {self.failed} failed" if self.failed else ""
    left = ""
    if self.costs:
      begun = sum(self.told - since for _, since in self.now.values())
      rest = self.left * self.seconds / self.costs - begun
      minutes = max(rest / self.work.at_once, 0) / 60
      left = f", about {minutes:.0f} min left"
    self.work.say(f"{self.what}: {self.done} of {len(self.jobs)}{failed}{left}; {now}")


def parse_devices(text: str) -> tuple[str, ...]:
  """Takes `--devices` apart: gpu:0,gpu:1, tpu:0,tpu:1 or, for cores, cpu:0-3,cpu:4.

  Raises:
    ValueError: anything else, or one that is named twice.
  """
  found = tuple(one.strip() for one in text.split(",") if one.strip())
  for one in found:
    kind, _, number = one.partition(":")
    parts = number.split("-") if kind == "cpu" else [number]
    fits = kind in ("cpu", *VISIBLE) and len(parts) < 3
    if not fits or not all(part.isdecimal() for part in parts):
      raise ValueError(
        f"--devices={text}: {one!r} is none; write gpu:0,gpu:1 or tpu:0,tpu:1, or cores"
        " of a CPU as in cpu:0-3,cpu:4-7"
      )
    if found.count(one) > 1:
      raise ValueError(f"--devices={text}: {one} is named twice")
  return found


def _on(device: str, arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
  """The command line and the environment of `tfusion` on a device."""
  kind, _, number = device.partition(":")
  if kind == "cpu":
    first, _, last = number.partition("-")
    cores = ",".join(str(n) for n in range(int(first), int(last or first) + 1))
    return [sys.executable, "-c", _ON_CORES, cores, *arguments], {}
  environment = {VISIBLE[kind]: number} if kind else {}
  environment |= ONE_CHIP if kind == "tpu" else {}
  return [sys.executable, "-m", "tfusion", *arguments], environment


def _last(workdir: Path) -> str:
  """The last thing that a run said, shortened to how far it is."""
  with contextlib.suppress(OSError):
    lines = (workdir / LOG).read_text(encoding="utf-8", errors="replace").split("\n")
    said = [line for line in lines if line.strip() and not line.startswith("$")]
    return said[-1].split("  ")[0][:60] if said else "begins"
  return "begins"


def _commit() -> str:
  """Of the code, where it is a git checkout; `-dirty` with changes in it."""
  try:
    return subprocess.run(
      ["git", "describe", "--always", "--dirty", "--abbrev=7"],
      cwd=code.PACKAGE,
      capture_output=True,
      text=True,
      check=True,
    ).stdout.strip()
  except (OSError, subprocess.CalledProcessError):
    return ""


def _end(number: int, frame: object) -> None:
  raise SystemExit(128 + number)
