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
  pieces: list[list[Block]] = []
  loop_regions: set[str] = set()
  starts = "piece"  # what the next bundle starts; "" if nothing
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
    starts = ""
    if branch:
      starts = "block" if branch[1] in loop_regions else "piece"
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
  pieces: list[list[Block]],
  tiles: dict[str, Tile],
  core: Generation,
  *,
  rare: int = 0,
) -> dict[str, Body]:
  """Returns the body of a kernel for each kind of tile.

  Args:
    pieces: of the kernel.
    tiles: "full", without a mask, or "masked", or both.
    core: where it runs.
    rare: how many more bodies there are, for what seldom happens.

  A body does the matmuls of its tile, no fewer and no more, counted with the trips of
  the loop in it. A masked one has a comparison or a select for each vector of scores,
  and at least so many more than a full one. Rare ones do more: other matmuls, or more
  comparisons and selects than the masked one.

  Raises:
    ValueError: what multiplies matrices is not that. Nothing is guessed.
  """
  left = [piece for piece in pieces if any(b.count("vmatmul") for b in piece)]
  if len(left) != len(tiles) + rare:
    at = ", ".join(f"0x{piece[0].address:x}" for piece in left)
    raise ValueError(
      f"{len(left)} bodies with matmuls, at [{at}]: expected {len(tiles) + rare}"
    )
  found, fewest = {}, 0.0
  for kind in sorted(tiles):  # full comes before masked
    needed = tiles[kind].flops * tiles[kind].padding / core.flops_per_cycle
    fits = [body for piece in left if (body := _body(piece, needed, core))]
    if not fits:
      busy = ", ".join(f"{_once(piece, core):,.0f}" for piece in left)
      raise ValueError(
        f"the {kind} tile needs the MXUs for {needed:,.0f} cycles; no body does that:"
        f" [{busy}] without the trips of loops"
      )
    found[kind] = min(fits, key=lambda body: body.mask_ops)
    left = [piece for piece in left if piece[0].address != found[kind].address]
    density = 1024 * found[kind].mask_ops / tiles[kind].scores  # of 8 x 128 lanes
    if kind == "masked":
      if density < fewest + 1:
        raise ValueError(
          f"the masked body at 0x{found[kind].address:x} has {density:.2f} comparisons"
          f" and selects a vector of scores, and the full one {fewest:.2f}"
        )
      same = [b.mask_ops for b in fits if b is not found[kind]]
      if any(ops <= found[kind].mask_ops for ops in same):
        raise ValueError(f"several bodies have {found[kind].mask_ops} mask operations")
    fewest = density
  return found


def _once(piece: list[Block], core: Generation) -> float:
  return sum(mxu_cycles(block.ops, core) for block in piece)


def _body(piece: list[Block], needed: float, core: Generation) -> Body | None:
  """Runs the loop of a piece as often as the matmuls need; None if that cannot be."""
  outside = min(block.loops for block in piece)
  loop = [block for block in piece if block.loops > outside]
  once, again = _once(piece, core), _once(loop, core)
  trips = 1 + (round((needed - once) / again) if again else 0)
  if trips < 1 or abs(once + (trips - 1) * again - needed) > 1e-6 * needed:
    return None
  ops: dict[str, int] = {}
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
