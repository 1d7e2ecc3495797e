"""Promises of tfusion/evaluate/networks/inception.py, weights.py and network.py."""

import jax.numpy as jnp
import numpy as np
import pytest
import tiny_networks
from safetensors.numpy import save_file

from tfusion.evaluate.networks import inception, network

PIXELS = np.random.default_rng(0).integers(0, 256, (3, 24, 20, 3)).astype(np.uint8)


def test_the_layers_are_those_that_the_published_file_names():
  names = [name for name, _ in inception.convolutions()]
  assert len(names) == len(set(names)) == 94
  assert names[:2] == ["Conv2d_1a_3x3", "Conv2d_2a_3x3"]
  assert "Mixed_7c.branch3x3dbl_3b" in names and "Mixed_6a.branch3x3dbl_3" in names


@pytest.mark.slow
def test_features_depend_on_the_image_alone_and_not_on_its_batch(
  mesh, tmp_path, monkeypatch
):
  monkeypatch.setattr(network, "BATCH", 2)
  opened = inception.open_inception(
    tiny_networks.inception_file(tmp_path / "i.safetensors")
  )
  found = opened.features(PIXELS)
  assert found.shape == (3, 18) and found.dtype == np.float32
  assert np.std(found, axis=0).max() > 0
  parts = list(opened.stream([PIXELS[2:], PIXELS[:0], PIXELS[:2]]))
  np.testing.assert_allclose(np.concatenate(parts), found[[2, 0, 1]], rtol=1e-6)


def test_the_mean_over_a_border_is_of_what_is_there():
  x = jnp.arange(9.0).reshape(1, 3, 3, 1)
  found = np.asarray(inception.POOLS["mean"](x))[0, ..., 0]
  assert found[0, 0] == np.mean([0, 1, 3, 4]) and found[1, 1] == 4
  assert np.asarray(inception.POOLS["max_half"](x)).shape == (1, 1, 1, 1)


@pytest.mark.slow
def test_features_are_those_of_pytorch_fid_with_the_same_weights(
  mesh, tmp_path, monkeypatch
):
  torch = pytest.importorskip("torch", reason="torch comes with the extra `eval`")
  theirs = pytest.importorskip(
    "pytorch_fid.inception", reason="pytorch-fid is in the extra `eval`"
  )
  torch.manual_seed(0)

  def random(url, progress):
    bare = theirs._inception_v3(num_classes=1008, aux_logits=False, weights=None)
    found = bare.state_dict()
    for name, x in found.items():
      if x.ndim == 4:
        found[name] = torch.randn(x.shape) * (2 / x[0].numel()) ** 0.5
      elif name.endswith(("bn.weight", "running_var")):
        found[name] = 0.5 + torch.rand(x.shape)
      elif x.ndim == 1:
        found[name] = 0.2 * torch.randn(x.shape)
    # The shapes that pytorch-fid changes are of means alone; the names are the same.
    save_file({k: v.numpy() for k, v in found.items()}, tmp_path / "full.safetensors")
    return found

  monkeypatch.setattr(theirs, "load_state_dict_from_url", random)
  model = theirs.InceptionV3().eval()
  with torch.no_grad():
    shown = torch.from_numpy(PIXELS[:2].transpose(0, 3, 1, 2)).float() / 255
    want = model(shown)[0][:, :, 0, 0].numpy()
  monkeypatch.setattr(network, "BATCH", 2)
  opened = inception.open_inception(tmp_path / "full.safetensors")
  found = opened.features(PIXELS[:2])
  assert found.shape == (2, 2048)
  # Sums of thousands of numbers in float32, through 20 layers.
  np.testing.assert_allclose(found, want, rtol=1e-3, atol=1e-4 * np.abs(want).max())


def test_a_file_that_cannot_serve_is_named_and_so_is_where_to_get_it(tmp_path):
  path = tmp_path / "inception.safetensors"
  with pytest.raises(ValueError, match="no such file; FID needs .*pytorch-fid"):
    inception.open_inception(path)
  tiny_networks.inception_file(path)
  whole = path.read_bytes()
  path.write_bytes(whole[: len(whole) // 2])
  with pytest.raises(ValueError, match="is no whole .safetensors .*cut off"):
    inception.open_inception(path)
  found = tiny_networks.inception_weights()
  found["logits.weight"] = found.pop("Mixed_7c.branch1x1.bn.bias")
  save_file(found, path)
  with pytest.raises(ValueError) as caught:
    inception.open_inception(path)
  assert "lacks Mixed_7c.branch1x1.bn.bias; does not know logits.weight" in str(
    caught.value
  )
  found = tiny_networks.inception_weights()
  found["Conv2d_1a_3x3.conv.weight"] = found["Conv2d_1a_3x3.conv.weight"][..., :2]
  save_file(found, path)
  with pytest.raises(ValueError, match=r"has shape \(3, 3, 3, 2\), expected"):
    inception.open_inception(path)


def test_npz_is_read_too_and_the_name_says_which_file_it_is(tmp_path):
  one, other = tmp_path / "a.npz", tmp_path / "b.npz"
  np.savez(one, **tiny_networks.inception_weights())
  np.savez(other, **tiny_networks.inception_weights(seed=1))
  names = [inception.open_inception(path).name for path in (one, other)]
  assert names[0] != names[1] and all(n.startswith("inception ") for n in names)
