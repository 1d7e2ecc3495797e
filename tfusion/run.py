"""A run in its workdir: train it, open it, sample with it, evaluate it.

Owns: Run, and which loop and which evaluations a config is trained with. Not: the loops
(training/loop.py, autoencoder/loop.py), arguments of the command line (arguments.py).
"""

import functools
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, overload

import jax
from PIL import Image as Pillow

from tfusion import files, report, startup
from tfusion import workdir as workdir_lib
from tfusion.autoencoder import codec as codec_lib
from tfusion.autoencoder import loop as autoencoder_loop
from tfusion.autoencoder.codec import Codec
from tfusion.autoencoder_config import AutoencoderConfig
from tfusion.checkpoint import Checkpoints
from tfusion.config import Config
from tfusion.config_file import full_names, with_knobs
from tfusion.data import prepared
from tfusion.data.pipeline import open_corpus
from tfusion.data.tokenizer import Tokenizer
from tfusion.evaluate import likelihood
from tfusion.evaluate import suite as suite_lib
from tfusion.evaluate.grids import SampleGrids
from tfusion.evaluate.reconstructions import Reconstructions
from tfusion.generate import samples
from tfusion.generate import stream as stream_lib
from tfusion.generate.canvas import Canvas, open_canvas
from tfusion.generate.events import Event
from tfusion.generate.prompt import escape
from tfusion.generate.samples import Asked, Sample, Samples
from tfusion.generate.trained import Trained, of_state, open_trained
from tfusion.interop import export as export_lib
from tfusion.interop.weights import InitFrom
from tfusion.model.transfusion import Params
from tfusion.serve import address
from tfusion.together import check_hosts, together
from tfusion.training import loop
from tfusion.training.stop import StopSignals

CHECKPOINTS = "checkpoints"  # in a workdir
# What `sample` and `evaluate` may change: all else would make it another model.
SAMPLING = ("sample.", "eval.", "diffusion.clip")


class Score(NamedTuple):
  """Of a text: how much of it was not foreseen."""

  nats: float  # minus the sum of the logs of the probabilities of its tokens
  tokens: int
  text_bytes: int

  @property
  def perplexity(self) -> float:
    """exp of nats per token."""
    return math.exp(self.nats / self.tokens)

  @property
  def bits_per_byte(self) -> float:
    """Of UTF-8, which compares models of different tokenizers."""
    return self.nats / math.log(2) / self.text_bytes


def _with_image(image: Any, text: str) -> tuple[Any, ...]:
  """A prompt of an image and text behind it; a str is a path."""
  image = Path(image) if isinstance(image, str) else image
  return (image, text) if text else (image,)


class Run:
  """A model at one step of its run. Its methods must be called on all hosts.

  Attributes:
    config: of the run.
    step: updates done.
    params: the parameters to sample with: the moving average, if the run keeps one.
    tokenizer: of the run.
    workdir: of the run.
  """

  def __init__(self, trained: Trained, workdir: str | Path):
    """Takes a model that was read from a workdir or trained there."""
    self._trained = trained
    self.config: Config = trained.config
    self.step: int = trained.step
    self.params: Params = trained.params
    self.tokenizer: Tokenizer = trained.tokenizer
    self.workdir = files.to_path(workdir)

  def __repr__(self) -> str:
    return f"Run({str(self.workdir)!r}, step={self.step})"

  @overload
  def sample(
    self,
    prompts: str | tuple[Any, ...],
    *,
    count: None = None,
    seed: int | Sequence[int] = 0,
    **knobs: Any,
  ) -> Sample: ...

  @overload
  def sample(
    self,
    prompts: Asked | Sequence[Asked],
    *,
    count: int | None = None,
    seed: int | Sequence[int] = 0,
    **knobs: Any,
  ) -> Samples: ...

  def sample(
    self,
    prompts: Asked | Sequence[Asked],
    *,
    count: int | None = None,
    seed: int | Sequence[int] = 0,
    **knobs: Any,
  ) -> Sample | Samples:
    r"""Continues prompts with text and images.

      made = run.sample("a handwritten seven <image>")
      made.images[0].show()
      run.sample("<image:scan.png>").text
      run.sample(["a red star <image>", "a ring"], count=4, guidance=5.0).save("out")

    The first call compiles; later ones of as many samples and about the same length
    do not, whatever the seed.

    Args:
      prompts: one, or a list of several, of text with marks: at `<image>` the model
        makes an image, `<image:FILE>` shows it one, and `\<` is a sign that is text. A
        tuple is one prompt in parts: such text, and images as paths, pixels u8[h, w, 1
        or 3] or images of Pillow.
      count: samples of each prompt; None: one.
      seed: of the noise and of text, in [0, 2**32). The same seed gives the same
        samples. A list has a seed of each sample, which then is the one that its
        prompt gives alone with this seed.
      **knobs: of section `sample`, such as steps or temperature, for this call; also
        `**{"diffusion.clip": 1.0}`.

    Returns:
      A Sample for one prompt without a count; otherwise Samples, those of one prompt
      one after the other.

    Raises:
      ValueError: a prompt that cannot be read or continued, a knob that is unknown or
        out of range, or there is no autoencoder to see latents with.
    """
    one = isinstance(prompts, str | tuple)
    asked: list[Any] = [prompts] if one else list(prompts)
    trained = self._trained._replace(config=self._config_with(knobs))
    made = samples.sample(
      trained,
      asked,
      canvas=self._canvas,
      count=1 if count is None else count,
      seed=seed,
    )
    return made[0] if one and count is None else made

  def stream(
    self, prompt: Asked, *, seed: int = 0, every: int = 10, **knobs: Any
  ) -> Iterator[Event]:
    """Continues one prompt as `sample` does, and says what happens on the way.

      for event in run.stream("a handwritten seven <image>"):
        match event:
          case tfusion.Wrote(text):
            print(text, end="")
          case tfusion.Denoised(image, number, step, steps):
            image.save("so_far.png")
          case tfusion.Drew(image):
            image.save("seven.png")
          case tfusion.Ended(sample):
            sample.save("out")

    The last event has the Sample, which `sample` gives too, bit for bit. Who takes no
    more events ends the work. A call with another `every`, or with `sample` before it,
    does not compile again.

    Args:
      prompt: one, as of `sample`.
      seed: as of `sample`.
      every: evaluations of the model between two events Denoised; 0: there are none.
        Images that are codes have none.
      **knobs: as of `sample`.

    Raises:
      ValueError: as `sample`, at once.
    """
    trained = self._trained._replace(config=self._config_with(knobs))
    return stream_lib.stream(
      trained, prompt, canvas=self._canvas, seed=seed, every=every
    )

  def caption(
    self, image: Any, *, prompt: str = "", seed: int = 0, **knobs: Any
  ) -> str:
    """Says what the model writes behind an image.

    Args:
      image: a path, pixels u8[h, w, 1 or 3] or an image of Pillow.
      prompt: text that stands between the image and what is written.
      seed: of text that is drawn.
      **knobs: as of `sample`.

    Raises:
      ValueError: as `sample`.
    """
    return self.sample(_with_image(image, prompt), seed=seed, **knobs).text

  def edit(
    self, image: Any, instruction: str, *, seed: int = 0, **knobs: Any
  ) -> Pillow.Image:
    """Makes an image from an image and what is to be done with it.

    A model that was trained on image, instruction, image in this order can do it, as of
    the source `shapes:edits`.

    Args:
      image: a path, pixels u8[h, w, 1 or 3] or an image of Pillow.
      instruction: text; signs of marks are text.
      seed: of the noise.
      **knobs: as of `sample`.

    Raises:
      ValueError: as `sample`.
    """
    asked = (*_with_image(image, escape(instruction)), "<image>")
    return self.sample(asked, seed=seed, **knobs).images[0]

  def score(self, text: str, *, context: str = "") -> Score:
    """Says how likely a text is.

    Args:
      text: what is scored, EOS not among it.
      context: stands before it; one that is too long for a row loses its beginning, and
        a text that is longer than a row is scored in pieces, each behind the token
        before it.

    Raises:
      ValueError: the text is empty, or a context is given to one longer than a row.
    """
    encode, room = self.tokenizer.encode, self.config.data.row_length - 1  # BOS
    ids, before = encode(text).tolist(), encode(context).tolist()
    if not ids:
      raise ValueError("text='': give some text to score")
    if before and len(ids) > room:
      raise ValueError(
        f"a text of {len(ids)} tokens behind a context: at most {room} fit a row of"
        f" data.row_length={self.config.data.row_length}"
      )
    pairs = [(before, ids)] if before else likelihood.windows(ids, room=room)
    with jax.set_mesh(self._trained.mesh):
      found = likelihood.measure(self._trained, pairs)
    nats = -sum(one.log for one in found)
    return Score(nats, len(ids), len(text.encode()))

  def evaluate(
    self, suite: str = "", *, data: str | Path | None = None, **knobs: Any
  ) -> dict[str, Any]:
    """Runs evaluations, as `tfusion eval` does.

    Args:
      suite: of suites or evaluations, as in "loss,ppl:pydoc"; those that are finished
        are not done again. Empty: those that fit the run's sources, anew.
      data: folder with data sets and networks of others, which some of them need.
      **knobs: of sections `sample` and `eval`, for this call.

    Returns:
      What it wrote to eval.json: each measure by its name. Sheets of images are in the
      workdir's eval/, and report.html is written anew.

    Raises:
      ValueError: the sources are not those of the run, a name or a knob is unknown, or
        something is missing.
    """
    names = suite_lib.parse(suite)
    trained = self._trained._replace(config=self._config_with(knobs))
    corpus = open_corpus(trained.config, self.workdir)
    results = suite_lib.evaluate(trained, corpus, self.workdir, names=names, data=data)
    if jax.process_index() == 0:
      report.write_report(self.workdir)
    return results

  def export(self, to: str | Path) -> list[Path]:
    """Writes the model as a folder of safetensors, as `tfusion export` does.

    Its text part is a Llama's or a Qwen's in the form of Hugging Face, where it is one;
    the image part lies beside it. `train.init_from` reads both, bit for bit.

    Args:
      to: a folder that is not there, or empty.

    Returns:
      The files: weights, config.json, the tokenizer and a model card.

    Raises:
      ValueError: there is something in the folder, or this is one of several hosts.
    """
    facts = _facts(self.workdir, self.step)
    with jax.set_mesh(self._trained.mesh):
      return export_lib.export(
        to, self.config, self.params, self.tokenizer, step=self.step, facts=facts
      )

  def serve(self, *, host: str = address.HOST, port: int = address.PORT) -> None:
    """Shows a page to type prompts into, as `tfusion serve` does, until Ctrl-C.

    Args:
      host: the address; others than that of this machine itself let others in, without
        a password.
      port: 0: any that is free; it is printed.

    Raises:
      ValueError: the extra `serve` is not installed, or the port is in use.
    """
    address.check_library()
    with address.listen(host, port) as taken:
      from tfusion.serve import application  # it needs the extra

      application.serve(self, taken, name=self.workdir.name)

  @functools.cached_property
  def _canvas(self) -> Canvas:
    return open_canvas(self.config, self.workdir)

  def _config_with(self, knobs: dict[str, Any]) -> Config:
    """The config with knobs of sampling changed.

    Raises:
      ValueError: a knob that is unknown, or not of sampling.
    """
    for name in full_names(knobs, Config, section="sample"):
      if not name.startswith(SAMPLING):
        raise ValueError(
          f"{name}: is no knob of sampling, and the model is trained with"
          " another; give those of sample, of eval and diffusion.clip"
        )
    return with_knobs(self.config, knobs, section="sample")


class AutoencoderRun:
  """An autoencoder at one step of its run.

  Attributes:
    config: of the run.
    step: updates done.
    codec: `encode` takes images u8[b, h, w, 3] to latents or codes, `decode` back.
    workdir: of the run.
  """

  def __init__(
    self, config: AutoencoderConfig, codec: Codec, *, step: int, workdir: str | Path
  ):
    """Takes a codec that was read from a workdir or trained there."""
    self.config, self.codec, self.step = config, codec, step
    self.workdir = files.to_path(workdir)

  def __repr__(self) -> str:
    return f"AutoencoderRun({str(self.workdir)!r}, step={self.step})"


# `Run | Any`, not a union of both: with that, an editor would offer nothing and a type
# checker would reject `run.sample`, which only one of them has.
def load(path: str | Path, *, step: int | None = None, **knobs: Any) -> Run | Any:
  """Opens a run, finished or still training, at its newest whole checkpoint.

    run = tfusion.load("runs/digits")
    run = tfusion.load("runs/digits/checkpoints/500")  # or step=500

  Args:
    path: of a workdir, or of one of its checkpoints.
    step: of the checkpoint to open; None: the newest.
    **knobs: of the config, to be changed: bare names are first those of section
      `sample`, others have their section, as in `**{"mesh.fsdp": 1}` for a run that was
      trained on more devices than are here.

  Returns:
    A Run; of a workdir of `tfusion autoencoder` an AutoencoderRun.

  Raises:
    ValueError: there is no run or no such checkpoint, a knob is unknown or makes
      another model, or the mesh does not fit the devices.
  """
  workdir, step = _place(files.to_path(path).expanduser(), step)
  config = workdir_lib.load_config(workdir, kind=None)
  config = with_knobs(config, knobs, section="sample")
  if isinstance(config, AutoencoderConfig):
    return _open_autoencoder(config, workdir, step)
  return open_run(config, workdir, step=step)


def open_run(config: Config, workdir: str | Path, *, step: int | None = None) -> Run:
  """As `load`, for a model whose config is read already."""
  return Run(open_trained(config, workdir, step=step), workdir)


def train(
  config: Config | AutoencoderConfig,
  workdir: str | Path,
  *,
  reference: Path | None = None,
  executable: str | Path | None = None,
) -> Run | Any:
  """Trains a model or an autoencoder, as `tfusion train` or `autoencoder` does.

    config = tfusion.experiment("experiments/digits.py", steps=400)
    run = tfusion.train(config, "runs/x")

  A run that has begun in the workdir goes on. It prints how far it is, saves and
  evaluates on the way, and writes report.html. Ctrl-C and SIGTERM let it save before
  they end the program.

  Args:
    config: from `experiment`.
    workdir: of the run; is made if it is not there.
    reference: figures of a known-good run of a model, which the report plots behind
      this one.
    executable: of a model, a file of `tfusion compile --save`, which is loaded instead
      of compiling; it must be of the same program, versions and machine.

  Returns:
    What `load(workdir)` returns.

  Raises:
    ValueError: the config does not fit the machines, the data or the workdir, or a
      script trains outside of `if __name__ == "__main__":` with data workers.
    FloatingPointError: train.max_skipped_updates non-finite updates in a row.
    KeyboardInterrupt: after Ctrl-C, when the run is saved.
    SystemExit: after SIGTERM, when the run is saved, with status 143.
  """
  with together():
    if isinstance(config, Config):
      startup.check_script(config.data.workers)
    workdir = workdir_lib.check_writable(workdir)
    workdir_lib.check_same_run(config, workdir)
    weights = InitFrom.of(config) if isinstance(config, Config) else None
    if weights and not workdir_lib.has_checkpoint(workdir):
      weights.check()
  check_hosts(config)
  stop = StopSignals()
  if isinstance(config, AutoencoderConfig):
    evaluations = [Reconstructions(workdir / "samples")]
    autoencoder_loop.train(config, workdir, evaluations=evaluations, stop=stop)
    _end_if_stopped(stop)
    return _open_autoencoder(config, workdir, None)
  state = loop.train(
    config,
    workdir,
    evaluations=[
      SampleGrids(config, workdir),
      suite_lib.FinalEvaluation(config, workdir),
    ],
    reference=reference,
    executable=Path(executable) if executable else None,
    weights=weights,
    stop=stop,
  )
  _end_if_stopped(stop)
  return Run(of_state(config, workdir, state), workdir)


def _facts(workdir: Path, step: int) -> dict[str, Any]:
  """What a model card says of a step: held-out losses, whose latents images are."""
  path = workdir / "validation.jsonl"
  lines = path.read_text().splitlines() if path.is_file() else []
  found = [line for line in map(json.loads, lines) if line.get("step") == step]
  numbers = found[-1] if found else {}
  facts: dict[str, Any] = {
    f"held out: {name}": value
    for name, value in numbers.items()
    if name in ("loss_text", "perplexity", "loss_codes", "loss_image")
    if value is not None
  }
  if kept := prepared.kept(workdir):
    images, sha256 = kept
    whose = f"an autoencoder (SHA-256 {sha256}), which is not here"
    facts["images are"] = f"{images.kind} of {whose}" if sha256 else images.kind
  return facts


def _end_if_stopped(stop: StopSignals) -> None:
  if stop.name == "SIGINT":
    raise KeyboardInterrupt("the run is saved; the same call goes on from there")
  if stop.status:
    raise SystemExit(stop.status)


def _place(path: Path, step: int | None) -> tuple[Path, int | None]:
  """The workdir of a path that is one, or a checkpoint of one; and the step."""
  if path.parent.name != CHECKPOINTS or not path.name.isdecimal():
    return path, step
  if step not in (None, int(path.name)):
    raise ValueError(f"step={step}: {path} is the checkpoint of another step")
  return path.parent.parent, int(path.name)


def _open_autoencoder(
  config: AutoencoderConfig, workdir: Path, step: int | None
) -> AutoencoderRun:
  """The codec that the run saved last; an autoencoder keeps no other.

  Raises:
    ValueError: there is none yet, or an earlier step is asked for.
  """
  with Checkpoints(workdir / CHECKPOINTS, read_only=True) as checkpoints:
    newest = checkpoints.latest
  if newest is None:
    raise ValueError(
      f"{workdir}: no checkpoint yet; the first comes after train.save_every_steps="
      f"{config.train.save_every_steps} steps"
    )
  if step not in (None, newest):
    raise ValueError(
      f"step={step}: of an autoencoder only the newest step, {newest}, can be opened"
    )
  codec = codec_lib.load(workdir / autoencoder_loop.CODEC)
  return AutoencoderRun(config, codec, step=newest, workdir=workdir)
