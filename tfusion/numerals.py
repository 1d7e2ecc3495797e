"""Numbers as people write and read them: on the command line, in reports.

Owns: types for argparse that refuse what no program can use, shares in percent. Not:
the arguments (arguments.py), the knobs of a config (config.py).
"""

import argparse
import math
from collections.abc import Callable

SEEDS = 2**32  # how many there are; jax folds larger numbers onto these
MOST = 2**31 - 1  # of other numbers: what the programs count with


def whole(least: int, most: int = MOST) -> Callable[[str], int]:
  """The type of an argument that is a whole number, `least` and `most` included."""

  def parse(text: str) -> int:
    try:
      number = int(text)
    except ValueError:  # also of more digits than Python reads
      number = None
    if number is None or not least <= number <= most:
      raise argparse.ArgumentTypeError(
        f"{text[:40]!r}: give a whole number from {least} to {most}"
      )
    return number

  return parse


def several(least: int) -> Callable[[str], list[int]]:
  """The type of an argument that is whole numbers with commas between."""
  return lambda text: [whole(least)(number) for number in text.split(",")]


def seconds(text: str) -> float:
  """The type of an argument that is a time: above 0, and finite."""
  try:
    number = float(text)
  except ValueError:
    number = math.nan
  if not 0 < number < MOST:
    raise argparse.ArgumentTypeError(f"{text[:40]!r}: give seconds, more than 0")
  return number


def percent(share: float) -> str:
  """A share in percent, in which nothing looks like none and not all like all."""
  if 0 < share < 0.0005 or 0.9995 < share < 1:
    return "<0.1 %" if share < 0.5 else ">99.9 %"
  return f"{share:.1%}".replace("%", " %").replace(".0 %", " %")
