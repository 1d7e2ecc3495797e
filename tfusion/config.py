"""Every knob of a run, once, with its unit; all validation.

Owns: the frozen dataclasses, turning a ConfigDict into them, the checks before a run
starts. Not: an experiment's values (experiments/), a workdir's config (workdir.py).
"""

import dataclasses
import math
from typing import Any, TypeVar

import ml_collections

from tfusion import kinds as kinds_lib
from tfusion import parsing
from tfusion.kinds import Kind

D = TypeVar("D")  # a dataclass of sections


# Powers of two, which divide over devices, with 0.27B parameters in all for a width of
# 768 to 4,096 (arXiv 2408.11039, section 4.1 has the sum alone).
UNET_WIDTHS = {
  2: (512, 1_024),
  4: (512, 768, 768),
  8: (512, 512, 512, 768),
}


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """The transformer and its patch layers (arXiv 2408.11039, section 4.1, Table 2)."""

  layers: int = 4
  width: int = 192  # numbers of a position between layers
  heads: int = 4  # query heads, of width / heads numbers each
  head_size: int = 0  # numbers of a head, where others, as in some Qwen3; 0: those
  kv_heads: int = 4  # key/value heads; fewer than heads is grouped-query attention
  mlp: int = 512  # hidden width of SwiGLU
  vocab_size: int = 512  # rows of the embedding; a tokenizer may have fewer pieces
  image_shape: tuple[int, ...] = (8, 8, 1)  # height, width, channels of image or latent
  patch: int = 2  # side of a patch in pixels or latent cells: 1, 2, 4 or 8
  # How patches enter and leave the transformer: linear layers, or the two halves of a
  # U-Net (section 3), for patches of 2 and more; none: there are no patches, but text,
  # and images as codes in the vocabulary.
  patches: str = "linear"
  # What rows may hold beside text and images of this shape: images of other sizes,
  # waveforms, videos (docs/kinds.md); each as NAME:SHAPE,OPTION=VALUE,...
  kinds: tuple[str, ...] = ()
  # Channels of a U-Net at every size of the image from the whole down to the patches,
  # each half as large as the one before; empty: 0.27B parameters, ours.
  unet_widths: tuple[int, ...] = ()
  # What the patches of an image see of it: bidirectional, all of it (section 3), or
  # causal, those before them, as text does (Table 5).
  image_attention: str = "bidirectional"
  # How RoPE counts patches: sequence, on from one to the next, as text; shared, all
  # patches of an image at one position; axial, by row and column of the image, each in
  # half of the frequencies (docs/family.md).
  positions: str = "sequence"
  # What t is multiplied by before patch layers are told it. With 0.001 it runs from 0
  # to 1 at 1,000 timesteps, as in BAGEL.
  time_scale: float = 1.0
  # What is added to a patch for its place in the image: none; learned, a vector for
  # each place; or sine, fixed waves of row and column, as in DiT and BAGEL.
  patch_places: str = "none"
  # Of queries and keys, each head by itself, before RoPE: none; layer, Chameleon's with
  # a scale and a bias (arXiv 2405.09818, section 2.3); or rms, as in Qwen3.
  qk_norm: str = "none"
  # Whether attention and MLP have their norm before them, as Llama does, or after, as
  # Chameleon 34B does (the same section): x + norm(attention(x)).
  norms: str = "before"
  attention_bias: bool = False  # of queries, keys and values, as in Qwen2
  # What patches have of their own beside text: none; mlp, that of every layer; or all,
  # attention and norms too (Mixture-of-Transformers, arXiv 2411.04996).
  untied: str = "none"
  # Rank of a change to every matrix of text in attention and MLP that is learned at the
  # full rate beside it, or in its place with train.text_lr_factor=0 (LoRA, arXiv
  # 2106.09685); 0: none.
  lora_rank: int = 0
  # Share of the numbers of attention and MLP that a training step leaves out.
  dropout: float = 0.0
  rope_theta: float = 10_000.0
  # How RoPE's frequencies are stretched, as in Llama 3.1 and its kin: the factor, the
  # low and the high frequency factor, and the positions it was trained on before;
  # empty: they are not.
  rope_scaling: tuple[float, ...] = ()
  norm_eps: float = 1e-5
  # Of matmuls: float32, bfloat16, or auto, which is bfloat16 except on a CPU.
  dtype: str = "auto"
  # In which gradients of weights are summed and sent between devices; ours. float32
  # sends 4 bytes per parameter and update, bfloat16 2 (a 7B model: 27 or 13 GB).
  gradient_dtype: str = "float32"
  # What the backward pass computes again to save memory: none, dots (all but the
  # outputs of matmuls) or full.
  remat: str = "none"
  unroll: int = 1  # layers per iteration of the scan; a CPU is fastest with all of them
  attention: str = "auto"  # auto (by platform), dense, chunked, tpu or gpu

  @property
  def head_dim(self) -> int:
    """Numbers per head."""
    return self.head_size or self.width // self.heads

  @property
  def unet_levels(self) -> tuple[int, ...]:
    """Channels of a U-Net at every size of the image, from the whole to the patches."""
    return self.levels_of(self.patch)

  def levels_of(self, patch: int) -> tuple[int, ...]:
    """The same for patches of another side."""
    return self.unet_widths or UNET_WIDTHS[patch]

  @property
  def every_kind(self) -> tuple[Kind, ...]:
    """`image`, then those of `kinds`. Raises ValueError for one that cannot be."""
    patch, shape = self.patch, tuple(self.image_shape)
    return kinds_lib.parse(
      tuple(self.kinds), Kind(kinds_lib.FIRST, shape, (patch, patch), self.patches)
    )

  @property
  def patches_by_kind(self) -> tuple[int, ...]:
    """Patches of one image of every kind."""
    return tuple(kind.patches for kind in self.every_kind)

  @property
  def grid(self) -> tuple[int, int]:
    """Rows and columns of patches in an image."""
    return self.image_shape[0] // self.patch, self.image_shape[1] // self.patch

  @property
  def patches_per_image(self) -> int:
    """Patches of one image: elements between BOI and EOI."""
    return math.prod(self.grid)


@dataclasses.dataclass(frozen=True)
class DiffusionConfig:
  """The noise process; t = 0 is clean, t = timesteps is noise (section 3)."""

  timesteps: int = 1000  # of the noise schedule
  # How an image turns into noise: cosine is the paper's, with whole t; linear mixes
  # them in proportion to t (rectified flow, arXiv 2209.03003).
  schedule: str = "cosine"
  # What the network predicts: eps, the noise, as in the paper; x0, the clean image; or
  # v, the direction from the image to the noise.
  target: str = "eps"
  # In training log(t / (T - t)) has this deviation (arXiv 2403.03206, section 3.1); 0:
  # t is uniform, as in the paper.
  t_logit_std: float = 0.0
  t_logit_mean: float = 0.0  # its mean; above 0 is more noise
  t_shift: float = 1.0  # moves t towards noise, here and in sampling; 1: not
  # Weights of t are those of min-SNR (arXiv 2303.09556), where 5 is usual; 0: all t
  # weigh the same, as in the paper.
  min_snr_gamma: float = 0.0
  image_weight: float = 5.0  # lambda, the weight of the diffusion loss
  # The largest t of an image that learned text follows, as a share of timesteps; the
  # paper's Table 8 has 0.5.
  image_first_noise_cap: float = 1.0
  # The share of such images that are shown without noise, as in a prompt; ours.
  image_first_clean: float = 0.0
  # How an image looks to what follows it: noised, as it is learned, or as the two knobs
  # above have it; or both: it stands twice, clean for what follows and noised to be
  # learned, as in BAGEL (arXiv 2505.14683). docs/family.md has what that costs.
  context: str = "noised"
  # While sampling, the predicted clean image is kept within plus and minus this; 0: no
  # bound. Ours. Latents reach 12 (docs/sampling.md); pixels lie in [-1, 1], so 1.
  clip: float = 10.0


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """What rows are made of (section 4.1). An element is a token or a patch."""

  # Each is digits, pydoc, shapes:OPTIONS, folder:PATH or shards:PATH (docs/data.md).
  sources: tuple[str, ...] = ("digits", "pydoc")
  tokenizer: str = (
    ""  # a sentencepiece model or a tokenizer.json; empty: trained on the sources
  )
  row_length: int = 128  # elements in a row
  image_slots: int = 8  # images that a row can hold
  # Whether a document sees itself alone, and none of those before it in its row; ours.
  isolate_documents: bool = True
  # Elements of text for every patch, where the sources have enough of both; the paper
  # mixes them 1:1. Unused with weights.
  text_per_patch: float = 1.0
  weights: tuple[float, ...] = ()  # of each source, its share of the elements
  epochs: tuple[
    int, ...
  ] = ()  # of each source, before it is used up; 0 or empty: no end
  caption_first: float = 0.8  # share of pairs whose caption comes before the image
  caption_dropout: float = 0.1  # share of those pairs that lose their caption; ours
  # A document that fits no row is left out (reject) or cut into several rows (split).
  too_long: str = "reject"
  # Elements that a piece of a cut document repeats of the piece before, not learned.
  overlap: int = 0
  max_damaged: int = 16  # damaged records that a lane may skip before the run stops
  lanes: int = 4  # independent streams of rows; the number of hosts must divide them
  # How many rows' worth of documents wait, so that some of them fill a row well.
  packing_rows: int = 3
  workers: int = 1  # processes per host that make rows; 0: the training loop does


@dataclasses.dataclass(frozen=True)
class OptimConfig:
  """AdamW as in section 4.1; EMA is ours."""

  peak_lr: float = 3e-4  # 1/update, after warm-up
  end_lr: float = 1.5e-5  # 1/update, after the last step
  # From peak_lr to end_lr: a cosine, or exponential: one ratio from update to update.
  decay: str = "cosine"
  warmup_steps: int = 4000  # updates in which the rate rises from 0
  b1: float = 0.9
  b2: float = 0.95
  eps: float = 1e-8
  weight_decay: float = 0.1  # of matrices; biases and norms have none
  clip_norm: float = 1.0  # largest norm of the gradient of all parameters together
  # Of the average of the weights that is kept for sampling, per update; 0: no average.
  ema_decay: float = 0.0


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Devices along each axis of the mesh; their product is the number of devices."""

  # Copies of the parameters; -1: as many as the other axes leave. Slices of TPUs, and
  # whatever else a slow network joins, lie along this axis.
  data: int = -1
  fsdp: int = 1  # parts into which parameters and batch are cut; -1 as for data
  context: int = 1  # parts into which a row is cut
  tensor: int = 1  # parts into which heads, mlp and vocabulary are cut


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """The loop. Steps are updates of the parameters."""

  # A folder of weights that the run begins with: of a Llama or a Qwen, or what `tfusion
  # export` wrote; a run that goes on does not read it. Empty: random numbers.
  init_from: str = ""
  steps: int = 2000
  batch_rows: int = 16  # rows per update, over all hosts
  # Weight of log^2 Z at every target, where Z is the sum that its softmax divides by
  # (arXiv 2405.09818, section 2.3, has 1e-5); 0: none.
  z_loss: float = 0.0
  # What the learning rate is multiplied by, for parameters that text uses and for those
  # that patches alone have: patch layers, and what model.untied gives them. At 0 they
  # stay as they are (LMFusion, arXiv 2412.15188).
  text_lr_factor: float = 1.0
  image_lr_factor: float = 1.0
  accumulate: int = 1  # parts of a batch whose gradients are summed, to save memory
  log_every_steps: int = 20
  # Where the numbers of a run go too, beside its own files: tensorboard and wandb
  # (Weights & Biases), each with the extra of that name.
  loggers: tuple[str, ...] = ()
  eval_every_steps: int = 500
  eval_rows: int = 64  # held-out rows per evaluation
  save_every_steps: int = 500
  keep_last: int = 2  # newest checkpoints to keep
  keep_every_steps: int = 0  # also keep checkpoints of multiples of this; 0: none
  # Updates whose numbers are not finite are skipped; so many in a row stop the run.
  max_skipped_updates: int = 5
  # So long without an update, a run writes where it stands and ends; 0: it never does.
  # Saves, evaluations and the start have six times as long, or more with progress.
  stall_seconds: int = 600


@dataclasses.dataclass(frozen=True)
class SampleConfig:
  """Generation (sections 3 and 4.1)."""

  # With diffusion.schedule=cosine ddpm, ddim or dpmpp_2m; with linear euler, heun or
  # dpmpp_2m (docs/sampling.md).
  sampler: str = "ddpm"
  steps: int = 250  # denoising steps
  start: float = 0.97  # where they begin, as a share of diffusion.timesteps; ours
  guidance: float = 3.0  # scale of classifier-free guidance; 1: none
  # Guidance acts from the first of these shares of diffusion.timesteps up to the second
  # (arXiv 2404.07724); outside, the scale is 1.
  guidance_from: float = 0.0
  guidance_to: float = 1.0
  # How far the deviation of what is predicted with guidance is brought back to that
  # without (arXiv 2305.08891, section 3.4, has 0.7); 0: not.
  guidance_rescale: float = 0.0
  # Of images as patches, where images stand before: guidance by these, apart from that
  # by the text (arXiv 2211.09800); 0: both are guidance.
  guidance_by_images: float = 0.0
  # Of images as codes: guidance by the images that stand before, beside that by all
  # that does. This and the next two are those of Chameleon's code.
  image_guidance: float = 1.2
  code_temperature: float = 0.7  # of codes; 0: the likeliest every time
  code_top_p: float = 0.9  # the likeliest codes are drawn from, so likely together
  temperature: float = 0.0  # of text; 0: the likeliest token every time
  # Of text with a temperature: how many of the likeliest tokens are drawn from, 0: all;
  top_k: int = 0
  # the likeliest, so likely together (arXiv 1904.09751); 1: all;
  top_p: float = 1.0
  # those so many times as likely as the likeliest (arXiv 2407.01082); 0: all.
  min_p: float = 0.0
  # Tokens that stand in the row already are made this much less likely (arXiv
  # 1909.05858); 1: not.
  repetition: float = 1.0
  max_elements: int = 256  # of a sequence, prompt included: the size of its cache


@dataclasses.dataclass(frozen=True)
class EvalConfig:
  """What is sampled while training, and measured by `tfusion eval`."""

  # Images of each digit; of the source shapes, documents of each part.
  samples_per_class: int = 50
  batch: int = 100  # sequences that are sampled together
  text_rows: int = 256  # held-out rows for the perplexity of text, at most
  # What is continued at every evaluation; <image> stands where an image is wanted.
  prompts: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Config:
  """A whole run."""

  seed: int = 0  # of all that is random: parameters, order of the data, noise
  model: ModelConfig = ModelConfig()
  diffusion: DiffusionConfig = DiffusionConfig()
  data: DataConfig = DataConfig()
  optim: OptimConfig = OptimConfig()
  mesh: MeshConfig = MeshConfig()
  train: TrainConfig = TrainConfig()
  sample: SampleConfig = SampleConfig()
  eval: EvalConfig = EvalConfig()


CHOICES = {
  "model.patch": (1, 2, 4, 8),
  "model.patches": ("linear", "unet", "none"),
  "model.image_attention": ("bidirectional", "causal"),
  "model.positions": ("sequence", "shared", "axial"),
  "model.patch_places": ("none", "learned", "sine"),
  "model.qk_norm": ("none", "layer", "rms"),
  "model.norms": ("before", "after"),
  "model.untied": ("none", "mlp", "all"),
  "model.dtype": ("auto", "float32", "bfloat16"),
  "model.gradient_dtype": ("float32", "bfloat16"),
  "model.remat": ("none", "dots", "full"),
  "model.attention": ("auto", "dense", "chunked", "tpu", "gpu"),
  "data.too_long": ("reject", "split"),
  "diffusion.schedule": ("cosine", "linear"),
  "diffusion.target": ("eps", "x0", "v"),
  "diffusion.context": ("noised", "both"),
  "optim.decay": ("cosine", "exponential"),
  "sample.sampler": ("ddpm", "ddim", "euler", "heun", "dpmpp_2m"),
}
SAMPLERS = {  # of each diffusion.schedule
  "cosine": ("ddpm", "ddim", "dpmpp_2m"),
  "linear": ("euler", "heun", "dpmpp_2m"),
}

LOGGERS = ("tensorboard", "wandb")

SHARDED = dict.fromkeys(
  "model.heads model.kv_heads model.mlp model.vocab_size".split(), "mesh.tensor"
)
SHARDED |= {"model.width": "mesh.fsdp", "data.row_length": "mesh.context"}
LONGEST_ROW = 1 << 22  # elements
SEEDS = "in [0, 2**32): jax.random would take a larger one for another"
RANGES = {
  "at least 1": (lambda x: x >= 1, "sample.repetition"),
  "above 0": (
    lambda x: x > 0,
    "model.layers model.width model.heads model.kv_heads model.mlp model.vocab_size"
    " model.rope_theta model.norm_eps model.unroll model.time_scale"
    " diffusion.timesteps"
    " data.image_slots data.text_per_patch data.lanes data.packing_rows optim.peak_lr"
    " diffusion.t_shift optim.eps optim.clip_norm mesh.context mesh.tensor train.steps"
    " train.batch_rows train.accumulate train.log_every_steps train.eval_every_steps"
    " train.eval_rows train.save_every_steps train.keep_last train.max_skipped_updates"
    " sample.steps sample.max_elements eval.samples_per_class eval.batch"
    " eval.text_rows",
  ),
  "at least 0": (
    lambda x: x >= 0,
    "model.head_size model.lora_rank diffusion.image_weight diffusion.clip"
    " diffusion.t_logit_std"
    " diffusion.min_snr_gamma data.overlap data.max_damaged"
    " data.workers optim.end_lr optim.warmup_steps optim.weight_decay"
    " train.text_lr_factor train.image_lr_factor"
    " train.z_loss train.keep_every_steps train.stall_seconds sample.temperature"
    " sample.code_temperature sample.top_k sample.guidance_by_images",
  ),
  # A row is filled, and held whole on the host; so long a one is a slip of the pen.
  f"in [1, {LONGEST_ROW}]": (lambda x: 1 <= x <= LONGEST_ROW, "data.row_length"),
  SEEDS: (lambda x: 0 <= x < 2**32, "seed"),
  "in (0, 1]": (
    lambda x: 0 < x <= 1,
    "diffusion.image_first_noise_cap sample.start sample.code_top_p sample.top_p"
    " sample.guidance_to",
  ),
  "in [0, 1]": (
    lambda x: 0 <= x <= 1,
    "data.caption_first data.caption_dropout diffusion.image_first_clean"
    " sample.guidance_rescale",
  ),
  "in [0, 1)": (
    lambda x: 0 <= x < 1,
    "model.dropout optim.b1 optim.b2 optim.ema_decay sample.min_p sample.guidance_from",
  ),
}


def slots_of(config: Config) -> tuple[int, ...]:
  """The images that a row can hold, of every kind."""
  first, *others = config.model.every_kind
  slots, length = config.data.image_slots, config.data.row_length
  # BOS stands before them, BOI and EOI around each.
  fit = (max((length - 1) // (kind.patches + 2), 1) for kind in others)
  return slots, *(
    kind.slots or min(slots, most) for kind, most in zip(others, fit, strict=True)
  )


def diffusion_of(config: Config, kind: Kind) -> DiffusionConfig:
  """The noise process of a kind, and the weight of its loss."""
  noise = config.diffusion
  given = {
    "image_weight": kind.weight,
    "schedule": kind.schedule,
    "target": kind.target,
    "t_shift": kind.shift,
    "clip": kind.clip,
  }
  known: Any = {key: value for key, value in given.items() if value is not None}
  return dataclasses.replace(noise, **known)


def defaults() -> ml_collections.ConfigDict:
  """Returns the default Config as a ConfigDict for an experiment file to change."""
  return ml_collections.ConfigDict(dataclasses.asdict(Config()))


def parse_arg(arg: str, **known: Any) -> ml_collections.ConfigDict:
  """Parses the `arg,key=value` behind `--config file.py:`.

  Args:
    arg: comma-separated `key=value`; a bare `key` is True.
    **known: every key with its default, whose type the value takes.

  Raises:
    ValueError: an unknown key or a value of another type.
  """
  values = dict(known)
  for item in filter(None, arg.split(",")):
    key, _, text = item.partition("=")
    if key not in known:
      raise ValueError(
        f"config argument {key!r} is not known; known: {sorted(known)}; a comma ends a"
        " value and begins the next argument"
      )
    kind = type(known[key])
    try:
      values[key] = _parse_bool(text or "true") if kind is bool else kind(text)
    except ValueError as error:
      raise ValueError(
        f"config argument {key}={text!r}: expected {kind.__name__}"
      ) from error
  return ml_collections.ConfigDict(values)


def from_dict(values: Any) -> Config:
  """Turns a ConfigDict (or nested dict) into a checked Config.

  Raises:
    ValueError: an unknown or missing key, a wrong type, or a value that cannot be.
  """
  config = build(Config, values)
  validate(config)
  return config


def validate(config: Config) -> None:
  """Checks what can be known without devices, files or data.

  Raises:
    ValueError: names the key, the value and the remedy; all problems in one message.
  """
  flat = flatten(config)
  problems = choice_problems(flat, CHOICES) + range_problems(flat, RANGES)
  if problems:  # the checks below divide by these
    raise ValueError("\n".join(problems))
  m, d, t = config.model, config.data, config.train

  def require(good: bool, message: str):
    if not good:
      problems.append(message)

  require(len(m.image_shape) == 3, f"model.image_shape={m.image_shape}: give h, w, c")
  require(
    all(s > 0 for s in m.image_shape)
    and all(side % m.patch == 0 for side in m.image_shape[:2]),
    f"model.image_shape={m.image_shape}: sides must divide by model.patch={m.patch}",
  )
  require(
    m.head_size > 0 or m.width % (2 * m.heads) == 0,
    f"model.width={m.width}: must be an even multiple of model.heads={m.heads}",
  )
  require(
    m.head_size % 2 == 0,
    f"model.head_size={m.head_size}: must be even: RoPE turns pairs of numbers",
  )
  problems += _scaling_problems(m.rope_scaling)
  require(
    m.heads % m.kv_heads == 0,
    f"model.heads={m.heads}: must divide by model.kv_heads={m.kv_heads}",
  )
  if not problems:
    problems += _kind_problems(config)
  if not problems and m.patches != "none":
    for kind in m.every_kind:
      one = "an image" if kind.name == kinds_lib.FIRST else f"one {kind.name}"
      require(
        d.row_length >= kind.patches + 4,
        f"data.row_length={d.row_length}: {one} and one token take"
        f" {kind.patches + 4} elements; make rows longer or model.patch larger",
      )
  for key, value in (("data.lanes", d.lanes), ("train.accumulate", t.accumulate)):
    require(
      t.batch_rows % value == 0,
      f"train.batch_rows={t.batch_rows}: must divide by {key}={value}",
    )
  problems += logger_problems(t.loggers) + _data_problems(d)
  if m.patches == "unet":
    problems += _unet_problems(m)
  problems += _place_problems(m)
  require(
    t.text_lr_factor > 0 or t.image_lr_factor > 0,
    "train.text_lr_factor=0.0, train.image_lr_factor=0.0: nothing would learn",
  )
  require(
    m.untied == "none" or m.patches != "none",
    f"model.untied={m.untied}: is of patches, and model.patches=none has none",
  )
  problems += _diffusion_problems(config)
  first = round(config.sample.start * config.diffusion.timesteps)
  require(
    config.sample.steps <= first,
    f"sample.steps={config.sample.steps}: more than the {first} timesteps that"
    f" sample.start={config.sample.start:g} of diffusion.timesteps"
    f"={config.diffusion.timesteps} leaves",
  )
  problems += rate_problems(config.optim)
  for key in ("data", "fsdp"):
    size = getattr(config.mesh, key)
    require(
      size == -1 or size > 0,
      f"mesh.{key}={size}: a count of devices, or -1 for the rest",
    )
  require(
    (config.mesh.data, config.mesh.fsdp) != (-1, -1),
    "mesh.data=-1, mesh.fsdp=-1: only one of them can be what the others leave; with"
    " mesh.data=1 all devices of a slice share the parameters",
  )
  if problems:
    raise ValueError("\n".join(problems))


def logger_problems(loggers: tuple[str, ...]) -> list[str]:
  """A message for every entry of train.loggers that cannot be."""
  problems = [
    f"train.loggers={loggers}: {name!r} is not known; choose from {LOGGERS}"
    for name in loggers
    if name not in LOGGERS
  ]
  if len(set(loggers)) < len(loggers):
    problems.append(f"train.loggers={loggers}: name each of them once")
  return problems


def _unet_problems(model: ModelConfig) -> list[str]:
  if model.patch == 1:
    return [
      "model.patch=1: a U-Net makes patches of 2 and more; set model.patches=linear"
    ]
  problems, count = [], model.patch.bit_length()
  if len(model.unet_levels) != count:
    problems.append(
      f"model.unet_widths={model.unet_widths}: model.patch={model.patch} takes {count}"
      " widths, from the whole image down to the patches"
    )
  if min(model.unet_levels) < 1:
    problems.append(f"model.unet_widths={model.unet_widths}: must be above 0")
  return problems


def _kind_problems(config: Config) -> list[str]:
  model = config.model
  if not model.kinds:
    return []
  if model.patches == "none":
    return [
      f"model.kinds={model.kinds}: are of patches, and model.patches=none has none"
    ]
  try:
    kinds = model.every_kind
  except ValueError as error:
    return [str(error)]
  problems, sampler = [], config.sample.sampler
  for kind in kinds[1:]:
    if kind.layers == "unet" and not kind.like:
      count = kind.patch[0].bit_length()
      if len(model.levels_of(kind.patch[0])) != count:
        problems.append(
          f"model.unet_widths={model.unet_widths}: patches of {kind.patch[0]}, as"
          f" {kind.name} of model.kinds has, take {count} widths"
        )
    schedule = diffusion_of(config, kind).schedule
    if sampler not in SAMPLERS[schedule]:
      problems.append(
        f"sample.sampler={sampler!r}: {kind.name} of model.kinds has the schedule"
        f" {schedule}; one of {SAMPLERS[schedule]} serves it, and dpmpp_2m all"
      )
    in_rows = model.positions == "axial" or model.patch_places == "sine"
    if in_rows and len(kind.grid) > 2:
      problems.append(
        f"model.kinds: {kind.name} has {len(kind.grid)} dimensions, but"
        f" model.positions={model.positions}, model.patch_places="
        f"{model.patch_places} are of rows and columns; with others all kinds can be"
      )
  return problems


def _scaling_problems(scaling: tuple[float, ...]) -> list[str]:
  if not scaling:
    return []
  if len(scaling) == 4 and min(scaling) > 0 and scaling[1] < scaling[2]:
    return []
  return [
    f"model.rope_scaling={scaling}: give none, or four numbers above 0: factor, low and"
    " high frequency factor, the low one below the high one, and the positions before"
  ]


def _place_problems(model: ModelConfig) -> list[str]:
  problems = []
  for key, off in (("positions", "sequence"), ("patch_places", "none")):
    value = getattr(model, key)
    if model.patches == "none" and value != off:
      problems.append(
        f"model.{key}={value!r}: is of patches, but model.patches=none; set {off}"
      )
  if model.positions == "axial" and model.head_dim % 4:
    of_width = f"model.width={model.width} must be a multiple of 4 * model.heads"
    of_size = f"model.head_size={model.head_size} must be a multiple of 4"
    problems.append(
      "model.positions='axial': rows and columns take half of a head's pairs each, so"
      f" {of_size if model.head_size else f'{of_width}={model.heads}'}"
    )
  if model.patch_places == "sine" and model.width % 4:
    problems.append(
      f"model.patch_places='sine': has sines and cosines of rows and of columns, so"
      f" model.width={model.width} must be a multiple of 4"
    )
  return problems


def _diffusion_problems(config: Config) -> list[str]:
  problems, noise, sample = [], config.diffusion, config.sample
  known = SAMPLERS[noise.schedule]
  if sample.sampler not in known:
    problems.append(
      f"sample.sampler={sample.sampler!r}: with diffusion.schedule={noise.schedule}"
      f" choose one of {known}"
    )
  if (noise.schedule, noise.target, sample.start) == ("linear", "eps", 1.0):
    problems.append(
      "sample.start=1.0: with diffusion.schedule=linear and diffusion.target=eps no"
      " image is left there to divide by; begin below 1, or train with v"
    )
  if sample.guidance_from >= sample.guidance_to:
    problems.append(
      f"sample.guidance_from={sample.guidance_from:g}: must be below"
      f" sample.guidance_to={sample.guidance_to:g}"
    )
  if noise.context == "both":
    problems += _context_problems(config)
  if noise.t_logit_mean and not noise.t_logit_std:
    problems.append(
      f"diffusion.t_logit_mean={noise.t_logit_mean:g}: is of a logit-normal t; give"
      " diffusion.t_logit_std too"
    )
  return problems


def _context_problems(config: Config) -> list[str]:
  problems, both = [], "diffusion.context='both'"
  if config.model.patches == "none":
    problems.append(f"{both}: is of noised images, but model.patches=none; set noised")
  if not config.data.isolate_documents:
    problems.append(
      f"{both}: a noised copy must not see the clean one, which may stand before it in"
      " its row; set data.isolate_documents=True"
    )
  for key, off in (("image_first_noise_cap", 1.0), ("image_first_clean", 0.0)):
    value = getattr(config.diffusion, key)
    if value != off:
      problems.append(
        f"diffusion.{key}={value:g}: with {both} what follows an image sees it clean,"
        f" and all its noise is learned; set {off:g}"
      )
  return problems


def _data_problems(data: DataConfig) -> list[str]:
  problems, count = [], len(data.sources)
  if not count:
    problems.append("data.sources=(): name at least one source")
  for key, values in (("weights", data.weights), ("epochs", data.epochs)):
    if values and len(values) != count:
      problems.append(
        f"data.{key}={values}: {len(values)} values for {count} data.sources; give one"
        " for each, or none"
      )
  if not all(weight > 0 for weight in data.weights):
    problems.append(
      f"data.weights={data.weights}: must be above 0; leave a source out instead"
    )
  if data.epochs and (min(data.epochs) < 0 or 0 not in data.epochs):
    problems.append(
      f"data.epochs={data.epochs}: must be at least 0, and 0, without end, for one"
      " source, or the rows would end before the training"
    )
  if data.overlap > data.row_length // 2:
    problems.append(
      f"data.overlap={data.overlap}: above half of data.row_length={data.row_length}"
    )
  return problems


def validate_devices(config: Config, *, devices: int, hosts: int) -> None:
  """Checks what depends on the machines: mesh, batch and lanes.

  Raises:
    ValueError: the mesh does not use all devices, the batch does not divide over it,
      or the lanes do not divide over the hosts (the message lists counts that do).
  """
  mesh, t, lanes = config.mesh, config.train, config.data.lanes
  sizes = mesh_sizes(mesh, devices=devices)
  if math.prod(sizes.values()) != devices:
    given = ", ".join(
      f"mesh.{axis}={n}" for axis, n in dataclasses.asdict(mesh).items()
    )
    raise ValueError(
      f"{given}: does not fit {devices} devices, whose number the product must be; one"
      " of mesh.data and mesh.fsdp may be -1, for what the others leave"
    )
  rows, shards = t.batch_rows // t.accumulate, sizes["data"] * sizes["fsdp"]
  if rows % shards:
    raise ValueError(
      f"train.batch_rows={t.batch_rows} in train.accumulate={t.accumulate} parts gives"
      f" {rows} rows, which do not divide over mesh data*fsdp={shards}; give each part"
      " a multiple of that, or choose another mesh"
    )
  if lanes % hosts:
    good = [n for n in range(1, lanes + 1) if lanes % n == 0]
    raise ValueError(f"data.lanes={lanes} do not divide over {hosts} hosts; use {good}")
  if shards % hosts:
    raise ValueError(
      f"mesh.context={mesh.context}, mesh.tensor={mesh.tensor}: {hosts} hosts would"
      f" share rows, but each reads its own; they must divide mesh data*fsdp={shards}"
    )
  if config.model.patches == "unet":
    for width in config.model.unet_levels:
      if width % sizes["fsdp"]:
        raise ValueError(
          f"model.unet_widths: {width} does not divide by mesh.fsdp={sizes['fsdp']}"
        )
  values = flatten(config)
  for key, axis in SHARDED.items():
    size = sizes[axis.removeprefix("mesh.")]
    if values[key] % size:
      raise ValueError(
        f"{key}={values[key]} does not divide by {axis}={size}; choose a multiple of"
        f" that, or another {axis}"
      )


def mesh_sizes(mesh: MeshConfig, *, devices: int) -> dict[str, int]:
  """Devices along every axis; what is -1 takes what the others leave."""
  sizes = dataclasses.asdict(mesh)
  known = math.prod(size for size in sizes.values() if size != -1)
  return {n: max(devices // known, 1) if s == -1 else s for n, s in sizes.items()}


def choice_problems(flat: dict[str, Any], choices: dict[str, Any]) -> list[str]:
  """A message for every value that is not a choice, of a table such as CHOICES."""
  return [
    f"{key}={flat[key]!r}: choose one of {known}"
    for key, known in choices.items()
    if flat[key] not in known
  ]


def range_problems(flat: dict[str, Any], ranges: dict[str, Any]) -> list[str]:
  """A message for every value outside its range, of a table such as RANGES."""
  return [
    f"{key}={flat[key]}: must be {words}"
    for words, (good, keys) in ranges.items()
    for key in keys.split()
    if not good(flat[key])
  ]


def rate_problems(optim: OptimConfig) -> list[str]:
  """A message for each way in which the ends of the rate do not fit together."""
  problems = []
  if optim.end_lr > optim.peak_lr:
    problems.append(f"optim.end_lr={optim.end_lr}: above optim.peak_lr={optim.peak_lr}")
  if optim.decay == "exponential" and optim.end_lr == 0:
    problems.append(
      "optim.end_lr=0: optim.decay=exponential never reaches 0; give a small rate, such"
      " as a hundredth of optim.peak_lr"
    )
  return problems


def flatten(config: Any) -> dict[str, Any]:
  """Returns {"section.key": value} of a dataclass of them, in declaration order."""
  flat: dict[str, Any] = {}
  for field in dataclasses.fields(config):
    value = getattr(config, field.name)
    if dataclasses.is_dataclass(value):
      flat |= {
        f"{field.name}.{f.name}": getattr(value, f.name)
        for f in dataclasses.fields(value)
      }
    else:
      flat[field.name] = value
  return flat


def _parse_bool(text: str) -> bool:
  if text.lower() not in ("true", "false", "1", "0"):
    raise ValueError(text)
  return text.lower() in ("true", "1")


def build(kind: type[D], values: Any) -> D:
  """Builds a dataclass of knobs from a ConfigDict or nested dict.

  Args:
    kind: of nested dataclasses.
    values: every key must be there and be right.

  Raises:
    ValueError: an unknown or missing key, a wrong type, or a number that is too large
      or not finite.
  """
  if isinstance(values, ml_collections.ConfigDict):
    values = values.to_dict()
  config = parsing.build(kind, values, whole="config")
  for key, value in flatten(config).items():
    for one in value if isinstance(value, tuple) else (value,):
      # Programs count with 32 bits, one of which is the sign's, but not a seed's.
      most = 2**32 - 1 if key == "seed" else 2**31 - 1
      if isinstance(one, int) and abs(one) > most:
        raise ValueError(f"{key}={value}: too large; at most {most}")
      if isinstance(one, float) and not math.isfinite(one):
        raise ValueError(f"{key}={value}: expected a finite float")
  return config
