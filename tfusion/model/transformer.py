"""The stack of blocks: one scan over layers, remat, and the cache of keys.

Owns: how layers follow each other. Not: what a layer is (layers.py), embeddings and
heads (transfusion.py).

n layers  b batch  l queries  s cache positions  d width  g kv heads  k head dim
"""

import jax
import jax.numpy as jnp
from flax import nnx

from tfusion.config import ModelConfig
from tfusion.model import untied
from tfusion.model.layers import Block, Cache, Keys, RMSNorm, View
from tfusion.sharding import spec

REMAT = {
  "none": None,
  "dots": jax.checkpoint_policies.save_from_both_policies(
    jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    jax.checkpoint_policies.save_only_these_names(untied.SAVED),
  ),
  "full": jax.checkpoint_policies.nothing_saveable,
}


def empty_cache(
  config: ModelConfig, *, batch: int, length: int, dtype, apart: bool = False
) -> Cache:
  """A cache of zeros for `length` positions; `apart` for parameters that are."""
  layers = 1 if apart else config.layers
  shape = (layers, batch, config.kv_heads, length, config.head_dim)
  sharding = spec("layers", "batch", "kv_heads", None, None)
  zeros = jnp.zeros(shape, dtype, out_sharding=sharding)
  return (Keys(zeros, zeros),) * (config.layers // layers)


class Transformer(nnx.Module):
  """Blocks and the final norm."""

  def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
    self.blocks = Block(config, rngs=rngs)
    self.norm = RMSNorm(config.width, stack=(), eps=config.norm_eps, rngs=rngs)
    self.image_norm = nnx.clone(self.norm) if config.untied == "all" else None
    self.layers = config.layers
    self.remat, self.unroll = config.remat, config.unroll

  def __call__(
    self, x_bld: jax.Array, view: View, cache: Cache | None = None
  ) -> tuple[jax.Array, Cache | None]:
    """Runs the stack.

    Args:
      x_bld: embedded inputs.
      view: positions and intervals of the inputs.
      cache: None attends among the inputs alone.

    Returns:
      The normed output and the cache with the inputs written at `view.write_at_b`.
    """
    sorted_ = view.of if isinstance(view.of, untied.Split) else None
    if sorted_ is not None:
      x_bld = untied.sort(x_bld, sorted_)
    x_bld, cache = self._run(x_bld, view, cache)
    x_bld = self.norm(x_bld, twin=self.image_norm, of=view.of)
    return x_bld if sorted_ is None else untied.unsort(x_bld, sorted_), cache

  def _run(
    self, x_bld: jax.Array, view: View, cache: Cache | None
  ) -> tuple[jax.Array, Cache | None]:
    if isinstance(self.blocks, nnx.List):  # of `transfusion.apart`
      return _run_apart(self.blocks, x_bld, view, cache)
    graphdef, params = nnx.split(self.blocks)

    def layer(carry, slices):
      x_bld, keys = carry
      layer_params, number = slices
      return nnx.merge(graphdef, layer_params)(x_bld, view, keys, number), None

    if self.remat != "none":
      # Inside a scan nothing can be shared; unrolled, XLA would keep what is to go.
      layer = jax.checkpoint(
        layer, policy=REMAT[self.remat], prevent_cse=self.unroll > 1
      )
    # The cache is carried, for layers to write into: as slices of the scan and their
    # results all of it would be copied.
    slices = (params, jnp.arange(self.layers))
    keys = None if cache is None else cache[0]
    start = (x_bld, keys)
    (x_bld, keys), _ = jax.lax.scan(layer, start, slices, unroll=self.unroll)
    return x_bld, None if keys is None else (keys,)


def _run_apart(
  blocks: nnx.List, x_bld: jax.Array, view: View, cache: Cache | None
) -> tuple[jax.Array, Cache | None]:
  written = []
  for number, block in enumerate(blocks):
    keys = None if cache is None else cache[number]
    x_bld, keys = block(x_bld, view, keys, 0)  # the only layer of its cache
    written.append(keys)
  return x_bld, None if cache is None else tuple(written)
