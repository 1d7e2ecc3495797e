"""How long a scheduled program takes, operation by operation.

Owns: what runs at the same time and what waits. Not: the bytes and operations of one
line (hlo.py), the time on the links (links.py).

The schedule is the compiler's: its operations run one after the other, each as long as
the slowest of its multiplications at the peak, its bytes from and to HBM at the data
sheet's rate, and the cycles that the compiler itself expects. What is started and
awaited apart (collectives, copies) runs beside what stands between; collectives one
after the other, copies as well. A collective that is not split stops everything.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Collection
from typing import Any

from tfusion.pods.chips import Chip
from tfusion.pods.hlo import Operation, Program
from tfusion.pods.links import KINDS, Links

FREE = frozenset(
  "parameter constant tuple get-tuple-element bitcast after-all partition-id"
  " replica-id iota optimization-barrier add-dependency domain".split()
)
Key = tuple[str, str]  # a kind of collective, and the axis of the mesh


def _by_key() -> Any:
  return dataclasses.field(default_factory=Counter)


@dataclasses.dataclass
class Cost:
  """What a part of a program takes."""

  seconds: float = 0.0
  flops: float = 0.0  # of matrix multiplications
  hbm_bytes: float = 0.0
  kernels: float = 0.0  # seconds in kernels of ours
  count: dict[Key, int] = _by_key()  # of collectives
  bytes: dict[Key, int] = _by_key()
  busy: dict[Key, float] = _by_key()  # seconds on the links
  exposed: dict[Key, float] = _by_key()  # seconds waited for

  def add(self, other: "Cost", times: int = 1) -> None:
    """Adds another part that runs so many times."""
    for field in dataclasses.fields(self):
      own, more = getattr(self, field.name), getattr(other, field.name)
      if isinstance(own, Counter):
        for key, value in more.items():
          own[key] += value * times
      else:
        setattr(self, field.name, own + more * times)


@dataclasses.dataclass
class _Started:
  """What runs beside the rest."""

  ends: float
  key: Key | None  # of a collective


class Timeline:
  """A program on a topology."""

  def __init__(
    self,
    program: Program,
    chip: Chip,
    links: Links,
    kernel_seconds: Callable[[str], float],
    open_trips: int | None = None,
  ):
    """Runs nothing yet.

    Args:
      program: scheduled.
      chip: a device.
      links: between the devices.
      kernel_seconds: of a call of a kernel of ours, by its name; 0 if it is unknown.
      open_trips: how often the body of a loop runs that data end, not a constant of
        the program; None: there is none.
    """
    self._program, self._chip, self._links = program, chip, links
    self._kernel_seconds, self._open_trips = kernel_seconds, open_trips
    self._known: dict[str, Cost] = {}

  def total(self) -> Cost:
    """Of one run of the program."""
    return self.cost(self._program.entry)

  def cost(self, computation: str) -> Cost:
    """Of a computation that begins when nothing else runs."""
    if computation not in self._known:
      self._known[computation] = _Run(self, computation).cost
    return self._known[computation]

  def seconds_of(self, computation: str, operation: Operation) -> tuple[float, Cost]:
    """Of an operation by itself, that is no loop and no exchange."""
    flops = self._program.flops_of(computation, operation)
    moved = self._program.hbm_bytes(computation, operation)
    own = Cost(flops=flops, hbm_bytes=moved)
    seconds = max(flops / self._chip.flops, moved / self._chip.hbm_rate)
    if self._chip.hertz:
      seconds = max(seconds, operation.cycles / self._chip.hertz)
    if operation.target == "tpu_custom_call":
      own.kernels = self._kernel_seconds(operation.name)
      seconds = max(seconds, own.kernels)
    return seconds, own

  def exchange(self, computation: str, operation: Operation) -> tuple[Key, int, float]:
    """The key, the bytes and the seconds of a collective."""
    kind = operation.kind.removesuffix("-start")
    if kind == "all-reduce" and computation.startswith("all-reduce-scatter"):
      kind = "reduce-scatter"
    group = self._links.group(operation.attributes)
    results = operation.bytes
    sources = [
      self._program.operand(computation, operation, n)
      for n in range(len(operation.operands))
    ]
    given = sum(source.bytes for source in sources if source)
    if operation.kind.endswith("-start"):  # what it gives holds its inputs too
      results = max(results - given, given if kind != "all-gather" else 0)
    size = {"all-gather": results, "reduce-scatter": given}.get(kind, given or results)
    return (kind, group.axis), size, self._links.seconds(kind, size, group)

  def scattered(self, operation: Operation) -> tuple[str, Operation] | None:
    """The all-reduce of a fusion that keeps a shard of it: how the compiler for TPUs
    writes a reduce-scatter."""
    called = operation.attribute("calls")
    inner = self._program.computations.get(called, [])
    own = [o for o in inner if o.kind == "all-reduce"]
    return (called, own[0]) if own else None

  def offloaded(self, operation: Operation) -> tuple[str, Operation] | None:
    """The collective that a call hands to another engine of the chip, which runs it
    beside the matrix units."""
    called = operation.attribute("to_apply") or operation.attribute("calls")
    for inner in self._program.computations.get(called, []):
      if inner.kind.removesuffix("-start") in KINDS:
        return called, inner
      if found := self.offloaded(inner):
        return found
    return None

  def hidden_exchange(self, operation: Operation) -> tuple[str, Operation] | None:
    """The collective that a fusion starts, and the computation that it stands in."""
    called = operation.attribute("calls")
    inner = self._program.computations.get(called, [])
    if not any(o.target == "AsyncCollectiveStart" for o in inner):
      return None
    own = [o for o in inner if o.kind.removesuffix("-start") in KINDS]
    return (called, own[0]) if own else None

  def awaits(self, operation: Operation) -> bool:
    """Whether a fusion waits for a collective that another has started."""
    inner = self._program.computations.get(operation.attribute("calls"), [])
    return any(o.target == "AsyncCollectiveDone" for o in inner)

  def origin(self, computation: str, name: str, started: Collection[str], /) -> str:
    """The start behind a name: through tuples, and fusions that help it along."""
    names, seen = [name], set()
    while names:  # the first operands first; a fusion may be reached in many ways
      name = names.pop()
      if name in started:
        return name
      own = self._program.find(computation, name)
      if name in seen or own is None:
        continue
      seen.add(name)
      if own.kind in ("get-tuple-element", "bitcast"):
        names += own.operands[:1]
      elif own.attribute("calls").startswith("async_collective_fusion"):
        names += reversed(own.operands)
    return ""

  def copied(self, operation: Operation) -> tuple[int, float]:
    """Bytes and seconds of a copy between HBM and the chip; on the chip, none."""
    there = any(shape.in_hbm for shape in operation.shapes[:2])
    moved = operation.shapes[0].bytes if there else 0
    return moved, moved / self._chip.hbm_rate

  def loop(self, operation: Operation) -> tuple[Cost, int]:
    """The body of a loop, and how often it runs.

    Raises:
      ValueError: its bound is no constant, and it was not said how often such run.
    """
    trips = self._program.trips(operation)
    trips = self._open_trips if trips is None else trips
    if trips is None:
      raise ValueError(f"the loop {operation.name} has no constant bound")
    return self.cost(operation.attribute("body")), trips

  def operations(self, computation: str) -> list[Operation]:
    """In the order of the schedule."""
    return self._program.computations[computation]


class _Run:
  """One pass through a computation."""

  def __init__(self, timeline: Timeline, computation: str):
    self.cost, self._timeline, self._computation = Cost(), timeline, computation
    self._links_free = self._copies_free = 0.0
    self._started: dict[str, _Started] = {}
    for operation in timeline.operations(computation):
      self._take(operation)
    for started in self._started.values():  # what nothing here awaits
      self._wait(started)

  def _take(self, operation: Operation) -> None:
    kind = operation.kind
    if kind in FREE:
      return
    if kind == "while":
      body, trips = self._timeline.loop(operation)
      self.cost.add(body, trips)
    elif kind == "conditional":
      self._branch(operation)
    elif kind == "call":
      self.cost.add(self._timeline.cost(operation.attribute("to_apply")))
    elif kind.removesuffix("-start") in KINDS:
      started = self._exchange(self._computation, operation)
      if kind.endswith("-start"):
        self._started[operation.name] = started
      else:
        self._wait(started)
    elif kind in ("call-start", "async-start"):
      if found := self._timeline.offloaded(operation):
        self._started[operation.name] = self._exchange(*found)
    elif kind in ("copy-start", "slice-start"):
      self._copy(operation)
    elif kind.endswith("-done") or (
      kind == "fusion" and self._timeline.awaits(operation)
    ):
      self._done(operation)
    elif kind == "fusion" and (found := self._timeline.hidden_exchange(operation)):
      self._started[operation.name] = self._exchange(*found)
    elif kind == "fusion" and (found := self._timeline.scattered(operation)):
      self._wait(self._exchange(*found))
    else:
      seconds, own = self._timeline.seconds_of(self._computation, operation)
      own.seconds = seconds
      self.cost.add(own)

  def _branch(self, operation: Operation) -> None:
    """A condition: the branch that takes longest."""
    names = operation.attributes.partition("branch_computations={")[2]
    branches = names.partition("}")[0].replace("%", "").replace(" ", "").split(",")
    if not names:
      branches = [
        operation.attribute(f"{truth}_computation") for truth in ("true", "false")
      ]
    costs = [self._timeline.cost(name) for name in branches]
    self.cost.add(max(costs, key=lambda cost: cost.seconds))

  def _exchange(self, computation: str, operation: Operation) -> _Started:
    """Puts a collective on the links, behind those that are there."""
    key, size, seconds = self._timeline.exchange(computation, operation)
    self.cost.count[key] += 1
    self.cost.bytes[key] += size
    self.cost.busy[key] += seconds
    self._links_free = max(self._links_free, self.cost.seconds) + seconds
    return _Started(self._links_free, key)

  def _copy(self, operation: Operation) -> None:
    """Puts a copy behind those that are under way."""
    moved, seconds = self._timeline.copied(operation)
    self.cost.hbm_bytes += moved
    self._copies_free = max(self._copies_free, self.cost.seconds) + seconds
    self._started[operation.name] = _Started(self._copies_free, None)

  def _done(self, operation: Operation) -> None:
    """Waits for what some operand has started, however it came here."""
    for name in operation.operands:
      origin = self._timeline.origin(self._computation, name, self._started)
      if started := self._started.pop(origin, None):
        self._wait(started)

  def _wait(self, started: _Started) -> None:
    waited = max(started.ends - self.cost.seconds, 0.0)
    self.cost.seconds += waited
    if started.key:
      self.cost.exposed[started.key] += waited
