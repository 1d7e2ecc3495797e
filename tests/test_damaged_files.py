"""Files of a run that are missing, cut or altered: each is named, in a line."""

import json

import numpy as np
import pytest
import tiny
from PIL import Image

from tfusion import cli, errors
from tfusion import workdir as workdir_lib
from tfusion.autoencoder import codec
from tfusion.data import images, prepared, tokenizer
from tfusion.interop import diffusers
from tfusion.training.log import JsonLines

NO_JSON = (b"", b"{", b"[]", b"3", b"null", b'"a"', b"\0\0\0", b"\xff\xfe{", b"{}")
SHAPE = (8, 8, 1)


@pytest.fixture
def pictures(tmp_path):
  folder = tmp_path / "pictures"
  folder.mkdir()
  for number in range(4):
    Image.new("L", SHAPE[:2], 60 * number).save(folder / f"{number}.png")
  return folder


@pytest.mark.parametrize("content", NO_JSON)
@pytest.mark.parametrize("command", ["sample --prompt a", "eval", "inspect run"])
def test_a_damaged_config_is_named(tmp_path, capsys, command, content):
  (tmp_path / "config.json").write_bytes(content)
  assert cli.main([*command.split(), "--workdir", str(tmp_path)]) == 2
  err = capsys.readouterr().err
  assert f"{tmp_path / 'config.json'}: damaged or of another version" in err
  assert "restore it, or choose a new workdir" in err and err.count("\n") == 1


@pytest.mark.parametrize("file", ["metrics.jsonl", "speed.jsonl", "validation.jsonl"])
@pytest.mark.parametrize(
  "line",
  [b"{", b"[1]", b"3", b'{"loss": 1}', b'{"step": "a"}', b"\0\0", b"\xff", b"[" * 9999],
)
def test_a_damaged_line_of_a_log_is_named_with_its_number(tmp_path, file, line):
  whole = b'{"step": 1}\n'
  (tmp_path / file).write_bytes(whole + line + b"\n" + whole)
  with pytest.raises(ValueError) as error:
    JsonLines(tmp_path / file, last_step=9, writes=True)
  said = str(error.value)
  assert f"{tmp_path / file}: line 2 is damaged" in said and "delete that line" in said
  assert (tmp_path / file).read_bytes() == whole + line + b"\n" + whole
  (tmp_path / file).write_bytes(whole + line)  # a killed run left it unfinished
  JsonLines(tmp_path / file, last_step=9, writes=True)
  assert (tmp_path / file).read_bytes() == whole.replace(b"\n", b"") + b"\n"


@pytest.mark.parametrize("content", NO_JSON)
def test_a_damaged_latents_json_is_named_with_what_writes_it(tmp_path, content):
  (tmp_path / "latents.json").write_bytes(content)
  with pytest.raises(
    ValueError, match="latents.json: damaged .*`tfusion train` writes"
  ):
    prepared.kept(tmp_path)


@pytest.mark.parametrize(
  "damage",
  ["cut", "empty", "missing", "index.json", "no index.json", "longer", "shape"],
)
def test_a_damaged_cache_of_images_is_made_anew(pictures, tmp_path, damage, caplog):
  names = [f"{n}.png" for n in range(4)]
  how = dict(image_shape=SHAPE, cache=tmp_path / "cache")
  ready, _ = images.decode_all(pictures, names, **how)
  whole = (ready / "images.npy").read_bytes()
  if damage in ("cut", "empty"):
    (ready / "images.npy").write_bytes(
      whole[: len(whole) // 2 if damage == "cut" else 0]
    )
  elif damage == "longer":
    (ready / "images.npy").write_bytes(whole + b"\0")
  elif damage == "shape":
    np.save(ready / "images.npy", np.zeros((2, 8, 8, 2), np.uint8))
  elif damage == "index.json":
    (ready / "index.json").write_text("[")
  else:
    (ready / {"missing": "images.npy"}.get(damage, "index.json")).unlink()
  again, bad = images.decode_all(pictures, names, **how)
  assert (again, bad) == (ready, {}) and (ready / "images.npy").read_bytes() == whole
  assert f"{ready}: " in caplog.text and "are decoded again" in caplog.text
  caplog.clear()
  images.decode_all(pictures, names, **how)
  assert not caplog.text


@pytest.mark.parametrize("content", [*NO_JSON[:-1], b'{"block_out_channels": 3}'])
def test_a_damaged_config_of_an_autoencoder_is_named(tmp_path, content):
  (tmp_path / diffusers.CONFIG).write_bytes(content)
  (tmp_path / diffusers.WEIGHTS).write_bytes(b"")
  with pytest.raises(ValueError, match="config.json: not the config .*copy the file"):
    diffusers.open_folder(tmp_path)


@pytest.mark.parametrize("about", [b"{", b"[]", b"{}", b'{"version": 1, "config": 3}'])
def test_an_autoencoder_file_that_says_nothing_of_itself_is_named(tmp_path, about):
  import safetensors.numpy

  told = {codec.METADATA: about.decode()}
  safetensors.numpy.save_file({"a": np.zeros(1)}, tmp_path / "a.safetensors", told)
  with pytest.raises(ValueError, match="a.safetensors: damaged.*copy it again"):
    codec.load(tmp_path / "a.safetensors")


@pytest.mark.parametrize("content", [None, b"", b"no model"])
@pytest.mark.parametrize(
  "key, remedy, says",
  [
    ("data.tokenizer", tokenizer.REMEDY, "leave it empty"),
    ("--tokenizer", tokenizer.OF_JOB, "leave --tokenizer away"),
    ("", tokenizer.OF_RUN, "put the run's own file back"),
    ("", tokenizer.OF_SHARDS, "put their own file back"),
  ],
)
def test_a_tokenizer_is_named_by_who_gave_it(tmp_path, content, key, remedy, says):
  path = tmp_path / "tokenizer.model"
  if content is not None:
    path.write_bytes(content)
  with pytest.raises(ValueError) as error:
    tokenizer.Tokenizer.load(path, key=key, remedy=remedy)
  said = str(error.value)
  assert said.startswith(f"{key}={str(path)!r}: " if key else f"{path}: ")
  assert says in said and ("leave" in said) == bool(key)


def test_a_run_whose_tokenizer_is_gone_is_not_told_to_leave_a_key_empty(
  tmp_path, capsys
):
  config = tiny.config(train__steps=1)
  workdir_lib.save_config(config, tmp_path)
  from tfusion.generate import trained

  with pytest.MonkeyPatch.context() as patch:
    there = lambda *_, **__: trained.Trained(config, 1, {}, None, None)  # noqa: E731
    patch.setattr(trained.Checkpoints, "restore", there)
    patch.setattr(trained.Trained, "state", _State, raising=False)
    assert cli.main(["sample", "--workdir", str(tmp_path), "--prompt", "a"]) == 2
  err = capsys.readouterr().err
  assert f"{tmp_path / 'tokenizer.model'}: is missing" in err
  assert "restore it" in err and "empty" not in err


class _State:
  step = 1
  sampling_params: dict = {}


# What is said of errors that come from below.


@pytest.mark.parametrize(
  "error, says",
  [
    (
      FileNotFoundError(2, "No such file", "a/b"),
      "a/b: there is no such file or folder",
    ),
    (PermissionError(13, "Permission denied", "a"), "a: access is denied"),
    (OSError(28, "No space left on device"), "w: the disk is full (No space left"),
    (OSError(28, "No space left", "a/b"), "a/b: the disk is full (No space left"),
    (OSError(122, "Disk quota exceeded", b"a"), "a: the disk is full (Disk quota"),
    (OSError(30, "Read-only file system", "a"), "a: lies on a disk that cannot be wr"),
    (OSError(5, "Input/output error", "a"), "a: the disk fails to read or write it"),
    (OSError(24, "Too many open files"), "w: too many files are open; raise the limit"),
    (
      IsADirectoryError(21, "Is a directory", "a"),
      "a: is a folder, and a file is need",
    ),
    (OSError(71, "Protocol error", "a"), "a: Protocol error"),
    (OSError(71, "Protocol error"), "w: Protocol error"),
    (OSError(27, "File too large"), "w: a file grew larger than is allowed; raise `ul"),
    (OSError("a part stopped;\nrepeat"), "a part stopped; repeat"),
    (MemoryError("Unable to allocate 9 GiB"), "full (Unable to allocate 9 GiB); lower"),
    (
      RuntimeError("RESOURCE_EXHAUSTED: Out of memory\nmore"),
      "device is full (RESOURCE",
    ),
    (OverflowError("too large"), "too large"),
    (ValueError("train.steps=0: no"), "train.steps=0: no"),
  ],
)
def test_an_error_of_the_system_names_file_and_remedy_in_a_line(error, says):
  said = errors.explain(error, place="w")
  assert says in said and "\n" not in said and "[Errno" not in said


def test_json_that_nobody_named_is_at_least_quoted():
  with pytest.raises(ValueError) as error:
    json.loads("{ no json")
  assert "'{ no json'; restore or delete" in errors.explain(error.value)


def test_what_only_we_can_mend_keeps_its_traceback():
  for error in (KeyError("a"), TypeError("a"), RuntimeError("a"), AssertionError()):
    assert errors.explain(error) is None
