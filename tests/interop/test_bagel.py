"""Promises of tfusion/interop/bagel.py, on a random look-alike of its folder."""

import json

import jax
import numpy as np
import pytest
import tiny
import tiny_weights
from interop import plain_bagel
from interop import test_weights as own
from safetensors.numpy import load_file, save_file

from tfusion import config as config_lib
from tfusion import sequence, warmstart
from tfusion.interop.weights import InitFrom, Weights
from tfusion.model.transfusion import bind
from tfusion.training import start

pytestmark = pytest.mark.usefixtures("mesh")

# The look-alike has fewer channels than BAGEL's 16.
SMALL = dict(model__image_shape=(4, 4, 2), diffusion__schedule="linear")
SMALL |= dict(diffusion__target="v", sample__sampler="euler")


@pytest.fixture
def folder(tmp_path):
  values = plain_bagel.config()
  return plain_bagel.write(tmp_path / "bagel", values, plain_bagel.tensors(values))


def begun(folder):
  """The config and the parameters of a run that begins with the folder."""
  weights = Weights(folder)
  config = own.config_of(weights, train__init_from=str(folder), **SMALL)
  mesh = jax.sharding.get_mesh()
  state = start.new_state(config, mesh, jax.random.key(0), InitFrom.of(config))
  return config, state.params


@pytest.mark.slow
def test_text_and_velocities_are_those_of_its_model_in_plain_numpy(folder):
  config, params = begun(folder)
  found = load_file(folder / "ema.safetensors")
  w = {name: np.asarray(x, np.float64) for name, x in found.items()}
  rng = np.random.default_rng(0)
  document = (tiny.text(rng, 4), tiny.image(rng), tiny.text(rng, 3))
  batch = sequence.stack([tiny.pack([document], config)])
  slots, t = config.data.image_slots, 300.0
  noisy = rng.normal(size=(1, slots, 4, 4, 2)).astype(np.float32)
  times = np.full((1, slots), t, np.float32)
  run = jax.jit(lambda p, *x: bind(config.model, p)(*x))
  inputs = tiny.put(batch), (tiny.put(noisy),), (tiny.put(times),)
  logits, (images,) = run(params, *inputs)

  live = batch.hi_bl[0] >= batch.lo_bl[0]
  length = int(live.sum())
  at = np.arange(length)
  is_gen = batch.patch_bl[0, :length] >= 0
  x = w["language_model.model.embed_tokens.weight"][batch.tokens_bl[0, :length]]
  image = plain_bagel.embed_image(w, noisy[0, 0].astype(np.float64), t / 1000)
  x[is_gen] = image[batch.patch_bl[0, :length][is_gen]]
  lo, hi = (bounds[0, :length, None] for bounds in (batch.lo_bl, batch.hi_bl))
  sees = (at[None] >= lo) & (at[None] <= hi)
  last = plain_bagel.run(
    plain_bagel.config(), found, x, is_gen, batch.positions_bl[0, :length], sees
  )
  want = last @ w["language_model.lm_head.weight"].T
  assert np.abs(want).max() > 1 and is_gen.sum() == 4
  np.testing.assert_allclose(np.asarray(logits)[0, :length], want, atol=1e-4)
  flat = last[is_gen] @ w["llm2vae.weight"].T + w["llm2vae.bias"]
  velocity = np.einsum("hwpqc->hpwqc", flat.reshape(2, 2, 2, 2, 2)).reshape(4, 4, 2)
  assert np.abs(velocity).max() > 0.5
  np.testing.assert_allclose(np.asarray(images)[0, 0], velocity, atol=1e-4)


def test_every_tensor_but_the_encoders_is_used_once(folder):
  config, params = begun(folder)
  found = load_file(folder / "ema.safetensors")
  left_out = ("vit_", "connector.", "latent_pos_embed.")
  used = sum(x.size for name, x in found.items() if not name.startswith(left_out))
  assert used == sum(x.size for x in jax.tree.leaves(params))
  assert config.model.untied == "all" and config.model.qk_norm == "rms"


def test_what_is_missing_or_left_over_is_named(folder):
  found = load_file(folder / "ema.safetensors")
  del found["language_model.model.layers.1.mlp_moe_gen.up_proj.weight"]
  found["language_model.extra"] = np.zeros(2, np.float32)
  save_file(found, folder / "ema.safetensors")
  with pytest.raises(ValueError) as error:
    begun(folder)
  assert "1 tensors missing: language_model.model.layers.1.mlp_moe_gen.up_proj" in (
    str(error.value)
  )
  assert "1 tensors left over: language_model.extra" in str(error.value)
  (folder / "llm_config.json").write_text(json.dumps(tiny_weights.config("llama")))
  with pytest.raises(ValueError, match="llm_config.json: model_type='llama': BAGEL is"):
    Weights(folder)


def test_a_run_takes_its_noise_and_a_sampler_that_serves_it(folder):
  (folder / "tokenizer.json").write_bytes(tiny_weights.tokenizer())
  c = config_lib.defaults()
  warmstart.fit(c, str(folder), tower="low")
  noise = c.diffusion
  assert (noise.schedule, noise.target, noise.context) == ("linear", "v", "both")
  assert c.sample.sampler == "euler" and c.train.text_lr_factor == 0.1
  model = c.model
  assert (model.positions, model.patch_places, model.untied) == (
    "shared",
    "sine",
    "all",
  )
  assert model.image_shape == (32, 32, 16) and model.time_scale == 0.001
