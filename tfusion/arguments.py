"""The arguments of every command, and what `--help` says of them.

Owns: names, bounds, defaults, help. Not: what a command does (commands.py).
"""

import argparse
import sys
from collections.abc import Callable
from typing import Any, NoReturn, Protocol

from tfusion import commands
from tfusion.numerals import SEEDS, seconds, several, whole
from tfusion.serve import address
from tfusion.version import __version__

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


class Refused(SystemExit):
  """The end of a command whose arguments are wrong; `said` says what is."""

  def __init__(self, said: str):
    super().__init__(2)
    self.said = said


class _Parser(argparse.ArgumentParser):
  """As its base; an error says what it is to whoever catches it, too."""

  def error(self, message: str) -> NoReturn:
    self.print_usage(sys.stderr)
    print(f"{self.prog}: error: {message}", file=sys.stderr, flush=True)
    raise Refused(message)


def parser() -> argparse.ArgumentParser:
  """Of the whole command: `run` is the function of the command that was chosen,
  `takes_more` whether it takes what no argument knows, such as knobs."""
  made = _Parser(
    prog="tfusion",
    description="Train Transfusion models: text and images in one transformer.",
  )
  made.add_argument("--version", action="version", version=__version__)
  under = made.add_subparsers(dest="command", required=True, metavar="COMMAND")

  experiment = dict(
    required=True,
    metavar="FILE.py[:ARG]",
    help="the experiment, such as experiments/digits.py, and its argument, if any",
  )

  def add(name, function, *, to=under, more=KNOBS, distributed=False):
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

  for name, function in (
    ("train", commands.train),
    ("autoencoder", commands.autoencoder),
  ):
    c = add(name, function, more=f"{KNOBS} {RESUMES}", distributed=True)
    c.add_argument("--config", **experiment)
    c.add_argument(
      "--workdir",
      required=True,
      metavar="DIR",
      help="folder of the run; one that has begun there is resumed",
    )
    if function is commands.train:
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
  _add_inspect(under, add)
  _add_prepare(add)
  _add_bench(under, add, experiment)
  return made


def _add_compile(
  add: Callable[..., argparse.ArgumentParser], experiment: dict[str, Any]
) -> None:
  fits = "Exit status: 0 if it fits, 2 if it does not or if the message says why."
  c = add(
    "compile", commands.compile_step, more=f"{KNOBS} {fits} docs/pods.md says more."
  )
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
  c = add("sample", commands.sample, more=SAMPLING, distributed=True)
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
  c = add("eval", commands.evaluate, more=SAMPLING, distributed=True)
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
    "serve",
    commands.serve,
    more=f"{SAMPLING} docs/serve.md has the JSON that it answers.",
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
  c = add("export", commands.export, more=f"{mesh} of several devices on one.")
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
  c = add("report", commands.write_report, more=None)
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
  c = add("scaling", commands.scaling, more=None)
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
  c = add(
    "ablate", commands.ablate, more="docs/ablations.md says what each suite compares."
  )
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


def _add_inspect(under: Commands, add: Callable[..., argparse.ArgumentParser]) -> None:
  text = "Shows what a run, its data or shards hold."
  parser = under.add_parser("inspect", help=text, description=text)
  shown = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
  c = add("run", commands.inspect_run, to=shown, more=None)
  c.add_argument(
    "--workdir",
    required=True,
    metavar="DIR",
    help="folder of the run, of a model or an autoencoder",
  )
  c.add_argument(
    "--step", type=whole(0), help="the checkpoint to show (default: the newest)"
  )
  c = add("shards", commands.inspect_shards, to=shown, more=None)
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
  c = add("data", commands.inspect_data, to=shown)
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
  under: Commands,
  add: Callable[..., argparse.ArgumentParser],
  experiment: dict[str, Any],
) -> None:
  text = (
    "Measures the speed of the training step, of sampling, of attention or of the data."
  )
  parser = under.add_parser("bench", help=text, description=text)
  bench = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
  c = add("step", commands.bench_step, to=bench)
  c.add_argument("--config", **experiment)
  c.add_argument(
    "--steps", type=whole(1), default=30, help="steps to time (default: 30)"
  )
  c = add("generate", commands.bench_generate, to=bench, more=None)
  for name, value, text in (
    ("--width", 256, "of the model, a multiple of 16 (default: 256)"),
    ("--layers", 4, "of the model (default: 4)"),
    ("--rounds", 3, "times that each task runs (default: 3)"),
  ):
    c.add_argument(name, type=whole(1), default=value, metavar="N", help=text)
  c.add_argument(
    "--single",
    action="store_true",
    help="one row alone, without the batch in which some rows write and others draw,"
    " which takes most of the time",
  )
  c = add("attention", commands.bench_attention, to=bench, more=None)
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
  c = add("data", commands.bench_data, to=bench, more=None)
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
  c = add("prepare", commands.prepare, more=beam)
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
