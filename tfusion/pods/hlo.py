"""The text of a compiled program, read: computations, operations, shapes.

Owns: the syntax of XLA's text, the floating-point operations and the bytes of one
operation. Not: when each runs (timeline.py). Needs no jax.
"""

import math
import re
from typing import NamedTuple

SIZES = {"pred": 1, "bf16": 2, "f16": 2, "f32": 4, "f64": 8, "c64": 8, "token": 0}
SIZES |= {f"{kind}{bits}": bits // 8 for kind in "su" for bits in (8, 16, 32, 64)}
SIZES |= {"s4": 1, "u4": 1, "s2": 1, "u2": 1}
_SHAPE = re.compile(r"\b([a-z]\w*)\[([\d,<=]*)\](?:\{([^}]*)\})?")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_NAME = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_OPERAND = re.compile(r"%([\w.\-]+)")
SLICES = ("dynamic-slice", "slice", "gather")


class Shape(NamedTuple):
  """One array of an operation."""

  dtype: str
  dims: tuple[int, ...]
  in_hbm: bool  # else in a memory on the chip

  @property
  def size(self) -> int:
    """Numbers in it."""
    return math.prod(self.dims)

  @property
  def bytes(self) -> int:
    """Without padding."""
    return self.size * SIZES.get(self.dtype, 1 if self.dtype.startswith("f8") else 4)


class Operation(NamedTuple):
  """One line of a computation."""

  name: str
  kind: str  # such as fusion, all-gather-start
  shapes: tuple[Shape, ...]  # of its results
  operands: tuple[str, ...]
  attributes: str  # what stands behind the operands
  is_root: bool

  @property
  def bytes(self) -> int:
    """Of its results."""
    return sum(shape.bytes for shape in self.shapes)

  def attribute(self, name: str) -> str:
    """The name of a computation, or another word; empty without one."""
    match = re.search(rf"\b{name}=%?([\w.\-]+)", self.attributes)
    return match[1] if match else ""

  @property
  def cycles(self) -> int:
    """As the compiler estimates them; 0 where it says nothing."""
    match = re.search(r'estimated_cycles":"(\d+)"', self.attributes)
    return int(match[1]) if match else 0

  @property
  def target(self) -> str:
    """Of a custom call."""
    match = re.search(r'custom_call_target="([^"]*)"', self.attributes)
    return match[1] if match else ""


class Program:
  """Computations by name, each in the order of the schedule."""

  def __init__(self, text: str):
    """Reads what `jax.stages.Compiled.as_text` gives.

    Raises:
      ValueError: it holds no entry computation.
    """
    self.computations: dict[str, list[Operation]] = {}
    self.entry = ""
    self._by_name: dict[str, dict[str, Operation]] = {}
    self._flops: dict[str, float] = {}
    current: list[Operation] = []
    for line in text.splitlines():
      if match := _HEAD.match(line):
        current = self.computations.setdefault(match[2], [])
        self.entry = match[2] if match[1] else self.entry
      elif match := _NAME.match(line):
        current.append(_operation(match[2], line[match.end() :], bool(match[1])))
    if not self.entry:
      raise ValueError("the text of the program has no entry computation")
    for name, operations in self.computations.items():
      self._by_name[name] = {operation.name: operation for operation in operations}

  def find(self, computation: str, name: str) -> Operation | None:
    """An operation of a computation."""
    return self._by_name[computation].get(name)

  def operand(self, computation: str, operation: Operation, n: int) -> Operation | None:
    """The operation whose result is an operand."""
    if n >= len(operation.operands):
      return None
    return self._by_name[computation].get(operation.operands[n])

  def flops(self, computation: str) -> float:
    """Of the matrix multiplications in a computation and what it calls, once."""
    if computation not in self._flops:
      own = self.computations[computation]
      self._flops[computation] = sum(self.flops_of(computation, o) for o in own)
    return self._flops[computation]

  def flops_of(self, computation: str, operation: Operation) -> float:
    """Of one operation, with what it fuses; loops count once."""
    if operation.kind in ("fusion", "call", "async-start"):
      called = operation.attribute("calls") or operation.attribute("to_apply")
      return self.flops(called) if called in self.computations else 0.0
    if operation.kind == "dot":
      left = self.operand(computation, operation, 0)
      dims = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", operation.attributes)
      if left is None or dims is None:
        return 0.0
      over = [left.shapes[0].dims[int(d)] for d in dims[1].split(",") if d]
      return 2.0 * operation.shapes[0].size * math.prod(over)
    if operation.kind == "convolution":
      left, right = (self.operand(computation, operation, n) for n in (0, 1))
      if left is not None and right is not None:
        return _convolution_flops(operation, left.shapes[0], right.shapes[0])
    if operation.target == "tpu_custom_call":
      return self._grouped_flops(computation, operation)
    return 0.0

  def _grouped_flops(self, computation: str, operation: Operation) -> float:
    """Of a matmul in which rows have weights of their own, each its one: XLA's ragged
    dot, or the kernel that makes its gradients (model/untied.py); of others 0."""
    name = operation.name.partition(".")[0]
    if name not in ("ragged-dot-none", "tgmm"):
      return 0.0
    inputs = self.operand(computation, operation, len(operation.operands) - 2)
    if inputs is None:
      return 0.0
    rows, over = inputs.shapes[0].dims
    # Of gradients there are as many as weights, and each is a sum over its own rows.
    summed = over if name == "ragged-dot-none" else rows / operation.shapes[0].dims[0]
    return 2.0 * operation.shapes[0].size * summed

  def hbm_bytes(self, computation: str, operation: Operation) -> float:
    """Bytes that an operation reads from and writes to HBM, without padding.

    Of an array that a fusion only slices, or writes a slice of, the slice counts.
    """
    called = operation.attribute("calls") if operation.kind == "fusion" else ""
    inner = self.computations.get(called, [])
    read = 0.0
    for n in range(len(operation.operands)):
      source = self.operand(computation, operation, n)
      if source is None:
        continue
      whole = sum(s.bytes for s in source.shapes if s.in_hbm)
      read += min(whole, self._sliced(called, n)) if inner and whole else whole
    written = sum(s.bytes for s in operation.shapes if s.in_hbm)
    updates = [o for o in inner if o.kind == "dynamic-update-slice"]
    for update in updates:
      part = self.operand(called, update, 1)
      if part is not None and update.shapes[0] in operation.shapes:
        written += part.bytes - update.bytes
    return read + max(written, 0)

  def _sliced(self, computation: str, parameter: int) -> float:
    """Bytes of a parameter that a computation uses, if it slices it and no more."""
    operations = self.computations[computation]
    own = [
      o
      for o in operations
      if o.kind == "parameter" and o.attributes.startswith(f"{parameter})")
    ]
    if not own:
      return math.inf
    names, total = {own[0].name}, 0
    for operation in operations:
      if not names & set(operation.operands):
        continue
      if operation.kind in ("bitcast", "reshape"):
        names.add(operation.name)
      elif operation.kind in SLICES and operation.operands[0] in names:
        total += operation.bytes
      elif operation.kind == "dynamic-update-slice" and (
        operation.operands[0] in names
      ):
        pass  # it lies where the result will
      else:
        return math.inf
    return total

  def trips(self, loop: Operation) -> int | None:
    """How often the body of a `while` runs: from the bound of its condition, and by how
    much the body counts up. None where that bound is no constant of the program."""
    known = re.search(r'known_trip_count":\{"n":"(\d+)"', loop.attributes)
    if known:
      return int(known[1])
    condition, body = loop.attribute("condition"), loop.attribute("body")
    bounds = [b for o in self.computations[condition] if (b := _constant(o))]
    if not bounds:
      return None
    counters = [
      int(match[1])
      for o in self.computations[condition]
      if (match := re.search(r"\bindex=(\d+)", o.attributes))
      and o.kind == "get-tuple-element"
    ]
    root = next(o for o in self.computations[body] if o.is_root)
    steps = [1]
    if len(counters) == 1 and counters[0] < len(root.operands):
      steps = self._added(body, root.operands[counters[0]])
    return -(-max(bounds) // max(steps))

  def _added(self, computation: str, name: str) -> list[int]:
    """The constants that make a number from the one of the trip before: their sum."""
    total, by_name = 0, self._by_name[computation]
    while (own := by_name.get(name)) and own.kind in ("add", "copy", "bitcast"):
      constants = [_constant(by_name[o]) for o in own.operands if o in by_name]
      total += sum(c for c in constants if c)
      onward = [o for o, c in zip(own.operands, constants) if c is None]
      if not onward:
        break
      name = onward[0]
    return [total or 1]


def _constant(operation: Operation) -> int | None:
  """The value of a constant that is one whole number."""
  match = re.match(r"(\d+)\)", operation.attributes)
  return int(match[1]) if match and operation.kind == "constant" else None


def _convolution_flops(operation: Operation, left: Shape, right: Shape) -> float:
  """Of a convolution, which is what the compiler for TPUs makes of every matmul.

  It counts what meets numbers: with padding, a window may be mostly over nothing.
  """
  labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", operation.attributes)
  if not labels:
    return 0.0
  sizes = [
    dict(zip(names, shape.dims))
    for names, shape in zip(labels.groups(), (left, right, operation.shapes[0]))
  ]
  flops = 2.0 * sizes[2]["b"] * sizes[2]["f"] * sizes[1]["i"]
  for n in range(len(labels[1]) - 2):
    window = {name: _window(operation, name, n) for name in _WINDOWS}
    flops *= _meetings(sizes[0][str(n)], sizes[2][str(n)], window)
  return flops


_WINDOWS = {"size": "1", "stride": "1", "pad": "0_0", "lhs_dilate": "1"}
_WINDOWS |= {"rhs_dilate": "1"}


def _window(operation: Operation, name: str, n: int) -> int:
  """A number of the window of a convolution in its nth dimension; of the padding that
  in front."""
  window = re.search(r"window=\{([^}]*)\}", operation.attributes)
  match = re.search(rf"\b{name}=([\w\-]+)", window[1] if window else "")
  word = match[1].split("x")[n] if match else _WINDOWS[name]
  return int(word.partition("_")[0])


def _meetings(inputs: int, outputs: int, window: dict[str, int]) -> int:
  """How often a number of the window meets one of the inputs, along one dimension."""
  count, reach = 0, (inputs - 1) * window["lhs_dilate"]
  for out in range(outputs):
    for tap in range(window["size"]):
      at = out * window["stride"] + tap * window["rhs_dilate"] - window["pad"]
      count += 0 <= at <= reach and at % window["lhs_dilate"] == 0
  return count


def _operation(name: str, rest: str, is_root: bool) -> Operation:
  """Parses what stands behind `%name = `."""
  end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
  shapes, rest = _shapes(rest[:end]), rest[end:].lstrip()
  kind, _, rest = rest.partition("(")
  end = _closing("(" + rest, 0) - 1
  inside, after = rest[:end], rest[end + 1 :]
  if kind in ("parameter", "constant"):
    after = f"{inside}){after}"
  return Operation(name, kind, shapes, tuple(_OPERAND.findall(inside)), after, is_root)


def _closing(text: str, start: int) -> int:
  """Where the bracket that opens at `start` closes."""
  depth = 0
  for match in re.compile(r"[()]").finditer(text, start):
    depth += 1 if match[0] == "(" else -1
    if not depth:
      return match.start()
  return len(text)


def _shapes(text: str) -> tuple[Shape, ...]:
  found = []
  for dtype, dims, layout in _SHAPE.findall(text):
    sizes = tuple(int(d.removeprefix("<=")) for d in dims.split(",") if d)
    space = re.search(r"S\((\d+)\)", layout)
    in_hbm = not space or space[1] == "0"
    found.append(Shape(dtype, sizes, in_hbm))
  return tuple(found)
