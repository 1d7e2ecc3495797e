"""Weights that text and patches do not share (arXiv 2411.04996).

Owns: sorting positions by modality, matmuls in which each has its own weight. Not:
which weights there are two of (layers.py).

b batch  l positions  t positions of a device  k inputs  n outputs

Every position is multiplied by the weight of its modality alone, so that a step takes
as many operations as with one weight for both. For this the positions of each device
are sorted once, text first: the stack of layers works on them in that order, and
attention alone puts queries, keys and values back in their places.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from tfusion.attention import platform
from tfusion.model import linear as tied
from tfusion.model.linear import Product, gathered_weight
from tfusion.sharding import axes_of, scatter_here

SAVED = "untied"  # by which a remat policy that keeps matmuls knows these
# Positions that are multiplied at once on a CPU. Those of the tile in which text ends
# are multiplied by both weights; with fewer in a tile, all of them go slower.
TILE = 256
# Positions, inputs and outputs of a tile of gradients: as much as the memory of a v5e's
# core has room for, so that reading takes less time than multiplying.
TPU_TILES = (512, 512, 1024)


class Split(NamedTuple):
  """How the positions of every device are sorted."""

  source_bl: jax.Array  # i32, which of the device's positions is sorted to here
  place_bl: jax.Array  # i32, where the device's position here is sorted to
  text_bl: jax.Array  # bool, whether text is sorted to here


# Whose the positions at hand are: text's, an image's, or both's and sorted; None: the
# model has one parameter for both.
Of = str | Split | None


class Both(NamedTuple):
  """A parameter of text, that of patches, and whose each sorted position wants."""

  text: Any  # nnx.Param, or an array
  image: Any
  text_bl: jax.Array


def split(text_bl: jax.Array) -> Split:
  """Finds how positions are sorted: on each device text first, otherwise in order.

  Args:
    text_bl: bool, sharded as rows and positions are; False for patches.
  """
  specs = _rows(text_bl)

  def local(text_bl: jax.Array):
    text_t = text_bl.reshape(-1)
    source_t = jnp.argsort(~text_t, stable=True).astype(jnp.int32)
    place_t = jnp.argsort(source_t).astype(jnp.int32)
    found = source_t, place_t, text_t[source_t]
    return tuple(x.reshape(text_bl.shape) for x in found)

  found = jax.shard_map(local, in_specs=specs, out_specs=(specs,) * 3)(text_bl)
  return Split(*found)


def sort(x_bl: jax.Array, how: Split) -> jax.Array:
  """[b, l, ...] as `how` sorts it."""
  return _permute(x_bl, how.source_bl, how.place_bl)


def unsort(x_bl: jax.Array, how: Split) -> jax.Array:
  """Undoes `sort`."""
  return _permute(x_bl, how.place_bl, how.source_bl)


@jax.custom_vjp
def _permute(x_bl, from_bl, back_bl):
  """Takes from_bl of the device's positions. Its gradient takes back_bl: JAX, which
  does not know that no position is taken twice, would add each into zeros."""

  def local(x_bl, from_bl):
    x_tk = x_bl.reshape(from_bl.size, -1)
    taken_tk = x_tk.at[from_bl.reshape(-1)].get(mode="promise_in_bounds")
    return taken_tk.reshape(x_bl.shape)

  cut = jax.typeof(x_bl).sharding.spec
  specs = (cut, _rows(from_bl))
  return jax.shard_map(local, in_specs=specs, out_specs=cut)(x_bl, from_bl)


def _permute_forward(x_bl, from_bl, back_bl):
  return _permute(x_bl, from_bl, back_bl), (from_bl, back_bl)


def _permute_backward(saved, g_bl):
  from_bl, back_bl = saved
  return _permute(g_bl, back_bl, from_bl), None, None


_permute.defvjp(_permute_forward, _permute_backward)


def choose(name: str, own: Any, twin: Any, of: Of) -> Any:
  """The parameter of this name that the positions at hand want, or Both.

  Args:
    name: of an attribute; it may be None.
    own: the module of text.
    twin: that of patches, like it; None: text's is theirs too.
    of: whose the positions are.
  """
  text = getattr(own, name)
  if text is None or twin is None or of is None or of == "text":
    return text
  image = getattr(twin, name)
  if of == "image":
    return image
  assert isinstance(of, Split)
  return Both(text, image, of.text_bl)


def spread(value: jax.Array | Both, ndim: int) -> jax.Array:
  """Numbers of the last axes, to be multiplied with or added to [b, l, ...].

  Args:
    value: an array, or Both of two, without b and l.
    ndim: axes of what it meets.
  """
  if not isinstance(value, Both):
    return value[(None,) * (ndim - value.ndim)]
  text, image = (spread(x, ndim) for x in value[:2])
  return jnp.where(value.text_bl[(..., *(None,) * (ndim - 2))], text, image)


def values(weight: Any) -> Any:
  """The array of a parameter, or the arrays of both; of None, None."""
  if weight is None:
    return None
  if not isinstance(weight, Both):
    return weight[...]
  return weight._replace(text=weight.text[...], image=weight.image[...])


def linear(x: jax.Array, weight: Any, gradient: str, **how) -> jax.Array:
  """`linear.linear`; of Both, each position by the weight of its modality."""
  if not isinstance(weight, Both):
    return tied.linear(x, weight, gradient, **how)
  names = tied.names_of(weight.text)
  return multiply(x, values(weight), Product(names, gradient, **how))


def multiply(x: jax.Array, w: jax.Array | Both, how: Product) -> jax.Array:
  """`linear.multiply`; of Both, each position by the weight of its modality."""
  if not isinstance(w, Both):
    return tied.multiply(x, w, how)
  return _multiply(x, w.text, w.image, w.text_bl, how)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _multiply(x, text, image, text_bl, how: Product):
  return _contract(x, text, image, text_bl, how)


def _forward(x, text, image, text_bl, how: Product):
  # Named, as a remat policy that keeps matmuls does not know what is inside.
  y = checkpoint_name(_contract(x, text, image, text_bl, how), SAVED)
  return y, (x, text, image, text_bl)


def _backward(how: Product, saved, g):
  x, text, image, text_bl = saved
  g = g.astype(x.dtype)
  dx = _contract(g, text, image, text_bl, how, to=jax.typeof(x))
  own = functools.partial(_weight_gradients, how=how, like=text)
  dtext, dimage = own(x, g, text_bl)
  return dx, dtext.astype(text.dtype), dimage.astype(image.dtype), None


_multiply.defvjp(_forward, _backward)


def _contract(x, text, image, text_bl, how: Product, to=None):
  """x w, or g w^T for the gradient of inputs of the type `to`."""
  ws, inputs, outputs = zip(*(gathered_weight(w, x.dtype, how) for w in (text, image)))
  over, left = (inputs[0], outputs[0]) if to is None else (outputs[0], inputs[0])
  dtype = (how.out_dtype or x.dtype) if to is None else to.dtype
  cut = jax.typeof(ws[0]).sharding.spec
  rows, axes = _rows(text_bl), axes_of(cut[axis] for axis in over)
  first = over[0] == 0  # whether a weight's contracted axes come first

  def local(x, text, image, text_bl):
    shape = tuple(text.shape[axis] for axis in left)
    size = (-1, math.prod(shape)) if first else (math.prod(shape), -1)
    pair = text.reshape(size), image.reshape(size)
    x_tk = x.reshape(text_bl.size, -1)
    y_tn = _grouped(x_tk, pair, jnp.sum(text_bl), first, dtype)
    return lax.psum(y_tn, axes).reshape(*text_bl.shape, *shape)

  return jax.shard_map(
    local,
    in_specs=(jax.typeof(x).sharding.spec, cut, cut, rows),
    out_specs=jax.P(*rows, *(cut[axis] for axis in left)),
    check_vma=False,
  )(x, ws[0], ws[1], text_bl)


def _weight_gradients(x, g, text_bl, *, how: Product, like):
  """x^T g over text and over patches, each summed over all devices that hold rows."""
  dtype = jnp.promote_types(x.dtype, how.gradient)
  rows, cut = _rows(text_bl), jax.typeof(like).sharding.spec
  cuts = tuple(jax.typeof(y).sharding.spec for y in (x, g))
  last = how.names[-1] == "embed"  # which fsdp cuts: outputs, or inputs

  def scatter(w_kn, shape):
    # A matrix whose rows are scattered. Of other shapes the compiler sums all of it.
    w_kn = scatter_here(w_kn, ("embed", None), over=rows)
    if not last:
      return w_kn.reshape(-1, *shape[1:])
    return jnp.moveaxis(w_kn.reshape(-1, *shape[:-1]), 0, -1)

  def local(x, g, text_bl):
    shape = (*x.shape[2:], *g.shape[2:])
    x_tk, g_tn = (y.reshape(text_bl.size, -1) for y in (x, g))
    pair = (g_tn, x_tk) if last else (x_tk, g_tn)
    both = _gradients(*pair, jnp.sum(text_bl), dtype)
    return scatter(both[0], shape), scatter(both[1], shape)

  return jax.shard_map(
    local, in_specs=(*cuts, rows), out_specs=(cut, cut), check_vma=False
  )(x, g, text_bl)


def _grouped(x_tk, pair, count, first: bool, dtype) -> jax.Array:
  """The first `count` positions by the first weight, the others by the second.

  Args:
    x_tk: inputs.
    pair: two weights, [k, n] each if `first`, else [n, k].
    count: i32[].
    first: whether what is contracted comes first.
    dtype: of the outputs.
  """
  if platform() == "cpu":
    return _grouped_by_tiles(x_tk, pair, count, first, dtype)
  sizes = jnp.stack([count, x_tk.shape[0] - count]).astype(jnp.int32)
  over = (((1,), (1 if first else 2,)), ((), ()))
  how = lax.RaggedDotDimensionNumbers(over, [0], [0])
  return lax.ragged_dot_general(
    x_tk, jnp.stack(pair), sizes, how, preferred_element_type=dtype
  )


def _grouped_by_tiles(x_tk, pair, count, first: bool, dtype):
  """`_grouped` on a CPU, where XLA would compute both products whole."""
  side = min(TILE, x_tk.shape[0])
  steps = -(-x_tk.shape[0] // side)
  padded_tk = jnp.pad(x_tk, ((0, steps * side - x_tk.shape[0]), (0, 0)))
  over = (((1,), (0 if first else 1,)), ((), ()))

  def tile(number, y_tn):
    start = number * side
    x_ck = lax.dynamic_slice_in_dim(padded_tk, start, side)
    by = lambda n: lax.dot_general(  # noqa: E731
      x_ck, pair[n], over, preferred_element_type=dtype
    )
    text_c1 = (start + jnp.arange(side) < count)[:, None]
    is_text, is_image = count >= start + side, count <= start
    y_cn = lax.switch(
      jnp.where(is_text, 0, jnp.where(is_image, 1, 2)),
      [lambda: by(0), lambda: by(1), lambda: jnp.where(text_c1, by(0), by(1))],
    )
    return lax.dynamic_update_slice_in_dim(y_tn, y_cn, start, 0)

  outputs = pair[0].shape[1 if first else 0]
  y_tn = lax.fori_loop(0, steps, tile, jnp.zeros((steps * side, outputs), dtype))
  return y_tn[: x_tk.shape[0]]


def _gradients(x_tk, g_tn, count, dtype) -> jax.Array:
  """x^T g of the first `count` positions and of the others: [2, k, n]."""
  if platform() == "cpu":
    return _gradients_by_tiles(x_tk, g_tn, count, dtype)
  sizes = jnp.stack([count, x_tk.shape[0] - count]).astype(jnp.int32)
  if platform() == "tpu":
    return gradients_on_tpu(x_tk, g_tn, sizes, dtype)
  how = lax.RaggedDotDimensionNumbers((((0,), (0,)), ((), ())), [0], [])
  return lax.ragged_dot_general(x_tk, g_tn, sizes, how, preferred_element_type=dtype)


def gradients_on_tpu(x_tk, g_tn, sizes_2, dtype, **how) -> jax.Array:
  """x^T g of so many positions and so many more, as a kernel of JAX's own has it: for
  the ragged dot XLA would multiply all positions twice.

  Args:
    x_tk: inputs.
    g_tn: the gradient of outputs.
    sizes_2: i32, positions of text and of patches; t together.
    dtype: of the result, [2, k, n].
    **how: `interpret`, for tests.
  """
  # Pallas takes a second to import.
  from jax.experimental.pallas.ops.tpu.megablox.gmm import tgmm

  (t, k), n = x_tk.shape, g_tn.shape[1]
  tiles = math.gcd(t, TPU_TILES[0]), min(k, TPU_TILES[1]), min(n, TPU_TILES[2])
  return tgmm(x_tk.swapaxes(0, 1), g_tn, sizes_2, dtype, tiles, **how)


def _gradients_by_tiles(x_tk, g_tn, count, dtype):
  side = min(TILE, x_tk.shape[0])
  steps = -(-x_tk.shape[0] // side)
  pad = ((0, steps * side - x_tk.shape[0]), (0, 0))
  x_tk, g_tn = jnp.pad(x_tk, pad), jnp.pad(g_tn, pad)

  def part(start, text: bool | jax.Array):
    """Of a tile, what is of this modality."""
    x_ck, g_cn = (lax.dynamic_slice_in_dim(y, start, side) for y in (x_tk, g_tn))
    own_c1 = ((start + jnp.arange(side) < count) == text)[:, None]
    return lax.dot_general(
      jnp.where(own_c1, x_ck, 0),
      g_cn,
      (((0,), (0,)), ((), ())),
      preferred_element_type=dtype,
    )

  def tile(number, sums_2kn):
    start = number * side
    image = (count <= start).astype(jnp.int32)
    return sums_2kn.at[image].add(part(start, image == 0))

  shape = (2, x_tk.shape[1], g_tn.shape[1])
  sums_2kn = lax.fori_loop(0, steps, tile, jnp.zeros(shape, dtype))
  # The patches of the tile in which text ends; if it ends between two, none.
  start = jnp.minimum(count // side, steps - 1) * side
  return sums_2kn.at[1].add(jnp.where(count > start, part(start, False), 0))


def _rows(x_bl: jax.Array) -> jax.P:
  return jax.P(*jax.typeof(x_bl).sharding.spec[:2])
