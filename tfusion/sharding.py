"""Meshes and the one table from logical axes to mesh axes.

Owns: joining hosts, the mesh, RULES, shardings of a state tree. Not: which axes a
parameter has (model/ names them where it makes them).

Meshes are explicit: a bad sharding is an error while tracing, on a laptop too.
`fsdp` shards parameters and batch: a layer's parameters are gathered where they are
used and their gradients scattered back (ZeRO-3, arXiv 1910.02054). `context` shards the
positions of a row that is trained on: all but attention (attention/ring.py) is local to
a position. `tensor` shards heads, mlp and vocabulary. Only `data` should cross a slow
network.

On a torus of TPUs `fsdp` is two axes of the mesh, each along dimensions of its own: the
compiler has a scatter and a gather for one or two dimensions, and in their place sums
whole arrays over three. What is gathered goes along the inner axis while it is small,
and then along the outer one; what is scattered goes the other way.
"""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from tfusion import muster as muster_lib
from tfusion.config import MeshConfig, mesh_sizes

FSDP = ("fsdp_outer", "fsdp_inner")
AXES = ("data", *FSDP, "context", "tensor")

RULES: dict[str | None, Any] = {
  "batch": ("data", *FSDP),
  "sequence": "context",
  "embed": FSDP,
  "heads": "tensor",
  "kv_heads": "tensor",
  "mlp": "tensor",
  "vocab": "tensor",
  "layers": None,
  None: None,
}


def join_hosts(how: str) -> None:
  """Makes this process one of several, before anything asks for devices.

  Args:
    how: `auto` where jax finds the others (TPU pods, Slurm, Open MPI), or
      `HOST:PORT,INDEX,COUNT` with the address of process 0.

  Raises:
    ValueError: neither of the two, or the processes did not find each other.
  """
  if how == "auto":
    _initialize(how)
    return
  found = muster_lib.place(how)
  if not found:
    raise ValueError(
      f"--distributed={how}: give auto, or HOST:PORT,INDEX,COUNT as in"
      " 10.0.0.1:1234,0,2 with INDEX below COUNT"
    )
  address, index, count = found
  _initialize(how, address, count, index)


def _initialize(how: str, *args):
  try:
    if args:
      address, count, index = args
      muster_lib.muster(address, index, count)
    jax.distributed.initialize(*args)
  except (ValueError, RuntimeError) as error:
    why = str(error).partition("\n")[0]
    raise ValueError(
      f"--distributed={how}: the processes did not find each other ({why}); start all"
      " of them, with the address of process 0 as HOST:PORT,INDEX,COUNT, or with auto"
      " where TPU pods, Slurm or Open MPI say where they are"
    ) from error
  if jax.default_backend() == "cpu":
    # JAX keeps the programs of the first process alone. It would find them, and wait
    # for the others while they compile, which gloo does for 30 seconds and no longer.
    jax.config.update("jax_enable_compilation_cache", False)


def make_mesh(
  config: MeshConfig, *, devices: Sequence[jax.Device] | None = None
) -> jax.sharding.Mesh:
  """Builds the explicit mesh of AXES; -1 takes what the other axes leave.

  Several slices of TPUs, between which the network is slow, lie along `data`.

  Raises:
    ValueError: `data` does not divide over the slices, or the devices cannot be laid
      out so.
  """
  devices = jax.devices() if devices is None else devices
  sizes = mesh_sizes(config, devices=len(devices))
  slices = len({getattr(device, "slice_index", 0) for device in devices})
  if sizes["data"] % slices:
    raise ValueError(
      f"mesh.data={sizes['data']}: must divide by the {slices} slices, as all other"
      " axes lie within one"
    )
  for outer, inner in _fsdp_parts(sizes["fsdp"], devices):
    shape = (sizes["data"], outer, inner, sizes["context"], sizes["tensor"])
    try:
      return _lay_out(shape, slices, devices)
    except (NotImplementedError, AssertionError) as error:  # what jax says of a torus
      why = str(error).partition("\n")[0]
  raise ValueError(f"{config}: the devices cannot be laid out so ({why})")


def _fsdp_parts(fsdp: int, devices: Sequence[Any]) -> list[tuple[int, int]]:
  """How the fsdp axis may be cut in two, the best first: the inner part along one
  dimension of the torus."""
  places = [device.coords for device in devices if hasattr(device, "coords")]
  sides = sorted({len(set(side)) for side in zip(*places)}) if places else []
  inner = [n for n in sides if 1 < n < fsdp and fsdp % n == 0]
  return [*((fsdp // n, n) for n in inner), (fsdp, 1)]


def _lay_out(
  shape: tuple[int, ...], slices: int, devices: Sequence[Any]
) -> jax.sharding.Mesh:
  types = (AxisType.Explicit,) * len(AXES)
  if slices == 1:
    return jax.make_mesh(shape, AXES, axis_types=types, devices=devices)
  inside = (shape[0] // slices, *shape[1:])
  across = (slices, *(1,) * (len(shape) - 1))
  laid_out = mesh_utils.create_hybrid_device_mesh(inside, across, devices)
  return jax.sharding.Mesh(laid_out, AXES, axis_types=types)


def spec(*names: str | None) -> P:
  """Turns logical axis names, one per dimension, into a PartitionSpec."""
  return P(*(RULES[name] for name in names))


def gather(w: jax.Array, names: Sequence[str | None]) -> jax.Array:
  """A parameter where it is computed with: its fsdp shards are gathered.

  Args:
    w: sharded as names say.
    names: logical axes.
  """
  outer, inner = FSDP
  if "embed" in names and jax.sharding.get_abstract_mesh().shape[inner] > 1:
    w = jax.sharding.reshard(w, _with_embed(names, outer))
  return jax.sharding.reshard(w, _with_embed(names, None))


def unreduced(names: Sequence[str | None], *, over: Sequence[Any]) -> P:
  """The spec of a gradient before `scatter`.

  Args:
    names: logical axes of the parameter.
    over: mesh axes of the rows and positions that are summed, as a spec has them.
  """
  return P(*_with_embed(names, None), unreduced=frozenset(axes_of(over)))


def scatter(w: jax.Array, names: Sequence[str | None]) -> jax.Array:
  """The gradient of a parameter: it is summed over devices, each shard where it lies.

  Args:
    w: unreduced over the axes that hold rows; otherwise as `gather` gives it.
    names: logical axes.
  """
  left = jax.typeof(w).sharding.spec.unreduced
  shape = jax.sharding.get_abstract_mesh().shape
  for axes in (FSDP[:1], FSDP):
    if axes == FSDP[:1] or shape[FSDP[1]] > 1:
      left = left - set(axes)
      w = jax.sharding.reshard(w, P(*_with_embed(names, axes), unreduced=left))
  return jax.sharding.reshard(w, spec(*names))


def scatter_here(w: jax.Array, names: Sequence[str | None], *, over: P) -> jax.Array:
  """`scatter` inside shard_map, of what each device has summed over its own rows.

  Args:
    w: the gradient of a whole parameter, but for the axes other than fsdp.
    names: logical axes of it.
    over: the spec of the rows and positions.
  """
  axes, at = axes_of(over), list(names).index("embed")
  for axis in FSDP:
    w = jax.lax.psum_scatter(w, axis, scatter_dimension=at, tiled=True)
  return jax.lax.psum(w, tuple(axis for axis in axes if axis not in FSDP))


def axes_of(over: Iterable[Any]) -> tuple[str, ...]:
  """The mesh axes over which dimensions are cut; `over` has them as a spec does."""
  parts = (part if isinstance(part, tuple) else (part,) for part in over)
  return tuple(axis for part in parts for axis in part if axis is not None)


def fsdp_shards() -> int:
  """Shards of a parameter over fsdp, on the mesh in use."""
  shape = jax.sharding.get_abstract_mesh().shape
  return math.prod(shape[axis] for axis in FSDP)


def _with_embed(names: Sequence[str | None], axis: Any) -> P:
  return P(*(axis if name == "embed" else RULES[name] for name in names))


def by_row(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
  """Maps a function over the rows of a batch, each on the device that holds it.

  Gathers and scatters inside a row then never cross devices. Arguments and result
  have the batch in front and are not sharded otherwise.
  """

  def local(*arrays):
    return jax.vmap(function)(*arrays)

  return jax.shard_map(local, in_specs=spec("batch"), out_specs=spec("batch"))


def batch_shards() -> int:
  """Shards of the batch on the mesh in use: row counts must divide by it."""
  shape = jax.sharding.get_abstract_mesh().shape
  return math.prod(shape[axis] for axis in RULES["batch"])


def join_rows(*batches: jax.Array, axis: int = 0) -> jax.Array:
  """Concatenates batches shard by shard, so that no row moves; see split_rows."""
  each = jax.typeof(batches[0]).sharding.spec

  def local(*batches):
    return jnp.concatenate(batches, axis)

  specs = (each,) * len(batches)
  return jax.shard_map(local, in_specs=specs, out_specs=each)(*batches)


def split_rows(
  joined: jax.Array, *, parts: int = 2, axis: int = 0
) -> tuple[jax.Array, ...]:
  """Undoes join_rows of so many batches."""
  each = jax.typeof(joined).sharding.spec

  def local(joined):
    return tuple(jnp.split(joined, parts, axis))

  return jax.shard_map(local, in_specs=each, out_specs=(each,) * parts)(joined)


def replicate(x: jax.Array) -> jax.Array:
  """The whole array on every device of the mesh in use."""
  return jax.sharding.reshard(x, P())


def state_shardings(
  abstract: Any, *, names: dict[tuple[str, ...], tuple[str | None, ...]], mesh: Any
) -> Any:
  """Gives every leaf of a state the sharding of the parameter whose path ends its own.

  Args:
    abstract: a tree of arrays or shapes: parameters, optimizer state, EMA, counters.
    names: logical axes of every parameter, by path.
    mesh: the mesh.

  Returns:
    The same tree with NamedShardings; leaves that no parameter matches are replicated.
  """

  def one(path, leaf):
    keys = tuple(str(getattr(k, "key", getattr(k, "name", k))) for k in path)
    for start in range(len(keys)):
      axes = names.get(keys[start:])
      if axes is not None and len(axes) == len(leaf.shape):
        return NamedSharding(mesh, spec(*axes))
    return NamedSharding(mesh, P())

  return jax.tree_util.tree_map_with_path(one, abstract)


def global_batch(host_batch: Any, *, mesh: Any) -> Any:
  """Makes global arrays from this host's rows; hosts follow each other in order."""
  sharding = NamedSharding(mesh, spec("batch"))
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)),
    host_batch,
  )


def put_rows(tree: Any) -> Any:
  """Makes global arrays, sharded by rows on the mesh in use, from numpy arrays that
  every host holds whole."""
  sharding = NamedSharding(jax.sharding.get_mesh(), spec("batch"))
  return jax.tree.map(
    lambda x: jax.make_array_from_callback(x.shape, sharding, x.__getitem__), tree
  )


def fetch_rows(x: jax.Array) -> np.ndarray:
  """Undoes put_rows: all rows, on every host. All hosts must call it."""
  if jax.process_count() == 1:
    return np.asarray(x)
  return multihost_utils.process_allgather(x, tiled=True)


def gather_json(value: Any) -> list[Any]:
  """What every host gives, JSON-able, in order of the hosts. All hosts must call it.

  Keys of objects that are numbers come back as text from several hosts.
  """
  if jax.process_count() == 1:
    return [value]
  data = np.frombuffer(json.dumps(value).encode(), np.uint8)
  lengths = multihost_utils.process_allgather(np.asarray(len(data)))
  padded = np.zeros(lengths.max(), np.uint8)
  padded[: len(data)] = data
  everything = multihost_utils.process_allgather(padded)
  return [json.loads(d[:n].tobytes()) for d, n in zip(everything, lengths)]


def describe(abstract: Any, shardings: Any) -> list[str]:
  """One line per leaf: path, shape, spec; for the log at the start of a run."""
  leaves = jax.tree_util.tree_flatten_with_path(abstract)[0]
  specs = jax.tree.leaves(shardings)
  return [
    f"{jax.tree_util.keystr(path, simple=True, separator='/')} {leaf.shape} {s.spec}"
    for (path, leaf), s in zip(leaves, specs, strict=True)
  ]
