"""Promises of tfusion/autoencoder/step.py."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_autoencoder

from tfusion.autoencoder import adversary, network
from tfusion.autoencoder import step as step_lib
from tfusion.autoencoder.perceptual import distance, open_features
from tfusion.autoencoder.step import Losses, State

pytestmark = pytest.mark.usefixtures("mesh")

VAE = tiny_autoencoder.config(
  loss__features="random", optim__ema_decay=0.9, optim__warmup_steps=0
)
VQ = tiny_autoencoder.config(model__codes=5)
ROOT = jax.random.key(0)
FEATURES = open_features("random", image_shape=(8, 8, 3))
NONE = open_features("none", image_shape=(8, 8, 3))


def images(count: int = 2) -> np.ndarray:
  x = np.random.default_rng(0).uniform(-1, 1, (count, 8, 8, 3))
  return x.astype(np.float32)


@pytest.fixture(scope="module")
def start(mesh) -> State:
  return jax.jit(functools.partial(step_lib.init_state, VAE))(ROOT)


@pytest.fixture(scope="module")
def step(mesh):
  """The compiled step without the adversary; that with it: test_autoencoder.py."""
  step = step_lib.train_step
  return jax.jit(lambda state, x: step(VAE, NONE[0], False, state, x, ROOT, {}))


def is_same(a, b) -> bool:
  same = jax.tree.map(lambda x, y: np.array_equal(x, y, equal_nan=True), a, b)
  return all(jax.tree.leaves(same))


@pytest.mark.slow
def test_neither_net_gets_a_gradient_from_the_others_loss_and_terms_add_up(start):
  def both(params, other, x):
    terms, made = step_lib.losses(
      VAE, *FEATURES, params, other, x, ROOT, adversarial=True
    )
    return (terms.total, terms.discriminator), (terms, made)

  x = images()
  jacobian = jax.jit(jax.jacrev(both, argnums=(0, 1), has_aux=True))
  (own, theirs), (terms, made) = jacobian(start.params, start.adversary, x)
  assert not any(np.any(g) for g in own[1].values())  # exact zeros
  assert not any(np.any(g) for g in theirs[0].values())
  assert any(np.any(g) for g in own[0].values())
  assert all(np.any(g) for n, g in theirs[1].items() if "kernel" in n)

  loss = VAE.loss
  mean = jax.tree.map(float, terms)
  weighed = mean.pixel + loss.perceptual_weight * mean.perceptual
  weighed += 0.5 * mean.generator + 1e-6 * mean.price  # section 4.1
  assert mean.total == pytest.approx(weighed, rel=1e-6)  # the order of a float32 sum
  image = np.asarray(made.image_bhwc)
  assert mean.pixel == pytest.approx(float(np.abs(image - x).mean()), rel=1e-5)
  assert mean.price == pytest.approx(float(np.mean(made.price_b)), rel=1e-6)
  far_b = distance(*FEATURES, image, x, dtype=jnp.float32)
  assert mean.perceptual == pytest.approx(float(np.mean(far_b)), rel=1e-5)


@pytest.mark.long
@pytest.mark.slow
def test_before_its_start_the_adversary_is_nothing_at_all(start, step):
  new, metrics = step(start, images())
  assert metrics["loss_generator"] == metrics["loss_discriminator"] == 0
  assert metrics["adversary_grad_norm"] == 0
  assert is_same(new.adversary, start.adversary)
  assert is_same(new.adversary_opt_state, start.adversary_opt_state)
  assert not is_same(new.params, start.params)
  other = jax.tree.map(lambda x: x + 1, start.adversary)
  elsewhere, _ = step(start._replace(adversary=other), images())
  assert is_same(elsewhere.params, new.params)


@pytest.mark.long
@pytest.mark.slow
def test_the_average_follows_the_weights(start, step):
  later = start._replace(step=jnp.int32(1))
  new, _ = step(later, images())
  d = 2 / 11  # (1 + step) / (10 + step) while that is below optim.ema_decay
  for name, before in later.ema.items():
    wanted = before + (1 - d) * (new.params[name] - before)
    np.testing.assert_allclose(new.ema[name], wanted, atol=1e-6)  # of numbers below 1
  assert new.best_params is new.ema


def test_an_update_that_is_not_finite_is_skipped_and_counted(start, step):
  x = images()
  x[0, 0, 0, 0] = np.nan
  new, metrics = step(start, x)
  assert (int(new.step), int(new.skipped), int(new.skipped_total)) == (1, 1, 1)
  assert metrics["skipped"] == 1
  keep = dict(step=0, skipped=0, skipped_total=0)
  assert is_same(new._replace(**keep), start._replace(**keep))
  after, _ = step(new, images())
  assert (int(after.skipped), int(after.skipped_total)) == (0, 1)


@pytest.mark.slow
def test_a_codebooks_price_has_beta_on_the_encoders_term_and_weight_one(mesh):
  params = network.init(VQ.model, ROOT)
  other = adversary.init(VQ.loss, ROOT)

  def both(x):
    model = network.bind(VQ.model, params)
    quantised = model.quantise(model.encode_vectors(x))
    return quantised, step_lib.losses(
      VQ, *NONE, params, other, x, ROOT, adversarial=False
    )

  quantised, (terms, made) = jax.jit(both)(images())
  wanted_b = quantised.book_loss_b + 0.25 * quantised.commitment_b
  np.testing.assert_allclose(made.price_b, wanted_b, rtol=1e-6)
  assert float(terms.total) == pytest.approx(float(terms.pixel + terms.price), rel=1e-6)
  assert isinstance(terms, Losses) and terms.perceptual == terms.generator == 0
  np.testing.assert_allclose(made.bits_b, 64 * np.log2(5), rtol=1e-6)  # 8 x 8 cells


@pytest.mark.slow
def test_a_vaes_rate_is_its_divergence_in_bits_and_a_codec_takes_the_mean(start):
  def both(x):
    model = network.bind(VAE.model, start.params)
    posterior = model.encode(x)
    made = step_lib.reconstruct(VAE, start.params, x, key=None)
    keys = map(jax.random.key, (0, 0, 1))
    drawn = [step_lib.reconstruct(VAE, start.params, x, key=k)[0] for k in keys]
    return made, posterior.kl(), model.decode(posterior.mean_bhwc), drawn

  made, kl_b, image, (one, same, other) = jax.jit(both)(images())
  assert np.array_equal(one, same) and not np.array_equal(one, other)
  np.testing.assert_allclose(made.bits_b, kl_b / np.log(2), rtol=1e-6)
  assert np.array_equal(made.image_bhwc, image)


@pytest.mark.slow
def test_sums_leave_padding_out(start):
  sums = jax.jit(functools.partial(step_lib.sums, VAE))
  x = images(3)
  one, _ = sums(start.params, x, np.float32([1, 0, 0]))
  other, made = sums(start.params, x, np.float32([0, 1, 1]))
  both, _ = sums(start.params, x, np.float32([1, 1, 1]))
  assert (one.count, other.count) == (1, 2)
  for a, b, total in zip(one, other, both):
    np.testing.assert_allclose(a + b, total, rtol=1e-6)
  wanted = 10 * np.log10(4 / np.mean((np.clip(made, -1, 1) - x)[1:] ** 2, (1, 2, 3)))
  assert other.psnr == pytest.approx(wanted.sum(), rel=1e-5)


def test_psnr_at_its_landmarks():
  x = jnp.zeros((1, 2, 2, 3))
  assert step_lib.psnr(x, x)[0] == pytest.approx(100)
  assert step_lib.psnr(x + 2, x)[0] == pytest.approx(10 * np.log10(4))  # clipped
  assert step_lib.psnr(x + 0.02, x)[0] == pytest.approx(40, rel=1e-5)


@pytest.mark.slow
def test_the_use_of_codes_at_its_landmarks():
  codes = jnp.asarray([[0, 0, 1], [3, 3, 3]])
  counted = step_lib.count_codes(codes, 5)
  assert np.array_equal(counted, [2, 1, 0, 3, 0])
  weighed = step_lib.count_codes(codes, 5, weights_b=jnp.float32([1, 0]))
  assert np.array_equal(weighed, [2, 1, 0, 0, 0])
  used, perplexity = step_lib.use_of_codes(jnp.float32([0, 4, 0, 4]))
  assert used == 0.5 and perplexity == pytest.approx(2)
  used, perplexity = step_lib.use_of_codes(jnp.float32([0, 8, 0, 0]))
  assert used == 0.25 and perplexity == pytest.approx(1)
