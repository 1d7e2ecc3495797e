"""Promises of tfusion/checkpoint.py, on real directories and with real failures."""

import json
import logging as std_logging
import os
import pathlib
import random
import shutil
import socket
import subprocess
import sys
import textwrap
import threading
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import logging

from tfusion import checkpoint
from tfusion.checkpoint import Checkpoints

ROOT = pathlib.Path(checkpoint.__file__).parents[1]


class State(NamedTuple):
  step: Any
  params: Any
  opt: Any


def make_state(seed: int = 0) -> State:
  """A small state with the containers and dtypes of a real one, and odd values."""
  w = np.random.default_rng(seed).normal(size=(12, 8)).astype(np.float32)
  w[0, :4] = [np.nan, -0.0, np.inf, 1e-42]  # the last is subnormal
  return State(
    step=jnp.int32(seed),
    params={"layers": {"w": jnp.asarray(w)}, "bf": jnp.asarray(w, jnp.bfloat16)},
    opt=((jnp.asarray(2 * w), None), {"count": jnp.int32(-7)}, ()),
  )


def abstract(state):
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
  )


TARGET = abstract(make_state())


def assert_same_bits(got, want):
  assert jax.tree.structure(got) == jax.tree.structure(want)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
    assert (a.dtype, a.shape) == (b.dtype, b.shape)
    assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def save_steps(directory, *steps, **options):
  with Checkpoints(directory, **options) as checkpoints:
    for step in steps:
      assert checkpoints.save(step, make_state(step), {0: {"next": step}})


def names(directory) -> set[str]:
  return {path.name for path in directory.iterdir()}


def files(directory, step) -> list[pathlib.Path]:
  found = sorted(p for p in (directory / str(step)).rglob("*") if p.is_file())
  assert len(found) > 5
  return found


def start(code: str, *args, devices: int = 1) -> subprocess.Popen:
  return subprocess.Popen(
    [sys.executable, "-c", textwrap.dedent(code), *map(str, args)],
    env=os.environ
    | {
      "JAX_PLATFORMS": "cpu",
      "PYTHONPATH": str(ROOT),
      "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    },
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def finish(process: subprocess.Popen) -> str:
  try:
    return process.communicate(timeout=120)[0]
  finally:
    process.kill()


# Saving and restoring.


def test_every_dtype_and_container_comes_back_bit_for_bit(tmp_path):
  state = make_state(3)
  lanes = {0: {"next": 5, "buffer": [1.5, None, "x"]}, 3: {"next": 8}}
  with Checkpoints(tmp_path / "c") as checkpoints:
    assert checkpoints.save(3, state, lanes)
  with Checkpoints(tmp_path / "c") as checkpoints:
    restored = checkpoints.restore(TARGET)
  assert (restored.step, restored.lanes, restored.skipped) == (3, lanes, {})
  assert isinstance(restored.state, State)
  assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(restored.state))
  assert_same_bits(restored.state, state)


def test_an_empty_or_absent_directory_restores_nothing(tmp_path):
  for directory in (tmp_path, tmp_path / "absent"):
    with Checkpoints(directory) as checkpoints:
      assert checkpoints.restore(TARGET) is None
      assert (checkpoints.steps(), checkpoints.latest) == ([], None)
  assert not (tmp_path / "absent").exists()


@pytest.mark.slow
def test_state_may_be_donated_and_lanes_may_move_while_a_save_runs(tmp_path):
  state = {"w": jnp.arange(8_000_000.0), "n": jnp.int32(1)}
  target, want = abstract(state), jax.tree.map(np.array, state)
  step = jax.jit(lambda s: jax.tree.map(lambda x: x * 2 + 1, s), donate_argnums=0)
  lanes = {0: {"buffer": [1, 2]}}
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, state, lanes)
    lanes[0]["buffer"].append(3)
    for _ in range(20):
      state = step(state)
    restored = checkpoints.restore(target)
  assert_same_bits(restored.state, want)
  assert restored.lanes == {0: {"buffer": [1, 2]}}


@pytest.mark.slow
def test_restore_onto_another_mesh_is_exact(tmp_path):
  code = """
    import sys
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
    from tfusion.checkpoint import Checkpoints

    axes = (AxisType.Explicit, AxisType.Explicit)
    wide = jax.make_mesh((8,), ("fsdp",), axis_types=axes[:1])
    tall = jax.make_mesh((2, 4), ("fsdp", "tensor"), axis_types=axes)
    w = np.random.default_rng(0).normal(size=(16, 8))
    want = {"w": w.astype(jnp.bfloat16), "b": np.arange(8, dtype=np.int32),
            "m": w.astype(np.float32), "s": np.float32(3)}
    old = {"w": P("fsdp"), "b": P(), "m": P(None, "fsdp"), "s": P()}
    new = {"w": P("tensor", "fsdp"), "b": P("fsdp"), "m": P(("fsdp", "tensor")),
           "s": P()}
    state = {k: jax.device_put(v, NamedSharding(wide, old[k])) for k, v in want.items()}
    with jax.set_mesh(wide), Checkpoints(sys.argv[1]) as checkpoints:
      checkpoints.save(1, state, {})
    target = {k: jax.ShapeDtypeStruct(v.shape, v.dtype,
                                      sharding=NamedSharding(tall, new[k]))
              for k, v in want.items()}
    with jax.set_mesh(tall), Checkpoints(sys.argv[1]) as checkpoints:
      got = checkpoints.restore(target).state
    for k in want:
      assert got[k].sharding == target[k].sharding, (k, got[k].sharding)
      assert np.asarray(got[k]).tobytes() == want[k].tobytes(), k
    assert got["w"].addressable_shards[0].data.shape == (4, 4)
    print("exact")
  """
  assert finish(start(code, tmp_path, devices=8)).endswith("exact\n")


@pytest.mark.slow
def test_lanes_of_two_processes_restore_on_two_and_on_one(tmp_path):
  code = """
    import pathlib, sys
    import jax
    directory, port, process = sys.argv[1], sys.argv[2], int(sys.argv[3])
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", 2, process)
    import numpy as np
    from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
    from tfusion.checkpoint import Checkpoints

    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(AxisType.Explicit,))
    sharding = NamedSharding(mesh, P("fsdp"))
    w = np.arange(64, dtype=np.float32).reshape(16, 4)
    def state(step):
      part = lambda index: step * w[index]
      return {"w": jax.make_array_from_callback(w.shape, sharding, part)}
    with jax.set_mesh(mesh), Checkpoints(directory, keep_last=2) as checkpoints:
      for step in 1, 2, 3:
        lanes = {2 * process + i: {"next": 10 * step + i} for i in range(2)}
        assert checkpoints.save(step, state(step), lanes)
      assert not checkpoints.save(3, state(3), {})
      assert checkpoints.steps() == [2, 3], checkpoints.steps()
      if process == 0:  # damages what the other process wrote; both must step back
        [data] = pathlib.Path(directory).glob("3/state/ocdbt.process_1/d/*")
        data.write_bytes(b"x" + data.read_bytes()[1:])
      target = {"w": jax.ShapeDtypeStruct(w.shape, w.dtype, sharding=sharding)}
      restored = checkpoints.restore(target)
      assert (restored.step, list(restored.skipped)) == (2, [3]), restored
      assert restored.lanes == {0: {"next": 20}, 1: {"next": 21},
                                2: {"next": 20}, 3: {"next": 21}}, restored.lanes
      for shard in restored.state["w"].addressable_shards:
        assert np.array_equal(shard.data, 2 * w[shard.index])
      assert checkpoints.save(3, state(3), lanes)
    print("agreed")
  """
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  both = [start(code, tmp_path, port, i, devices=4) for i in range(2)]
  for process in both:
    assert finish(process).endswith("agreed\n")
  assert names(tmp_path) == {"2", "3", "3.corrupt"}
  w = jnp.arange(64.0).reshape(16, 4)
  with Checkpoints(tmp_path) as checkpoints:
    restored = checkpoints.restore(abstract({"w": w}))
    assert checkpoints.describe(3)["processes"] == 2
  assert_same_bits(restored.state, {"w": 3 * w})
  assert restored.lanes == {i: {"next": 30 + i % 2} for i in range(4)}


def test_a_partial_restore_reads_only_the_leaves_that_are_asked_for(tmp_path):
  save_steps(tmp_path, 5)
  want = TARGET._replace(step=None, opt=None)
  with Checkpoints(tmp_path, read_only=True) as checkpoints:
    restored = checkpoints.restore(want, partial=True)
    with pytest.raises(ValueError, match="opt/0/0"):
      checkpoints.restore(want)
    with pytest.raises(ValueError, match="extra: absent, here int32"):
      checkpoints.restore({"extra": TARGET.step}, partial=True)
  assert_same_bits(restored.state, make_state(5)._replace(step=None, opt=None))


# Refusals.


@pytest.mark.parametrize(
  "change, message",
  [
    (lambda s: s._replace(step=s.params["bf"]), r"step: int32\[\], here bfloat16\[12"),
    (
      lambda s: s._replace(params=s.params | {"bf": s.params["layers"]["w"]}),
      r"params/bf: bfloat16\[12, 8\], here float32\[12, 8\]",
    ),
    (lambda s: s._replace(opt=s.opt[1:]), r"opt/0/0: float32\[12, 8\], here absent"),
    (
      lambda s: s._replace(params=s.params | {"new": s.step}),
      r"params/new: absent, here int32\[\]",
    ),
  ],
  ids=["shape", "dtype", "missing", "extra"],
)
def test_another_tree_is_refused_by_name_and_not_called_corrupt(
  tmp_path, change, message
):
  save_steps(tmp_path, 1)
  with Checkpoints(tmp_path) as checkpoints:
    with pytest.raises(ValueError, match=message):
      checkpoints.restore(change(TARGET))
    assert names(tmp_path) == {"1"}
    assert checkpoints.restore(TARGET).step == 1


@pytest.mark.slow
def test_any_flipped_bit_in_any_file_is_noticed(tmp_path):
  save_steps(tmp_path, 1, 2)
  pick = random.Random(0)
  with Checkpoints(tmp_path, read_only=True) as checkpoints:
    for path in files(tmp_path, 2):
      good = path.read_bytes()
      for offset in sorted(pick.sample(range(len(good)), min(len(good), 12))):
        bad = bytearray(good)
        bad[offset] ^= 1 << pick.randrange(8)
        path.write_bytes(bad)
        restored = checkpoints.restore(TARGET)
        assert (restored.step, list(restored.skipped)) == (1, [2]), (path, offset)
      path.write_bytes(good)
    restored = checkpoints.restore(TARGET)
    assert (restored.step, restored.skipped) == (2, {})


def damage(path: pathlib.Path, how: str) -> None:
  if how == "missing":
    path.unlink()
  elif how == "truncated":
    path.write_bytes(path.read_bytes()[:-1])
  else:
    path.write_bytes(path.read_bytes() + b"\0")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["missing", "truncated", "longer"])
def test_a_damaged_checkpoint_is_skipped_said_moved_aside_and_saved_again(
  tmp_path, caplog, how
):
  save_steps(tmp_path / "good", 1, 2)
  for i, path in enumerate(files(tmp_path / "good", 2)):
    if how == "truncated" and not path.stat().st_size:
      continue  # a marker file of orbax is empty
    directory = tmp_path / str(i)
    shutil.copytree(tmp_path / "good", directory)
    damage(directory / path.relative_to(tmp_path / "good"), how)
    caplog.clear()
    with Checkpoints(directory) as checkpoints:
      restored = checkpoints.restore(TARGET)
      assert (restored.step, list(restored.skipped)) == (1, [2]), path
      assert path.name in restored.skipped[2]
      assert (
        f"checkpoint {directory}/2 is skipped: {restored.skipped[2]}" in caplog.text
      )
      assert_same_bits(restored.state, make_state(1))
      assert names(directory) == {"1", "2.corrupt"}
      assert checkpoints.save(2, make_state(2), {})
    assert names(directory) == {"1", "2", "2.corrupt"}
  damage(files(directory, 2)[0], "missing")  # the same step once more
  with Checkpoints(directory) as checkpoints:
    assert checkpoints.restore(TARGET).step == 1
  assert names(directory) == {"1", "2.corrupt"}


def test_folders_that_only_look_like_checkpoints_are_left_alone(tmp_path):
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(7, {"w": jnp.ones(2)}, {}, wait=True)
    for name in ("007", "000000009", "\u0669"):
      (tmp_path / name).mkdir()
    assert checkpoints.steps() == [7] and checkpoints.latest == 7
    assert checkpoints.restore(abstract({"w": jnp.ones(2)})).step == 7
  assert {"007", "000000009", "\u0669"} <= names(tmp_path)


def test_no_good_checkpoint_among_some_never_starts_from_scratch(tmp_path):
  save_steps(tmp_path, 1, 2)
  for step in (1, 2):
    damage(files(tmp_path, step)[-1], "truncated")
  for _ in range(2):  # the first refusal must not clear the way for the second start
    with Checkpoints(tmp_path) as checkpoints:
      with pytest.raises(ValueError, match="put back a good copy") as error:
        checkpoints.restore(TARGET)
    assert str(tmp_path) in str(error.value)
    assert names(tmp_path) == {"1", "2"}
  shutil.rmtree(tmp_path / "1")
  (tmp_path / "2").rename(tmp_path / "2.corrupt")
  with Checkpoints(tmp_path) as checkpoints:
    with pytest.raises(ValueError, match="2.corrupt"):
      checkpoints.restore(TARGET)


def test_a_reader_leaves_a_run_in_progress_alone(tmp_path):
  save_steps(tmp_path, 1, 2, 3)
  damage(files(tmp_path, 2)[0], "missing")
  (tmp_path / "3.partial").touch()  # as while step 3 is being written
  (tmp_path / "4.orbax-checkpoint-tmp").mkdir()
  before = names(tmp_path)
  with Checkpoints(tmp_path, read_only=True) as checkpoints:
    assert checkpoints.steps() == [1, 2]
    assert checkpoints.restore(TARGET).step == 1
  assert names(tmp_path) == before


# Failures while saving.


@pytest.mark.slow
def test_a_full_disk_is_one_clear_error_and_costs_no_older_checkpoint(tmp_path):
  code = """
    import resource, signal, sys
    import jax.numpy as jnp
    import numpy as np
    from tfusion.checkpoint import Checkpoints

    w = np.random.default_rng(0).normal(size=(1 << 20,)).astype(np.float32)
    checkpoints = Checkpoints(sys.argv[1])
    checkpoints.save(1, {"w": jnp.asarray(w)}, {}, wait=True)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
    assert checkpoints.save(2, {"w": jnp.asarray(w)}, {})
    for join in checkpoints.wait, checkpoints.close:
      try:
        join()
        print("fine")
      except OSError as error:
        print(error)
  """
  out = finish(start(code, tmp_path)).splitlines()
  failure, end = [line for line in out if not line.startswith("WARNING")]
  assert failure.startswith(
    f"checkpoint of step 2 could not be written to {tmp_path} (it needs 4.0 MiB, "
  )
  assert "MiB are free)" in failure and "File too large" in failure
  assert "earlier checkpoints [1] are intact: raise `ulimit -f`" in failure
  assert end == "fine"  # said once
  assert names(tmp_path) == {"1"}  # and no half checkpoint eats the room that is left
  w = np.random.default_rng(0).normal(size=(1 << 20,)).astype(np.float32)
  with Checkpoints(tmp_path) as checkpoints:
    restored = checkpoints.restore(abstract({"w": jnp.asarray(w)}))
  assert restored.step == 1
  assert_same_bits(restored.state, {"w": w})


@pytest.mark.parametrize(
  "error, remedy",
  [
    (OSError(27, "File too large"), "raise `ulimit -f`, or choose a disk that takes"),
    (OSError(28, "No space left on device"), "make room there, and start again"),
    (OSError(122, "Disk quota exceeded"), "make room there, and start again"),
    (OSError(13, "Permission denied"), "make it writable, and start again"),
    (OSError(30, "Read-only file system"), "make it writable, and start again"),
    (FileNotFoundError(2, "No such file", "x"), "mend what that names, and start"),
  ],
)
def test_room_is_asked_for_only_where_it_lacks(tmp_path, monkeypatch, error, remedy):
  def fail(path):
    raise error

  monkeypatch.setattr(checkpoint, "_size_and_crc", fail)
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(1, {"w": jnp.zeros(2)}, {})
  with pytest.raises(OSError) as raised:
    checkpoints.close()
  said = str(raised.value)
  assert error.strerror in said and f"There is no earlier one: {remedy}" in said
  assert ("make room" in said) == (error.errno in (28, 122))


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["writing", "recording", "deleting"])
def test_kill_9_during_a_save_leaves_the_previous_checkpoint(tmp_path, moment):
  code = """
    import os, pathlib, signal, sys
    import jax.numpy as jnp
    from tfusion import checkpoint

    directory, moment = pathlib.Path(sys.argv[1]), sys.argv[2]
    die = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    checkpoints = checkpoint.Checkpoints(directory, keep_last=2)
    for step in 1, 2:
      state = {"w": jnp.full((1 << 20,), step, jnp.float32)}
      checkpoints.save(step, state, {0: {"next": step}}, wait=True)
    if moment == "recording":
      checkpoint._size_and_crc = die
    if moment == "deleting":  # as rmtree stops half way through step 1
      delete = checkpoint.Checkpoints._delete
      def half(self, step):
        marker = self._at(step, ".partial")
        rmtree = type(marker).rmtree
        def rmtree_half(path, **_):
          rmtree(path / "state")
          die()
        type(marker).rmtree = rmtree_half
        delete(self, step)
      checkpoint.Checkpoints._delete = half
    big = 25 if moment == "writing" else 20  # 128 MiB take long enough to be caught
    checkpoints.save(3, {"w": jnp.full((1 << big,), 3, jnp.float32)}, {0: {"next": 3}})
    if moment == "writing":
      while not list(directory.glob("3.orbax-checkpoint-tmp/*")):
        assert not (directory / "3").exists()
      die()
    checkpoints.wait()
    print("survived")
  """
  process = start(code, tmp_path, moment)
  out = finish(process)
  assert process.returncode == -9, out
  left = names(tmp_path)
  newest = 3 if moment == "deleting" else 2
  want = jnp.full((1 << 20,), newest, jnp.float32)
  with Checkpoints(tmp_path) as checkpoints:
    assert checkpoints.latest == newest, left
    restored = checkpoints.restore(abstract({"w": want}))
    assert (restored.step, restored.skipped) == (newest, {})
    assert_same_bits(restored.state, {"w": want})
    assert restored.lanes == {0: {"next": newest}}
    assert len(left) > len(names(tmp_path)) == len(checkpoints.steps())
    assert checkpoints.save(newest + 1, make_state(), {})


def test_a_failed_save_is_raised_by_whatever_waits_for_it(tmp_path, monkeypatch):
  def full(path):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(checkpoint, "_size_and_crc", full)
  with pytest.raises(OSError, match="step 3 could not"):  # leaving the block
    with Checkpoints(tmp_path) as checkpoints:
      checkpoints.save(1, make_state(), {})
      with pytest.raises(OSError, match="step 1 could not"):  # the next save
        checkpoints.save(2, make_state(), {})
      with pytest.raises(OSError, match="step 2 could not"):  # its own wait
        checkpoints.save(2, make_state(), {}, wait=True)
      checkpoints.save(3, make_state(), {})
  assert names(tmp_path) == set()
  with pytest.raises(ZeroDivisionError):  # is not hidden
    with Checkpoints(tmp_path) as checkpoints:
      checkpoints.save(4, make_state(), {})
      raise ZeroDivisionError


# What stays, what is said, what it costs.


@pytest.mark.parametrize(
  "options, left",
  [
    (dict(keep_last=1), {"6"}),
    (dict(keep_last=2), {"5", "6"}),
    (dict(keep_last=1, keep_every_steps=2), {"2", "4", "6"}),
    (dict(keep_last=3, keep_every_steps=3), {"3", "4", "5", "6"}),
    (dict(keep_last=9), {"1", "2", "3", "4", "5", "6"}),
  ],
)
def test_the_newest_and_the_multiples_stay(tmp_path, options, left):
  save_steps(tmp_path, 1, 2, 3, 4, 5, 6, **options)
  assert names(tmp_path) == left
  assert Checkpoints(tmp_path).steps() == sorted(map(int, left))


def test_keeping_nothing_is_refused(tmp_path):
  with pytest.raises(ValueError, match="keep_last=0"):
    Checkpoints(tmp_path, keep_last=0)
  with pytest.raises(ValueError, match="keep_every_steps=-1"):
    Checkpoints(tmp_path, keep_every_steps=-1)


def test_the_older_checkpoint_stays_until_the_newer_is_whole(tmp_path, monkeypatch):
  seen = []
  read = checkpoint._size_and_crc
  spy = lambda path: seen.append(names(tmp_path)) or read(path)  # noqa: E731
  save_steps(tmp_path, 1, keep_last=1)
  monkeypatch.setattr(checkpoint, "_size_and_crc", spy)
  save_steps(tmp_path, 2, keep_last=1)
  assert seen and all("1" in names_then for names_then in seen)
  assert names(tmp_path) == {"2"}


def test_a_step_that_exists_is_not_saved_again(tmp_path, caplog):
  caplog.set_level(std_logging.INFO)
  with Checkpoints(tmp_path) as checkpoints:
    assert checkpoints.save(7, make_state(7), {0: {"next": 7}})
    assert not checkpoints.save(7, make_state(8), {}, wait=True)
    assert "exists and is not saved again" in caplog.text
    restored = checkpoints.restore(TARGET)
  assert_same_bits(restored.state, make_state(7))
  assert restored.lanes == {0: {"next": 7}}


def test_a_save_runs_behind_the_caller_and_only_waiting_is_counted(
  tmp_path, monkeypatch
):
  go_on, read = threading.Event(), checkpoint._size_and_crc
  monkeypatch.setattr(
    checkpoint, "_size_and_crc", lambda path: go_on.wait(60) and read(path)
  )
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, make_state(), {})
    steps, started = checkpoints.steps(), checkpoints.blocked_seconds
    time.sleep(0.2)
    slept = checkpoints.blocked_seconds - started
    threading.Timer(0.3, go_on.set).start()
    checkpoints.wait()
    waited = checkpoints.blocked_seconds - started
    assert checkpoints.steps() == [1]
  assert (steps, slept) == ([], 0)
  assert started > 0
  assert waited > 0.25  # not 0.3: the timer starts before the wait does


@pytest.mark.parametrize(
  "name, process",
  [
    ("state/ocdbt.process_0/d/aa", 0),
    ("state/ocdbt.process_12/d/aa", 12),
    ("state/ocdbt.process_3/manifest.ocdbt", 3),
    ("state/d/aa", 0),
    ("state/array_metadatas/process_1", 0),
    ("_CHECKPOINT_METADATA", 0),
    ("record.1-of-2", -1),  # may be half written when another process looks
  ],
)
def test_each_process_reads_back_its_own_arrays_and_the_first_the_rest(name, process):
  assert checkpoint._writer(checkpoint.Path("/runs/a/checkpoints/7") / name) == process


def test_orbax_is_silent_unless_it_warns(tmp_path, caplog, recwarn):
  verbosity = logging.get_verbosity()
  logging.set_verbosity(logging.INFO)
  try:
    save_steps(tmp_path, 1, 2)
    with Checkpoints(tmp_path) as checkpoints:
      checkpoints.save(2, make_state(), {})
      checkpoints.restore(TARGET)
  finally:
    logging.set_verbosity(verbosity)
  said = [r for r in caplog.records if r.name == "absl"]
  assert [os.path.basename(r.pathname) for r in said] == ["checkpoint.py"], said
  assert [str(w.message) for w in recwarn] == []


def test_describe_tells_what_a_step_holds(tmp_path):
  save_steps(tmp_path, 1, 2)
  with Checkpoints(tmp_path, read_only=True) as checkpoints:
    table = checkpoints.describe(2)
    with pytest.raises(ValueError, match=r"no step 9 in .*: it has \[1, 2\]"):
      checkpoints.describe(9)
    [record] = (tmp_path / "1").glob("record.*")
    damage(record, "truncated")
    with pytest.raises(ValueError, match="record.0-of-1 fails its checksum"):
      checkpoints.describe(1)
  assert json.loads(json.dumps(table))["leaves"] == table["leaves"]
  assert table["leaves"] == {
    "step": {"dtype": "int32", "shape": [], "bytes": 4},
    "params/bf": {"dtype": "bfloat16", "shape": [12, 8], "bytes": 192},
    "params/layers/w": {"dtype": "float32", "shape": [12, 8], "bytes": 384},
    "opt/0/0": {"dtype": "float32", "shape": [12, 8], "bytes": 384},
    "opt/1/count": {"dtype": "int32", "shape": [], "bytes": 4},
  }
  assert table["bytes"] == 4 + 192 + 384 + 384 + 4
  assert (table["step"], table["processes"]) == (2, 1)
  assert table["lanes"] == {0: {"next": 2}}
  assert set(table["versions"]) == {"jax", "flax", "orbax.checkpoint", "tfusion"}
  assert abs(table["unix_seconds"] - time.time()) < 600
