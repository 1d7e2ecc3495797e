"""Promises of tfusion/autoencoder/network.py."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from tfusion.autoencoder import network
from tfusion.autoencoder.network import Conv, GroupNorm, Posterior
from tfusion.autoencoder_config import AutoencoderModelConfig

pytestmark = pytest.mark.usefixtures("mesh")

FULL = AutoencoderModelConfig()
SMALL = AutoencoderModelConfig(
  widths=(4, 8), blocks=1, encoder_out=6, decoder_in=6, latent_channels=3
)
WITH_CODES = dataclasses.replace(SMALL, codes=11)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def params_of(config: AutoencoderModelConfig) -> network.Params:
  """Plain random numbers everywhere, biases included."""
  rng = np.random.default_rng(0)
  return {
    name: jnp.asarray(rng.normal(size=x.shape, scale=0.3), jnp.float32)
    for name, x in sorted(network.abstract(config).items())
  }


@pytest.mark.slow
def test_the_sizes_are_those_of_the_paper_and_of_stable_diffusion():
  assert network.parameter_count(FULL) == 85_964_435  # "86M", section 4.1
  codes = dataclasses.replace(FULL, codes=16_384)
  assert network.parameter_count(codes) == 86_093_451
  assert FULL.downsampling == 8
  for channels, count in ((4, 83_653_863), (8, 83_709_419)):  # kl-f8
    layout = dataclasses.replace(
      FULL, encoder_out=2 * channels, decoder_in=channels, latent_channels=channels
    )
    assert network.parameter_count(layout) == count


@pytest.mark.slow
def test_the_full_size_maps_256_pixels_to_32_cells_of_8_numbers_and_back():
  def both(params, x):
    model = network.bind(FULL, params)
    posterior = model.encode(x)
    return posterior, model.decode(posterior.mean_bhwc)

  x = jax.ShapeDtypeStruct((2, 256, 256, 3), jnp.float32)
  posterior, image = jax.eval_shape(both, network.abstract(FULL), x)
  assert posterior.mean_bhwc.shape == posterior.logvar_bhwc.shape == (2, 32, 32, 8)
  assert image.shape == (2, 256, 256, 3)
  assert posterior.mean_bhwc.dtype == image.dtype == jnp.float32


@pytest.mark.slow
@pytest.mark.parametrize("config", [SMALL, WITH_CODES], ids=["vae", "vq"])
def test_random_parameters_have_the_shapes_and_names_that_bind_takes(config):
  made = jax.eval_shape(lambda: network.init(config, jax.random.key(0)))
  assert made == network.abstract(config)
  assert ("codebook" in made) == bool(config.codes)
  assert all(x.dtype == jnp.float32 for x in made.values())
  model = network.bind(config, params := params_of(config))
  name = "decoder.levels.1.blocks.0.shortcut.kernel"
  assert model.decoder.levels[1].blocks[0].shortcut.kernel[...] is params[name]


@pytest.mark.slow
def test_a_strided_convolution_sees_one_pixel_more_to_the_right_and_below():
  x = np.arange(1.0, 17, dtype=np.float32).reshape(1, 4, 4, 1)
  conv = tiny.fill(lambda rngs: Conv(1, 1, stride=2, rngs=rngs))
  conv.bias[...] = jnp.zeros(1)
  for at, want in (
    ((0, 0), [[1, 3], [9, 11]]),
    ((1, 1), [[6, 8], [14, 16]]),
    ((2, 2), [[11, 0], [0, 0]]),
  ):
    conv.kernel[...] = jnp.zeros((3, 3, 1, 1)).at[at].set(1)
    assert np.asarray(conv(jnp.asarray(x)))[0, :, :, 0].tolist() == want


@pytest.mark.slow
@pytest.mark.parametrize("channels, groups", [(8, 4), (8, 32), (6, 6)])
def test_group_norm_is_over_the_image_and_the_channels_of_a_group(channels, groups):
  norm = tiny.fill(lambda rngs: GroupNorm(channels, groups=groups, rngs=rngs))
  x = normal(2, 3, 5, channels) * 3 + 1
  grouped = x.astype(np.float64).reshape(2, 15, min(groups, channels), -1)
  centred = grouped - grouped.mean((1, 3), keepdims=True)
  want = centred / np.sqrt((centred**2).mean((1, 3), keepdims=True) + 1e-6)
  want = want.reshape(x.shape) * np.asarray(norm.scale) + np.asarray(norm.bias)
  # float32 means of at most 60 numbers.
  np.testing.assert_allclose(np.asarray(norm(jnp.asarray(x))), want, atol=1e-5)


@pytest.mark.slow
def test_the_posterior_is_bounded_and_its_divergence_is_that_of_normals():
  params = params_of(SMALL)
  params["quant_conv.bias"] = jnp.asarray([0, 0, 0, 1e4, -1e4, 0], jnp.float32)
  x = np.clip(normal(2, 4, 4, 3), -1, 1)
  posterior = jax.jit(lambda x: network.bind(SMALL, params).encode(x))(x)
  assert posterior.mean_bhwc.shape == (2, 2, 2, 3)
  assert (posterior.logvar_bhwc[..., 0] == 20).all()
  assert (posterior.logvar_bhwc[..., 1] == -30).all()

  one = Posterior(jnp.full((1, 1, 1, 2), 3.0), jnp.full((1, 1, 1, 2), np.log(4.0)))
  # Two numbers, each ln(1 / s) + (s^2 + m^2) / 2 - 1 / 2 with s = 2 and m = 3.
  want = 2 * (np.log(0.5) + (4 + 9) / 2 - 0.5)
  np.testing.assert_allclose(one.kl(), [want], rtol=1e-6)  # float32
  assert Posterior(jnp.zeros((3, 2, 2, 1)), jnp.zeros((3, 2, 2, 1))).kl().tolist() == [
    *(0, 0, 0)
  ]
  many = Posterior(*(jnp.broadcast_to(m, (1, 100, 100, 2)) for m in one))
  drawn = many.sample(jax.random.key(0))
  # 20,000 draws: standard errors of 0.014 and 0.010.
  assert abs(drawn.mean() - 3) < 0.07 and abs(drawn.std() - 2) < 0.05


def test_codes_are_the_nearest_by_brute_force_and_the_first_of_equals():
  z, book = normal(3, 40, 5), normal(64, 5, seed=1)
  z[0, :10] = book[:10]  # exactly on a code
  book[20] = book[4]  # twice the same
  got = np.asarray(network.nearest(jnp.asarray(z), jnp.asarray(book)))
  wide_z, wide_book = z.astype(np.float64), book.astype(np.float64)
  distance = ((wide_z[:, :, None] - wide_book[None, None]) ** 2).sum(-1)
  assert (got == distance.argmin(-1)).all()
  assert got[0, :10].tolist() == list(range(10)) and not (got == 20).any()


def gradients_of(loss):
  """Gradients of loss(Quantised) for the vectors and for the codebook."""
  params = params_of(WITH_CODES)
  z = jnp.asarray(normal(2, 2, 2, 3))

  def objective(z, book):
    model = network.bind(WITH_CODES, params | {"codebook": book})
    return loss(model.quantise(z))

  gradients = jax.jit(jax.grad(objective, (0, 1)))(z, params["codebook"])
  codes = network.nearest(z.reshape(2, 4, 3), params["codebook"])
  return (*map(np.asarray, gradients), np.asarray(z), params["codebook"], codes)


@pytest.mark.slow
def test_the_book_learns_from_its_own_term_and_the_encoder_from_beta_times_the_other():
  beta = 0.25
  dz, dbook, z, book, codes = gradients_of(lambda q: jnp.sum(q.loss(beta)))
  error = z.reshape(2, 4, 3) - np.asarray(book)[codes]
  share = 2 / 12  # of a mean of squares over a image's 4 cells of 3 numbers
  # Gradients of sums of squares, in float32.
  np.testing.assert_allclose(dz.reshape(2, 4, 3), beta * share * error, rtol=1e-5)
  want = np.zeros_like(book)
  np.add.at(want, codes, -share * error)
  np.testing.assert_allclose(dbook, want, rtol=1e-5, atol=1e-6)
  dz, dbook, *_ = gradients_of(lambda q: jnp.sum(q.book_loss_b))
  assert (dz == 0).all() and (dbook != 0).any()
  dz, dbook, *_ = gradients_of(lambda q: jnp.sum(q.commitment_b))
  assert (dbook == 0).all() and (dz != 0).all()


def test_what_the_decoder_sends_back_passes_the_codes_straight_to_the_encoder():
  weight = jnp.asarray(normal(2, 2, 2, 3, seed=7))
  dz, dbook, *_ = gradients_of(lambda q: jnp.sum(weight * q.latents_bhwc))
  assert (dz == np.asarray(weight)).all() and (dbook == 0).all()


@pytest.mark.slow
def test_the_decoder_reads_codes_as_it_read_the_quantised_vectors():
  model = network.bind(WITH_CODES, params_of(WITH_CODES))
  quantised = model.quantise(jnp.asarray(normal(2, 2, 2, 3)))
  embedded = model.embed(quantised.codes_bn, (2, 2))
  # z + (e - z) in float32.
  np.testing.assert_allclose(embedded, quantised.latents_bhwc, atol=1e-6)
  assert quantised.codes_bn.shape == (2, 4)
  # Raster order: the second cell is the one to the right.
  assert (embedded[0, 0, 1] == model.codebook[...][quantised.codes_bn[0, 1]]).all()


@pytest.mark.slow
@pytest.mark.parametrize("levels, patch", [(1, 1), (3, 1), (1, 4), (2, 2)])
def test_a_cell_is_as_many_pixels_as_levels_and_patch_make_it(levels, patch):
  config = dataclasses.replace(SMALL, widths=(4, 4, 8)[-levels:], patch=patch)
  x = jax.ShapeDtypeStruct((1, 8, 16, 3), jnp.float32)
  abstract = network.abstract(config)
  side = patch * 2 ** (levels - 1)
  got = jax.eval_shape(lambda p, x: network.bind(config, p).encode(x), abstract, x)
  assert got.mean_bhwc.shape == (1, 8 // side, 16 // side, 3)
  z = jax.ShapeDtypeStruct(got.mean_bhwc.shape, jnp.float32)
  decode = lambda p, z: network.bind(config, p).decode(z)  # noqa: E731
  assert jax.eval_shape(decode, abstract, z).shape == x.shape
  assert config.downsampling == side


def test_a_patch_is_a_cell_of_its_pixels_in_raster_order_and_comes_back():
  x_bhwc = jnp.asarray(normal(2, 4, 6, 3))
  cut = network.to_patches(x_bhwc, patch=2)
  assert cut.shape == (2, 2, 3, 12)
  np.testing.assert_array_equal(cut[1, 1, 2], x_bhwc[1, 2:4, 4:6].reshape(-1))
  np.testing.assert_array_equal(network.from_patches(cut, patch=2), x_bhwc)


@pytest.mark.slow
def test_the_decoder_lays_its_patches_out_as_pixels():
  config = dataclasses.replace(SMALL, patch=2)
  params = params_of(config)
  params["decoder.conv_out.kernel"] *= 0
  tile = jnp.asarray(normal(2, 2, 3))
  params["decoder.conv_out.bias"] = tile.reshape(-1)
  image = network.bind(config, params).decode(jnp.zeros((1, 1, 2, 3)))
  np.testing.assert_array_equal(image, jnp.tile(tile, (2, 4, 1))[None])


@pytest.mark.slow
def test_convolutions_run_in_the_dtype_asked_for_and_moments_stay_float32():
  config = dataclasses.replace(SMALL, dtype="bfloat16")
  x = jax.ShapeDtypeStruct((1, 4, 4, 3), jnp.float32)
  encode = lambda p, x: network.bind(config, p).encode(x)  # noqa: E731
  jaxpr = jax.make_jaxpr(encode)(network.abstract(config), x)
  convs = [e for e in jaxpr.eqns if e.primitive.name == "conv_general_dilated"]
  assert convs and all(e.outvars[0].aval.dtype == jnp.bfloat16 for e in convs)
  assert all(a.dtype == jnp.float32 for a in jaxpr.out_avals)


@pytest.mark.parametrize(
  "change, words",
  [
    (dict(widths=(32, 48)), "widths=(32, 48): at least one"),
    (dict(widths=()), "widths=()"),
    (dict(blocks=0), "m.blocks=0: must be above 0"),
    (dict(patch=0), "m.patch=0: must be above 0"),
    (dict(codes=-1), "m.codes=-1"),
    (dict(dtype="float16"), "choose one of ('auto', 'float32', 'bfloat16')"),
    (dict(quant_conv=False), "encoder_out, decoder_in must be (16, 8)"),
    (dict(quant_conv=False, codes=9), "encoder_out, decoder_in must be (8, 8)"),
  ],
)
def test_an_autoencoder_that_cannot_be_is_refused(change, words):
  with pytest.raises(ValueError) as refused:
    network.validate(dataclasses.replace(FULL, **change), prefix="m.")
  assert words in str(refused.value)


def test_the_layouts_that_can_be_pass():
  for config in (FULL, SMALL, WITH_CODES):
    network.validate(config)
  network.validate(
    dataclasses.replace(
      FULL, quant_conv=False, encoder_out=32, decoder_in=16, latent_channels=16
    )
  )
