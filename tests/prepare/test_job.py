"""Whole jobs: the same bytes however they run or stop, nothing lost or doubled."""

import collections
import contextlib
import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tfusion import cli
from tfusion.autoencoder import codec, network
from tfusion.autoencoder_config import AutoencoderModelConfig
from tfusion.data import images
from tfusion.data.shards import manifest
from tfusion.data.shards import source as shards
from tfusion.data.tokenizer import Tokenizer
from tfusion.prepare import job, part, runner

pytest.importorskip("apache_beam")

DOCUMENTS, PER_PART = 120, 2
PYTHON = [sys.executable, "-c", "import sys, tfusion.cli; sys.exit(tfusion.cli.main())"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
  """Captioned pictures of which every tenth is broken."""
  folder = tmp_path_factory.mktemp("photos")
  rng = np.random.default_rng(0)
  for i in range(DOCUMENTS):
    pixels = rng.integers(0, 256, (6, 6, 3), np.uint8)
    Image.fromarray(pixels).save(folder / f"{i:03d}.png")
    (folder / f"{i:03d}.txt").write_text(f"picture number {i} of noise")
    if i % 10 == 0:
      (folder / f"{i:03d}.png").write_bytes(b"")
  return folder


def request(photos, out, **more):
  sizes = dict(image_px=4, shard_documents=PER_PART) | more
  return job.Request(f"folder:{photos}", str(out), **sizes)


def command(photos, out, *more):
  source = ["--source", f"folder:{photos}", "--out", str(out)]
  sizes = ["--image-px", "4", "--shard-documents", str(PER_PART)]
  return [*PYTHON, "prepare", *source, *sizes, *more]


def bytes_of(folder):
  return {
    p.relative_to(folder).as_posix(): p.read_bytes()
    for p in sorted(Path(folder).rglob("*"))
    if p.is_file() and p.name != job.LOCK
  }


def check_complete(folder):
  """Every document of the photos is in one shard or in the list of rejected ones."""
  made = manifest.load(folder)
  manifest.check_files(made, folder, shards=made.shards)
  ids = collections.Counter()
  for shard in made.shards:
    ids.update(record.id for record in shards.read_shard(folder / shard.name))
  lines = (folder / manifest.REJECTED).read_text().splitlines()
  ids.update(json.loads(line)["id"] for line in lines)
  assert ids == dict.fromkeys([f"{i:03d}.png" for i in range(DOCUMENTS)], 1)
  assert made.counts.read == DOCUMENTS
  assert made.counts.rejected == {"image cannot be decoded": DOCUMENTS // 10}


@pytest.fixture(scope="module")
def undisturbed(photos, tmp_path_factory):
  out = tmp_path_factory.mktemp("out") / "shards"
  job.prepare(request(photos, out))
  check_complete(out)
  return bytes_of(out)


@pytest.mark.slow
@pytest.mark.long
def test_a_job_killed_ten_times_leaves_the_bytes_of_one_left_alone(
  photos, undisturbed, tmp_path
):
  out, rng = tmp_path / "shards", random.Random(0)
  counts = [0]
  for kill in range(10):
    process = subprocess.Popen(command(photos, out), stdout=subprocess.DEVNULL)
    # From somewhere in the work on: the first kills come before it.
    wanted = counts[-1] + rng.randrange(1, 8) if kill > 1 else 0
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
      if len(list(out.glob("parts/*.json"))) >= wanted and out.exists():
        break
      time.sleep(0.002)
    time.sleep(rng.random() * 0.01)
    assert process.poll() is None, "it was done before it was killed"
    process.kill()
    process.wait()
    counts.append(len(list(out.glob("parts/*.json"))))
    assert not (out / manifest.MANIFEST).exists()
    for path in out.glob("*.array_record"):  # whole wherever there is one
      assert path.read_bytes() == undisturbed[path.name]
  assert counts == sorted(counts) and 0 < counts[-1] < len(undisturbed)
  subprocess.run(command(photos, out), check=True, stdout=subprocess.DEVNULL)
  check_complete(out)
  assert bytes_of(out) == undisturbed


@pytest.mark.slow
def test_two_worker_processes_write_the_same_bytes(photos, undisturbed, tmp_path):
  out = tmp_path / "shards"
  subprocess.run(
    command(photos, out, "--direct_num_workers=2"), check=True, capture_output=True
  )
  assert bytes_of(out) == undisturbed


@pytest.mark.slow
def test_a_worker_process_that_is_killed_stops_the_job_and_not_the_next(
  photos, undisturbed, tmp_path
):
  out = tmp_path / "shards"
  process = subprocess.Popen(
    command(photos, out, "--direct_num_workers=2"),
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
    text=True,
  )
  deadline = time.monotonic() + 60
  while not list(out.glob("parts/*.json")) and time.monotonic() < deadline:
    time.sleep(0.002)
  workers = workers_of(process.pid)
  os.kill(max(workers), signal.SIGKILL)
  said = process.communicate(timeout=60)[1]
  for worker in workers:  # one that had not begun yet waits for ever: Beam's
    with contextlib.suppress(ProcessLookupError):
      os.kill(worker, signal.SIGKILL)
  assert process.returncode == 2 and said.count("\n") == 1
  assert "a worker process died (killed by SIGKILL)" in said
  assert "repeat the command, with fewer --direct_num_workers" in said
  assert f"{out / runner.SAID} holds what the workers said" in said
  assert (out / runner.SAID).is_file()
  job.prepare(request(photos, out))
  assert bytes_of(out) == undisturbed


def workers_of(pid):
  """Processes below a process that do its work: leaves, so no shells."""
  children = collections.defaultdict(list)
  for stat in Path("/proc").glob("[0-9]*/stat"):
    try:
      fields = stat.read_text().rpartition(")")[2].split()
    except OSError:
      continue
    children[int(fields[1])].append(int(stat.parent.name))
  below, leaves = [pid], []
  while below:
    own = children[below[-1]]
    leaves += [] if own else [below[-1]]
    below[-1:] = own
  return leaves


@pytest.mark.slow
def test_a_full_disk_stops_the_job_in_a_line_and_leaves_no_half(
  photos, undisturbed, tmp_path
):
  out = tmp_path / "shards"
  done = [name for name in sorted(undisturbed) if name.startswith("train-")]
  limit = len(undisturbed[done[0]]) // 2  # a shard is cut in its middle

  program = command(photos, out)
  program[2] = (
    f"import resource as r; r.setrlimit(r.RLIMIT_FSIZE, ({limit},) * 2); "
    + (program[2])
  )
  stopped = subprocess.run(program, capture_output=True, text=True)
  assert stopped.returncode == 2
  assert "cannot be written" in stopped.stderr
  assert "repeat the command" in stopped.stderr
  assert "Traceback" not in stopped.stderr
  assert not list(out.rglob("*.tmp")) and not list(out.glob("*.array_record"))
  job.prepare(request(photos, out))
  assert bytes_of(out) == undisturbed


@pytest.mark.slow
def test_what_a_killed_worker_left_unfinished_is_gone_at_the_end(
  photos, undisturbed, tmp_path, monkeypatch
):
  out, run = tmp_path / "shards", runner.run

  def with_rests(*args):
    run(*args)
    for name in ("train-000000-of-000060.array_record.0a.tmp", "parts/000000.0a.tmp"):
      (out / name).write_bytes(b"half")

  monkeypatch.setattr(runner, "run", with_rests)
  job.prepare(request(photos, out))
  assert bytes_of(out) == undisturbed


@pytest.mark.slow
def test_a_second_job_in_one_process_does_not_take_the_tokenizer_of_the_first(
  photos, tmp_path
):
  tokenizers = [str(tmp_path / name) for name in ("a.model", "b.model")]
  for path, text in zip(tokenizers, ("picture of noise", "number")):
    Tokenizer.train([text], vocab_size=290, path=path)
  out, apart = tmp_path / "shards", tmp_path / "apart"
  job.prepare(request(photos, out, tokenizer=tokenizers[0], shard_documents=60))
  shutil.rmtree(out)
  for folder in (out, apart):
    job.prepare(request(photos, folder, tokenizer=tokenizers[1], shard_documents=60))
  assert bytes_of(out) == bytes_of(apart)


@pytest.mark.slow
@pytest.mark.parametrize("left", [".write-probe", "job.json.0123.tmp", job.LOCK])
def test_a_job_killed_before_it_wrote_its_settings_can_start_again(
  photos, undisturbed, tmp_path, left
):
  (tmp_path / left).write_text("cut")
  job.prepare(request(photos, tmp_path))
  assert bytes_of(tmp_path) == undisturbed


@pytest.mark.slow
def test_a_job_that_is_done_does_nothing(photos, undisturbed, tmp_path, monkeypatch):
  out = tmp_path / "shards"
  job.prepare(request(photos, out))
  monkeypatch.setattr(part, "write", None)
  job.prepare(request(photos, out))
  assert bytes_of(out) == undisturbed


def test_progress_is_shown_part_by_part_and_inside_of_parts(
  photos, tmp_path, monkeypatch, capsys
):
  monkeypatch.setattr(runner, "EVERY_SECONDS", 0.0)
  monkeypatch.setattr(runner, "POLL_SECONDS", 0.001)
  monkeypatch.setattr(part, "COUNT_EVERY_SECONDS", 0.0)
  job.prepare(request(photos, tmp_path / "shards", shard_documents=40))
  said = capsys.readouterr().out
  assert " 3 parts; images of (4, 4, 3) as pixels, for want of an --autoenc" in said
  shown = re.findall(
    r"parts (\d+) of 3, documents (\d+) \([\d.,]+/s, (\d+) rejected\), images (\d+)"
    r" \([\d.,]+/s\), left ([\d:?]+)",
    said,
  )
  numbers = [tuple(map(int, line[:4])) for line in shown]
  assert any(documents not in (40, 80, 120) for _, documents, _, _ in numbers)
  assert all(read >= rejected + images for _, read, rejected, images in numbers)
  assert any(left == "?" for *_, left in shown) and any(":" in s[-1] for s in shown)
  assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.slow
def test_a_folder_of_another_job_is_refused_with_what_differs(photos, tmp_path):
  out = tmp_path / "shards"
  job.prepare(request(photos, out))
  with pytest.raises(ValueError, match=r"image_shape: \[4, 4, 3\] there, \[8, 8, 3\]"):
    job.prepare(request(photos, out, image_px=8))
  other = tmp_path / "other.model"
  Tokenizer.train(["another text"], vocab_size=300, path=other)
  with pytest.raises(ValueError, match="tokenizer_sha256: trained there"):
    job.prepare(request(photos, out, tokenizer=str(other)))


def test_a_job_of_another_schema_is_refused_by_name(photos, undisturbed, tmp_path):
  settings = json.loads(undisturbed["job.json"])
  settings["schema"] -= 1
  (tmp_path / "job.json").write_text(json.dumps(settings))
  with pytest.raises(ValueError, match=r"of another job \(schema: 0 there, 1 now\)"):
    job.prepare(request(photos, tmp_path))


@pytest.mark.slow
def test_a_second_job_is_refused_while_one_runs_and_takes_nothing_from_it(
  photos, undisturbed, tmp_path, monkeypatch
):
  out, run = tmp_path / "shards", runner.run

  def beside(parts, made, options):
    under_way = out / "train-000000.tmp"
    under_way.write_bytes(b"half a shard")
    refused = subprocess.run(command(photos, out), capture_output=True, text=True)
    assert refused.returncode == 2 and "Traceback" not in refused.stderr
    assert f"--out={out}: another `tfusion prepare` is writing" in refused.stderr
    assert under_way.read_bytes() == b"half a shard"
    raise OSError("stopped")

  monkeypatch.setattr(runner, "run", beside)
  with pytest.raises(OSError, match="stopped"):
    job.prepare(request(photos, out))
  monkeypatch.setattr(runner, "run", run)
  job.prepare(request(photos, out))  # a job that stopped holds no lock
  assert bytes_of(out) == undisturbed


@pytest.mark.slow
def test_without_locks_in_the_file_system_a_job_says_so_and_runs(
  photos, undisturbed, tmp_path, monkeypatch, capsys
):
  def none(*_):
    raise OSError(errno.ENOSYS, "Function not implemented")

  monkeypatch.setattr(job.fcntl, "flock", none)
  job.prepare(request(photos, tmp_path))
  assert f"--out={tmp_path}: cannot be locked" in capsys.readouterr().out
  assert bytes_of(tmp_path) == undisturbed


@pytest.mark.slow
def test_relative_paths_serve_workers_in_another_directory(
  photos, undisturbed, tmp_path, monkeypatch
):
  (tmp_path / "elsewhere").mkdir()
  run = runner.run

  def elsewhere(*args):
    with contextlib.chdir(tmp_path / "elsewhere"):
      run(*args)

  monkeypatch.setattr(runner, "run", elsewhere)
  monkeypatch.chdir(photos.parent)
  job.prepare(request(photos.name, os.path.relpath(tmp_path / "shards")))
  assert not list((tmp_path / "elsewhere").iterdir())
  made, expected = bytes_of(tmp_path / "shards"), dict(undisturbed)
  # The source stays as it was given, and nothing else depends on how that was.
  for name in ("job.json", "manifest.json"):
    here, there = json.loads(made.pop(name)), json.loads(expected.pop(name))
    assert here.pop("source") == f"folder:{photos.name}"
    assert there.pop("source") == f"folder:{photos}" and here == there
  assert made == expected


def tiny_autoencoder(path, *, codes):
  """Random weights; returns what tells pictures apart."""
  config = AutoencoderModelConfig(
    widths=(4, 8),
    blocks=1,
    groups=2,
    encoder_out=4,
    decoder_in=4,
    latent_channels=2,
    codes=codes,
    dtype="float32",
  )
  rng = np.random.default_rng(0)
  params = {
    name: rng.normal(size=x.shape).astype(np.float32)
    for name, x in network.abstract(config).items()
  }
  made = codec.Codec(config, params)
  made.save(path)
  return made


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mean", "mean_logvar", "codes"])
def test_an_autoencoder_gives_latents_or_codes_with_their_scale(photos, tmp_path, kind):
  path, out = tmp_path / "autoencoder.safetensors", tmp_path / "shards"
  made = tiny_autoencoder(path, codes=16 * (kind == "codes"))
  latents = "mean" if kind == "codes" else kind
  asked = dict(autoencoder=str(path), latents=latents, shard_documents=70, batch=8)
  with pytest.raises(ValueError, match="--image-px=5: .* a multiple of 2"):
    job.prepare(request(photos, out, image_px=5, **asked))
  saved = job.prepare(request(photos, out, **asked))
  assert saved == manifest.load(out) and saved.images.kind == kind
  assert (out / manifest.AUTOENCODER).read_bytes() == path.read_bytes()
  records = {
    split: [r for s in saved.of(split) for r in shards.read_shard(out / s.name)]
    for split in ("train", "test")
  }
  everything = records["train"] + records["test"]
  assert len(everything) == DOCUMENTS * 9 // 10
  pixels = np.stack([images.decode(photos / r.id, (4, 4, 3)) for r in everything])
  expected = made.encode(pixels)
  for name in records["train"][0].images:
    found = np.concatenate([record.images[name] for record in everything])
    if kind == "codes":
      np.testing.assert_array_equal(found, expected[name])
    else:  # bfloat16 keeps 8 bits
      np.testing.assert_allclose(found.astype(float), expected[name], rtol=2**-8)
  if kind == "codes":
    assert saved.images.shape == (4,) and saved.images.codebook == 16
    return
  mean_nhwc = np.concatenate([r.images["mean"] for r in records["train"]]).astype(float)
  variance_c = mean_nhwc.var((0, 1, 2))
  if kind == "mean_logvar":  # and the noise that training adds
    logvar_nhwc = np.concatenate([r.images["logvar"] for r in records["train"]])
    variance_c += np.exp(logvar_nhwc.astype(float)).mean((0, 1, 2))
  np.testing.assert_allclose(saved.images.shift, mean_nhwc.mean((0, 1, 2)), rtol=1e-9)
  np.testing.assert_allclose(saved.images.scale, np.sqrt(variance_c), rtol=1e-9)
  assert saved.images.shape == (2, 2, 2)


@pytest.mark.parametrize(
  "more, says",
  [
    (dict(image_px=-4), "--image-px=-4"),
    (dict(latents="sample"), "mean or mean_logvar"),
    (dict(latents="mean_logvar"), "needs an --autoencoder of latents"),
    (dict(tokenizer="t.model", vocab_size=300), "leave it or --tokenizer"),
    (dict(shard_documents=0), "--shard-documents=0: at least 1"),
    (dict(tokenizer="nowhere.model"), "no such file"),
    (dict(autoencoder="nowhere.safetensors"), "there is no such file"),
    (dict(vocab_size=10), "10"),
    (dict(out="hdfs://place/shards"), "--out=hdfs://place/shards: name a folder"),
  ],
)
def test_what_cannot_be_done_is_refused_before_work(photos, tmp_path, more, says):
  with pytest.raises(ValueError, match=says):
    job.prepare(request(photos, **({"out": tmp_path / "shards"} | more)))
  assert not list(tmp_path.rglob("*.array_record"))


def test_an_out_that_is_in_use_or_in_the_source_is_refused(photos, tmp_path):
  (tmp_path / "thesis.tex").write_text("precious")
  with pytest.raises(ValueError, match="is no folder of this command.*thesis.tex"):
    job.prepare(request(photos, tmp_path))
  with pytest.raises(ValueError, match="lies in the source"):
    job.prepare(request(photos, photos / "shards"))
  with pytest.raises(ValueError, match="--out=.*cannot be written"):
    job.prepare(request(photos, tmp_path / "thesis.tex" / "shards"))
  with pytest.raises(ValueError, match="unknown options: shard_documnts"):
    job.prepare(request(photos, tmp_path / "new"), ["--shard_documnts=3"])


def test_options_are_beams_own_but_nothing_is_downloaded_by_default():
  from apache_beam.options.pipeline_options import DirectOptions, StandardOptions

  # DirectRunner would try Prism, a program that Beam fetches.
  assert runner.parse([]).view_as(StandardOptions).runner == "FnApiRunner"
  assert runner.parse(["--direct_num_workers=2"]).view_as(
    DirectOptions
  ).direct_running_mode == ("multi_processing")
  flink = runner.parse(["--runner=FlinkRunner", "--made_up=8"])
  assert flink.view_as(StandardOptions).runner == "FlinkRunner"
  with pytest.raises(ValueError, match="unknown options: made_up"):
    runner.parse(["--made_up=8"])


def test_a_missing_extra_is_named(photos, tmp_path, monkeypatch):
  monkeypatch.setattr(job.importlib.util, "find_spec", lambda name: None)
  with pytest.raises(ValueError, match=r"pip install 'tfusion\[prepare\]'"):
    job.prepare(request(photos, tmp_path / "shards"))


def test_a_source_of_nothing_but_rubbish_is_refused_with_counts(tmp_path):
  for i in range(3):
    (tmp_path / f"{i}.png").write_bytes(b"")
    (tmp_path / f"{i}.txt").write_text("rubbish")
  with pytest.raises(ValueError, match="nothing to train on; 3 .* 3 rejected"):
    out = tmp_path.parent / f"{tmp_path.name}-out"
    job.prepare(job.Request(f"folder:{tmp_path}", str(out)))


def test_help_answers_without_importing_beam_or_jax():
  script = (
    "import sys, tfusion.cli\ntry: tfusion.cli.main(['prepare', '--help'])\n"
    "except SystemExit: assert not {'apache_beam', 'jax', 'PIL'} & set(sys.modules)"
  )
  said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
  assert said.returncode == 0, said.stderr
  assert "--autoencoder" in said.stdout and "--direct_num_workers=2" in said.stdout


def test_a_tokenizer_is_trained_on_training_texts_alone(photos, tmp_path):
  class Part:
    """Two documents, of which one is held out."""

    def read(self):
      yield job.raw.Raw("a", ("seen", b"", "too"), False)
      yield job.raw.Raw("b", ("held out",), True)
      yield job.raw.Rejected("c", "whatever")

  assert job.sample_texts([Part()] * 100, "jsonl:rows") == ["seen", "too"] * 50
  with pytest.raises(ValueError, match="nothing to train on"):
    job.sample_texts([], "jsonl:rows")


@pytest.mark.slow
def test_the_command_prepares_and_says_what_became_of_the_documents(tmp_path, capsys):
  out = tmp_path / "digits"
  args = ["prepare", "--source", "digits", "--out", str(out)]
  assert cli.main([*args, "--shard-documents=4000"]) == 0
  said = capsys.readouterr().out
  assert "14,376 documents read, 14,376 kept, 0 rejected" in said
  made = manifest.load(out)
  assert made.images.shape == (8, 8, 1) and made.images.kind == "pixels"
  assert sum(s.records for s in made.of("test")) == 297 * 8
