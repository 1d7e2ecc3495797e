"""The files of TensorBoard and of W&B, read back.

Not a test: shared by tests of runs with train.loggers.
"""

import json
import pathlib
import struct

import pytest


def scalars(workdir) -> dict[str, list[tuple[int, float]]]:
  """What TensorBoard itself reads."""
  pytest.importorskip("tensorboard")
  from tensorboard.backend.event_processing import event_accumulator

  found = event_accumulator.EventAccumulator(
    str(workdir / "tensorboard"), size_guidance={event_accumulator.SCALARS: 0}
  )
  found.Reload()
  return {
    tag: [(event.step, event.value) for event in found.Scalars(tag)]
    for tag in found.Tags()["scalars"]
  }


def records(path: pathlib.Path):
  """The records of a .wandb file: those of LevelDB's log, behind 7 bytes of a head."""
  from wandb.proto import wandb_internal_pb2

  data, at, whole = path.read_bytes(), 7, b""
  assert data[:4] == b":W&B"
  while at + 7 <= len(data):
    left = 32768 - at % 32768
    if left < 7:  # the end of a block
      at += left
      continue
    length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
    whole += data[at + 7 : at + 7 + length]
    at += 7 + length
    if kind in (1, 4):  # FULL, LAST
      yield wandb_internal_pb2.Record.FromString(whole)
      whole = b""


def starts_of(workdir) -> list[tuple[str, list[tuple[int, dict]]]]:
  """Of each start: the run of W&B, and its rows with their steps."""
  found = []
  for folder in sorted((workdir / "wandb").glob("offline-run-*")):
    (path,) = folder.glob("*.wandb")
    run, rows = "", []
    for record in records(path):
      if record.HasField("run"):
        run = record.run.run_id
      if record.HasField("history"):
        items = {
          item.key or ".".join(item.nested_key): json.loads(item.value_json)
          for item in record.history.item
        }
        own = {key: x for key, x in items.items() if not key.startswith("_")}
        rows.append((items["_step"], own))
    found.append((run, rows))
  return found
