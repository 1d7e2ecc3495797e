"""The command `tfusion`: one function per command, each importing what it needs.

Owns: arguments. Not: work. `--help` answers without importing jax.
"""

import argparse
import contextlib
import dataclasses
import io
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeVar

from tfusion import autoencoder_config, errors, files, progress, startup
from tfusion import workdir as workdir_lib
from tfusion.config_file import known_good, read_config, read_saved_config
from tfusion.numerals import SEEDS, seconds, several, whole
from tfusion.serve import address
from tfusion.version import __version__

C = TypeVar("C")

OF_ALL = ("count", "prompt", "seed", "step", "suite")  # hosts need the same

READER_GONE = 128 + 13  # what a shell says of a command that SIGPIPE ended

RESUMES = (
  "To resume a run, repeat its command; docs/resuming.md says what it keeps and"
  " checks. Exit status: 0 when the run is complete; 130 after Ctrl-C and 143 after"
  " SIGTERM, when it is saved and can be resumed; 2 if the message names something that"
  " you can fix. All hosts end with the same status."
)
ANY = "Any knob of the config can be set: --config.SECTION.KEY=VALUE, as in"
KNOBS, SAMPLING = f"{ANY} --config.train.steps=100.", f"{ANY} --config.sample.steps=50."


class Commands(Protocol):
  """What commands are added to; the class that argparse has for it is private."""

  def add_parser(
    self, name: str, *, help: str, description: str
  ) -> argparse.ArgumentParser:
    """The parser of a new command."""


def main(argv: list[str] | None = None) -> int:
  """Runs one command; returns its exit status.

  0 if it did all it was asked to, 2 for what the user can mend, 130, 141 and 143 if
  Ctrl-C, the end of a pipe or SIGTERM ended it before.
  """
  try:
    return _flushed(_run(argv))
  except SystemExit:  # of argparse, as after --help
    if status := _flushed(0):
      return status
    raise
  except BrokenPipeError as error:
    if not progress.is_reader_gone(error):  # as of `tfusion inspect ... | head`
      raise
    progress.close_output()
    return READER_GONE


def _flushed(status: int) -> int:
  """Writes out what was printed: at the exit nobody could say that it failed."""
  try:
    if sys.stdout is not None:  # None: it was closed before the start
      sys.stdout.flush()
    return status
  except BrokenPipeError:
    progress.close_output()
    return READER_GONE
  except OSError as error:
    said = errors.explain(error, place="standard output")
    print(f"tfusion: {said}", file=sys.stderr)
    progress.close_output()
    return 2


def _run(argv: list[str] | None) -> int:
  parser = _parser()
  try:
    args, rest = parser.parse_known_args(argv)
    if rest and not args.takes_more:
      parser.error(f"unknown arguments: {' '.join(rest)}")
  except _Refused as refused:
    _tell_processes(sys.argv[1:] if argv is None else argv, refused.said)
    raise
  if argv is None:
    startup.use_huge_pages()
    if isinstance(sys.stdout, io.TextIOWrapper):  # not None: closed before the start
      sys.stdout.reconfigure(errors="replace")  # file names may be any bytes
  _expand_home(args)
  startup.quiet(verbose=args.verbose)
  if argv is None and (workdir := getattr(args, "workdir", None)):
    startup.keep_programs(workdir)
  try:
    if getattr(args, "distributed", None):
      from tfusion.sharding import join_hosts

      join_hosts(args.distributed)
    return args.run(args, rest) or 0
  except Exception as error:
    places = (getattr(args, name, None) for name in ("out", "to", "workdir"))
    place = next(filter(None, places), "")
    said = errors.explain(error, place=place)
    if args.verbose or said is None or progress.is_reader_gone(error):
      raise
    print(f"tfusion {args.command}: {said}", file=sys.stderr)
    return 2
  except KeyboardInterrupt as error:
    if not error.args:  # else the run was saved, and has said so
      print(f"tfusion {args.command}: interrupted", file=sys.stderr)
    return 130


class _Refused(SystemExit):
  """The end of a command whose arguments are wrong; `said` says what is."""

  def __init__(self, said: str):
    super().__init__(2)
    self.said = said


class _Parser(argparse.ArgumentParser):
  """As its base; an error says what it is to whoever catches it, too."""

  def error(self, message: str) -> NoReturn:
    self.print_usage(sys.stderr)
    print(f"{self.prog}: error: {message}", file=sys.stderr, flush=True)
    raise _Refused(message)


def _tell_processes(argv: Sequence[str], said: str) -> None:
  """Tells the other processes of a run, which wait for this one, that its arguments
  are wrong; where they find each other by themselves, nobody can."""
  from tfusion import muster

  options = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
  options.add_argument("--distributed", nargs="?", default="")
  with contextlib.suppress(argparse.ArgumentError, SystemExit):
    how = options.parse_known_args(argv)[0].distributed or ""
    if found := muster.place(how):
      with contextlib.suppress(ValueError):  # it is told to this one as well
        muster.muster(*found, fault=said)


def _expand_home(args: argparse.Namespace) -> None:
  """Puts the home folder in the place of ~, which shells leave alone in --out=~/x,
  folder:~/x and data=~/x."""
  for name in (
    "autoencoder",
    "config",
    "data",
    "out",
    "path",
    "source",
    "to",
    "tokenizer",
    "workdir",
  ):
    if isinstance(value := getattr(args, name, None), str):
      home = re.sub(r"(?:^|(?<=[:=]))~(?=/|$)", lambda _: str(Path.home()), value)
      setattr(args, name, home)


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
  _print_figures(sampling.bench_generate(**sizes))


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


def _parser() -> argparse.ArgumentParser:
  parser = _Parser(
    prog="tfusion",
    description="Train Transfusion models: text and images in one transformer.",
  )
  parser.add_argument("--version", action="version", version=__version__)
  commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

  experiment = dict(
    required=True,
    metavar="FILE.py[:ARG]",
    help="the experiment, such as experiments/digits.py, and its argument, if any",
  )

  def add(name, function, *, to=commands, more=KNOBS, distributed=False):
    text = function.__doc__.partition("\n")[0]
    command = to.add_parser(name, help=text, description=text, epilog=more)
    command.set_defaults(run=function, takes_more=more is not None)
    command.add_argument(
      "-v", "--verbose", action="store_true", help="log more, and show full tracebacks"
    )
    if distributed:
      command.add_argument(
        "--distributed",
        metavar="HOW",
        help="this is one process of several: auto (on TPU pods, Slurm, Open MPI), or"
        " HOST:PORT,INDEX,COUNT with the address of process 0",
      )
    return command

  for name, function in (("train", train), ("autoencoder", autoencoder)):
    c = add(name, function, more=f"{KNOBS} {RESUMES}", distributed=True)
    c.add_argument("--config", **experiment)
    c.add_argument(
      "--workdir",
      required=True,
      metavar="DIR",
      help="folder of the run; one that has begun there is resumed",
    )
    if function is train:
      c.add_argument(
        "--executable",
        default="",
        metavar="FILE",
        help="of `tfusion compile --save`, loaded instead of compiling; refused if it"
        " is of another program, version or device",
      )
  _add_compile(add, experiment)
  _add_sample_and_eval(add)
  _add_serve(add)
  _add_export(add)
  _add_report(add)
  _add_scaling(add)
  _add_ablate(add)
  _add_inspect(commands, add)
  _add_prepare(add)
  _add_bench(commands, add, experiment)
  return parser


def _add_compile(
  add: Callable[..., argparse.ArgumentParser], experiment: dict[str, Any]
) -> None:
  fits = "Exit status: 0 if it fits, 2 if it does not or if the message says why."
  c = add("compile", compile_step, more=f"{KNOBS} {fits} docs/pods.md says more.")
  c.add_argument("--config", **experiment)
  c.add_argument(
    "--topology",
    required=True,
    metavar="NAME",
    help="v5p:4x4x4, v5e:16x16, v6e:8x8, or as it is rented: v5p-128, v5e-256; h100:64"
    " and h200:64 are estimated",
  )
  c.add_argument(
    "--slices", type=whole(1), default=1, metavar="N", help="so many of it (default: 1)"
  )
  c.add_argument(
    "--sampler",
    action="store_true",
    help="the denoising of eval.batch images instead of the training step",
  )
  c.add_argument(
    "--search",
    action="store_true",
    help="try meshes, remat and parts of the batch; prints a table (minutes for each)",
  )
  c.add_argument("--json", default="", metavar="FILE", help="write all numbers there")
  c.add_argument(
    "--save",
    default="",
    metavar="FILE",
    help="write the compiled step there, for `tfusion train --executable`",
  )


def _add_sample_and_eval(add: Callable[..., argparse.ArgumentParser]) -> None:
  c = add("sample", sample, more=SAMPLING, distributed=True)
  c.add_argument("--workdir", required=True, metavar="DIR", help="folder of the run")
  c.add_argument("--step", type=whole(0), help="its checkpoint (default: the newest)")
  c.add_argument(
    "--prompt",
    action="append",
    required=True,
    help="text in which <image> is where the model makes an image and <image:FILE>"
    " shows it one, and so <NAME> and <NAME:FILE> of the kinds in model.kinds;"
    r" \< is a literal <; can be given several times",
  )
  c.add_argument(
    "--out", metavar="DIR", help="folder to write to (default: DIR/sampled of the run)"
  )
  c.add_argument(
    "--count", type=whole(1), default=1, help="samples of each prompt (default: 1)"
  )
  c.add_argument(
    "--seed",
    type=whole(0, SEEDS - 1),
    default=0,
    help="random seed of noise and text; the same seed gives the same samples"
    " (default: 0)",
  )
  c = add("eval", evaluate, more=SAMPLING, distributed=True)
  c.add_argument("--workdir", required=True, metavar="DIR", help="folder of the run")
  c.add_argument("--step", type=whole(0), help="its checkpoint (default: the newest)")
  c.add_argument(
    "--suite",
    default="",
    metavar="NAME,...",
    help="suites and evaluations by name, as in small or loss,ppl:pydoc; what is"
    " finished is not done again (default: what fits the run's sources, anew)",
  )
  c.add_argument(
    "--data",
    default="",
    metavar="DIR",
    help="folder with the data sets and networks of others that some evaluations need",
  )


def _add_serve(add: Callable[..., argparse.ArgumentParser]) -> None:
  c = add(
    "serve", serve, more=f"{SAMPLING} docs/serve.md has the JSON that it answers."
  )
  c.add_argument("--workdir", required=True, metavar="DIR", help="folder of the run")
  c.add_argument("--step", type=whole(0), help="its checkpoint (default: the newest)")
  c.add_argument(
    "--port",
    type=whole(0, 65_535),
    default=address.PORT,
    help=f"of the page; 0: any that is free (default: {address.PORT})",
  )
  c.add_argument(
    "--host",
    default=address.HOST,
    metavar="ADDRESS",
    help="address to listen on; another than that of this machine itself lets other"
    f" machines in, without a password (default: {address.HOST})",
  )


def _add_export(add: Callable[..., argparse.ArgumentParser]) -> None:
  mesh = "The mesh is the run's; --config.mesh.fsdp=1 --config.mesh.data=1 opens a run"
  c = add("export", export, more=f"{mesh} of several devices on one.")
  c.add_argument("--workdir", required=True, metavar="DIR", help="folder of the run")
  c.add_argument("--step", type=whole(0), help="its checkpoint (default: the newest)")
  c.add_argument(
    "--to",
    required=True,
    metavar="DIR",
    help="the folder to write, which is not there yet: weights, config.json, the"
    " tokenizer and README.md; `train.init_from` reads it",
  )


def _add_report(add: Callable[..., argparse.ArgumentParser]) -> None:
  c = add("report", write_report, more=None)
  c.add_argument(
    "runs",
    nargs="+",
    metavar="RUN",
    help="the workdir of a run; several, of one command, are compared",
  )
  c.add_argument(
    "--out",
    metavar="FILE",
    help="the page (default: report.html in the workdir; of several comparison.html,"
    " here)",
  )


def _add_scaling(add: Callable[..., argparse.ArgumentParser]) -> None:
  c = add("scaling", scaling, more=None)
  c.add_argument(
    "runs",
    nargs="+",
    metavar="RUN",
    help="the workdir of a finished run; those that differ in size alone are a family,"
    " and the first family is compared with each other",
  )
  c.add_argument(
    "--metric",
    action="append",
    default=[],
    metavar="NAME",
    help="of validation.jsonl or eval.json; can be given several times (default: the"
    " losses, and what is known of texts and images)",
  )
  c.add_argument(
    "--flops",
    choices=["6nd", "exact"],
    default="6nd",
    help="6nd: 6 for each parameter and element, as in the paper; exact: matmuls, and"
    " attention over the pairs that see each other (default: 6nd)",
  )
  c.add_argument(
    "--out",
    default="scaling.html",
    metavar="FILE",
    help="the page with the plots (default: scaling.html, here)",
  )


def _add_ablate(add: Callable[..., argparse.ArgumentParser]) -> None:
  c = add("ablate", ablate, more="docs/ablations.md says what each suite compares.")
  c.set_defaults(takes_more=False)
  c.add_argument(
    "suite", help="table3, table5 or another, several with commas between them, or all"
  )
  c.add_argument(
    "--scale",
    default="tiny",
    metavar="NAME",
    help="tiny, for 2 CPU cores; small, for a GPU; smoke, to see that everything runs;"
    " full prints commands that launch the paper's sizes on a pod (default: tiny)",
  )
  c.add_argument(
    "--seeds", type=whole(1), default=3, metavar="N", help="of each arm (default: 3)"
  )
  c.add_argument(
    "--devices",
    default="",
    metavar="LIST",
    help="one run at a time on each, as in gpu:0,gpu:1 or, for cores, cpu:0-3,cpu:4-7"
    " (default: one run at a time on the whole machine)",
  )
  c.add_argument(
    "--folder",
    default="runs/ablate",
    metavar="DIR",
    help="for workdirs, autoencoders and shards (default: runs/ablate)",
  )
  c.add_argument(
    "--out",
    default="experiments/results",
    metavar="DIR",
    help="for the pages and, in its runs/, a small JSON of each run, by which another"
    " machine goes on (default: experiments/results)",
  )
  c.add_argument(
    "--config",
    default="experiments/ablations.py",
    metavar="FILE.py",
    help="what all arms begin with (default: experiments/ablations.py)",
  )
  c.add_argument(
    "--arm",
    action="append",
    default=[],
    metavar="NAME",
    help="do only arms with this in their name; can be given several times",
  )
  c.add_argument(
    "--no-search",
    dest="search",
    action="store_false",
    help="keep the learning rates as they are written, instead of trying three",
  )
  c.add_argument(
    "--show", action="store_true", help="train nothing; write the pages of what is done"
  )


def _add_inspect(
  commands: Commands, add: Callable[..., argparse.ArgumentParser]
) -> None:
  text = "Shows what a run, its data or shards hold."
  parser = commands.add_parser("inspect", help=text, description=text)
  shown = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
  c = add("run", inspect_run, to=shown, more=None)
  c.add_argument(
    "--workdir",
    required=True,
    metavar="DIR",
    help="folder of the run, of a model or an autoencoder",
  )
  c.add_argument(
    "--step", type=whole(0), help="the checkpoint to show (default: the newest)"
  )
  c = add("shards", inspect_shards, to=shown, more=None)
  c.add_argument("path", help="folder of shards, or one of its shards")
  c.add_argument(
    "--record", type=whole(0), metavar="N", help="show this record, counted from 0"
  )
  c.add_argument(
    "--split",
    choices=["train", "test"],
    default="train",
    help="the split whose records are counted, in a folder (default: train)",
  )
  c.add_argument(
    "--out",
    default=".",
    metavar="DIR",
    help="folder for the images of a record (default: here)",
  )
  c = add("data", inspect_data, to=shown)
  run = c.add_mutually_exclusive_group(required=True)
  run.add_argument("--workdir", metavar="DIR", help="folder of the run")
  run.add_argument(
    "--config", metavar="FILE.py[:ARG]", help="the experiment of a run not yet begun"
  )
  c.add_argument(
    "--step", type=whole(0), required=True, help="the update whose rows to show, from 1"
  )
  c.add_argument(
    "--out",
    metavar="DIR",
    help="folder for the pages (default: rows/ of the run, or here)",
  )


def _add_bench(
  commands: Commands,
  add: Callable[..., argparse.ArgumentParser],
  experiment: dict[str, Any],
) -> None:
  text = (
    "Measures the speed of the training step, of sampling, of attention or of the data."
  )
  parser = commands.add_parser("bench", help=text, description=text)
  bench = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
  c = add("step", bench_step, to=bench)
  c.add_argument("--config", **experiment)
  c.add_argument(
    "--steps", type=whole(1), default=30, help="steps to time (default: 30)"
  )
  c = add("generate", bench_generate, to=bench, more=None)
  for name, value, text in (
    ("--width", 256, "of the model, a multiple of 16 (default: 256)"),
    ("--layers", 4, "of the model (default: 4)"),
    ("--rounds", 3, "times that each task runs (default: 3)"),
  ):
    c.add_argument(name, type=whole(1), default=value, metavar="N", help=text)
  c = add("attention", bench_attention, to=bench, more=None)
  c.add_argument(
    "--static",
    type=lambda names: names.split(","),
    metavar="TPU,...",
    help="compile for any of v4, v5e, v5p, v6e and tpu7x, without having one, and"
    " count instructions instead of timing; needs the extra `tpu`",
  )
  c.add_argument(
    "--lengths",
    type=several(1),
    default=[8192],
    metavar="N,...",
    help="positions of a row (default: 8192)",
  )
  timing = "; not with --static"
  for name, value, text in (
    ("--heads", 16, "query heads (default: 16)"),
    ("--kv-heads", 4, "key and value heads (default: 4)"),
    ("--head-dim", 128, "width of a head (default: 128)"),
    ("--batch", 1, f"rows (default: 1){timing}"),
    ("--documents", 12, f"documents in a row (default: 12){timing}"),
  ):
    c.add_argument(name, type=whole(1), default=value, metavar="N", help=text)
  c.add_argument(
    "--seconds",
    type=seconds,
    default=5.0,
    help=f"how long to time each length (default: 5){timing}",
  )
  c = add("data", bench_data, to=bench, more=None)
  c.add_argument(
    "--workers",
    type=several(0),
    default=[0, 1, 2],
    metavar="N,...",
    help="worker processes to try (default: 0,1,2)",
  )
  c.add_argument(
    "--documents",
    type=whole(1),
    default=4000,
    metavar="N",
    help="documents to write first, as shards to read (default: 4000)",
  )
  c.add_argument(
    "--seconds",
    type=seconds,
    default=10.0,
    help="how long to time each number of workers (default: 10)",
  )


def _add_prepare(add: Callable[..., argparse.ArgumentParser]) -> None:
  beam = (
    "All other options go to Apache Beam: --direct_num_workers=2 for two processes on"
    " this machine, --runner=DaskRunner --dask_client_address=tcp://HOST:8786 for a"
    " Dask cluster, or --runner=FlinkRunner, DataflowRunner or SparkRunner with its own"
    " options."
  )
  c = add("prepare", prepare, more=beam)
  c.add_argument(
    "--source",
    required=True,
    help="auto:PATH, which looks what PATH holds; or by name, folder:PATH, tar:PATH,"
    " jsonl:PATH, parquet:PATH, edits:PATH, text:PATH, img2dataset:PATH, obelics:PATH,"
    " mmc4:PATH, mint:PATH, bagel-t2i:PATH, bagel-edit:PATH, llava:PATH, energon:PATH,"
    " mds:PATH, lance:PATH, tfds:NAME, digits, pydoc or shapes",
  )
  c.add_argument("--out", required=True, metavar="DIR", help="folder for the shards")
  c.add_argument(
    "--learn",
    default="",
    metavar="RULE",
    help="what of a document is learned: all, text, images, last (the last text or"
    " image) or answers; the rest is only read (default: as the source says)",
  )
  c.add_argument(
    "--autoencoder",
    default="",
    metavar="FILE",
    help="turns images into latents or codes (default: images stay pixels)",
  )
  c.add_argument(
    "--latents",
    default="mean",
    metavar="WHICH",
    help="mean, or mean_logvar, which is sampled anew each time an image is shown"
    " (default: mean)",
  )
  c.add_argument(
    "--image-px",
    type=whole(0),
    default=0,
    metavar="N",
    help="side of an image in pixels (default: 256 with an autoencoder, else 64)",
  )
  c.add_argument(
    "--aspects",
    type=whole(1),
    default=1,
    metavar="N",
    help="aspects that images keep, at most, chosen from those of the source; all have"
    " about --image-px squared pixels (default: 1, squares)",
  )
  c.add_argument(
    "--tokenizer",
    default="",
    metavar="FILE",
    help="a sentencepiece model, or a tokenizer.json of byte pairs (default: one is"
    " trained on the source)",
  )
  c.add_argument(
    "--vocab-size",
    type=whole(0),
    default=0,
    metavar="N",
    help="pieces of a trained tokenizer (default: to suit the amount of text)",
  )
  c.add_argument(
    "--shard-documents",
    type=whole(1),
    default=1024,
    metavar="N",
    help="documents in a shard (default: 1024); each .tar is one shard",
  )
  c.add_argument(
    "--batch",
    type=whole(1),
    default=32,
    metavar="N",
    help="images encoded at once (default: 32)",
  )


if __name__ == "__main__":
  sys.exit(main())
