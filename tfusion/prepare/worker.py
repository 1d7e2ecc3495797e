"""A worker process of a job, and what it must share with the process that began it.

Owns: the versions on which the bytes of shards depend, how a worker knows the job's
folder, what a task does. Not: one part (part.py), who runs tasks (runner.py).
"""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import platform
import socket

from tfusion import files
from tfusion.prepare import part as part_lib
from tfusion.prepare import raw as raw_lib

# They read images and texts, make latents, or write records; Beam hands parts over.
PACKAGES = (
  "tfusion",
  "apache-beam",
  "array-record",
  "flax",
  "jax",
  "jaxlib",
  "ml-dtypes",
  "numpy",
  "pillow",
  "safetensors",
  "sentencepiece",
  "tokenizers",
)
JOB = "job.json"  # the settings of a job, in its folder


@dataclasses.dataclass(frozen=True)
class Needs:
  """What every worker of a job must have; picklable."""

  out: str  # the folder of shards
  settings_sha256: str  # of the job's settings there
  versions: tuple[tuple[str, str], ...]  # of what is installed where it began


def needs_of(job: part_lib.Job) -> Needs:
  """What workers need to do the same as this process would."""
  settings = (files.to_path(job.out) / JOB).read_bytes()
  return Needs(job.out, hashlib.sha256(settings).hexdigest(), _versions())


def fault(needs: Needs) -> str:
  """Why this process cannot work for a job; empty if it can."""
  here = dict(_versions())
  differ = [
    f"{name} {here.get(name, 'missing')}, not {version}"
    for name, version in needs.versions
    if here.get(name) != version
  ]
  if differ:
    return (
      f"{socket.gethostname()}: has {', '.join(differ)}; install the same versions on"
      " every worker, or shards could differ"
    )
  try:
    settings = (files.to_path(needs.out) / JOB).read_bytes()
  except OSError:
    settings = b""
  if hashlib.sha256(settings).hexdigest() != needs.settings_sha256:
    return (
      f"{socket.gethostname()}: does not see the {JOB} of this job in {needs.out}; name"
      " an --out that all workers share, such as a mounted folder or one in a bucket"
    )
  return ""


def write(numbered: tuple[int, raw_lib.Part], job: part_lib.Job, needs: Needs) -> None:
  """Does a part, if this process can.

  Raises:
    ValueError: it lacks what the job needs.
    OSError: the part cannot be written.
  """
  if said := fault(needs):
    raise ValueError(said)
  part_lib.write(numbered, job)


def _versions() -> tuple[tuple[str, str], ...]:
  found = {"Python": ".".join(platform.python_version_tuple()[:2])}
  for package in PACKAGES:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      found[package] = importlib.metadata.version(package)
  return tuple(found.items())
