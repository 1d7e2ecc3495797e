"""A compiled step in a file: made where compiling costs nothing, loaded on a pod.

Owns: the file and what must agree. Not: the compiling (compiled.py, pods/).

The file is a line of JSON and then what JAX serialises, which is unpickled when it is
loaded: load only files that you made.
"""

import hashlib
import importlib.metadata
import json
from pathlib import Path
from typing import Any

import jax
from jax.experimental import serialize_executable

from tfusion import files
from tfusion.version import __version__


class Unfit(ValueError):
  """A file is of another program, version or machine; it says which, and what to do."""

  def __init__(self, path: str | Path, why: str):
    """Of a file that --executable names."""
    super().__init__(
      f"--executable={path}: {why}; write it anew with `tfusion compile --save`, by the"
      " config and the versions that train, or leave --executable out to compile here"
    )


def save(
  compiled: jax.stages.Compiled, lowered: jax.stages.Lowered, path: str | Path
) -> None:
  """Writes a file that `load` takes.

  Raises:
    ValueError: the compiler's programs cannot be serialised.
  """
  try:
    payload, _, _ = serialize_executable.serialize(compiled)
  except Exception as error:  # of several kinds, by backend
    raise ValueError(f"{path}: this program cannot be written to a file") from error
  header = json.dumps(_facts(lowered, _device_of(compiled)))
  with files.whole(Path(path)) as part:
    part.write_bytes(header.encode() + b"\n" + payload)


def check(path: str | Path, lowered: jax.stages.Lowered) -> None:
  """Refuses a file that `load` would refuse, as far as its first line says; inside
  jax.set_mesh.

  Raises:
    Unfit: the file is none, or of another program, version or machine.
  """
  try:
    with Path(path).open("rb") as file:
      saved = json.loads(file.readline())
    assert isinstance(saved, dict), "no JSON object"
  except (OSError, ValueError, AssertionError) as error:
    why = f"is no file of `tfusion compile --save`, or damaged ({error})"
    raise Unfit(path, why) from error
  here = _facts(lowered, jax.sharding.get_mesh().devices.flat[0].device_kind)
  for name, value in here.items():
    if saved.get(name) != value:
      raise Unfit(path, f"its {name} is {saved.get(name)}, here it is {value}")


def load(path: str | Path, lowered: jax.stages.Lowered) -> jax.stages.Compiled:
  """Loads a program onto the devices of the mesh in use.

  Args:
    path: of `save`.
    lowered: what would be compiled otherwise.

  Raises:
    Unfit: the file is none, or of another program, version or machine.
  """
  check(path, lowered)
  _, _, payload = Path(path).read_bytes().partition(b"\n")
  try:
    return serialize_executable.deserialize_and_load(
      payload, lowered.in_tree, lowered.out_tree
    )
  except Exception as error:  # what the runtime has to say
    said = str(error).partition("\n")[0][:200]
    raise Unfit(path, f"the runtime does not take it ({said})") from error


def _facts(lowered: jax.stages.Lowered, device: str) -> dict[str, Any]:
  """What must be the same where it is loaded."""
  program = hashlib.sha256(lowered.as_text().encode()).hexdigest()
  versions = {
    name: importlib.metadata.version(name)
    for name in ("jax", "jaxlib", *(["libtpu"] if device.startswith("TPU") else []))
  }
  return {"tfusion": __version__} | versions | {"device": device, "program": program}


def _device_of(compiled: jax.stages.Compiled) -> str:
  sharding = jax.tree.leaves(compiled.input_shardings)[0]
  return next(iter(sharding.device_set)).device_kind
