"""Promises of tfusion/muster.py: who is missing is said."""

import concurrent.futures
import contextlib
import socket
import threading
import time

import pytest

from tfusion import cli
from tfusion import muster as muster_lib
from tfusion.muster import muster


@pytest.fixture
def address() -> str:
  with socket.socket() as free:
    free.bind(("localhost", 0))
    return f"localhost:{free.getsockname()[1]}"


def come(address: str, *processes: tuple[int, int]) -> list[str]:
  """What processes (index, count) hear; nothing where all is well."""

  def one(process):
    try:
      muster(address, *process)
    except ValueError as error:
      return str(error)
    return ""

  with concurrent.futures.ThreadPoolExecutor(len(processes)) as pool:
    return list(pool.map(one, processes))


def test_all_come_and_the_address_is_free_again(address):
  assert come(address, (2, 3), (0, 3), (1, 3)) == [""] * 3
  with socket.create_server(("", int(address.rpartition(":")[2]))):
    pass


@pytest.mark.slow
def test_who_does_not_come_is_named_to_all(address, monkeypatch):
  # Process 2 looks again after AGAIN_SECONDS where it was the first to look.
  monkeypatch.setattr(muster_lib, "SECONDS", 3.0)
  said = come(address, (0, 4), (2, 4))
  assert said == ["of 4 processes, 1, 3 did not come within 3 s"] * 2


def test_a_first_process_that_does_not_come_is_named(address, monkeypatch):
  monkeypatch.setattr(muster_lib, "SECONDS", 0.5)
  (said,) = come(address, (1, 2))
  assert said.startswith(f"process 0 did not come to {address} within")


@pytest.mark.parametrize("wrong", [0, 1])
@pytest.mark.parametrize(
  "argument, says",
  [
    ("--count=none", "argument --count: "),
    ("--prompt", "argument --prompt: expected one argument"),
  ],
)
def test_wrong_arguments_of_one_process_end_all_with_its_message(
  address, wrong, argument, says, capsys
):
  other = 1 - wrong
  begin = time.monotonic()
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    heard = pool.submit(come, address, (other, 2))
    place = ["--distributed", f"{address},{wrong},2", "--workdir", "run"]
    with pytest.raises(SystemExit) as stopped:
      cli.main(["sample", *place, "--prompt=x", argument])
    (said,) = heard.result()
  assert time.monotonic() - begin < 10
  assert said.startswith(f"process {wrong} was started wrongly: {says}")
  assert stopped.value.code == 2
  own = said.partition("wrongly: ")[2]
  assert capsys.readouterr().err.endswith(f"tfusion sample: error: {own}\n")


def test_wrong_arguments_are_kept_from_nobody_where_no_process_can_be_told(
  monkeypatch, capsys
):
  monkeypatch.setattr(muster_lib, "muster", pytest.fail)
  for how in ([], ["--distributed"], ["--distributed=auto"], ["--distributed=0,1"]):
    with pytest.raises(SystemExit) as stopped:
      cli.main(["sample", "--nothing", *how])
    assert stopped.value.code == 2 and "error: " in capsys.readouterr().err


@pytest.mark.parametrize("index, says", [(0, "of 2 processes, 1"), (1, "process 0")])
def test_a_command_whose_other_host_never_joins_ends_with_2_and_its_number(
  address, index, says, monkeypatch, tmp_path, capsys
):
  monkeypatch.setattr(muster_lib, "SECONDS", 0.5)
  run = ["--workdir", str(tmp_path / "run"), "--distributed", f"{address},{index},2"]
  assert cli.main(["train", "--config", "none.py", *run]) == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith(f"tfusion train: --distributed={address},{index},2: the proc")
  assert f"({says} did not come" in line and "start all of them" in line
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
  "second, says",
  [((1, 3), "two processes came as number 1"), ((2, 4), "process 2 says COUNT=4")],
)
def test_processes_that_contradict_each_other_are_told(
  address, second, says, monkeypatch
):
  monkeypatch.setattr(muster_lib, "LATE_SECONDS", 1.5)  # AGAIN_SECONDS and more
  said = come(address, (0, 3), (1, 3), second)
  assert all(one.startswith(says) for one in said)


def test_a_process_of_another_version_is_refused_before_jax_joins_it(
  address, monkeypatch
):
  ours = muster_lib.versions()
  found = iter([ours | {"jax": "0.1"}, ours, ours, ours, ours])
  lock = threading.Lock()

  def versions():
    with lock:
      return next(found)

  monkeypatch.setattr(muster_lib, "versions", versions)
  said = come(address, (0, 2), (1, 2))
  assert said[0].startswith("process 1 runs tfusion=")
  assert "jax=0.1" in said[0] and said[0].endswith("install the same on all hosts")
  assert said[1] == said[0]


def test_a_process_of_a_tfusion_that_did_not_say_its_version_is_refused(address):
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    first = pool.submit(come, address, (0, 2))
    host, _, port = address.rpartition(":")
    while True:
      with contextlib.suppress(ConnectionRefusedError):
        with socket.create_connection((host, int(port))) as old:
          old.sendall(b"tfusion 1 2\n")
          assert b"process 1 runs an older tfusion" in old.makefile("rb").readline()
        break
    assert "an older tfusion, process 0 tfusion=" in first.result()[0]


def test_a_port_that_is_taken_is_said(address):
  with socket.create_server(("", int(address.rpartition(":")[2]))):
    (said,) = come(address, (0, 2))
  assert said.startswith(f"process 0 cannot listen at {address}")
