"""The command `tfusion`: from its arguments to its exit status.

Owns: what a command is told before it begins, what is said of its end. Not: arguments
(arguments.py), what a command does (commands.py). `--help` answers without importing
jax.
"""

import argparse
import contextlib
import io
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from tfusion import arguments, errors, progress, startup
from tfusion.arguments import Refused

READER_GONE = 128 + 13  # what a shell says of a command that SIGPIPE ended


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
  parser = arguments.parser()
  try:
    args, rest = parser.parse_known_args(argv)
    if rest and not args.takes_more:
      parser.error(f"unknown arguments: {' '.join(rest)}")
  except Refused as refused:
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
    "folder",
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


if __name__ == "__main__":
  sys.exit(main())
