"""Host batches: the same for every count of hosts and workers, and after a stop."""

import dataclasses
import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_shards
import tiny_sources
from PIL import Image
from tiny import assert_same_batch
from tiny_sources import Given, changed, latent

from tfusion import sequence
from tfusion import workdir as workdir_lib
from tfusion.data import notices, pipeline, sources
from tfusion.data.pipeline import HostBatches, heldout_rows, open_corpus
from tfusion.data.prose import Prose
from tfusion.data.tokenizer import Tokenizer

CONFIG = changed(data=dict(workers=0))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> pipeline.Corpus:
  return open_corpus(CONFIG, tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def expected(corpus):
  """Twelve batches of one host without workers, and the states after each."""
  data = HostBatches(corpus, CONFIG, host=0, hosts=1)
  batches = []
  states = [data.lane_states()]
  for _ in range(12):
    batches.append(next(data))
    states.append(json.loads(json.dumps(data.lane_states())))
  return batches, states


def joined(batches):
  """Host batches in order of the hosts as the global batch."""
  return sequence.concatenate(batches)


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_the_global_batch_is_the_same_on_every_host_count(corpus, expected, hosts):
  data = [HostBatches(corpus, CONFIG, host=h, hosts=hosts) for h in range(hosts)]
  for batch in expected[0][:6]:
    assert_same_batch(batch, joined([next(d) for d in data]))


def test_rows_of_a_lane_lie_together(corpus, expected):
  lane = pipeline.lanes.Lane(corpus.train, corpus.tokenizer, CONFIG, lane=1)
  batch = expected[0][0]
  for n in range(4, 8):
    assert_same_batch(next(lane), sequence.row_of(batch, n))


@pytest.mark.parametrize("stop", [0, 1, 5])
@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_a_run_goes_on_bit_by_bit_on_another_host_count(corpus, expected, stop, hosts):
  batches, states = expected
  data = [HostBatches(corpus, CONFIG, host=h, hosts=hosts) for h in range(hosts)]
  for d in data:
    d.restore(states[stop])
  for batch in batches[stop : stop + 4]:
    assert_same_batch(batch, joined([next(d) for d in data]))
  after = {lane: s for d in data for lane, s in d.lane_states().items()}
  assert {str(k): s for k, s in after.items()} == states[stop + 4]


@pytest.mark.slow
@pytest.mark.parametrize(
  "workers, stop", [(1, 3), pytest.param(2, 0, marks=pytest.mark.long)]
)
def test_worker_processes_change_no_batch_and_no_state(corpus, expected, workers, stop):
  batches, states = expected
  data = HostBatches(corpus, changed(data=dict(workers=workers)), host=0, hosts=1)
  data.restore(states[stop])
  try:
    for n in range(stop, stop + 5):
      assert_same_batch(batches[n], next(data))
      assert json.loads(json.dumps(data.lane_states())) == states[n + 1]
    # Back and on again: batches that a worker had prepared ahead are forgotten.
    data.restore(states[1])
    assert_same_batch(batches[1], next(data))
  finally:
    data.close()


@pytest.mark.slow
def test_a_dead_worker_is_an_error_and_the_run_can_go_on(corpus, expected):
  data = HostBatches(corpus, changed(data=dict(workers=1)), host=0, hosts=1)
  before = set(multiprocessing.active_children())
  try:
    next(data)
    (worker,) = set(multiprocessing.active_children()) - before
    # What the whole process group gets must not end a worker: the parent decides.
    os.kill(worker.pid, signal.SIGINT)
    os.kill(worker.pid, signal.SIGTERM)
    next(data)
    assert worker.is_alive()
    os.kill(worker.pid, signal.SIGKILL)
    taken = 2
    says = "data worker process died .killed by SIGKILL.*: lower data.workers=1"
    with pytest.raises(ChildProcessError, match=says):
      while taken < 12:  # what it had prepared comes first
        next(data)
        taken += 1
    assert_same_batch(expected[0][taken], next(data))
  finally:
    data.close()


KILLED = """
import multiprocessing, os, pickle, signal, sys
from tfusion.data.pipeline import HostBatches
if __name__ == "__main__":
  corpus, config = pickle.load(open(sys.argv[1], "rb"))
  data = HostBatches(corpus, config, host=0, hosts=1)
  next(data)
  print(multiprocessing.active_children()[0].pid, flush=True)
  os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_a_killed_run_leaves_no_worker_behind(corpus, tmp_path):
  (tmp_path / "run.py").write_text(KILLED)
  (tmp_path / "args").write_bytes(pickle.dumps((corpus, changed(data=dict(workers=1)))))
  root = Path(pipeline.__file__).parents[2]
  run = subprocess.Popen(
    [sys.executable, tmp_path / "run.py", tmp_path / "args"],
    stdout=subprocess.PIPE,
    env=os.environ | {"PYTHONPATH": str(root)},
  )
  worker = int(run.stdout.readline())
  try:
    run.communicate(timeout=30)  # ends when the last process with this output has
  except subprocess.TimeoutExpired:
    os.kill(worker, signal.SIGKILL)
    pytest.fail("the worker outlives its parent")
  assert run.returncode == -signal.SIGKILL


def test_a_state_that_lacks_lanes_is_refused(corpus, expected):
  data = HostBatches(corpus, CONFIG, host=1, hosts=2)
  states = {lane: s for lane, s in expected[1][3].items() if int(lane) < 3}
  with pytest.raises(ValueError, match=r"lacks lanes \[3\].*data.lanes=4"):
    data.restore(states)


def test_counts_and_fill_tell_what_was_drawn(corpus, expected):
  data = HostBatches(corpus, CONFIG, host=0, hosts=2)
  data.restore(expected[1][12])
  counts = data.tally().counts()
  assert set(counts) == {"digits", "pydoc"}
  digits = counts["digits"]
  assert digits["epochs"] == digits["documents"] / (len(corpus.train[0]) / 2)
  assert digits["rejected"] == 0 and digits["elements"] > 20 * digits["documents"]
  own = [b.hi_bl[:8] >= b.lo_bl[:8] for b in expected[0]]
  assert data.tally().fill() == np.mean(own)


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_held_out_rows_are_the_same_for_every_host_count_and_seed(corpus, hosts):
  whole = heldout_rows(corpus.test, corpus.tokenizer, CONFIG, rows=40)
  assert [b.tokens_bl.shape for b in whole] == [(16, 128)] * 3
  other_seed = dataclasses.replace(CONFIG, seed=5)
  shares = [
    heldout_rows(
      corpus.test, corpus.tokenizer, other_seed, rows=40, host=h, hosts=hosts
    )
    for h in range(hosts)
  ]
  for n, batch in enumerate(whole):
    assert_same_batch(batch, joined([share[n] for share in shares]))


def test_held_out_rows_beyond_the_asked_ones_are_empty(corpus):
  last = heldout_rows(corpus.test, corpus.tokenizer, CONFIG, rows=40)[-1]
  assert last.weights_bl[:8].any(axis=1).all()
  assert not last.weights_bl[8:].any() and not last.slots[0].weights[8:].any()
  assert not (last.hi_bl >= last.lo_bl)[8:].any()


def test_held_out_rows_give_each_test_document_once_with_its_caption(corpus):
  batches = heldout_rows(corpus.test, corpus.tokenizer, CONFIG, rows=10**6)
  texts, images = [], 0
  for batch in batches:
    for tokens_l, lo_l, hi_l, patch_l in zip(
      batch.tokens_bl, batch.lo_bl, batch.hi_bl, batch.patch_bl
    ):
      for lo in np.unique(lo_l[hi_l >= lo_l]):
        texts.append(corpus.tokenizer.decode(tokens_l[lo_l == lo]))
        images += np.any(patch_l[lo_l == lo] >= 0)
  assert images == len(corpus.test[0]) == 297 * 8
  shown = [text for source in corpus.test for text in source.texts()]
  assert sorted(texts) == sorted(shown)


def test_held_out_rows_of_nothing_are_refused(corpus):
  empty = Prose("empty", ())
  with pytest.raises(ValueError, match="empty.*no row"):
    heldout_rows([empty], corpus.tokenizer, CONFIG, rows=8)


def test_prose_is_cut_to_rows_and_complete(corpus):
  whole = sources.open_sources(
    ["pydoc"], split="train", image_shape=(8, 8, 1), workdir=""
  )[0]
  pieces = corpus.train[1].documents
  assert "".join(pieces) == "".join(whole.documents)
  lengths = [len(corpus.tokenizer.encode(piece)) for piece in pieces]
  assert max(lengths) <= CONFIG.data.row_length - 1
  assert np.mean(lengths) > 0.6 * CONFIG.data.row_length


def test_the_tokenizer_of_a_workdir_stays(tmp_path):
  config = dataclasses.replace(
    changed(data=dict(sources=("digits",))),
    model=dataclasses.replace(CONFIG.model, vocab_size=300),
  )
  first = open_corpus(config, tmp_path).tokenizer
  workdir_lib.save_config(config, tmp_path)  # as a run does that is not refused
  larger = dataclasses.replace(
    config, model=dataclasses.replace(config.model, vocab_size=400)
  )
  assert open_corpus(larger, tmp_path).tokenizer.sha256 == first.sha256
  smaller = dataclasses.replace(
    config, model=dataclasses.replace(config.model, vocab_size=290)
  )
  with pytest.raises(ValueError, match="model.vocab_size=290.*300 pieces"):
    open_corpus(smaller, tmp_path)


def test_a_named_tokenizer_is_copied_into_the_workdir(tmp_path):
  path = tmp_path / "own.model"
  own = Tokenizer.train(["a handwritten seven"], vocab_size=290, path=path)
  config = changed(data=dict(sources=("digits",), tokenizer=str(path)))
  workdir = tmp_path / "run"
  workdir.mkdir()
  assert open_corpus(config, workdir).tokenizer.sha256 == own.sha256
  workdir_lib.save_config(config, workdir)
  path.unlink()
  assert open_corpus(config, workdir).tokenizer.sha256 == own.sha256


def test_pixels_are_refused_where_there_are_no_patches_and_codes_are_not(tmp_path):
  model = dict(patches="none", vocab_size=512)
  pixels = changed(CONFIG, data=dict(sources=("digits",)), model=model)
  with pytest.raises(ValueError, match="digits has images, and with model.patches=non"):
    open_corpus(pixels, tmp_path)
  tiny_shards.make(tmp_path / "shards", kind="codes", shape=(4,))
  shards = (f"shards:{tmp_path}/shards",)
  coded = changed(CONFIG, data=dict(sources=shards, row_length=32), model=model)
  corpus = open_corpus(coded, tmp_path)
  batch = next(HostBatches(corpus, coded, host=0, hosts=1))
  assert corpus.first_code == corpus.tokenizer.vocab_size
  codes = batch.tokens_bl >= corpus.first_code
  # Codes are targets like text is, of the same weight.
  assert codes[:, 1:].any() and not batch.slots[0].weights.any()
  following = np.where(codes[:, 1:], batch.targets_bl[:, :-1], batch.tokens_bl[:, 1:])
  np.testing.assert_array_equal(following, batch.tokens_bl[:, 1:])
  assert (batch.weights_bl[:, :-1][codes[:, 1:]] == 1).all()


def test_a_start_that_was_refused_leaves_no_tokenizer_behind(tmp_path):
  path, workdir = tmp_path / "own.model", tmp_path / "run"
  workdir.mkdir()
  letters = list(map(chr, range(500, 900)))
  Tokenizer.train(letters, vocab_size=700, path=path)
  config = dataclasses.replace(
    changed(data=dict(sources=("digits",), tokenizer=str(path))),
    model=dataclasses.replace(CONFIG.model, vocab_size=300),
  )
  with pytest.raises(ValueError, match="model.vocab_size=300: the tokenizer has 6"):
    open_corpus(config, workdir)
  # The remedy, in the same workdir: a smaller tokenizer.
  own = Tokenizer.train(["a handwritten seven"], vocab_size=290, path=path)
  assert open_corpus(config, workdir).tokenizer.sha256 == own.sha256


def write_photos(root, captions):
  root.mkdir()
  for name, caption in captions.items():
    Image.new("RGB", (9, 9)).save(root / f"{name}.png")
    (root / f"{name}.txt").write_text(caption)


def test_what_is_skipped_is_listed_in_the_workdir_and_logged(tmp_path, caplog):
  captions = {f"good{i}": "a square" for i in range(4)}
  write_photos(
    tmp_path / "photos", captions | {"silent": " ", "essay": "many words " * 200}
  )
  (tmp_path / "photos" / "good0.png").write_bytes(b"")
  spec = f"folder:{tmp_path / 'photos'}"
  config = changed(data=dict(sources=(spec,)))
  corpus = open_corpus(config, tmp_path)
  listed = json.loads((tmp_path / "skipped.json").read_text())[spec]
  assert set(listed) == {"good0.png", "silent.png", "essay.png"}
  assert listed["essay.png"].startswith("caption too long")
  assert len(corpus.train[0]) + len(corpus.test[0]) == 3
  assert "skipped 3: " in caplog.text and "1 empty caption" in caplog.text
  # Mended, the list goes.
  for name in ("good0", "silent", "essay"):
    Image.new("RGB", (9, 9)).save(tmp_path / "photos" / f"{name}.png")
    (tmp_path / "photos" / f"{name}.txt").write_text("a square")
  open_corpus(config, tmp_path)
  assert not (tmp_path / "skipped.json").exists()


def test_what_sources_hold_is_shown_for_each_split_and_adds_up(tmp_path):
  captions = {f"train/{i}": "a square" for i in range(5)} | {
    "test/0": "a",
    "test/1": "",
  }
  (tmp_path / "photos" / "train").mkdir(parents=True)
  (tmp_path / "photos" / "test").mkdir()
  (tmp_path / "photos" / "train" / "phone.heic").write_bytes(b"not for Pillow")
  for name, caption in captions.items():
    Image.new("RGB", (9, 9)).save(tmp_path / "photos" / f"{name}.png")
    (tmp_path / "photos" / f"{name}.txt").write_text(caption)
  tiny_shards.make(tmp_path / "old", kind="pixels", shape=(8, 8, 1))
  photos, old = f"folder:{tmp_path / 'photos'}", f"shards:{tmp_path / 'old'}"
  corpus = open_corpus(
    changed(data=dict(sources=(photos, "digits"), row_length=128)), tmp_path
  )
  lines = list(notices.found_lines(corpus.train, corpus.test))
  assert lines == [
    f"{photos}:",
    "  train:    6 documents = 5 used + 1 skipped; 6 images = 5 used + 1 skipped;"
    " 5 texts = 5 used + 0 skipped",
    "            skipped, cannot be opened: 1 document, 1 image",
    "  held out: 2 documents = 1 used + 1 skipped; 2 images = 1 used + 1 skipped;"
    " 1 text = 1 used + 0 skipped",
    "            skipped, empty caption: 1 document, 1 image",
    "digits: 12,000 documents to train on, 2,376 held out",
  ]
  found = notices.found(corpus.train, corpus.test)[photos]
  assert found["train"]["found"] == {"documents": 6, "images": 6, "texts": 5}
  assert json.loads(json.dumps(found)) == found
  corpus = open_corpus(changed(data=dict(sources=(old,))), tmp_path)
  assert list(notices.found_lines(corpus.train, corpus.test)) == [
    f"{old}: 12 documents to train on, 4 held out; what preparing skipped is not known"
  ]
  assert notices.found(corpus.train, corpus.test) == {
    old: {"train": None, "test": None}
  }


@pytest.mark.slow
@pytest.mark.parametrize("too_long", ["reject", "split"])
def test_a_long_caption_of_a_folder_is_split_where_the_config_says_so(
  tmp_path, too_long
):
  words = " ".join(map(str, range(100)))
  write_photos(
    tmp_path / "photos", {f"{i}": "short" for i in range(4)} | {"long": words}
  )
  spec = f"folder:{tmp_path / 'photos'}"
  config = changed(
    data=dict(sources=(spec,), too_long=too_long, row_length=64, workers=0)
  )
  corpus = open_corpus(config, tmp_path)
  held = [s[i][0] for s in corpus.train + corpus.test for i in range(len(s))]
  assert (words in held) == (too_long == "split")
  assert (tmp_path / "skipped.json").is_file() == (too_long == "reject")
  if too_long == "split":
    assert words in [corpus.train[0][i][0] for i in range(len(corpus.train[0]))]
    data = HostBatches(corpus, config, host=0, hosts=1)
    for _ in range(4):
      next(data)
    counts = data.tally().counts()[spec]
    assert counts["split"] > 0 and counts["rejected"] == 0


def test_weights_are_always_in_reach(tmp_path, caplog):
  write_photos(
    tmp_path / "photos", {f"{i}": "many different words " * 3 for i in range(9)}
  )
  photos = f"folder:{tmp_path / 'photos'}"
  config = changed(data=dict(sources=(photos, "pydoc"), weights=(1.0, 9.0), workers=0))
  data = HostBatches(open_corpus(config, tmp_path), config, host=0, hosts=1)
  for _ in range(4):
    next(data)
  assert "cannot be reached" not in caplog.text
  assert abs(data.tally().counts()["pydoc"]["share"] - 0.9) < 0.03


@pytest.mark.slow
@pytest.mark.parametrize("ratio, said", [(1.0, True), (20.0, False)])
def test_a_mixture_out_of_reach_is_said_and_trains_on(tmp_path, caplog, ratio, said):
  write_photos(
    tmp_path / "photos", {f"{i}": "many different words " * 3 for i in range(9)}
  )
  config = changed(
    data=dict(
      sources=(f"folder:{tmp_path / 'photos'}", "pydoc"),
      text_per_patch=ratio,
      workers=0,
    )
  )
  corpus = open_corpus(config, tmp_path)
  data = HostBatches(corpus, config, host=0, hosts=1)
  for _ in range(8):
    next(data)
  assert caplog.text.count("cannot be reached") == said
  # A lane that begins with a dropped caption draws one all the same.
  few = data.tally().counts()["pydoc"]["documents"] <= config.data.lanes
  assert few == said


def pages(number):
  return (f"{number}", latent(number), "what is it", latent(number + 1), "a number")


@pytest.mark.parametrize(
  "make, cap, said",
  [(pages, 0.5, True), (pages, 1.0, False), (lambda n: pages(n)[:4], 0.5, False)],
)
def test_a_source_from_which_drawing_cannot_be_learned_is_told_of(
  tmp_path, caplog, make, cap, said
):
  source = Given("pages", 40, make)
  config = changed(diffusion=dict(image_first_noise_cap=cap))
  notices.warn((source,), tiny_sources.tokenizer(), config, tmp_path)
  assert caplog.text.count("sampling from pure noise is not learned") == said
