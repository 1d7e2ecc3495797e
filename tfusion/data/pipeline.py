"""The corpus of a run and its batches on this host.

Owns: opening sources and tokenizer, dealing lanes out to hosts and worker processes,
held-out rows. Not: order and mixture (mixture.py), packing (lanes.py), what a row is
(sequence.py), where documents come from (sources.py).

Every lane gives batch_rows / data.lanes rows of each global batch; they lie in it lane
by lane. A host owns neighbouring lanes, a worker process some of those. So neither the
number of hosts nor that of workers changes a batch or a state.
"""

import dataclasses
import functools
import itertools
import json
import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grain
import numpy as np
from absl import flags

from tfusion import files, sequence
from tfusion import workdir as workdir_lib
from tfusion.config import Config
from tfusion.data import identity as identity_lib
from tfusion.data import lanes, notices, prepared
from tfusion.data.lane_state import LaneState
from tfusion.data.shards.manifest import TOKENIZER
from tfusion.data.source import TEST, TRAIN, Source
from tfusion.data.sources import open_sources
from tfusion.data.tally import Tally
from tfusion.data.tokenizer import OF_SHARDS, Tokenizer

PREFETCHED_BATCHES = 4  # per worker process
HELD_OUT_SEED = 0  # the same validation rows for every config.seed
SAMPLED = 200  # documents per source for the estimate of the reachable mixture


@dataclasses.dataclass(frozen=True)
class Corpus:
  """What a run trains on, and what is held out."""

  train: tuple[Source, ...]
  test: tuple[Source, ...]
  tokenizer: Tokenizer
  identity: identity_lib.Identity | None = None  # the run that trains on it keeps it

  @property
  def first_code(self) -> int | None:
    """The token id of the first code of images; None: images are no codes."""
    return self.tokenizer.vocab_size if prepared.codebook(self.train) else None


def open_corpus(config: Config, workdir: str | Path) -> Corpus:
  """Opens the sources and the tokenizer of a run.

  A run that has begun, as its config.json shows, has its tokenizer in
  workdir/tokenizer.model. For a new run it is copied from data.tokenizer or from the
  shards among the sources; without either, it is trained on the training texts. What
  the sources had to skip is logged, and listed in workdir/skipped.json.

  Raises:
    ValueError: a source or the tokenizer cannot serve, they do not fit each other, or
      they are not those with which the run in the workdir began.
  """
  workdir = files.to_path(workdir)
  opened = {
    split: open_sources(
      config.data.sources,
      split=split,
      image_shape=config.model.image_shape,
      others=config.model.every_kind[1:],
      workdir=workdir,
    )
    for split in (TRAIN, TEST)
  }
  opened, identity = identity_lib.recognise(opened, config.data.sources, workdir)
  opened = {split: prepared.agree(sources) for split, sources in opened.items()}
  if config.model.patches == "none":
    _refuse_pixels(opened[TRAIN])
  # Files without a config.json are what a refused start has left.
  begun = workdir_lib.has_begun(workdir)
  tokenizer = _open_tokenizer(config, workdir, opened[TRAIN], begun=begun)
  prepared.keep(opened[TRAIN], workdir, begun=begun)
  identity.files.update(prepared.hashes(workdir), **{TOKENIZER: tokenizer.sha256})

  @functools.cache
  def count(text: str) -> int:
    return len(tokenizer.encode(text))

  train, test = (
    tuple(_fit(source, count, config) for source in opened[split])
    for split in (TRAIN, TEST)
  )
  corpus = Corpus(train, test, tokenizer, identity)
  notices.warn(corpus.train, tokenizer, config, workdir)
  return corpus


class HostBatches(Iterator[sequence.Batch]):
  """This host's share of every global batch, without end.

  A batch is [batch_rows / hosts, ...], its rows in the order of the lanes. The batches
  of all hosts, one behind the other, are the same for every number of hosts.
  """

  def __init__(self, corpus: Corpus, config: Config, *, host: int, hosts: int):
    """Sets out the lanes of a host; worker processes start at the first batch.

    Args:
      corpus: trains on `corpus.train`.
      config: a checked Config; `hosts` divides data.lanes.
      host: index of this process.
      hosts: processes in the run.
    """
    own = config.data.lanes // hosts
    self._corpus, self._config = corpus, config
    self._open_lane = functools.partial(
      lanes.Lane, corpus.train, corpus.tokenizer, config
    )
    self._pack = functools.partial(
      lanes.pack_rows, config=config, tokenizer=corpus.tokenizer
    )
    self._lanes = range(host * own, (host + 1) * own)
    self._states = {lane: LaneState.fresh(corpus.train) for lane in self._lanes}
    self._streams: list[grain.DatasetIterator] = []

  def __next__(self) -> sequence.Batch:
    """Returns the next batch.

    Raises:
      ChildProcessError: a worker process died. The next batch is still the next one,
        from new workers.
      ValueError: what `lanes.Lane.take` raises.
    """
    try:
      if not self._streams:
        self._start()
      parts = [next(stream) for stream in self._streams]
    except BaseException as error:
      self.close()  # some may be a batch ahead: all start again from the states
      died = re.search(r"terminated unexpectedly with exit code (-?\d+)", str(error))
      if not isinstance(error, RuntimeError) or not died:
        raise
      raise ChildProcessError(
        f"a data worker process died ({_exit_of(int(died[1]))}), as when memory or"
        f" /dev/shm is short: lower data.workers={self._config.data.workers}, or set it"
        " to 0, and start again"
      ) from error
    for part in parts:
      states = json.loads(part["states"].tobytes())
      for lane, state in states.items():
        self._states[int(lane)] = LaneState.from_json(state)
    # Copies: what grain returns lives in shared memory and would go with it.
    return sequence.concatenate([sequence.unflatten(part["rows"]) for part in parts])

  def lane_states(self) -> dict[int, dict[str, Any]]:
    """Lane -> its state after the last returned batch, as checkpoints keep it."""
    return {lane: state.to_json() for lane, state in self._states.items()}

  def restore(self, states: dict[int, dict[str, Any]]) -> None:
    """Goes on after the batch at which the states were taken, on any host count.

    Args:
      states: as `lane_states` gave them, of all lanes of this host at least; JSON may
        have made the keys strings.

    Raises:
      ValueError: a lane is missing, a state is none, or the sources have changed since.
    """
    states = {int(lane): state for lane, state in states.items()}
    missing = [lane for lane in self._lanes if lane not in states]
    if missing:
      raise ValueError(
        f"the saved data state lacks lanes {missing}; it holds {sorted(states)}, and"
        f" data.lanes={self._config.data.lanes}"
      )
    own = {lane: LaneState.from_json(states[lane]) for lane in self._lanes}
    for lane, state in own.items():  # refuses other sources here, not in a worker
      self._open_lane(lane=lane, state=state)
    self.close()
    self._states = own

  def tally(self, gather: Callable[[Any], list[Any]] = lambda own: [own]) -> Tally:
    """What the lanes have given so far.

    Args:
      gather: collects JSON from every host, as sharding.gather_json does; without it,
        the lanes are those of this host.
    """
    states = [s for own in gather(self.lane_states()) for s in own.values()]
    states = [LaneState.from_json(state) for state in states]
    return Tally(self._corpus.train, self._config, states)

  def close(self) -> None:
    """Stops the worker processes; the next batch starts them again."""
    for stream in self._streams:
      stream.close()
    self._streams = []

  def _start(self) -> None:
    rows_per_lane = self._config.train.batch_rows // self._config.data.lanes
    workers = min(self._config.data.workers, len(self._lanes))
    for own in np.array_split(self._lanes, max(workers, 1)):
      states = {int(lane): self._states[int(lane)] for lane in own}
      rows = _LaneRows(self._open_lane, self._pack, states, rows_per_lane)
      if workers:
        if not flags.FLAGS.is_parsed():  # grain reads its own flags
          flags.FLAGS.mark_as_parsed()
        rows = rows.mp_prefetch(
          grain.MultiprocessingOptions(
            num_workers=1, per_worker_buffer_size=PREFETCHED_BATCHES
          ),
          worker_init_fn=_init_worker,
        )
      self._streams.append(iter(rows))


def heldout_rows(
  sources: Sequence[Source],
  tokenizer: Tokenizer,
  config: Config,
  *,
  rows: int,
  host: int = 0,
  hosts: int = 1,
) -> list[sequence.Batch]:
  """Packs held-out documents, each at most once; none loses its caption.

  The rows depend on the sources and the tokenizer, and on the sizes, the mixture and
  data.caption_first in the config. Every seed, step and number of hosts gives the same.

  Args:
    sources: the test sources, or those of them that are to be evaluated.
    tokenizer: encodes their texts.
    config: a checked Config; `hosts` divides train.batch_rows.
    rows: at most so many over all hosts.
    host: index of this process.
    hosts: processes in the run.

  Returns:
    This host's share, [batch_rows / hosts, ...] each. Empty rows, which weigh nothing,
    fill the last global batch up.

  Raises:
    ValueError: the sources hold nothing.
  """
  data = dataclasses.replace(config.data, lanes=1, caption_dropout=0.0)
  fixed = dataclasses.replace(config, seed=HELD_OUT_SEED, data=data)
  lane = lanes.Lane(sources, tokenizer, fixed, lane=0, repeat=False)
  packed = list(itertools.islice(lane, rows))
  if not packed:
    raise ValueError(
      f"{[source.name for source in sources]}: the held-out split gives no row"
    )
  total = config.train.batch_rows
  packed += [lanes.pack([], config, tokenizer)] * (-len(packed) % total)
  own = total // hosts
  starts = range(host * own, len(packed), total)
  return [sequence.stack(packed[start : start + own]) for start in starts]


class _LaneRows(grain.IterDataset):
  """The batches of some lanes, with the states after them as JSON.

  The states travel with the rows, so that what a checkpoint holds does not depend on
  how far a worker process is ahead, nor on how many there are. They are an array for
  grain to put in shared memory: a worker killed in the middle of a long write to the
  pipe would leave the reader waiting for the rest.
  """

  def __init__(self, open_lane: Callable, pack: Callable, states: dict, rows: int):
    super().__init__()
    self._args = open_lane, pack, states, rows

  def __iter__(self) -> "_LaneRowsIterator":
    return _LaneRowsIterator(*self._args)


class _LaneRowsIterator(grain.DatasetIterator):
  def __init__(self, open_lane: Callable, pack: Callable, states: dict, rows: int):
    super().__init__()
    self._lanes = {k: open_lane(lane=k, state=state) for k, state in states.items()}
    self._pack = pack
    self._rows = rows  # of each lane

  def __next__(self) -> dict[str, Any]:
    rows = [lane.take() for lane in self._lanes.values() for _ in range(self._rows)]
    states = {k: lane.state().to_json() for k, lane in self._lanes.items()}
    encoded = np.frombuffer(json.dumps(states).encode(), np.uint8)
    return {"rows": sequence.flatten(self._pack(rows)), "states": encoded}

  def get_state(self) -> dict[str, Any]:
    return {}  # the states travel with the rows

  def set_state(self, state: dict[str, Any]) -> None:
    raise NotImplementedError("a restored HostBatches starts new iterators")


def _exit_of(code: int) -> str:
  """What an exit code says of a process; below 0, it is the number of a signal."""
  known = -code in set(signal.Signals)
  return f"killed by {signal.Signals(-code).name}" if known else f"exit code {code}"


def _init_worker(index: int, count: int) -> None:
  """Lets the parent alone decide when a worker ends."""
  # Ctrl-C and a preemption notice may reach the whole process group, but the parent
  # still needs rows for the step it finishes.
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  signal.signal(signal.SIGTERM, signal.SIG_IGN)
  parent = multiprocessing.parent_process()
  assert parent is not None

  def follow():
    parent.join()  # a killed parent cannot stop its workers
    os._exit(1)

  threading.Thread(target=follow, daemon=True).start()


def _open_tokenizer(
  config: Config,
  workdir: Path,
  sources: Sequence[Source],
  *,
  begun: bool,
) -> Tokenizer:
  path, given = workdir / "tokenizer.model", config.data.tokenizer
  shards = prepared.tokenizer_of(sources)
  if begun:
    tokenizer = identity_lib.open_tokenizer(workdir, copies=(given, shards))
    prepared.check_tokenizer(tokenizer, str(path), shards, begun=True)
    if given and files.to_path(given).is_file():
      _refuse_another(Tokenizer.load(given), given, tokenizer, path)
  elif given:
    tokenizer = Tokenizer.load(given)
    prepared.check_tokenizer(tokenizer, f"data.tokenizer={given!r}", shards)
    tokenizer.save(path)
  elif shards:
    tokenizer = Tokenizer.load(shards, key="", remedy=OF_SHARDS)
    tokenizer.save(path)
  else:
    texts = (text for source in sources for text in source.texts())
    pieces = config.model.vocab_size - len(config.model.kinds)
    tokenizer = Tokenizer.train(texts, vocab_size=pieces, path=path)
  codes, marks = prepared.codebook(sources), len(config.model.kinds)
  if codes and marks:
    raise ValueError(
      f"model.kinds={config.model.kinds}: the images of the sources are codes, which"
      " have no patches; leave it empty"
    )
  if tokenizer.vocab_size + codes + marks > config.model.vocab_size:
    above = f" and {codes} codes of images above them" if codes else ""
    above += f" and model.kinds adds {marks} marks" if marks else ""
    raise ValueError(
      f"model.vocab_size={config.model.vocab_size}: the tokenizer has"
      f" {tokenizer.vocab_size} pieces{above}; the model needs at least as many"
    )
  return tokenizer.for_kinds(len(config.model.every_kind))


def _refuse_pixels(sources: Sequence[Source]) -> None:
  """Raises ValueError for images that are not codes, where there are no patches."""
  for source in sources:
    images = source.prepared.manifest.images if source.prepared else None
    if source.has_images and (images is None or images.kind != "codes"):
      raise ValueError(
        f"data.sources: {source.name} has images, and with model.patches=none there is"
        " no place for them; leave it out, prepare it with an autoencoder of codes, or"
        " set model.patches=linear"
      )


def _refuse_another(other: Tokenizer, given: str, own: Tokenizer, path: Path) -> None:
  if other.sha256 != own.sha256:
    raise ValueError(
      f"data.tokenizer={given!r} (sha256 {other.sha256[:16]}...): is another tokenizer"
      f" than {path} (sha256 {own.sha256[:16]}...), with which this run began; leave"
      " data.tokenizer empty to go on with that, or choose a new workdir"
    )


def _fit(source: Source, count, config: Config) -> Source:
  if source.has_images and config.data.too_long == "split":
    return source  # lanes cut what no row holds
  image = max(config.model.patches_by_kind) + 2  # BOI, EOI
  room = config.data.row_length - 1 - (image if source.has_images else 0)  # BOS
  return source.fit(count, room=room)
