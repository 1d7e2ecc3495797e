"""The model: one transformer over text tokens and image patches.

Owns: embeddings, how patches enter and leave the row, the two heads. Not: noise,
losses, sampling.

b batch  l sequence  n image slots of a kind  m patches of an image  d width  v vocab
h w c latent height, width, channels; other kinds have other dimensions (kinds.py)
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec as P

from tfusion.attention import prepare
from tfusion.config import ModelConfig
from tfusion.kinds import FIRST, Kind
from tfusion.model import untied
from tfusion.model.layers import Cache, View, rope_angles
from tfusion.model.linear import linear, outputs_of, param, zeros
from tfusion.model.lora import Lora, merged
from tfusion.model.patches import LinearPatches, waves
from tfusion.model.transformer import Transformer
from tfusion.model.unet import Skips, UNetPatches
from tfusion.sequence import Batch
from tfusion.sharding import FSDP, by_row, fsdp_shards, spec

Params = dict[str, Any]  # nested, float32 leaves
Images = tuple[jax.Array, ...]  # of every kind of the run


class Transfusion(nnx.Module):
  """arXiv 2408.11039, section 3: parameters and forward passes."""

  def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
    v, d = config.vocab_size, config.width
    # The paper gives no deviations of initial weights: ours, for embeddings 1, for
    # matrices 1 / sqrt(inputs), so that numbers of about 1 go in and come out.
    self.embedding = param(rngs, ("vocab", "embed"), (v, d), std=1.0)
    if config.patches != "none":
      self._own_layers(config.every_kind[0], config, rngs)
    self.transformer = Transformer(config, rngs=rngs)
    self.head = param(rngs, ("embed", "vocab"), (d, v), std=d**-0.5)
    for kind in config.every_kind[1:]:
      if not kind.like:
        self._own_layers(kind, config, rngs)
    if config.patch_places == "learned":
      for kind in config.every_kind:
        # From zeros, ours: a new model begins as one without.
        table = zeros((None, "embed"), (kind.patches, d))
        setattr(self, _name("patch_places", kind.name), table)
    if config.lora_rank:
      self.lora = Lora(config, rngs=rngs)
    self.config = config

  def _own_layers(self, kind: Kind, config: ModelConfig, rngs: nnx.Rngs) -> None:
    """Gives a kind patch layers of its own."""
    layers = UNetPatches if kind.layers == "unet" else LinearPatches
    setattr(self, _name("patches", kind.name), layers(config, kind, rngs=rngs))

  def layers_of(self, kind: Kind) -> LinearPatches | UNetPatches:
    """The patch layers that a kind uses."""
    return getattr(self, _name("patches", kind.owner))

  def __call__(
    self, batch: Batch, noisy: Images, t: Images
  ) -> tuple[jax.Array, Images]:
    """Predicts the next token everywhere and the noise of every image, or what else
    `diffusion.target` says.

    Args:
      batch: packed rows.
      noisy: of every kind f32[b, n, h, w, c], the noised latents of the batch.
      t: of every kind i32[b, n], their timesteps; 0 is clean.

    Returns:
      logits f32[b, l, v] (sharded over the vocabulary) and images like `noisy`; none
      with `model.patches=none`.
    """
    x_bld, images = self.outputs(batch, noisy, t)
    return self.logits(x_bld), images

  def outputs(
    self, batch: Batch, noisy: Images, t: Images, drop_b: jax.Array | None = None
  ) -> tuple[jax.Array, Images]:
    """What calling the model gives, with x [b, l, d] in place of the logits that
    `logits` would make of it: of a large vocabulary they are the largest array of all.

    With `drop_b`, keys of the rows, `model.dropout` of the numbers are left out.
    """
    cut = functools.partial(
      jax.sharding.reshard, out_shardings=spec("batch", "sequence")
    )
    patch_bl = cut(batch.patch_bl)
    x_bld, skips = self.embed(cut(batch.tokens_bl), noisy, t, patch_bl)
    stand = cut(batch.positions_bl), cut(batch.lo_bl), cut(batch.hi_bl)
    slots = tuple(kind.starts.shape[1] for kind in batch.slots)
    view = self._view(*stand, patch_bl=patch_bl, slots=slots)
    view = view._replace(drop_b=drop_b, of=self._of("both", patch_bl))
    x_bld, _ = self.transformer(x_bld, view)
    if self.config.patches == "none":
      return x_bld, ()
    kinds = zip(self.config.every_kind, batch.slots, skips, strict=True)
    return x_bld, tuple(
      self.predict_images(_take(x_bld, slots.starts, kind.patches), kept, kind)
      for kind, slots, kept in kinds
    )

  def embed(
    self, tokens_bl, noisy: Images, t: Images, patch_bl
  ) -> tuple[jax.Array, tuple[Skips, ...]]:
    """Token ids and noisy latents in the places that patch_bl names: [b, l, d]; and
    what the patch layers of every kind keep for `predict_images`. Without patch layers,
    the ids."""
    if self.config.patches == "none":
      return self.embed_text(tokens_bl), ()
    kinds = zip(noisy, t, self.config.every_kind, strict=True)
    embedded = [self.embed_images(own, t_bn, kind) for own, t_bn, kind in kinds]
    patches = [x_bnmd for x_bnmd, _ in embedded]
    x_bld = _place(self.embed_text(tokens_bl), patches, patch_bl)
    return x_bld, tuple(kept for _, kept in embedded)

  def embed_text(self, tokens_bl: jax.Array) -> jax.Array:
    """Token ids to [b, l, d]."""
    # Cast behind the lookup: its gradient sums over every place of a token, in float32.
    table_vd, where = self.embedding[...], outputs_of(tokens_bl)
    if fsdp_shards() == 1:
      table_vd = jax.sharding.reshard(table_vd, spec(None))
      return (
        table_vd.at[tokens_bl].get(out_sharding=where).astype(dtype_of(self.config))
      )
    # Each device looks up its part of the width for the rows of all, and they exchange
    # what they found: far less than the table, and no gradient of it crosses devices.
    table_vd = jax.sharding.reshard(table_vd, spec(None, "embed"))
    tokens_bl = jax.sharding.reshard(tokens_bl, P("data", where[1]))
    x_bld = table_vd.at[tokens_bl].get(out_sharding=P("data", where[1], FSDP))
    return jax.sharding.reshard(x_bld.astype(dtype_of(self.config)), where)

  def embed_images(
    self, noisy_bnhwc: jax.Array, t_bn: jax.Array, kind: Kind
  ) -> tuple[jax.Array, Skips]:
    """Noisy latents of a kind at t (0 clean .. timesteps noise) to [b, n, m, d], with
    `model.patch_places` added; and what the patch layers keep for `predict_images`."""
    dtype = dtype_of(self.config)
    x_bnmd, skips = self.layers_of(kind).encode(noisy_bnhwc, t_bn, dtype=dtype)
    if self.config.patch_places == "none":
      return x_bnmd, skips
    if self.config.patch_places == "learned":
      table = getattr(self, _name("patch_places", kind.name))[...]
      places_md = jax.sharding.reshard(table, spec(None, None))
    else:
      places_md = jnp.asarray(waves(kind.sides, self.config.width))
    # In float32, as biases are: the gradient is a sum over all images.
    return (x_bnmd.astype(jnp.float32) + places_md[None, None]).astype(dtype), skips

  def look(
    self,
    places_bl,
    hi_bl,
    *,
    length: int,
    positions_bl=None,
    patch_bl=None,
    slots: tuple[int, ...] = (1,),
    of: str = "text",
  ) -> View:
    """Finds what new inputs see of a cache of one document per row.

    Args:
      places_bl: i32, their places in the cache, which follow each other in every row.
      hi_bl: i32, the last place that each sees; of a causal model, its own.
      length: places of the cache.
      positions_bl: i32, of RoPE; None: they are the places.
      patch_bl: i32, as in Batch; None: positions of patches are not read.
      slots: that patch_bl counts, of every kind.
      of: what the inputs are: text, an image, or both, as patch_bl says.
    """
    # Not places_bl[:, 0]: jax 0.11 drops the sharding of a batch of one there.
    write_at_b = jnp.min(places_bl, axis=1)
    if self.config.image_attention == "causal":
      hi_bl = places_bl
    lo_bl = jnp.zeros_like(hi_bl)
    positions_bl = places_bl if positions_bl is None else positions_bl
    into: dict[str, Any] = dict(keys=length, write_at_b=write_at_b)
    view = self._view(
      positions_bl, lo_bl, hi_bl, patch_bl=patch_bl, slots=slots, **into
    )
    return view._replace(of=self._of(of, patch_bl))

  def extend(self, x_bld, view: View, cache: Cache) -> tuple[jax.Array, Cache]:
    """Runs embedded inputs on a cache at `view`, from `look`, and adds them to it.

    Returns:
      Outputs [b, l, d] and the cache.
    """
    x_bld, extended = self.transformer(x_bld, view, cache)
    assert extended is not None  # as one was given
    return x_bld, extended

  def logits(self, x_bld: jax.Array) -> jax.Array:
    """f32[b, l, v]."""
    gradient = self.config.gradient_dtype
    return linear(x_bld, self.head, gradient, out_dtype="float32")

  def predict_images(self, x_bnmd: jax.Array, skips: Skips, kind: Kind) -> jax.Array:
    """Outputs at the patches of a kind to f32[b, n, h, w, c]: the noise of every image,
    or what else `diffusion.target` says."""
    return self.layers_of(kind).decode(x_bnmd, skips, grid=kind.grid)

  def _of(self, of: str, patch_bl: jax.Array | None) -> untied.Of:
    """Whose weights inputs take: text, image, or, of both, what patch_bl says."""
    if self.config.untied == "none":
      return None
    if of != "both":
      return of
    assert patch_bl is not None, "it says which inputs are patches"
    return untied.split(patch_bl < 0)

  def _view(
    self,
    positions_bl,
    lo_bl,
    hi_bl,
    *,
    patch_bl=None,
    slots=(),
    keys=None,
    write_at_b=None,
  ) -> View:
    config, columns_bl = self.config, None
    if config.positions == "axial" and patch_bl is not None:
      row_bl, column_bl = _rows_and_columns(patch_bl, config.every_kind, slots)
      columns_bl = positions_bl + column_bl
      positions_bl = positions_bl + row_bl
    cos_blk, sin_blk = rope_angles(
      positions_bl,
      columns_bl,
      head_dim=config.head_dim,
      theta=config.rope_theta,
      scaling=config.rope_scaling,
    )
    work = prepare(
      lo_bl,
      hi_bl,
      keys=lo_bl.shape[1] if keys is None else keys,
      heads=config.heads,
      kv_heads=config.kv_heads,
      head_dim=config.head_dim,
      dtype=dtype_of(config),
      implementation=None if config.attention == "auto" else config.attention,
    )
    return View(cos_blk, sin_blk, lo_bl, hi_bl, write_at_b, work)


def dtype_of(config: ModelConfig) -> jnp.dtype:
  """The dtype of matmuls and activations; auto is float32 on a CPU, else bfloat16."""
  if config.dtype == "auto":
    return jnp.dtype("float32" if jax.default_backend() == "cpu" else "bfloat16")
  return jnp.dtype(config.dtype)


def build(config: ModelConfig) -> Transfusion:
  """The model without numbers: shapes, dtypes and axis names."""
  return nnx.eval_shape(
    lambda: Transfusion(config, rngs=nnx.Rngs(params=jax.random.key(0)))
  )


@functools.cache  # it takes a fifth of a second, and every program that is traced asks
def _structure(config: ModelConfig) -> tuple[nnx.GraphDef, nnx.State]:
  return nnx.split(build(config))


def bind(config: ModelConfig, params: Params) -> Transfusion:
  """The model with these parameters, inside or outside a transformation; they may be
  those of `apart`."""
  graphdef, state = _structure(config)
  state = jax.tree.map(lambda x: x, state)  # a copy, which is written to
  inner = params["transformer"]
  if is_apart(params):
    rest = {name: own for name, own in inner.items() if name != "blocks"}
    nnx.replace_by_pure_dict(state, params | {"transformer": rest})
    model = nnx.merge(graphdef, state)
    model.transformer.blocks = _blocks(model.transformer.blocks, inner["blocks"])
    return model
  nnx.replace_by_pure_dict(state, merged(params) if config.lora_rank else params)
  return nnx.merge(graphdef, state)


def _blocks(stacked: nnx.Module, params: Sequence[Params]) -> nnx.List:
  """A block of each layer."""
  graphdef, state = nnx.split(stacked)
  made = []
  for own in params:
    state = jax.tree.map(lambda x: x, state)
    nnx.replace_by_pure_dict(state, own)
    made.append(nnx.merge(graphdef, state))
  return nnx.List(made)


@functools.partial(jax.jit, static_argnames="config")
def apart(config: ModelConfig, params: Params) -> Params:
  """The same parameters, with an array of each layer in place of one of all.

  A program that takes them reads a layer's weights where they lie. Of one array of all
  layers XLA's CPU backend copies every layer before it multiplies, which for a single
  token takes longer than the rest.
  """
  params = merged(params) if config.lora_rank else params
  inner = params["transformer"]
  each = tuple(
    jax.tree.map(lambda x: x[layer], inner["blocks"])  # noqa: B023
    for layer in range(config.layers)
  )
  return params | {"transformer": inner | {"blocks": each}}


def is_apart(params: Params) -> bool:
  """Whether every layer has arrays of its own."""
  return isinstance(params["transformer"]["blocks"], tuple)


def axis_names(config: ModelConfig) -> dict[tuple[str, ...], tuple[str | None, ...]]:
  """Logical axes of every parameter, by path."""
  _, state = _structure(config)
  return {
    tuple(str(key) for key in path): variable.get_metadata("names")
    for path, variable in nnx.to_flat_state(nnx.filter_state(state, nnx.Param))
  }


def parameter_count(config: ModelConfig) -> int:
  """Numbers in all parameters, from shapes alone."""
  _, state = _structure(config)
  return sum(x.size for x in jax.tree.leaves(nnx.filter_state(state, nnx.Param)))


def _name(what: str, kind: str) -> str:
  """Of an attribute, and so of parameters: `patches`, or `patches_audio`."""
  return what if kind == FIRST else f"{what}_{kind}"


def _rows_and_columns(patch_bl, kinds: Sequence[Kind], slots: Sequence[int]):
  """Where in its image a patch lies, i32[b, l] each; 0 for text."""
  if len(kinds) == 1:
    columns = kinds[0].sides[1]
    place_bl = jnp.maximum(patch_bl, 0) % kinds[0].patches
    return place_bl // columns, place_bl % columns
  # Of every patch of every slot, behind a place for text.
  tables = [
    np.tile(np.indices(kind.sides).reshape(2, -1), own)
    for kind, own in zip(kinds, slots, strict=True)
  ]
  table = np.concatenate([np.zeros((2, 1), np.int32), *tables], axis=1, dtype=np.int32)
  where = jax.typeof(patch_bl).sharding
  row_bl, column_bl = (
    jnp.asarray(own).at[patch_bl + 1].get(out_sharding=where) for own in table
  )
  return row_bl, column_bl


def _place(x_bld, patches, patch_bl):
  """Puts the patches of every kind, [b, n, m, d] each, at the positions that the batch
  gives them."""

  def place(x_ld, patches, patch_l):
    flat = [x_nmd.reshape(-1, x_nmd.shape[-1]) for x_nmd in patches]
    patches_qd = flat[0] if len(flat) == 1 else jnp.concatenate(flat)
    placed_ld = patches_qd[jnp.maximum(patch_l, 0)]
    return jnp.where((patch_l >= 0)[:, None], placed_ld, x_ld)

  cut = jax.typeof(x_bld).sharding.spec
  specs = (cut, spec("batch"), jax.P(*cut[:2]))
  return jax.shard_map(jax.vmap(place), in_specs=specs, out_specs=cut)(
    x_bld, patches, patch_bl
  )


def _take(x_bld, image_start_bn, patches_per_image: int):
  """Takes the outputs at the patches of every slot: [b, n, m, d]."""

  def take(x_ld, start_n):
    return x_ld[start_n[:, None] + jnp.arange(patches_per_image)[None]]

  # An image may lie on several devices: all come to each.
  x_bld = jax.sharding.reshard(x_bld, spec("batch", None, None))
  return by_row(take)(x_bld, image_start_bn)
