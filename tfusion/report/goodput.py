"""What the time of a run went into, in words: its goodput.

Owns: what each cause is called, in which order they stand, their shares. Not: the
seconds (training/goodput.py), which training writes to goodput.json.
"""

from typing import Any, NamedTuple

from tfusion.numerals import percent


class Cause(NamedTuple):
  """What time goes into."""

  name: str
  meaning: str
  colour: str  # of theme.css


CAUSES = {
  "step": Cause("Updates", "training itself", "hue1"),
  "data": Cause("Data", "the devices may have waited for rows", "hue2"),
  "init": Cause("Start", "opening the data, restoring a checkpoint", "hue3"),
  "compile": Cause("Compiling", "the training step, at every start", "hue4"),
  "evaluate": Cause("Evaluation", "held-out rows, samples, this page", "hue5"),
  "save": Cause("Saving", "what the loop waited for checkpoints", "hue6"),
  "lost": Cause("Done again", "updates lost in a kill, and repeated", "hue7"),
  "down": Cause("Between starts", "from the last word of one to the next", "hue8"),
}


class Part(NamedTuple):
  """The part of the time that went into one thing."""

  cause: Cause
  seconds: float
  share: float  # of the time of all starts and between them


def parts(account: dict[str, Any]) -> list[Part]:
  """Returns what the time went into, in the order of CAUSES, without what took none.

  Args:
    account: of goodput.json; may be empty.
  """
  seconds = {
    key: float(x)
    for key, x in account.get("seconds", {}).items()
    if isinstance(x, int | float) and x > 0
  }
  order = [*(key for key in CAUSES if key in seconds), *(seconds.keys() - CAUSES)]
  whole = sum(seconds.values())
  unknown = {key: Cause(key, "of another version of tfusion", "muted") for key in order}
  return [
    Part((unknown | CAUSES)[key], seconds[key], seconds[key] / whole) for key in order
  ]


def table(account: dict[str, Any]) -> dict[str, Any] | None:
  """Returns the values of the macro `goodput`; None of a run without an account."""
  found = parts(account)
  if not found:
    return None
  return {
    "sentence": sentence(account),
    "parts": [
      {
        "name": part.cause.name,
        "meaning": part.cause.meaning,
        "colour": part.cause.colour,
        "width": f"{part.share:.4%}",
        "seconds": f"{part.seconds:,.1f}",
        "share": percent(part.share),
      }
      for part in found
    ],
  }


def sentence(account: dict[str, Any]) -> str:
  """Returns how long a run took and how much of it was training."""
  found = parts(account)
  starts = len(account.get("starts", []))
  training = sum(part.share for part in found if part.cause is CAUSES["step"])
  seconds = sum(part.seconds for part in found)
  often = f"{starts} start{'s' * (starts != 1)}"
  return f"{seconds:,.1f} s over {often}, {percent(training)} of it updates"


def lines(account: dict[str, Any]) -> list[str]:
  """Returns the same for the console; nothing of a run without an account."""
  found = parts(account)
  if not found:
    return []
  return [f"time: {sentence(account)}"] + [
    f"  {part.cause.name:<15} {part.seconds:>12,.1f} s  {percent(part.share):>7}"
    f"  {part.cause.meaning}"
    for part in found
  ]
