"""What each command does: one function per command, importing what it needs.

Owns: from arguments to calls, what is printed. Not: the arguments themselves
(arguments.py), the work.
"""

import argparse
import dataclasses
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from tfusion import autoencoder_config, files, progress
from tfusion import workdir as workdir_lib
from tfusion.config_file import known_good, read_config, read_saved_config
from tfusion.serve import address

C = TypeVar("C")

OF_ALL = ("count", "prompt", "seed", "step", "suite")  # hosts need the same


def train(args: argparse.Namespace, rest: list[str]) -> int:
  """Trains a model, evaluates it along the way, and writes report.html."""
  config = _agreed(args, lambda: read_config(args.config, rest))
  reference = known_good(args.config)
  more = dict(reference=reference, executable=args.executable or None)
  return _train(config, args.workdir, **more)


def autoencoder(args: argparse.Namespace, rest: list[str]) -> int:
  """Trains an image autoencoder; writes autoencoder.safetensors and report.html."""
  config = _agreed(
    args, lambda: read_config(args.config, rest, kind=autoencoder_config)
  )
  return _train(config, args.workdir)


def compile_step(args: argparse.Namespace, rest: list[str]) -> int:
  """Compiles a config for a TPU pod that is not here: memory, speed, days; 2 if it does
  not fit."""
  config = read_config(args.config, rest)
  from tfusion.pods import chips, pages, search, study

  topology = chips.parse(args.topology, slices=args.slices)
  if args.search:
    studies = []
    for found in search.search(config, topology):
      studies.append(found)
      _print([" ".join(pages.row(found))])
    _print(pages.table(studies))
    return 0 if any(found.fits for found in studies) else 2
  what = "sampler" if args.sampler else "step"
  found = study.study(config, topology, program=what, save=args.save)
  _print(pages.lines(found))
  if args.json:
    workdir_lib.write_json(
      Path(args.json).parent, Path(args.json).name, found.as_json()
    )
  return 0 if found.fits else 2


def sample(args: argparse.Namespace, rest: list[str]) -> None:
  """Continues prompts with text and images; writes PNG and text files."""
  out = files.to_path(args.out or files.to_path(args.workdir) / "sampled")

  def checked():
    config = read_saved_config(args.workdir, rest)
    workdir_lib.check_writable(out, option="--out")  # to know before the work
    return config

  config = _agreed(args, checked)
  from tfusion import run

  opened = run.open_run(config, args.workdir, step=args.step)
  made = opened.sample(args.prompt, count=args.count, seed=args.seed)
  for path in made.save(out):
    print(path)
    if path.suffix == ".txt":
      print("  " + path.read_text().strip())


def serve(args: argparse.Namespace, rest: list[str]) -> None:
  """Shows a web page to type prompts into, on this machine, until Ctrl-C."""
  address.check_library()
  config = read_saved_config(args.workdir, rest)
  with address.listen(args.host, args.port) as taken:  # to know before the work
    from tfusion import run
    from tfusion.serve import application

    opened = run.open_run(config, args.workdir, step=args.step)
    application.serve(opened, taken, name=opened.workdir.name)


def evaluate(args: argparse.Namespace, rest: list[str]) -> None:
  """Evaluates a model; prints a table, writes eval.json and report.html."""

  config = _agreed(args, lambda: read_saved_config(args.workdir, rest))
  from tfusion import run
  from tfusion.evaluate import suite

  suite.parse(args.suite)  # to know before the work
  opened = run.open_run(config, args.workdir, step=args.step)
  results = opened.evaluate(args.suite, data=args.data or None)
  suite.show(results, f"{files.to_path(args.workdir) / 'report.html'}")


def export(args: argparse.Namespace, rest: list[str]) -> None:
  """Writes a model as safetensors for other programs, with a model card."""
  from tfusion.interop import export as export_lib

  export_lib.check(args.to)  # to know before the work
  config = read_saved_config(args.workdir, rest)
  from tfusion import run

  for path in run.open_run(config, args.workdir, step=args.step).export(args.to):
    print(path)


def write_report(args: argparse.Namespace, rest: list[str]) -> None:
  """Writes the page of a run anew, or one page that compares several."""
  from tfusion import report

  if len(args.runs) > 1:
    print(report.write_comparison(args.runs, args.out or "comparison.html"))
    return
  report.check(args.runs[0])
  print(report.write_report(args.runs[0], out=args.out))


def scaling(args: argparse.Namespace, rest: list[str]) -> None:
  """Fits how losses of finished runs fall with FLOPs, and which family needs fewer."""
  from tfusion.evaluate import families

  found = families.scaling(args.runs, metrics=args.metric, flops=args.flops)
  print(found)
  print(found.write(args.out))


def ablate(args: argparse.Namespace, rest: list[str]) -> int:
  """Trains the models that a table of the paper compares, and writes that table."""
  from tfusion.ablations import ablate as ablations

  if args.scale == "full":
    _print(ablations.launch(args.suite))
    return 0
  made = ablations.ablate(
    args.suite,
    scale=args.scale,
    seeds=args.seeds,
    folder=args.folder,
    out=args.out,
    devices=args.devices,
    experiment=args.config,
    search=args.search,
    only=args.arm,
    show=args.show,
    say=progress.say,
  )
  _print(made.pages)
  for one in made.boards:
    print(f"{one.suite.name}: {one.done} of {one.wanted} runs are done")
  return 1 if made.missing else 0


def inspect_run(args: argparse.Namespace, rest: list[str]) -> None:
  """Shows what a workdir holds: config, time, checkpoints, the arrays of one."""
  from tfusion.inspect import runs

  _print(runs.lines(args.workdir, step=args.step))


def inspect_shards(args: argparse.Namespace, rest: list[str]) -> None:
  """Shows a folder of shards, one shard, or one of their records."""
  from tfusion.inspect import shards

  where = dict(split=args.split, out=args.out)
  _print(shards.lines(args.path, record=args.record, **where))


def inspect_data(args: argparse.Namespace, rest: list[str]) -> None:
  """Shows the rows of one step, a page each: texts, images, and what sees what."""
  with tempfile.TemporaryDirectory() as empty:
    if args.workdir:
      config, workdir = read_saved_config(args.workdir, rest), args.workdir
    else:
      config, workdir = read_config(args.config, rest), empty
    from tfusion.inspect import rows

    out = args.out or files.to_path(args.workdir or ".") / "rows"
    _print(rows.write_pages(config, workdir, args.step, out=out))


def prepare(args: argparse.Namespace, rest: list[str]) -> None:
  """Turns a source into shards to train on; repeat it to resume where it stopped."""
  from tfusion.data import balance
  from tfusion.prepare import job

  fields = (field.name for field in dataclasses.fields(job.Request))
  request = job.Request(**{name: getattr(args, name) for name in fields})
  manifest = job.prepare(request, rest)
  print(f"{args.out}: {job.summary(manifest.counts)}")
  _print(balance.lines(manifest.counts.splits or {}))


def bench_step(args: argparse.Namespace, rest: list[str]) -> None:
  """Times the training step and its loop, and matrix products for comparison."""
  config = read_config(args.config, rest)
  from tfusion.bench import training

  _print_figures(training.bench_step(config, steps=args.steps))


def bench_generate(args: argparse.Namespace, rest: list[str]) -> None:
  """Times text, images, captions, and a batch that does both."""
  from tfusion.bench import sampling

  sizes = dict(width=args.width, layers=args.layers, rounds=args.rounds)
  _print_figures(sampling.bench_generate(single=args.single, **sizes))


def _print_figures(figures: dict[str, Any]) -> None:
  for name, value in figures.items():
    print(
      f"{name:<16} {value:,.3f}" if isinstance(value, float) else f"{name:<16} {value}"
    )


def bench_attention(args: argparse.Namespace, rest: list[str]) -> None:
  """Times attention on this machine, or counts its instructions on a TPU."""
  numbers = dict(heads=args.heads, kv_heads=args.kv_heads, head_dim=args.head_dim)
  if args.static:
    from tfusion.bench.tpu import static

    for length in args.lengths:
      _print(static.table(args.static, [length, *numbers.values()]))
    return
  from tfusion.bench import attention

  numbers |= dict(batch=args.batch, documents=args.documents)
  results = attention.race(args.lengths, seconds=args.seconds, **numbers)
  _print(attention.table(results, **numbers))


def bench_data(args: argparse.Namespace, rest: list[str]) -> None:
  """Times how fast rows are read from shards, and how fast TPUs would use them."""
  from tfusion.bench import data

  sizes = dict(documents=args.documents, workers=args.workers, seconds=args.seconds)
  _print(data.table(**sizes))


def _agreed(args: argparse.Namespace, read: Callable[[], C]) -> C:
  """What is read on all hosts, or on none, which then have the same arguments."""
  if not args.distributed:
    return read()
  from tfusion.together import check_same, together

  with together():
    found = read()
  asked = {f"--{name}": repr(x) for name, x in vars(args).items() if name in OF_ALL}
  check_same(asked, remedy="give all hosts the same arguments")
  return found


def _train(config: Any, workdir: str, **more: Any) -> int:
  from tfusion import run

  try:
    run.train(config, workdir, **more)
  except SystemExit as stopped:  # by SIGTERM, and saved
    assert isinstance(stopped.code, int), "a run ends with the status of its signal"
    return stopped.code
  return 0


def _print(lines: Iterable[object]) -> None:
  for line in lines:
    print(line, flush=True)
