"""Interval attention in the plainest form: the reference of every other path.

Owns: the reference forward pass; its gradient is JAX's own. Not: speed; it holds
several queries x keys arrays at once.

b batch  q queries  k keys  n key/value heads  g query heads per key/value head
d head dim
"""

import jax
import jax.numpy as jnp

from tfusion.attention import intervals

DEAD_LSE = -0.7 * float(jnp.finfo(jnp.float32).max)  # finite: exp and subtraction work


def find_live(lo_bq, hi_bq, sizes: intervals.Sizes, blocks: None = None) -> None:
  """The reference computes everything."""


def forward(
  q_bqhd, k_bknd, v_bknd, lo_bq, hi_bq, live=None, *, scale, soft_cap, **_
) -> tuple[jax.Array, jax.Array]:
  """Returns (o_bqhd in q's dtype, lse_bhq f32); see `tfusion.attention`."""
  b, queries, heads, d = q_bqhd.shape
  keys, n = k_bknd.shape[1], k_bknd.shape[2]
  q = q_bqhd.astype(jnp.float32).reshape(b, queries, n, heads // n, d)
  k, v = k_bknd.astype(jnp.float32), v_bknd.astype(jnp.float32)

  # A sum over keys multiplies what is masked by zero, and 0 * nan is nan. So values
  # that are not finite leave the operands and come back as nan in the scores, where a
  # select keeps them inside their document.
  broken_bqng = ~jnp.isfinite(q).all(-1)
  broken_bkn = ~(jnp.isfinite(k) & jnp.isfinite(v)).all(-1)
  q, k, v = (jnp.where(jnp.isfinite(x), x, 0.0) for x in (q, k, v))

  s_bngqk = jnp.einsum("bqngd,bknd->bngqk", q, k) * scale
  if soft_cap is not None:
    s_bngqk = soft_cap * jnp.tanh(s_bngqk / soft_cap)
  broken_bngq1 = jnp.moveaxis(broken_bqng, 1, 3)[..., None]
  broken_bn11k = jnp.moveaxis(broken_bkn, 1, 2)[:, :, None, None]
  s_bngqk = jnp.where(broken_bngq1 | broken_bn11k, jnp.nan, s_bngqk)

  sees_b11qk = intervals.sees(lo_bq, hi_bq, keys=keys)[:, None, None]
  s_bngqk = jnp.where(sees_b11qk, s_bngqk, DEAD_LSE)
  top_bngq = jax.lax.stop_gradient(s_bngqk.max(-1))
  e_bngqk = jnp.where(sees_b11qk, jnp.exp(s_bngqk - top_bngq[..., None]), 0.0)
  alive_b11q = intervals.alive(lo_bq, hi_bq, keys=keys)[:, None, None]
  sum_bngq = jnp.where(alive_b11q, e_bngqk.sum(-1), 1.0)
  p_bngqk = jnp.where(sees_b11qk, e_bngqk / sum_bngq[..., None], 0.0)
  o_bqngd = jnp.einsum("bngqk,bknd->bqngd", p_bngqk, v)
  lse_bngq = jnp.where(alive_b11q, top_bngq + jnp.log(sum_bngq), DEAD_LSE)
  return (
    o_bqngd.reshape(q_bqhd.shape).astype(q_bqhd.dtype),
    lse_bngq.reshape(b, heads, queries),
  )
