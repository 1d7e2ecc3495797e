"""What shards decide for a run: one tokenizer, one autoencoder, one normalisation."""

import dataclasses
import json

import numpy as np
import pytest
import tiny
import tiny_shards

from tfusion import config as config_lib
from tfusion import sequence
from tfusion import workdir as workdir_lib
from tfusion.data import pipeline, prepared
from tfusion.data.lanes import Lane
from tfusion.data.shards import manifest as manifest_lib
from tfusion.data.shards import source

SHAPE = (4, 4, 2)
OTHER = "other words make another one"


def run(sources, *, tokenizer="", vocab_size=512, image_shape=SHAPE, **data):
  config = config_lib.Config()
  return dataclasses.replace(
    config,
    model=dataclasses.replace(
      config.model, image_shape=image_shape, vocab_size=vocab_size
    ),
    data=dataclasses.replace(
      config.data, sources=tuple(map(str, sources)), tokenizer=str(tokenizer), **data
    ),
  )


def begin(config, workdir):
  """Opens the corpus as a run does, which then saves its config."""
  workdir.mkdir(exist_ok=True)
  corpus = pipeline.open_corpus(config, workdir)
  workdir_lib.save_config(config, workdir)
  return corpus


def test_a_run_on_shards_uses_their_tokenizer_and_keeps_their_autoencoder(tmp_path):
  made = tiny_shards.make(tmp_path / "a")
  config = run([f"shards:{tmp_path / 'a'}"])
  workdir = tmp_path / "run"
  corpus = begin(config, workdir)
  assert corpus.tokenizer.sha256 == made.tokenizer_sha256
  kept = {path.name for path in workdir.iterdir()}
  assert kept == {
    "tokenizer.model",
    "autoencoder.safetensors",
    "latents.json",
    "config.json",
  }
  assert (workdir / "autoencoder.safetensors").read_bytes() == tiny_shards.AUTOENCODER
  assert json.loads((workdir / "latents.json").read_text()) == {
    "kind": "mean",
    "shape": [4, 4, 2],
    "scale": [2.0, 3.0],
    "shift": [1.0, 0.0],
    "codebook": 0,
    "autoencoder_sha256": made.autoencoder_sha256,
  }
  again = begin(config, workdir)  # it goes on
  assert again.tokenizer.sha256 == made.tokenizer_sha256


@pytest.mark.parametrize("kind", ["pixels", None])
def test_pixels_and_text_leave_no_latents_in_the_workdir(tmp_path, kind):
  tiny_shards.make(tmp_path / "a", kind=kind, shape=(8, 8, 1))
  config = run([f"shards:{tmp_path / 'a'}", "digits"], image_shape=(8, 8, 1))
  begin(config, tmp_path / "run")  # pictures as they are go together
  assert not list((tmp_path / "run").glob("*a*t*.json"))  # latents.json


def test_prose_beside_shards_is_encoded_with_their_tokenizer(tmp_path):
  tiny_shards.make(tmp_path / "a")
  config = run([f"shards:{tmp_path / 'a'}", "pydoc"])
  corpus = begin(config, tmp_path / "run")
  assert corpus.tokenizer.sha256 == tiny_shards.tokenizer().sha256


def test_the_same_tokenizer_may_be_given_and_another_is_refused(tmp_path):
  tiny_shards.make(tmp_path / "a")
  same, other = tmp_path / "same.model", tmp_path / "other.model"
  tiny_shards.tokenizer().save(same)
  tiny_shards.tokenizer(OTHER).save(other)
  name = f"shards:{tmp_path / 'a'}"
  begin(run([name], tokenizer=same), tmp_path / "run")
  with pytest.raises(ValueError) as refusal:
    begin(run([name], tokenizer=other), tmp_path / "refused")
  message = str(refusal.value)
  assert "other.model" in message and str(tmp_path / "a" / "tokenizer.model") in message
  for words in (tiny_shards.tokenizer(), tiny_shards.tokenizer(OTHER)):
    assert words.sha256[:16] in message
  assert list((tmp_path / "refused").iterdir()) == []  # nothing that a start would use


def test_a_run_with_another_tokenizer_than_its_shards_is_refused(tmp_path):
  tiny_shards.make(tmp_path / "a")
  config, workdir = run([f"shards:{tmp_path / 'a'}"]), tmp_path / "run"
  begin(config, workdir)
  tiny_shards.make(tmp_path / "a", words=tiny_shards.tokenizer(OTHER))  # anew
  with pytest.raises(ValueError, match="run/tokenizer.model .* another tokenizer"):
    begin(config, workdir)


def test_shards_with_different_tokenizers_are_refused(tmp_path):
  tiny_shards.make(tmp_path / "a")
  tiny_shards.make(tmp_path / "b", words=tiny_shards.tokenizer(OTHER))
  names = [f"shards:{tmp_path / n}" for n in "ab"]
  with pytest.raises(ValueError, match="different tokenizers") as refusal:
    begin(run(names), tmp_path / "run")
  assert all(name in str(refusal.value) for name in names)


def edit(folder, **changes):
  manifest = manifest_lib.load(folder)
  manifest_lib.save(dataclasses.replace(manifest, **changes), folder)


def test_shards_with_different_autoencoders_are_refused(tmp_path):
  for name in "ab":
    tiny_shards.make(tmp_path / name)
  other = tmp_path / "b" / "autoencoder.safetensors"
  other.write_bytes(b"another")
  edit(tmp_path / "b", autoencoder_sha256=manifest_lib.sha256(other))
  with pytest.raises(ValueError, match="different autoencoders"):
    begin(run([f"shards:{tmp_path / n}" for n in "ab"]), tmp_path / "run")


def test_latents_pixels_and_codes_do_not_mix(tmp_path):
  tiny_shards.make(tmp_path / "latents", shape=(8, 8, 1))
  tiny_shards.make(tmp_path / "pixels", kind="pixels", shape=(8, 8, 1))
  tiny_shards.make(tmp_path / "codes", kind="codes", shape=(16,))
  for a, b in (("latents", "pixels"), ("latents", "codes"), ("pixels", "codes")):
    names = [f"shards:{tmp_path / n}" for n in (a, b)]
    with pytest.raises(ValueError, match="different kinds of images"):
      begin(run(names, image_shape=(8, 8, 1)), tmp_path / "run")
  for name in ("latents", "codes"):
    names = ["digits", f"shards:{tmp_path / name}"]
    with pytest.raises(ValueError, match="digits gives images as they are"):
      begin(run(names, image_shape=(8, 8, 1)), tmp_path / "run")


def test_images_of_different_numbers_of_codes_do_not_mix(tmp_path):
  for name, count in (("a", 16), ("b", 9)):
    tiny_shards.make(tmp_path / name, kind="codes", shape=(count,))
  with pytest.raises(ValueError, match="16 codes, 16 an image and 16 codes, 9 an im"):
    begin(run([f"shards:{tmp_path / n}" for n in "ab"]), tmp_path / "run")


def test_all_latents_of_a_run_are_normalised_by_the_same_numbers(tmp_path):
  for name, kind in (("a", "mean"), ("b", "mean_logvar")):
    tiny_shards.make(tmp_path / name, kind=kind)
  images = manifest_lib.load(tmp_path / "b").images
  edit(tmp_path / "b", images=dataclasses.replace(images, scale=(9.0, 8.0)))
  corpus = begin(run([f"shards:{tmp_path / n}" for n in "ab"]), tmp_path / "run")
  for sources in (corpus.train, corpus.test):
    a, b = sources
    np.testing.assert_array_equal(a[0][1].latent, b[0][1].latent)
  assert a[0][1].std is None and b[0][1].std is not None


def test_a_run_that_has_begun_is_not_continued_with_other_latents(tmp_path):
  tiny_shards.make(tmp_path / "a")
  config, workdir = run([f"shards:{tmp_path / 'a'}"]), tmp_path / "run"
  begin(config, workdir)
  images = manifest_lib.load(tmp_path / "a").images
  edit(tmp_path / "a", images=dataclasses.replace(images, scale=(9.0, 8.0)))
  with pytest.raises(ValueError, match="has begun with other latents"):
    begin(config, workdir)
  (workdir / "config.json").unlink()  # the start was refused: nothing is bound yet
  begin(config, workdir)
  assert json.loads((workdir / "latents.json").read_text())["scale"] == [9.0, 8.0]


def test_a_run_that_goes_on_or_is_looked_at_is_not_written_to(tmp_path):
  tiny_shards.make(tmp_path / "a")
  config, workdir = run([f"shards:{tmp_path / 'a'}"]), tmp_path / "run"
  begin(config, workdir)
  before = {path: path.stat().st_ino for path in workdir.iterdir()}
  pipeline.open_corpus(config, workdir)
  assert {path: path.stat().st_ino for path in workdir.iterdir()} == before


def test_an_autoencoder_that_was_cut_in_the_workdir_is_copied_anew(tmp_path):
  tiny_shards.make(tmp_path / "a")
  config, workdir = run([f"shards:{tmp_path / 'a'}"]), tmp_path / "run"
  begin(config, workdir)
  kept = workdir / "autoencoder.safetensors"
  kept.write_bytes(b"")
  begin(config, workdir)
  assert kept.read_bytes() == tiny_shards.AUTOENCODER


def test_the_vocabulary_holds_the_codes_above_the_text(tmp_path):
  made = tiny_shards.make(tmp_path / "a", kind="codes", shape=(16,))
  needed = made.vocabulary + tiny_shards.CODEBOOK
  name = f"shards:{tmp_path / 'a'}"
  with pytest.raises(ValueError, match=f"vocab_size={needed - 1}: .* 16 codes of imag"):
    begin(run([name], vocab_size=needed - 1), tmp_path / "run")
  corpus = begin(run([name], vocab_size=needed), tmp_path / "run")
  assert prepared.codebook(corpus.train) == 16


@pytest.mark.slow
def test_a_worker_process_reads_the_same_rows_from_shards(tmp_path):
  tiny_shards.make(tmp_path / "a", kind="mean_logvar")
  config = run([f"shards:{tmp_path / 'a'}"])
  corpus = begin(config, tmp_path / "run")
  batches = []
  for workers in (0, 1):
    rows = host_batches(corpus, config, workers=workers)
    batches.append([next(rows) for _ in range(2)])
    rows.close()
  for alone, together in zip(*batches, strict=True):
    tiny.assert_same_batch(alone, together)
  assert (batches[0][1].patch_bl >= 0).any()


def test_codes_come_into_rows_as_ids_above_the_text(tmp_path):
  made = tiny_shards.make(tmp_path / "a", kind="codes", shape=(16,))
  config = run([f"shards:{tmp_path / 'a'}"])
  corpus = begin(config, tmp_path / "run")
  batch = next(host_batches(corpus, config))
  codes = batch.tokens_bl[batch.tokens_bl >= made.vocabulary] - made.vocabulary
  assert len(codes) > 16 and set(codes) == set(range(tiny_shards.CODEBOOK))
  assert (batch.patch_bl == -1).all()


def test_held_out_rows_are_those_of_the_test_split(tmp_path):
  tiny_shards.make(tmp_path / "a")
  config = run([f"shards:{tmp_path / 'a'}"])
  corpus = begin(config, tmp_path / "run")
  rows = pipeline.heldout_rows(corpus.test, corpus.tokenizer, config, rows=16)
  tokens = np.concatenate([r.tokens_bl.ravel() for r in rows])
  text = corpus.tokenizer.decode(tokens)
  assert [n for n in range(16) if f"picture {n} " in text] == [12, 13, 14, 15]
  assert sum(sequence.live_elements(r) for r in rows) > 0


# Faults.


def host_batches(corpus, config, *, workers=0):
  data = dataclasses.replace(config.data, workers=workers)
  config = dataclasses.replace(config, data=data)
  return pipeline.HostBatches(corpus, config, host=0, hosts=1)


def flip(path):
  """Damages the first record: behind the file's header and the record's own."""
  flipped = bytearray(path.read_bytes())
  flipped[120] ^= 1
  path.write_bytes(flipped)


def test_damaged_records_are_skipped_named_and_counted_and_no_other_is_lost(tmp_path):
  tiny_shards.make(tmp_path / "a")
  for n in (0, 1):  # documents 0 and 5
    flip(tmp_path / "a" / f"train-000{n}.array_record")
  name = f"shards:{tmp_path / 'a'}"
  config = run([name], lanes=1, max_damaged=2, caption_dropout=0.0)
  corpus = begin(config, tmp_path / "run")
  lane = Lane(corpus.train, corpus.tokenizer, config, lane=0, repeat=False)
  text = " ".join(corpus.tokenizer.decode(row.tokens_l) for row in lane)
  shown = [n for n in range(12) if f"picture {n} " in text]
  assert shown == [1, 2, 3, 4, 6, 7, 8, 9, 10, 11]
  found = lane.state().damaged[name]
  assert found.skipped == 2 and sorted(found.records) == [0, 5]
  for n in (0, 1):
    (said,) = [text for text in found.last if f"train-000{n}" in text]
    assert f"train-000{n}.array_record: record 0 is damaged: " in said


def test_more_damage_than_the_budget_is_a_clear_stop(tmp_path):
  tiny_shards.make(tmp_path / "a")
  for n in (0, 1):
    flip(tmp_path / "a" / f"train-000{n}.array_record")
  config = run([f"shards:{tmp_path / 'a'}"], lanes=1, max_damaged=1)
  rows = host_batches(begin(config, tmp_path / "run"), config)
  message = "data.max_damaged=1: .* 2 damaged records, .*array_record: record 0 is dam"
  with pytest.raises(ValueError, match=message):
    for _ in range(10):
      next(rows)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_a_shard_that_goes_missing_in_a_run_stops_it_by_its_name(tmp_path, workers):
  tiny_shards.make(tmp_path / "a")
  config = run([f"shards:{tmp_path / 'a'}"])
  corpus = begin(config, tmp_path / "run")
  (tmp_path / "a" / "train-0001.array_record").unlink()
  rows = host_batches(corpus, config, workers=workers)
  with pytest.raises(ValueError, match="train-0001.array_record: is missing; run `tf"):
    for _ in range(10):
      next(rows)


def test_a_start_does_not_stumble_over_a_damaged_record(tmp_path):
  tiny_shards.make(tmp_path / "a")
  flip(tmp_path / "a" / "train-0001.array_record")
  begin(run([f"shards:{tmp_path / 'a'}", "pydoc"]), tmp_path / "run")


@pytest.mark.slow
def test_a_run_is_not_continued_on_other_documents_of_the_same_number(tmp_path):
  folder, workdir = tmp_path / "a", tmp_path / "run"
  made = tiny_shards.make(folder)
  config = run([f"shards:{folder}"])
  rows = host_batches(begin(config, workdir), config, workers=0)
  next(rows)
  states = rows.lane_states()
  rows.restore(states)  # the same documents
  # Prepared anew from another source: as many documents, of the same sizes.
  others = [tiny_shards.record(n + 4) for n in range(5)]
  source.write_shard(folder / "train-0000.array_record", others, split="train")
  size = (folder / "train-0000.array_record").stat().st_size
  first = dataclasses.replace(
    made.shards[0],
    bytes=size,
    sha256=manifest_lib.sha256(folder / "train-0000.array_record"),
  )
  manifest_lib.save(dataclasses.replace(made, shards=(first, *made.shards[1:])), folder)
  again = host_batches(begin(config, workdir), config, workers=0)
  with pytest.raises(ValueError, match="its documents are others than when the state"):
    again.restore(states)
