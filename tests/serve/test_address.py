"""Promises of tfusion/serve/address.py."""

import importlib.util
import re
import socket

import pytest

from tfusion import cli
from tfusion.serve import address


def test_a_port_of_zero_is_any_that_is_free():
  with address.listen("127.0.0.1", 0) as one, address.listen("localhost", 0) as other:
    assert one.getsockname()[1] != other.getsockname()[1]
    assert one.getsockname()[0] == "127.0.0.1"


@pytest.mark.parametrize(
  "host, says",
  [
    ("192.0.2.1", "is no address of this machine; 127.0.0.1 is"),  # of RFC 5737
    ("no such host", "is no address"),
    ("a" * 100, "is no address"),
  ],
)
def test_a_host_that_is_not_here_is_refused(host, says):
  with pytest.raises(ValueError) as caught:
    address.listen(host, 0)
  assert f"--host={host}" in str(caught.value) and says in str(caught.value)


def refused(capsys, *args):
  assert cli.main(["serve", *map(str, args)]) == 2
  return capsys.readouterr().err


def saved(tmp_path):
  """A workdir with a config and no checkpoint."""
  from tfusion import config, workdir

  workdir.save_config(config.from_dict(config.defaults()), tmp_path)
  return tmp_path


def test_a_port_in_use_is_refused_before_the_model_is_opened(capsys, tmp_path):
  with socket.create_server(("127.0.0.1", 0)) as other:
    port = other.getsockname()[1]
    said = refused(capsys, "--workdir", saved(tmp_path), f"--port={port}")
  assert f"--port={port}: another program has it; stop that, or choose" in said


def test_a_workdir_without_a_run_or_a_checkpoint_is_refused(capsys, tmp_path):
  said = refused(capsys, "--workdir", tmp_path / "none", "--port=0")
  assert "config.json" in said
  said = refused(capsys, "--workdir", saved(tmp_path), "--port=0")
  assert "no checkpoint yet" in said


def test_a_missing_library_is_named_with_the_command_that_brings_it(
  capsys, monkeypatch, tmp_path
):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  said = refused(capsys, "--workdir", tmp_path)
  assert re.search(r"aiohttp is missing: pip install 'tfusion\[serve\]'", said)
