"""Changes of low rank to the weights of text (arXiv 2106.09685).

Owns: their parameters, adding them to the weights. Not: which weights stay as they are
(training/optim.py).

n layers  d width  h heads  g kv heads  k head dim  f mlp  r rank

Every matrix of a block becomes W + down up, with `up` from zeros, so that a model
begins as one without. The sum is made once in a step, where the weights lie, and all
that follows is as ever. The paper's factor alpha / r is 1, and it changes queries and
values alone: ours, all matrices, as is usual since (arXiv 2305.14314, section 4).
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from tfusion.config import ModelConfig
from tfusion.model.linear import param, zeros
from tfusion.sharding import spec

# Module and name -> logical axes of inputs and of outputs, without those of layers.
MATRICES = {
  ("attention", "wq"): (("embed",), ("heads", None)),
  ("attention", "wk"): (("embed",), ("kv_heads", None)),
  ("attention", "wv"): (("embed",), ("kv_heads", None)),
  ("attention", "wo"): (("heads", None), ("embed",)),
  ("mlp", "w_gate"): (("embed",), ("mlp",)),
  ("mlp", "w_up"): (("embed",), ("mlp",)),
  ("mlp", "w_down"): (("mlp",), ("embed",)),
}


class Lora(nnx.Module):
  """down [n, inputs, r] and up [n, r, outputs] of every matrix of text."""

  def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
    n, r = config.layers, config.lora_rank
    for (module, name), (inputs, outputs) in MATRICES.items():
      sizes = _sizes(config, name)
      ins, outs = sizes[: len(inputs)], sizes[len(inputs) :]
      std = math.prod(ins) ** -0.5
      down = param(rngs, ("layers", *inputs, None), (n, *ins, r), std=std)
      setattr(self, f"{module}_{name}_down", down)
      up = zeros(("layers", None, *outputs), (n, r, *outs))
      setattr(self, f"{module}_{name}_up", up)


def merged(params: dict[str, Any]) -> dict[str, Any]:
  """The parameters with every change added to its matrix.

  Args:
    params: of a model with `lora_rank`; what patches have of their own stays as it is.
  """
  changes, blocks = params["lora"], dict(params["transformer"]["blocks"])
  for (module, name), (inputs, outputs) in MATRICES.items():
    down, up = (changes[f"{module}_{name}_{which}"] for which in ("down", "up"))
    ins, outs = "abc"[: len(inputs)], "xyz"[: len(outputs)]
    change = jnp.einsum(
      f"n{ins}r,nr{outs}->n{ins}{outs}",
      down,
      up,
      # A TPU would round both to bfloat16.
      precision=jax.lax.Precision.HIGHEST,
      out_sharding=spec("layers", *inputs, *outputs),
    )
    own = blocks[module]
    blocks[module] = own | {name: own[name] + change}
  return params | {"transformer": params["transformer"] | {"blocks": blocks}}


def _sizes(config: ModelConfig, name: str) -> tuple[int, ...]:
  """Inputs and outputs of a matrix."""
  d, f, k = config.width, config.mlp, config.head_dim
  heads = config.heads if name in ("wq", "wo") else config.kv_heads
  if name == "wo":
    return heads, k, d
  if name == "w_down":
    return f, d
  return (d, f) if name.startswith("w_") else (d, heads, k)
