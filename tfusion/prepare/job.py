"""The whole of `tfusion prepare`: a source -> a folder of shards and its manifest.

Owns: settings and whether a folder may go on with them, running the parts on Beam,
progress, adding their accounts up. Not: one part (part.py), sources (readers.py).

Beside what data/shards/manifest.py lists, --out holds job.json, the settings, which are
written first; and parts/NUMBER.json, the account of a part. A job that is started again
does the parts without an account. A lock, .prepare-lock, keeps a second job out while
one runs.
"""

import collections
import contextlib
import dataclasses
import fcntl
import importlib.util
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tfusion import buckets, files, parsing
from tfusion import workdir as workdir_lib
from tfusion.data.balance import Amount, Balance, examples
from tfusion.data.shards import manifest as manifest_lib
from tfusion.data.shards import records as records_lib
from tfusion.data.shards.manifest import Counts, ImageFormat, Manifest
from tfusion.data.tokenizer import OF_JOB, OF_SHARDS, Tokenizer
from tfusion.prepare import datasets, encoder, raw, readers, runner
from tfusion.prepare import learn as learn_lib
from tfusion.prepare import part as part_lib
from tfusion.prepare import shapes as shapes_lib
from tfusion.prepare.layouts.shaped import IMAGES
from tfusion.prepare.worker import JOB

LOCK = (
  ".prepare-lock"  # locked while a job runs; never deleted, as that would be a race
)
FIXED_SHAPE = {"digits": (8, 8, 1)}  # of what an embedded source has
PIXELS_PX, LATENTS_PX = 64, 256  # side of an image without and with an autoencoder
MOST_PX = 8192  # some images of 200 MB are decoded at once

# A trained tokenizer: on how many characters, from how many parts at most; of these
# 100 for a merged piece, so that each is seen often enough, within bounds.
SAMPLE_CHARACTERS = 10_000_000
SAMPLE_PARTS = 64
CHARACTERS_PER_MERGE = 100
MERGES = (128, 32_000)


@dataclasses.dataclass(frozen=True)
class Request:
  """What `tfusion prepare` was asked for."""

  source: str
  out: str
  tokenizer: str = ""  # a file; empty: trained on the source
  vocab_size: int = 0  # of a trained tokenizer; 0: chosen
  autoencoder: str = ""  # a file; empty: images are kept as pixels
  latents: str = "mean"  # or mean_logvar
  image_px: int = 0  # side of the square images; 0: chosen
  aspects: int = 1  # that images may have, at most; 1: all are square
  shard_documents: int = 1024
  batch: int = 32
  learn: str = ""  # one of learn.RULES; empty: what the layout of the source says


def prepare(request: Request, beam_args: Sequence[str] = ()) -> Manifest:
  """Prepares a source, or goes on where an earlier job stopped.

  Args:
    request: source, folder and choices.
    beam_args: options of Beam, as its own commands take them.

  Returns:
    The manifest, which is also in the folder now.

  Raises:
    ValueError: what cannot be done as asked, before any work; another job is writing
      to the folder.
    OSError: a part stopped, as when the disk is full, or a worker process died.
  """
  _check_installed()
  for key in ("shard_documents", "batch"):
    if getattr(request, key) < 1:
      raise ValueError(f"--{key.replace('_', '-')}={getattr(request, key)}: at least 1")
  if request.tokenizer and request.vocab_size:
    raise ValueError("--vocab-size is of a trained tokenizer; leave it or --tokenizer")
  if "://" in request.out and not buckets.is_bucket(request.out):
    raise ValueError(
      f"--out={request.out}: name a folder that all workers see, such as a mounted one,"
      " or one in a bucket, gs://BUCKET/FOLDER or s3://BUCKET/FOLDER"
    )
  request = dataclasses.replace(request, source=readers.resolve(request.source))
  has_answers = readers.has_answers(request.source)
  learn_lib.check(request.learn, request.source, has_answers=has_answers)
  options = runner.parse(beam_args)
  _check_apart(request)
  codec = encoder.open_codec(request.autoencoder) if request.autoencoder else None
  image_shape, images = _image_shape(request, codec), _image_format(request, codec)
  parts = readers.plan(
    request.source, documents=request.shard_documents, image_shape=image_shape
  )
  parts = learn_lib.apply(parts, request.learn)
  sides = _sides(request, parts, codec, image_shape)
  if request.aspects > 1:
    images = _of_aspects(images, sides, codec)
  given = None
  if request.tokenizer:
    given = Tokenizer.load(request.tokenizer, key="--tokenizer", remedy=OF_JOB)
  settings = {
    "schema": records_lib.SCHEMA,
    "source": request.source,
    "listing_sha256": readers.listing_sha256(parts),
    "parts": len(parts),
    "shard_documents": request.shard_documents,
    "image_shape": list(image_shape),
    "images": images.kind,
    "batch": request.batch if codec else 0,
    "autoencoder_sha256": codec.sha256 if codec else None,
    "tokenizer_sha256": given.sha256 if given else "trained",
    "vocab_size": 0 if given else request.vocab_size,
  }
  if request.learn:  # older folders do not say
    settings["learn"] = request.learn
  if request.aspects > 1:  # nor do they of this
    settings["aspects"] = [list(side) for side in sides]
  with _entered(request.out, settings) as out:
    tokenizer = _put_tokenizer(out, given, parts, request)
    autoencoder = out / manifest_lib.AUTOENCODER
    if codec and not autoencoder.exists():
      codec.save(autoencoder)
    kept_as = images.kind if codec else "pixels, for want of an --autoencoder"
    path, sha256 = (str(autoencoder), codec.sha256) if codec else (None, "")
    del codec  # a worker opens its own, and an accelerator may hold but one
    print(
      f"{request.source}: {len(parts):,} parts; images of {image_shape} as {kept_as};"
      f" vocabulary {tokenizer.vocab_size:,}",
      flush=True,
    )
    shapes = tuple((h, w, image_shape[2]) for h, w in sides)
    how = encoder.Settings(shapes, images.kind, path, sha256, request.batch)
    job = part_lib.Job(str(out), len(parts), how, tokenizer.sha256)
    runner.run(parts, job, options)
    return _merge(request.source, job, tokenizer, images)


def _check_installed() -> None:
  if importlib.util.find_spec("apache_beam") is None:
    raise ValueError("apache_beam is missing: pip install 'tfusion[prepare]'")


def _check_apart(request: Request) -> None:
  """Refuses to write into the source: at the next start it would be another one."""
  argument = request.source.partition(":")[2]
  if buckets.is_bucket(request.out):
    return
  out, source = os.path.realpath(request.out), os.path.realpath(argument)
  if argument and os.path.isdir(source) and f"{out}/".startswith(f"{source}/"):
    raise ValueError(f"--out={request.out}: lies in the source; name another folder")


def _image_shape(request: Request, codec: Any) -> tuple[int, int, int]:
  """Height, width and channels of the pixels."""
  name = request.source.partition(":")[0]
  if fixed := FIXED_SHAPE.get(name):
    if codec or request.image_px not in (0, fixed[0]):
      raise ValueError(
        f"--source={request.source}: its images are {fixed}; leave --image-px and"
        " --autoencoder away"
      )
    return fixed
  chosen = LATENTS_PX if codec and name not in datasets.EMBEDDED else PIXELS_PX
  px, factor = request.image_px or chosen, codec.downsampling if codec else 1
  if px > MOST_PX:
    raise ValueError(f"--image-px={px}: more than the {MOST_PX:,} that memory can hold")
  if px < 1 or px % factor:
    raise ValueError(
      f"--image-px={px}: the autoencoder makes one latent of {factor} pixels, so it"
      f" must be a multiple of {factor}"
    )
  return px, px, 3


def _image_format(request: Request, codec: Any) -> ImageFormat:
  """How images will be kept; scale and shift are known at the end."""
  if request.latents not in ("mean", "mean_logvar"):
    raise ValueError(f"--latents={request.latents}: mean or mean_logvar")
  shape, encoded = _image_shape(request, codec), codec and codec.kind == "latents"
  if request.latents != "mean" and not encoded:
    raise ValueError(f"--latents={request.latents}: needs an --autoencoder of latents")
  if codec is None:
    return ImageFormat("pixels", shape)
  shape = tuple(codec.latent_shape(shape[0]))
  if codec.kind == "codes":
    return ImageFormat("codes", shape, codebook=codec.config.codes)
  return ImageFormat(request.latents, shape)


def _sides(
  request: Request,
  parts: Sequence[raw.Part],
  codec: Any,
  image_shape: tuple[int, int, int],
) -> list[tuple[int, int]]:
  """Height and width in pixels of the images of every kind."""
  if request.aspects == 1:
    return [image_shape[:2]]
  if request.aspects < 1:
    raise ValueError(f"--aspects={request.aspects}: at least 1")
  name = request.source.partition(":")[0]
  if name in datasets.EMBEDDED or (codec and codec.kind == "codes"):
    what = "its images" if name in datasets.EMBEDDED else "images as codes"
    raise ValueError(
      f"--aspects={request.aspects}: {what} are all square; leave it away"
    )
  factor = codec.downsampling if codec else 1
  most = len(records_lib.IMAGES)
  if request.aspects > most:
    raise ValueError(f"--aspects={request.aspects}: at most {most}")
  return shapes_lib.choose(
    parts,
    source=request.source,
    px=image_shape[0],
    factor=factor,
    count=request.aspects,
  )


def _of_aspects(
  images: ImageFormat, sides: Sequence[tuple[int, int]], codec: Any
) -> ImageFormat:
  """The format with the shape of the first and kinds of the others, as model.kinds has
  them: named by their pixels."""
  factor = codec.downsampling if codec else 1
  (height, width), *others = sides
  channels = images.shape[-1]
  return dataclasses.replace(
    images,
    shape=(height // factor, width // factor, channels),
    kinds=tuple(
      f"{h}x{w}:{h // factor}x{w // factor}x{channels},like=image" for h, w in others
    ),
  )


@contextlib.contextmanager
def _entered(out: str, settings: dict[str, Any]) -> Iterator[Path]:
  """Makes the folder, or checks that it is of such a job; keeps other jobs out."""
  # Absolute: a worker may run in another directory.
  folder = workdir_lib.check_writable(out, option="--out").absolute()
  # What a job may leave that is killed before it has written its settings.
  own = (".tmp", workdir_lib.PROBE, LOCK)
  found = sorted(p.name for p in folder.iterdir() if not p.name.endswith(own))
  if found and JOB not in found:
    raise ValueError(
      f"--out={out}: is no folder of this command, it holds {', '.join(found[:3])};"
      " name a new or an empty one"
    )
  with _locked(folder / LOCK, out):
    _check_settings(folder / JOB, out, settings)
    (folder / "parts").mkdir(exist_ok=True)
    _clear(folder)  # of a job that was killed
    yield folder
    _clear(folder)  # of a worker that was killed, whose parts another did


def _clear(folder: Path) -> None:
  """Removes files that were not finished."""
  for left in (*folder.glob("*.tmp"), *folder.glob("parts/*.tmp")):
    left.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(path: Path, out: str) -> Iterator[None]:
  """Holds a lock that ends with this process, however that ends."""
  if buckets.is_bucket(path):
    print(f"--out={out}: a bucket cannot be locked; start no second job on it")
    yield
    return
  with open(path, "ab") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      raise ValueError(
        f"--out={out}: another `tfusion prepare` is writing there; wait for its end, or"
        " name another folder"
      ) from error
    except OSError as error:
      print(f"--out={out}: cannot be locked ({error}); start no second job on it")
    yield


def _check_settings(path: Path, out: str, settings: dict[str, Any]) -> None:
  """Writes the settings, or refuses to go on where there are others."""
  if not path.is_file():
    files.write_whole(path, json.dumps(settings, indent=1) + "\n")
    return
  try:
    before = dict(parsing.parse_json(path.read_text()))
  except (ValueError, TypeError) as error:
    raise ValueError(f"{path}: damaged ({error}); name a new --out") from error
  differ = {k for k in before.keys() | settings if before.get(k) != settings.get(k)}
  begun = (path.parent / manifest_lib.TOKENIZER).exists() or any(
    path.parent.glob("parts/*.json")
  )
  if differ <= {"listing_sha256", "parts"} and differ and not begun:
    # The source may have been mended since, if none of it could be used before.
    files.write_whole(path, json.dumps(settings, indent=1) + "\n")
  elif differ:
    said = "; ".join(
      f"{key}: {before.get(key)} there, {settings.get(key)} now"
      for key in sorted(differ)
    )
    raise ValueError(
      f"--out={out}: holds shards of another job ({said}); name a new folder, or ask"
      " for the same"
    )


def _put_tokenizer(
  out: Path, given: Tokenizer | None, parts: list[raw.Part], request: Request
) -> Tokenizer:
  path = out / manifest_lib.TOKENIZER
  if given is not None:
    given.save(path)
    return given
  if path.is_file():
    return Tokenizer.load(path, key="", remedy=OF_SHARDS)
  texts = sample_texts(parts, request.source)
  characters = sum(map(len, texts))
  merges = min(max(characters // CHARACTERS_PER_MERGE, MERGES[0]), MERGES[1])
  # Special tokens, bytes and every character have a piece of their own.
  chosen = 6 + 256 + len(set().union(*texts)) + merges
  print(f"training a tokenizer on {characters:,} characters", flush=True)
  return Tokenizer.train(
    texts, vocab_size=request.vocab_size or -(-chosen // 64) * 64, path=path
  )


def sample_texts(parts: list[raw.Part], source: str) -> list[str]:
  """Texts to train a tokenizer on: of training documents, from all over the source.

  Args:
    parts: of the source.
    source: as it was given, for messages.

  Raises:
    ValueError: there are none, and why.
  """
  step = max(-(-len(parts) // SAMPLE_PARTS), 1)
  chosen = parts[::step]
  rejected: list[raw.Rejected] = []
  held_out: list[bool] = []  # of the documents that can be used
  each = SAMPLE_CHARACTERS // max(len(chosen), 1)
  texts = [t for p in chosen for t in _texts_of(p, each, rejected, held_out)]
  for number, part in enumerate(parts):
    if texts:
      break
    if number % step:  # those of the sample may be the only ones without texts
      texts += _texts_of(part, each, rejected, held_out)
  if texts:
    return texts
  if all(held_out):
    apart = f"{len(held_out):,} documents are held out by name, split or hash"
    why = apart if held_out else "it holds no document that can be used"
    raise ValueError(
      f"--source={source}: nothing to train on; {why}{_skipped(source, rejected)}"
    )
  raise ValueError(
    f"--source={source}: {len(held_out):,} documents without text to train a tokenizer"
    f" on; name a --tokenizer{_skipped(source, rejected)}"
  )


def _texts_of(
  part: raw.Part, left: int, rejected: list[raw.Rejected], held_out: list[bool]
) -> list[str]:
  """About `left` characters of a part's training texts; lists what else is there."""
  texts = []
  for document in part.read():
    document = raw.clean(document) if isinstance(document, raw.Raw) else document
    if isinstance(document, raw.Rejected):
      rejected.append(document)
      continue
    held_out.append(document.test)
    own = [span[:left] for span in document.spans if isinstance(span, str)]
    texts += [] if document.test else own
    left -= 0 if document.test else sum(map(len, own))
    if left <= 0:
      break
  return texts


def _skipped(source: str, rejected: Sequence[raw.Rejected]) -> str:
  """What was skipped, an example for each reason, and what would be read."""
  lost = [one for one in rejected if one.amount.documents]
  if not lost:
    return ""
  layout = readers.LAYOUTS.get(source.partition(":")[0])
  known = layout and layout.known
  count = sum(one.amount.documents for one in lost)
  return (
    f"; {count:,} skipped: {examples(lost)}"
    f"{f'. What is read: {known}' if known else ''}"
  )


def _merge(
  source: str, job: part_lib.Job, tokenizer: Tokenizer, images: ImageFormat
) -> Manifest:
  """Adds the accounts up, in the order of the parts."""
  out, sums = files.to_path(job.out), encoder.Sums()
  shards, rejected = [], []
  splits = {split: Balance() for split in manifest_lib.SPLITS}
  for number in range(job.parts):
    account = part_lib.read_account(out, number)
    if account is None:
      raise OSError(
        f"{out}: part {number} is not whole; see that all workers share this folder,"
        " and repeat the command"
      )
    for split, balance in account.balances.items():
      splits[split].merge(balance)
    rejected += account.rejected
    shards += account.shards
    sums.merge(account.sums)
  files.write_whole(out / manifest_lib.REJECTED, "".join(map(_rejected_line, rejected)))
  counts = _counts(splits)
  if not any(shard.split == "train" for shard in shards):
    raise ValueError(
      f"--source={source}: nothing to train on; {summary(counts)},"
      f" {splits['test'].used.documents:,} held out"
      f"{_skipped(source, rejected)}"
    )
  if images.latents:
    scale, shift = sums.scale_shift(images.shape[-1])
    images = dataclasses.replace(images, scale=scale, shift=shift)
  autoencoder = job.images.autoencoder
  manifest = Manifest(
    source=source,
    images=images if any(shard.images for shard in shards) else None,
    tokenizer_sha256=tokenizer.sha256,
    vocabulary=tokenizer.vocab_size,
    autoencoder_sha256=manifest_lib.sha256(autoencoder) if autoencoder else None,
    shards=tuple(shards),
    counts=counts,
  )
  manifest_lib.save(manifest, out)
  addresses = sum(
    balance.skipped.get(raw.NOT_STORED, Amount()).images for balance in splits.values()
  )
  if addresses:
    print(
      f"Of {addresses:,} images only the addresses are here, and nothing is downloaded:"
      f" put their files into a folder called {IMAGES} beside each table, named by the"
      " SHA-256 of their addresses, and prepare into a new folder",
      flush=True,
    )
  if not manifest.of("test"):
    print(
      "No document was held out, and training wants some: prepare more documents, or"
      " mark some as the test split",
      flush=True,
    )
  return manifest


def summary(counts: Counts) -> str:
  """What became of the documents, in a line."""
  reasons = "; ".join(f"{n:,} {reason}" for reason, n in counts.rejected.items())
  return (
    f"{counts.read:,} documents read, {counts.kept:,} kept,"
    f" {counts.read - counts.kept:,} rejected{f' ({reasons})' if reasons else ''}"
  )


def _rejected_line(one: raw.Rejected) -> str:
  values = {"id": one.id, "reason": one.reason, "detail": one.detail}
  values |= {"split": "test" if one.test else "train"}
  return json.dumps(values | dataclasses.asdict(one.amount)) + "\n"


def _counts(splits: dict[str, Balance]) -> Counts:
  """The documents of both splits together, beside what became of each."""
  reasons: collections.Counter[str] = collections.Counter()
  for balance in splits.values():
    reasons.update({r: a.documents for r, a in balance.skipped.items() if a.documents})
  return Counts(
    sum(balance.found.documents for balance in splits.values()),
    sum(balance.used.documents for balance in splits.values()),
    dict(sorted(reasons.items())),
    splits,
  )
