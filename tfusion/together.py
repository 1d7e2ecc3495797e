"""What the hosts of a run do together at its start: all of them, or none.

Owns: telling the others what has failed on one, what must be the same on all. Not: the
joining (sharding.py), what becomes of a host later (training/watch.py).

A host that ended alone would leave the others in their next program, which waits for
it, until JAX gives up and cannot say why.
"""

import collections
import contextlib
import hashlib
import json
import os
import socket
from collections.abc import Iterator
from typing import Any

import jax

from tfusion import errors
from tfusion.config import flatten
from tfusion.muster import versions
from tfusion.sharding import gather_json

# Knobs of a host alone. The files among them are compared by what they hold, when that
# is read; the sources are not, for a run calls them what the knob does.
OF_HOST = ("data.workers", "data.threads", "data.tokenizer", "loss.features")
SAME_DATA = "give all hosts the same data, tokenizer and libraries"


@contextlib.contextmanager
def together() -> Iterator[None]:
  """All hosts come through the block of a `with`, or none does; all must enter it.

  Raises:
    ValueError: another host failed with what a person can mend, which it names; or the
      hosts have different numbers of devices.
    RuntimeError: another host failed otherwise.
    Exception: what the block raised on this host.
  """
  if jax.process_count() == 1:
    yield
    return
  _check_even()
  raised: Exception | None = None
  try:
    yield
  except Exception as error:
    raised = error
  everyone = gather_json(raised and _told(raised))
  if raised:
    raise raised
  for host, told in enumerate(everyone):
    if told:
      kind = ValueError if told["known"] else RuntimeError
      raise kind(f"host {host} ({told['name']}): {told['said']}")


def check_hosts(config: Any) -> None:
  """Refuses hosts of other versions, or with another config; all must call it.

  Raises:
    ValueError: names what differs, with the values of two hosts.
  """
  if jax.process_count() == 1:
    return
  knobs = {key: repr(x) for key, x in flatten(config).items() if key not in OF_HOST}
  check_same(
    {f"version of {name}": x for name, x in versions().items()} | knobs,
    remedy="start all hosts with the same versions and the same command",
  )


def check_same(values: dict[str, str], *, remedy: str) -> None:
  """Refuses hosts whose values differ; all must call it.

  Args:
    values: of this host, by name.
    remedy: what a person should do.

  Raises:
    ValueError: on all hosts; names what differs, with the values of two hosts.
  """
  if jax.process_count() == 1:
    return
  text = json.dumps(values, sort_keys=True)
  digests = gather_json(hashlib.sha256(text.encode()).hexdigest())
  other = next((i for i, digest in enumerate(digests) if digest != digests[0]), None)
  if other is None:
    return
  everyone = gather_json(values)
  ours, theirs = everyone[0], everyone[other]
  differing = [
    f"{key}: host 0 has {ours.get(key, 'none')}, host {other} {theirs.get(key, 'none')}"
    for key in {**ours, **theirs}
    if ours.get(key) != theirs.get(key)
  ]
  raise ValueError("; ".join(differing) + f"; {remedy}")


def _check_even() -> None:
  """Every host knows of all devices, so all find the same without a word."""
  counts = collections.Counter(device.process_index for device in jax.devices())
  few, many = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
  if counts[few] != counts[many]:
    raise ValueError(
      f"host {few} has {counts[few]} devices, host {many} has {counts[many]}; all"
      " hosts need as many: look which devices are missing there, or leave that host"
      " out"
    )


def _told(error: Exception) -> dict[str, Any]:
  """What the others are told."""
  said = errors.explain(error)
  return {
    "known": said is not None,
    "said": said or f"{type(error).__name__}: {error}",
    "name": f"{socket.gethostname()}, process {os.getpid()}",
  }
