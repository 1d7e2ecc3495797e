"""Other attention kernels for TPUs, to be compiled and counted beside ours.

Owns: how each is called, and which tile it computes. Not: the counting (bundles.py).

All take q_hqd, k_nkd, v_nkd of one row in bfloat16, lo and hi, and are causal unless
they can take the intervals.

h query heads  n key/value heads  q queries  k keys  d head dim
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import (
  splash_attention_kernel,
  splash_attention_mask,
)

from tfusion.attention import intervals

# Queries, keys, and keys at a time: of 512 and 1024, what takes the fewest cycles a
# score forward on v5e and v6e, and within one in a hundred of that backward.
QUERIES, KEYS, COMPUTE = 1024, 1024, 512
BLOCKS: dict[str, Any] = dict(
  block_q=QUERIES,
  block_kv=KEYS,
  block_kv_compute=COMPUTE,
  block_q_dkv=QUERIES,
  block_kv_dkv=KEYS,
  block_kv_dkv_compute=COMPUTE,
)


def case(attention, sizes: list[int], *, backward: bool, tiles) -> tuple:
  """Returns (function, abstract args, tiles) to compile; see `aot.Case`.

  Args:
    attention: of q_hqd, k_nkd, v_nkd, lo_q, hi_q.
    sizes: length, heads, kv_heads, head_dim.
    backward: the function computes o and dq, dk, dv; else o.
    tiles: tells rows and keys of each kind of inner body, and how many more there are:
      {"forward": {"full": [512, 1024], "rare": 1}, "backward": ..}.
  """
  length, heads, kv_heads, head_dim = sizes
  q_hqd = jax.ShapeDtypeStruct((heads, length, head_dim), jnp.bfloat16)
  k_nkd = jax.ShapeDtypeStruct((kv_heads, length, head_dim), jnp.bfloat16)
  lo_q = jax.ShapeDtypeStruct((length,), jnp.int32)
  args = [q_hqd, k_nkd, k_nkd, lo_q, lo_q]

  def step(q, k, v, lo, hi, do):
    o, pull = jax.vjp(lambda q, k, v: attention(q, k, v, lo, hi), q, k, v)
    return o, pull(do)

  return (step, [*args, q_hqd], tiles) if backward else (attention, args, tiles)


def _tiles(*kinds: str) -> dict:
  return dict.fromkeys(("forward", "backward"), dict.fromkeys(kinds, (QUERIES, KEYS)))


def splash(*, sizes: list[int], dynamic: bool, backward: bool) -> tuple:
  """Splash attention of jax.experimental.

  Args:
    sizes: length, heads, kv_heads, head_dim.
    dynamic: with the intervals, as a queries x keys mask made on the device: the only
      way to give it a mask that changes with the batch. Else causal.
    backward: the gradient too, by the kernel that makes dq, dk and dv at once.
  """
  length, heads, kv_heads, head_dim = sizes
  blocks = splash_attention_kernel.BlockSizes(**BLOCKS, use_fused_bwd_kernel=True)
  make = functools.partial(
    splash_attention_kernel.make_splash_mha,
    block_sizes=blocks,
    head_shards=1,
    q_seq_shards=1,
  )

  def attention(q_hqd, k_nkd, v_nkd, lo_q, hi_q):
    q_hqd = q_hqd * jnp.asarray(head_dim**-0.5, q_hqd.dtype)
    if not dynamic:
      causal = splash_attention_mask.CausalMask((length, length))
      mask = splash_attention_mask.MultiHeadMask([causal] * heads)
      return make(mask)(q_hqd, k_nkd, v_nkd)
    # A mask of one head under vmap takes half the memory of one for all heads.
    mask_1qk = intervals.sees(lo_q[None], hi_q[None], keys=length)
    kernel = make(mask_1qk)
    # jax 0.10.2 makes an array of this bool, and then branches on it under jit.
    info = kernel.fwd_mask_info._replace(is_dynamic_mask=True)
    kernel.fwd_mask_info = info
    q_ngqd = q_hqd.reshape(kv_heads, heads // kv_heads, length, head_dim)
    group = jax.vmap(
      lambda q, k, v: kernel(q[None], k[None], v[None])[0], (0, None, None)
    )
    return jax.vmap(group)(q_ngqd, k_nkd, v_nkd).reshape(q_hqd.shape)

  return case(attention, sizes, backward=backward, tiles=lambda: _tiles("masked"))


def tokamax(*, sizes: list[int], dynamic: bool, backward: bool) -> tuple:
  """Splash attention of tokamax 0.0.12; arguments as those of `splash`.

  Its public function takes blocks of 128 unless it may time others on a TPU, so the
  kernel is taken from where it is kept.
  """
  from tokamax._src.ops.experimental.tpu.splash_attention import (
    splash_attention_kernel as kernels,
  )
  from tokamax._src.ops.experimental.tpu.splash_attention import (
    splash_attention_mask as masks,
  )

  length, heads, kv_heads, head_dim = sizes
  config = kernels.SplashConfig(
    **BLOCKS, dq_reduction_steps=3, use_experimental_scheduler=True
  )

  def attention(q_hqd, k_nkd, v_nkd, lo_q, hi_q):
    q_hqd = q_hqd * jnp.asarray(head_dim**-0.5, q_hqd.dtype)
    if dynamic:
      mask_qk = intervals.sees(lo_q[None], hi_q[None], keys=length)[0]
      kernel = kernels.make_dynamic_splash_mha(mask_qk, config=config)
    else:
      mask = masks.CausalMask((length, length))
      kernel = kernels.make_splash_mha_single_device(mask, config=config)
    return kernel(q_hqd, k_nkd, v_nkd)

  return case(
    attention, sizes, backward=backward, tiles=lambda: _tiles("full", "masked")
  )
