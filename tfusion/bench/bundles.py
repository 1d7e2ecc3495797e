"""What the instructions of a compiled TPU kernel say about its speed.

Owns: the text of libtpu's last compiler pass, and its arithmetic. Not: how the text
is made (aot.py). Needs no jax.

A TPU core issues one bundle of instructions a cycle, so the bundles of a tile are its
least cycles: waits for memory and stalls come on top. A packed bf16 vmatmul brings 16
rows to a matrix unit (MXU), which takes one row a cycle on v4 and v5 and two later.
"""

import re
from typing import NamedTuple


class Generation(NamedTuple):
  """One core of a TPU generation."""

  topology: str  # its smallest name for jax.experimental.topologies
  mxus: int
  side: int  # of a square MXU
  rows_per_cycle: int  # that an MXU takes

  @property
  def flops_per_cycle(self) -> int:
    """Nominal bf16 peak: a multiplication and an addition in each cell."""
    return 2 * self.mxus * self.rows_per_cycle * self.side**2


# Of the documentation of Cloud TPU: MXUs and their sides. Rows per cycle follow from
# its peaks: 197e12 flop/s at 1.5 GHz on v5e, 918e12 at 1.75 GHz on v6e.
GENERATIONS = {
  "v4": Generation("v4:2x2x1", mxus=4, side=128, rows_per_cycle=1),
  "v5e": Generation("v5e:2x2", mxus=4, side=128, rows_per_cycle=1),
  "v5p": Generation("v5p:2x2x1", mxus=4, side=128, rows_per_cycle=1),
  "v6e": Generation("v6e:2x2", mxus=2, side=256, rows_per_cycle=2),
  "tpu7x": Generation("tpu7x:2x2x1", mxus=2, side=256, rows_per_cycle=2),
}

_BUNDLE = re.compile(
  r"\s*(?P<address>0x[0-9a-f]+|0)\s+(?P<label>[A-Z]{2})?\s*:"
  r"(?P<loops>[\s>]*)\{(?P<code>.*)"
)
_COMMENT = re.compile(r"/\*.*?\*/")
_OPERATION = re.compile(r"[\s%\w,]*=\s+([a-z]\w*(?:\.\w+)*)")
_BRANCH = re.compile(r"\bsbr\.rel\b.*?target = \$region(\d+)")
_ROWS = {"bf16": 16, "f32": 8}  # that one vmatmul brings to the MXU


class Block(NamedTuple):
  """Bundles that run one after the other: nothing branches into or out of them.

  A branch takes effect up to four bundles late. Those are counted with what follows,
  so a loop is longer by them than it says here.
  """

  address: int
  loops: int  # how many loops are around it
  bundles: int
  ops: dict[str, int]

  def count(self, *prefixes: str) -> int:
    """How many operations start with one of these."""
    return sum(n for op, n in self.ops.items() if op.startswith(prefixes))


class Tile(NamedTuple):
  """The work that one visit of a kernel's inner body should do."""

  flops: int  # of its matmuls
  scores: int  # elements that a mask decides about
  padding: float = 1.0  # cells of the MXU over those in use, as with a short head dim


class Body(NamedTuple):
  """A piece of a kernel that multiplies matrices, with its loop run out."""

  address: int
  bundles: int
  vmatmuls: int
  mxu_cycles: float
  trips: int  # of the loop in it; 1 without a loop
  mask_ops: int  # comparisons and selects
  ops: dict[str, int]

  @property
  def cycles(self) -> float:
    """The least cycles of one visit."""
    return max(self.bundles, self.mxu_cycles)


def read_pieces(text: str) -> list[list[Block]]:
  """Parses a `final_bundles` file: pieces between `if`s, each a list of blocks.

  Blocks of one piece are straight code and loops without an `if` around or in them.

  Raises:
    ValueError: the text holds no bundles, as after a change of its format.
  """
  pieces, loop_regions, starts = [], set(), "piece"
  for line in text.splitlines():
    found = _BUNDLE.match(line)
    if not found:
      continue
    code, label = found["code"], found["label"]
    if label == "LB":
      loop_regions |= set(re.findall(r"Start region (\d+)", code))
      starts = starts or "block"
    elif label:
      starts = "piece"
    if starts == "piece":
      pieces.append([])
    if starts:
      pieces[-1].append(Block(int(found["address"], 16), 0, 0, {}))
    block = pieces[-1][-1]
    for instruction in _COMMENT.sub("", code).split(";;"):
      if operation := _OPERATION.match(instruction):
        block.ops[operation[1]] = block.ops.get(operation[1], 0) + 1
    loops = max(block.loops, found["loops"].count(">"))  # empty bundles show none
    pieces[-1][-1] = block._replace(loops=loops, bundles=block.bundles + 1)
    branch = _BRANCH.search(code)
    starts = branch and ("block" if branch[1] in loop_regions else "piece")
  if not pieces:
    raise ValueError("no bundles in the text: has libtpu changed its format?")
  return pieces


def mxu_cycles(ops: dict[str, int], core: Generation) -> float:
  """Cycles that the matmuls among ops keep every MXU of the core busy, at least.

  Raises:
    ValueError: a vmatmul of a type whose rows are not known.
  """
  cycles = 0.0
  for op, n in ops.items():
    if op.startswith("vmatmul"):
      rows = next((r for dtype, r in _ROWS.items() if dtype in op.split(".")), None)
      if rows is None:
        raise ValueError(f"{op}: how many rows it brings to the MXU is not known")
      cycles += n * rows / core.rows_per_cycle
  return cycles / core.mxus


def find_bodies(
  pieces: list[list[Block]], tile: Tile, core: Generation
) -> dict[str, Body]:
  """Returns the longest bodies of a kernel that compute a tile: "full" and "masked".

  Every body must do the matmuls of the tile, no fewer and no more, counted with the
  trips of the loop in it; there may be several of a kind. A masked one has comparisons
  and selects for each vector of scores, at least one more than a full one.

  Raises:
    ValueError: nothing multiplies matrices, or what does is no such body, or masks do
      not tell the bodies apart. Nothing is guessed.
  """
  needed = tile.flops * tile.padding / core.flops_per_cycle
  pieces = [p for p in pieces if any(b.count("vmatmul") for b in p)]
  if not pieces:
    raise ValueError("nothing multiplies matrices")
  bodies = [_body(piece, needed, core) for piece in pieces]
  vectors = tile.scores / 1024  # of 8 x 128 lanes
  fewest = min(body.mask_ops for body in bodies)
  full = [body for body in bodies if body.mask_ops <= fewest + vectors / 8]
  masked = [body for body in bodies if body.mask_ops > fewest + vectors / 8]
  for body in masked:
    if body.mask_ops < fewest + vectors:
      raise ValueError(
        f"the body at 0x{body.address:x} has {body.mask_ops} comparisons and selects,"
        f" another has {fewest}: a mask takes {vectors:.0f} more"
      )
  if not masked and fewest >= vectors:  # every tile is masked
    full, masked = masked, full
  kinds = {"full": full, "masked": masked}
  return {k: max(found, key=lambda b: b.bundles) for k, found in kinds.items() if found}


def _body(piece: list[Block], needed: float, core: Generation) -> Body:
  """Runs the loop of a piece as often as the matmuls of the tile need."""
  outside = min(block.loops for block in piece)
  loop = [block for block in piece if block.loops > outside]
  once = sum(mxu_cycles(block.ops, core) for block in piece)
  again = sum(mxu_cycles(block.ops, core) for block in loop)
  extra = (needed - once) / again if again else 0.0
  trips = 1 + round(extra)
  if abs(once + (trips - 1) * again - needed) > 1e-6 * needed or trips < 1:
    raise ValueError(
      f"the body at 0x{piece[0].address:x} keeps the MXUs busy for {once:,.0f} cycles,"
      f" {again:,.0f} of them in a loop, and the tile needs {needed:,.0f}"
    )
  ops = {}
  for block in piece:
    times = trips if block.loops > outside else 1
    for op, n in block.ops.items():
      ops[op] = ops.get(op, 0) + n * times
  whole = Block(
    piece[0].address,
    outside,
    sum(b.bundles * (trips if b.loops > outside else 1) for b in piece),
    ops,
  )
  return Body(
    address=whole.address,
    bundles=whole.bundles,
    vmatmuls=whole.count("vmatmul"),
    mxu_cycles=mxu_cycles(ops, core),
    trips=trips,
    mask_ops=whole.count("vcmp", "vsel"),
    ops=ops,
  )
