"""The arms of suites at the paper's sizes, as commands that launch them on a pod.

Owns: which experiment and size an arm is there, the commands, what is known of their
days. Not: compiling (pods/), the launch scripts (launch/).
"""

import json
from collections.abc import Sequence
from pathlib import Path

from tfusion.ablations import plan
from tfusion.ablations.suites import Arm, Suite

SIZES = {"xs": "0.16b", "s": "0.76b", "m": "1.4b"}  # of experiments/paper.py
SLICE, CHIPS = "v5p-128", 64
COMPILED = Path("experiments/results/compile.json")
DAYS = -3  # of a line of it: for 0.5T
# Knobs that experiments/paper.py sets itself from its argument, or that are of small
# models alone.
IN_ARGUMENT = {
  "model.patches": "patches",
  "model.patch": "patch",
  "model.image_attention": "image_attention",
}
SMALL = (
  *("model.unet_widths", "data.image_slots", "optim.peak_lr"),
  *("sample.steps", "sample.guidance"),
)


def lines(suites: Sequence[Suite], *, compiled: Path = COMPILED) -> list[str]:
  """A shell script that launches one run of every arm; nothing in it starts by itself.

  Args:
    suites: whose arms.
    compiled: what `tfusion compile` gave for the paper's models, if it is there.
  """
  known = json.loads(compiled.read_text()) if compiled.is_file() else {}
  found = [
    "# One run of each arm at the paper's sizes, 0.5T elements each; seeds are more.",
    "# Set P, Z, I and B to your project, zone, image and bucket, and run the lines",
    "# that you want. Nothing of this has been run. First see that an arm fits, and",
    f"# what it takes: tfusion compile --topology {SLICE}, with what stands behind",
    "# `train`.",
  ]
  for suite in suites:
    found += ["", f"# {suite.name}: {suite.about}"]
    trained: dict[str, str] = {}
    for arm in plan.arms([suite]):
      config = " ".join(config_of(arm))
      if config in trained:
        found.append(f"# {arm.name}: the run of {trained[config]}, sampled otherwise")
        continue
      trained[config] = arm.name
      found += [f"# {arm.name}: {_days(arm, known)}", _launch(arm)]
  return found


def config_of(arm: Arm) -> list[str]:
  """`--config` and knobs of an arm."""
  size = f"size={SIZES[arm.size]}"
  if arm.ground == "codes":
    return [f"--config=experiments/chameleon.py:{size}"]
  if arm.ground == "text" and arm.knobs:  # the stable layers of Chameleon
    return [f"--config=experiments/chameleon.py:{size},text_only"]
  if arm.ground == "text":
    return [f"--config=experiments/paper.py:{size},recipe=llama"]
  own = [size]
  own += [f"{IN_ARGUMENT[k]}={v}" for k, v in arm.knobs.items() if k in IN_ARGUMENT]
  rest = {
    name: value
    for name, value in arm.knobs.items()
    if name not in (*IN_ARGUMENT, *SMALL)
  }
  if arm.start is not None:
    rest["train.init_from"] = f"gs://B/{_slug(arm.start)}/exported"
  knobs = [f"--config.{name}={value}" for name, value in rest.items()]
  return [f"--config=experiments/paper.py:{','.join(own)}", *knobs]


def _launch(arm: Arm) -> str:
  name = _slug(arm)
  where = f"--project $P --zone $Z --name {name} --type {SLICE} --image $I --bucket $B"
  return f"launch/tpu_vm.sh {where} --run -- tfusion train {' '.join(config_of(arm))}"


def _days(arm: Arm, known: dict[str, list[str]]) -> str:
  """What tables know of an arm: that of the plain models is there."""
  plain = arm.ground == "latents" and not arm.knobs
  line = known.get(f"{SIZES[arm.size]} {SLICE}")
  if not plain or line is None:
    return f"{SLICE}, {CHIPS} chips; its days are not known, compile it"
  return (
    f"{SLICE}, {CHIPS} chips, {line[DAYS]} days as predicted, compiled at {line[-1]}"
  )


def _slug(arm: Arm) -> str:
  words = "".join(c if c.isalnum() else " " for c in f"{arm.name} {arm.size}".lower())
  return "-".join(words.split())
