"""Which models an ablation compares, and what the paper or later work says of them.

Owns: the suites, their arms, what each comparison claims. Not: what all arms have in
common (experiments/ablations.py), how they are run (runner.py) and told (tables.py).

An arm differs from the common config by the knobs that are written here, and by
nothing else but its learning rate, which is looked for in the same way for all.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tfusion.evaluate import published

# Measures -> whether more is better. Of a model: validation.jsonl and eval.json.
MORE = {
  "text_perplexity": False,
  "loss_grid": False,
  "scenes_frechet": False,
  "scenes_frechet_best": False,
  "scenes_right": True,
  "scenes_geneval": True,
  "scenes_geneval_best": True,
  "scenes_captions_right": True,
  "scenes_captions_attributes": True,
  "scenes_cider": True,
}
TITLES = {
  "text_perplexity": "perplexity of prose",
  "loss_grid": "diffusion loss",
  "scenes_frechet": "Frechet distance",
  "scenes_frechet_best": "Frechet distance, best guidance",
  "scenes_right": "images of captions right",
  "scenes_geneval": "GenEval's tasks",
  "scenes_geneval_best": "GenEval's tasks, best guidance",
  "scenes_captions_right": "captions right",
  "scenes_captions_attributes": "attributes in captions",
  "scenes_cider": "CIDEr",
}
TEXT = ("text_perplexity",)
IMAGES = ("scenes_geneval", "scenes_geneval_best", "scenes_right", "scenes_frechet")
CAPTIONS = ("scenes_cider", "scenes_captions_right")
READING = ("scenes_captions_right", "scenes_captions_attributes", "scenes_cider")
ALL = (*TEXT, *READING, *IMAGES, "loss_grid")
SAME_TARGET = ("loss_grid",)  # compares models that predict the same alone


@dataclasses.dataclass(frozen=True)
class Arm:
  """One model of a comparison; several seeds of it are trained."""

  name: str
  knobs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  ground: str = "latents"  # of experiments/ablations.py
  size: str = "s"
  start: "Arm | None" = None  # whose weights it begins with
  paper: str = ""  # the row of the paper's table that it is a twin of

  @property
  def of_text(self) -> bool:
    """Whether it makes no images."""
    return self.ground == "text"


class Claim(NamedTuple):
  """That one arm is better than another."""

  better: str
  worse: str
  metric: str  # of MORE
  source: str  # who says so


class Suite(NamedTuple):
  """Arms that are compared, in one table."""

  name: str
  about: str  # what is asked
  arms: tuple[Arm, ...]
  claims: tuple[Claim, ...]
  metrics: tuple[str, ...] = ALL
  table: tuple[str, int | str] | None = None  # arXiv id and table, printed beside ours
  families: tuple[str, str] | None = None  # beginnings of names; parity of the first


PAPER = published.PAPER
_UNET = {"model.patches": "unet", "model.unet_widths": (32, 64)}
_FLOW = {
  "diffusion.schedule": "linear",
  "diffusion.target": "v",
  "sample.sampler": "euler",
  "sample.start": 1.0,
}

BASE = Arm("linear")
UNET = Arm("U-Net", _UNET)
TEXT_ONLY = Arm("Llama 2", ground="text")
CHAMELEON = Arm("Chameleon", ground="codes")
CHAMELEON_TEXT = Arm(
  "Chameleon, text alone",
  {
    "model.qk_norm": "layer",
    "model.norms": "after",
    "train.z_loss": 1e-5,
    "optim.peak_lr": 1e-3,
  },
  ground="text",
)


def _named(arm: Arm, name: str, **knobs: Any) -> Arm:
  """The same under another name, with more knobs."""
  dotted = {key.replace("__", "."): value for key, value in knobs.items()}
  return dataclasses.replace(arm, name=name, knobs={**arm.knobs, **dotted})


def _sized(arm: Arm, name: str, size: str) -> Arm:
  return dataclasses.replace(arm, name=f"{name} {size}", size=size)


def _claims(better: str, worse: str, metrics: tuple[str, ...], source: str):
  return tuple(Claim(better, worse, metric, source) for metric in metrics)


TABLE3 = Suite(
  "table3",
  "Transfusion against Chameleon over sizes: which needs less compute?",
  (
    *(_sized(BASE, "Transfusion", size) for size in ("xs", "s", "m")),
    *(_sized(CHAMELEON, "Chameleon", size) for size in ("xs", "s", "m")),
  ),
  _claims(
    "Transfusion m",
    "Chameleon m",
    (*TEXT, "scenes_cider", "scenes_geneval", "scenes_frechet"),
    "Table 3",
  ),
  metrics=(*TEXT, *READING, *IMAGES),
  table=(PAPER, 3),
  families=("Transfusion", "Chameleon"),
)
TABLE4 = Suite(
  "table4",
  "What images cost text: the same text, alone and among images.",
  (
    TEXT_ONLY,
    _named(BASE, "Transfusion"),
    CHAMELEON_TEXT,
    CHAMELEON,
  ),
  (
    Claim("Llama 2", "Transfusion", "text_perplexity", "Table 4"),
    Claim("Llama 2", "Chameleon, text alone", "text_perplexity", "Table 4"),
    Claim("Transfusion", "Chameleon", "text_perplexity", "Table 4"),
    Claim("Chameleon, text alone", "Chameleon", "text_perplexity", "Table 4"),
  ),
  metrics=TEXT,
  table=(PAPER, 4),
)
TABLE5 = Suite(
  "table5",
  "Do patches of an image see all of it, or those before them alone?",
  (
    _named(BASE, "linear, causal", model__image_attention="causal"),
    _named(BASE, "linear, bidirectional"),
    _named(UNET, "U-Net, causal", model__image_attention="causal"),
    _named(UNET, "U-Net, bidirectional"),
  ),
  (
    *_claims(
      "linear, bidirectional",
      "linear, causal",
      ("scenes_frechet", "scenes_geneval", "scenes_cider", "loss_grid"),
      "Table 5",
    ),
    *_claims(
      "U-Net, bidirectional",
      "U-Net, causal",
      ("scenes_frechet", "scenes_cider", "loss_grid"),
      "Table 5",
    ),
  ),
  table=(PAPER, 5),
)
TABLE6 = Suite(
  "table6",
  "How many latents make a patch? 256, 64 or 16 patches of an image.",
  (
    _named(BASE, "linear 1x1", model__patch=1, data__image_slots=2),
    _named(BASE, "linear 2x2"),
    _named(BASE, "linear 4x4", model__patch=4, data__image_slots=18),
    _named(UNET, "U-Net 2x2"),
    _named(
      UNET,
      "U-Net 4x4",
      model__patch=4,
      model__unet_widths=(32, 64, 64),
      data__image_slots=18,
    ),
  ),
  (
    *_claims("linear 2x2", "linear 4x4", ("scenes_frechet", "loss_grid"), "Table 6"),
    *_claims("U-Net 4x4", "linear 4x4", ("scenes_frechet", "loss_grid"), "Table 6"),
    *_claims("U-Net 2x2", "linear 2x2", ("scenes_frechet", "loss_grid"), "Table 6"),
  ),
  table=(PAPER, 6),
)
TABLE7 = Suite(
  "table7",
  "Linear layers or a U-Net, over sizes.",
  tuple(
    _sized(arm, name, size)
    for size in ("xs", "s", "m")
    for arm, name in ((BASE, "linear"), (UNET, "U-Net"))
  ),
  tuple(
    claim
    for size in ("xs", "s", "m")
    for claim in _claims(
      f"U-Net {size}",
      f"linear {size}",
      ("scenes_frechet", "scenes_cider", "loss_grid"),
      "Table 7",
    )
  ),
  table=(PAPER, 7),
  families=("linear", "U-Net"),
)
TABLE8 = Suite(
  "table8",
  "How noised may an image be that text follows?",
  (
    _named(UNET, "no limit"),
    _named(UNET, "t up to 500", diffusion__image_first_noise_cap=0.5),
  ),
  _claims("t up to 500", "no limit", CAPTIONS, "Table 8"),
  table=(PAPER, 8),
)
OBJECTIVE = Suite(
  "objective",
  "What is predicted, and along which path.",
  (
    _named(BASE, "eps"),
    _named(BASE, "v", diffusion__target="v"),
    _named(BASE, "x0", diffusion__target="x0"),
    _named(BASE, "eps, min-SNR", diffusion__min_snr_gamma=5.0),
    Arm("flow, uniform t", _FLOW),
    Arm("flow, logit-normal t", {**_FLOW, "diffusion.t_logit_std": 1.0}),
  ),
  (
    *_claims("flow, logit-normal t", "eps", ("scenes_frechet",), "2403.03206"),
    *_claims(
      "flow, logit-normal t", "flow, uniform t", ("scenes_frechet",), "2403.03206"
    ),
    *_claims("eps, min-SNR", "eps", ("scenes_frechet",), "2303.09556"),
  ),
  metrics=(*TEXT, *READING, *IMAGES),
)
UNTIED = Suite(
  "untied",
  "Weights of their own for patches, at the same FLOPs for each element.",
  (
    _named(BASE, "tied"),
    _named(BASE, "MLP untied", model__untied="mlp"),
    _named(BASE, "all untied", model__untied="all"),
  ),
  (
    *_claims("all untied", "tied", ("loss_grid", "scenes_frechet"), "2411.04996"),
    *_claims("MLP untied", "tied", ("loss_grid",), "2411.04996"),
    *_claims("all untied", "tied", TEXT, "2411.04996"),
  ),
  table=("2411.04996", "sizes"),
)
CONTEXT = Suite(
  "context",
  "How text sees the image before it: noised, less noised, clean, or both copies.",
  (
    _named(BASE, "noised"),
    _named(BASE, "t up to 500", diffusion__image_first_noise_cap=0.5),
    _named(BASE, "clean", diffusion__image_first_clean=1.0),
    _named(BASE, "both", diffusion__context="both"),
  ),
  (
    *_claims("clean", "noised", CAPTIONS, "2504.20996"),
    *_claims("both", "noised", CAPTIONS, "2505.14683"),
  ),
)
POSITIONS = Suite(
  "positions",
  "Where a patch stands: in the sequence, on one place with a vector, or on two axes.",
  (
    _named(BASE, "sequence"),
    _named(
      BASE,
      "shared, learned",
      model__positions="shared",
      model__patch_places="learned",
    ),
    _named(BASE, "shared, sine", model__positions="shared", model__patch_places="sine"),
    _named(BASE, "axial", model__positions="axial"),
  ),
  _claims("axial", "sequence", ("loss_grid", "scenes_frechet"), "ours"),
)
GUIDANCE = Suite(
  "guidance",
  "One model, sampled otherwise: scales of guidance, and steps.",
  (
    *(
      _named(BASE, f"guidance {scale:g}", sample__guidance=scale)
      for scale in (1.5, 2.0, 3.0, 5.0, 8.0)
    ),
    *(
      _named(BASE, f"{steps} steps", sample__steps=steps, sample__guidance=3.0)
      for steps in (10, 50, 100)
    ),
  ),
  _claims("guidance 3", "guidance 8", ("scenes_frechet",), "section 4.3"),
  metrics=IMAGES,
)
LAMBDA = Suite(
  "lambda",
  "The weight of the diffusion loss.",
  tuple(
    _named(BASE, f"lambda {weight:g}", diffusion__image_weight=weight)
    for weight in (1.0, 2.0, 5.0, 10.0)
  ),
  (
    Claim("lambda 5", "lambda 1", "loss_grid", "ours"),
    Claim("lambda 1", "lambda 10", "text_perplexity", "ours"),
  ),
)
_UNTIED_BASE = _named(BASE, "from nothing", model__untied="all")
WARMSTART = Suite(
  "warmstart",
  "Begin with a text model: frozen, slow, or free; or with nothing.",
  (
    _UNTIED_BASE,
    *(
      dataclasses.replace(
        _named(_UNTIED_BASE, name, train__text_lr_factor=factor), start=TEXT_ONLY
      )
      for name, factor in (("frozen", 0.0), ("slow", 0.1), ("free", 1.0))
    ),
  ),
  (
    *_claims("frozen", "from nothing", TEXT, "2412.15188"),
    *_claims("slow", "from nothing", TEXT, "2412.15188"),
    *_claims("free", "from nothing", ("loss_grid",), "2412.15188"),
  ),
  table=("2412.15188", "7b"),
)

SUITES = {
  suite.name: suite
  for suite in (
    *(TABLE3, TABLE4, TABLE5, TABLE6, TABLE7, TABLE8, OBJECTIVE, UNTIED),
    *(CONTEXT, POSITIONS, GUIDANCE, LAMBDA, WARMSTART),
  )
}


def with_arms(suite: Suite, only: Sequence[str]) -> Suite:
  """A suite with the arms alone that have one of these in their name; none: with all.

  Raises:
    ValueError: there is no such arm.
  """
  if not only:
    return suite
  arms = tuple(arm for arm in suite.arms if any(text in arm.name for text in only))
  for text in only:
    if not any(text in arm.name for arm in suite.arms):
      names = "; ".join(arm.name for arm in suite.arms)
      raise ValueError(f"--arm={text}: {suite.name} has {names}")
  return suite._replace(arms=arms, claims=())


def chosen(names: str) -> list[Suite]:
  """The suites of a list with commas; `all` is every one.

  Raises:
    ValueError: one is unknown or named twice, or there is none.
  """
  wanted = [name.strip() for name in names.split(",") if name.strip()]
  if wanted == ["all"]:
    return list(SUITES.values())
  for name in wanted:
    if name not in SUITES:
      raise ValueError(f"{name}: no such suite; known: all, {', '.join(SUITES)}")
    if wanted.count(name) > 1:
      raise ValueError(f"{name}: is named twice")
  if not wanted:
    raise ValueError(f"name a suite: all, {', '.join(SUITES)}")
  return [SUITES[name] for name in wanted]
