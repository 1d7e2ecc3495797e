"""Promises of tfusion/interop: Stable Diffusion's VAEs as codecs.

The golden folder kl_tiny is what `diffusers` itself gave (kl.py). Tests that run it
beside us need torch and diffusers, and are skipped without.
"""

import importlib.util
import json
import pathlib
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
from interop import kl
from safetensors.numpy import load_file, save_file

from tfusion.autoencoder import network
from tfusion.interop import diffusers, open_codec

pytestmark = pytest.mark.usefixtures("mesh")

GOLDEN = pathlib.Path(__file__).parent / "kl_tiny"
# Float32 through some 20 convolutions, summed in another order; outputs are about 1.
CLOSE = dict(rtol=0, atol=1e-4)
BESIDE = pytest.mark.skipif(
  not all(map(importlib.util.find_spec, ("torch", "diffusers"))),
  reason="not run beside diffusers itself: pip install torch==2.13.0 diffusers",
)


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
  return shutil.copytree(GOLDEN, tmp_path / "vae")


def rewrite(folder: pathlib.Path, change) -> None:
  path = folder / diffusers.WEIGHTS
  save_file(change(load_file(path)), path)


def reconfigure(folder: pathlib.Path, **values) -> None:
  path = folder / diffusers.CONFIG
  path.write_text(json.dumps(json.loads(path.read_text()) | values))


def ours(codec, pixels: np.ndarray) -> dict[str, np.ndarray]:
  """What kl.outputs gives, before images are rounded to bytes."""
  got = codec.encode(pixels)
  params = jax.tree.map(np.asarray, codec.params)
  decode = lambda p, z: network.bind(codec.config, p).decode(z)  # noqa: E731
  return got | {"decoded": np.asarray(jax.jit(decode)(params, got["mean"]))}


@pytest.mark.slow
def test_moments_and_images_are_those_of_diffusers():
  golden = load_file(GOLDEN / "outputs.safetensors")
  codec = open_codec(GOLDEN)
  assert codec.kind == "latents" and codec.downsampling == 4
  assert codec.latent_shape(16) == (4, 4, 4)
  got = ours(codec, golden["pixels"])
  for name in ("mean", "logvar", "decoded"):
    assert golden[name].std() > 0.1  # else agreement says nothing
    np.testing.assert_allclose(got[name], golden[name], **CLOSE, err_msg=name)
  pixels = np.round((np.clip(golden["decoded"], -1, 1) + 1) * 127.5)
  # A number in the middle of two bytes may fall to either.
  assert np.abs(codec.decode(golden["mean"]) - pixels).max() <= 1


@pytest.mark.slow
def test_the_file_in_the_folder_and_its_older_names_open_the_same(folder):
  codec = open_codec(folder)
  assert open_codec(folder / diffusers.WEIGHTS).sha256 == codec.sha256

  def older(tensors):
    for new, old in diffusers.OLDER.items():
      tensors = {
        name.replace(f"attentions.0.{new}.", f"attentions.0.{old}."): tensor
        for name, tensor in tensors.items()
      }
    return tensors

  rewrite(folder, older)
  names = load_file(folder / diffusers.WEIGHTS)
  assert "decoder.mid_block.attentions.0.proj_attn.weight" in names
  assert not any("to_q" in name for name in names)
  assert open_codec(folder).sha256 == codec.sha256
  # The first ones were 1x1 convolutions.
  rewrite(
    folder,
    lambda t: {n: x[:, :, None, None] if x.ndim == 2 else x for n, x in t.items()},
  )
  assert open_codec(folder).sha256 == codec.sha256


def test_what_is_opened_is_saved_as_a_file_of_ours(folder, tmp_path):
  codec = open_codec(folder)
  codec.save(tmp_path / "autoencoder.safetensors")
  again = open_codec(tmp_path / "autoencoder.safetensors")
  assert (again.sha256, again.config) == (codec.sha256, codec.config)


@pytest.mark.slow
def test_sixteen_bits_are_widened(folder):
  rewrite(folder, lambda t: {n: x.astype(ml_dtypes.bfloat16) for n, x in t.items()})
  tensors = load_file(folder / diffusers.WEIGHTS)
  params = diffusers.convert(open_codec(folder).config, tensors)
  assert {x.dtype for x in params.values()} == {np.dtype(np.float32)}
  rounded = tensors["encoder.conv_in.bias"].astype(np.float32)
  assert (params["encoder.conv_in.bias"] == rounded).all()


@pytest.mark.slow
def test_every_name_is_used_once_and_others_are_errors_that_name_them(folder):
  name = "decoder.mid_block.attentions.0.to_k.weight"
  reference = load_file(folder / diffusers.WEIGHTS)
  config = open_codec(folder).config
  theirs = [diffusers.theirs_of(n) for n in network.abstract(config)]
  assert sorted(theirs) == sorted(reference)

  def refused() -> str:
    with pytest.raises(ValueError) as error:
      open_codec(folder)
    return str(error.value)

  rewrite(folder, lambda t: {n: x for n, x in t.items() if n != name})
  assert f"1 tensors missing: {name}" in refused()
  rewrite(folder, lambda t: reference | {"loss.logvar": np.zeros(1, np.float32)})
  assert "1 tensors left over: loss.logvar" in refused()
  both = {name.replace("to_k", "key"): reference[name]}
  rewrite(folder, lambda t: reference | both)
  assert f"left over: {next(iter(both))}" in refused()
  rewrite(folder, lambda t: reference | {"encoder.conv_in.bias": np.zeros(5, "f4")})
  assert "1 of another shape: encoder.conv_in.bias (5,) for (4,)" in refused()
  rewrite(folder, lambda t: reference | {"quant_conv.weight": np.zeros(3, "f4")})
  assert "quant_conv.kernel (3,) for (1, 1, 8, 8)" in refused()


@pytest.mark.parametrize(
  "values, words",
  [
    (dict(act_fn="relu"), "act_fn='relu': only 'silu' can be opened"),
    (dict(_class_name="AutoencoderDC"), "_class_name='AutoencoderDC'"),
    (dict(mid_block_add_attention=False), "mid_block_add_attention=False"),
    (dict(up_block_types=["AttnUpDecoderBlock2D"]), "only UpDecoderBlock2D can be"),
    (dict(use_quant_conv=False), "only both or none"),
    (dict(layers_per_block=2), "tensors missing: decoder.up_blocks.0.resnets.2"),
    (dict(norm_num_groups=3), "widths=(4, 8, 12)"),
  ],
)
def test_another_network_is_refused_by_name(folder, values, words):
  reconfigure(folder, **values)
  with pytest.raises(ValueError) as refused:
    open_codec(folder)
  assert words in str(refused.value)


def test_a_folder_or_file_that_is_no_autoencoder_says_what_to_give(folder):
  with pytest.raises(ValueError, match="holds no config.json; give the folder of an"):
    open_codec(folder.parent)
  (folder / diffusers.CONFIG).write_text("{")
  with pytest.raises(ValueError, match="config.json: .*Expecting.*copy the file again"):
    open_codec(folder)
  shutil.copy(GOLDEN / diffusers.CONFIG, folder)
  weights = folder / diffusers.WEIGHTS
  weights.write_bytes(weights.read_bytes()[:1000])
  with pytest.raises(ValueError, match="diffusion_pytorch_model.safetensors: "):
    open_codec(folder)
  outputs = GOLDEN / "outputs.safetensors"
  with pytest.raises(ValueError, match="opened as the folder that holds its config"):
    open_codec(outputs)


@BESIDE
@pytest.mark.parametrize(
  "sizes",
  [
    dict(widths=(8, 16, 24), latent_channels=4),
    dict(widths=(8, 16), latent_channels=16, layers_per_block=2),
    dict(widths=(8, 16), latent_channels=16, quant_conv=False),
    dict(widths=(128, 256, 512, 512), layers_per_block=2, norm_num_groups=32, side=64),
  ],
  ids=["4 channels", "16", "16 without quant_conv", "full size"],
)
def test_beside_diffusers_outputs_agree(tmp_path, sizes):
  sizes = dict(sizes)
  pixels = kl.images(2, sizes.pop("side", 32))
  model = kl.make(sizes.pop("widths"), seed=1, **sizes)
  model.save_pretrained(tmp_path)
  want, got = kl.outputs(model, pixels), ours(open_codec(tmp_path), pixels)
  for name in want:
    print(
      f"{name}: off by {np.abs(got[name] - want[name]).max():.1e} at most, spread"
      f" {want[name].std():.2f}"
    )
    np.testing.assert_allclose(got[name], want[name], **CLOSE, err_msg=name)
