"""What a mixed sequence is: Document -> Elements -> Row -> Batch.

Owns: the order of elements, spans, positions, intervals lo/hi, loss weights, image
slots. Not: where documents come from (data/), noise (diffusion/), the mask itself
(attention/). numpy only.

b batch  l sequence  n image slots  h w c latent height, width, channels

A document of text "a b" and one image of four patches x, as inputs and targets:

  position   0    1   2   3    4   5   6   7   8
  input      BOS  a   b   BOI  x0  x1  x2  x3  EOI
  target     a    b   BOI .    .   .   .   .   EOS     "." weighs nothing
  lo         0    0   0   0    0   0   0   0   0       first key this input sees
  hi         0    1   2   3    7   7   7   7   8       last key this input sees

Every document begins with BOS, and EOS is its last target; a row holds several, each by
itself and with its positions from 0 (data.isolate_documents). The paper says none of
this: ours, as of Llama 2, whose text recipe the paper shares.

How RoPE counts them is `PositionSteps`: on from element to element, as above, or all
patches of an image as one position. An element's place in its row stays what it is.

Text is causal; the patches of one image see each other (arXiv 2408.11039, section 3).
`pack_rows` can make these causal too (Table 5).
There is no loss where the input is BOI (footnote 8), and EOI is no target behind
patches: their count is fixed, so the sampler appends EOI itself.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, TypeVar

import numpy as np

A = TypeVar("A")  # np.ndarray on a host, jax.Array on devices

# What `lay_out` remembers: 20 bytes an element, so 10 MB at most.
FRAMES, FRAME_LENGTH = 512, 1024


class SpecialTokens(NamedTuple):
  """Token ids that are not text. `boi`/`eoi` enclose the patches of an image."""

  pad: int
  bos: int
  eos: int
  boi: int
  eoi: int


@dataclasses.dataclass(frozen=True)
class Text:
  """A span of token ids, i32[length]; `weight` 0 marks a prompt: read, not learned."""

  ids: np.ndarray
  weight: float = 1.0


@dataclasses.dataclass(frozen=True)
class Image:
  """A clean image or latent, f32[h, w, c].

  `weight` 0 marks an image that is read, not learned, nor that one comes (BOI).
  `noise_cap` in [0, 1] is the share of the noise schedule from which t is drawn (arXiv
  2408.11039, section 4.3.4); at 0 the image stays clean, so that there is no noise to
  predict, but BOI is learned all the same. With `std`, f32[h, w, c], the latent is the
  mean of an autoencoder's posterior, and the lane adds std * normal at every showing.
  """

  latent: np.ndarray
  weight: float = 1.0
  noise_cap: float = 1.0
  std: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Codes:
  """An image as token ids, i32[n], above those of text (arXiv 2405.09818, section 2).

  Laid out as BOI, ids, EOI: causal like text, and all of them are targets, EOI too.
  """

  ids: np.ndarray
  weight: float = 1.0


class CodeBook(NamedTuple):
  """Which token ids are codes of images: `first` .. `first + size - 1`."""

  first: int  # all below are text and marks
  size: int
  per_image: int  # between BOI and EOI


@dataclasses.dataclass(frozen=True)
class Break:
  """A place where something was left out; takes no position in a row.

  What comes next did not follow what stands before, so it is not learned there: behind
  a dropped caption neither BOI nor EOS, in front of and behind a piece of a longer text
  neither its first token nor EOS.
  """

  weight: float = 0.0


BREAK = Break()

Span = Text | Image | Codes | Break
Document = tuple[Span, ...]


class PositionSteps(NamedTuple):
  """How far positions move on inside of an image; from all else to what follows: 1."""

  patch: int = 1  # from a patch to the next of its image
  image: int = 1  # from the last patch to what stands behind: EOI


def position_steps(positions: str, grid: tuple[int, int]) -> PositionSteps:
  """What `model.positions` says of images of `grid` rows and columns of patches.

  With shared and axial all patches of an image have the position of the first, the one
  after BOI. shared: EOI has the next, so that an image counts as one element, as in
  transfusion-pytorch (BAGEL lets BOI and EOI share the position too). axial: EOI has
  the next that no row or column of the image has, as in M-RoPE (arXiv 2409.12191,
  section 2.1), and the model adds row and column itself.
  """
  known = {
    "sequence": PositionSteps(),
    "shared": PositionSteps(patch=0, image=1),
    "axial": PositionSteps(patch=0, image=max(grid)),
  }
  return known[positions]


def count_positions(
  patch_l: np.ndarray, *, steps: PositionSteps, patches_per_image: int
) -> np.ndarray:
  """Positions i32[l] of elements that follow each other, the first being 0.

  Args:
    patch_l: i32, as in Elements or Row.
    steps: inside of images.
    patches_per_image: patches of every image.
  """
  is_patch_l = patch_l >= 0
  follows_l = is_patch_l & (patch_l % patches_per_image > 0)
  behind_l = ~is_patch_l & np.append(False, is_patch_l[:-1])
  step_l = np.where(follows_l, steps.patch, np.where(behind_l, steps.image, 1))
  return (np.cumsum(step_l) - step_l[:1]).astype(np.int32)


class Elements(NamedTuple):
  """One document laid out as inputs and targets; l is its own length.

  `patch_l` counts the patches of the document from 0 and is -1 at text;
  `lo_l`/`hi_l` count from the document's own first element.
  """

  tokens_l: np.ndarray  # i32, pad at patches
  targets_l: np.ndarray  # i32, pad where nothing is predicted
  weights_l: np.ndarray  # f32, the weight of the text loss
  hi_l: np.ndarray  # i32
  patch_l: np.ndarray  # i32
  images: tuple[Image, ...]


class Row(NamedTuple):
  """Documents packed into one row. Padding sees nothing: lo = l, hi = l - 1.

  `patch_l` is slot * patches_per_image + patch, -1 where the input is not a patch;
  `image_start_n` is the position of the first patch of a slot, 0 for an empty slot.
  """

  tokens_l: np.ndarray  # i32
  targets_l: np.ndarray  # i32
  weights_l: np.ndarray  # f32
  positions_l: np.ndarray  # i32, of RoPE, from 0 in each document, if it is isolated
  lo_l: np.ndarray  # i32, first key in the row that this input sees
  hi_l: np.ndarray  # i32, last key
  patch_l: np.ndarray  # i32
  latents_nhwc: np.ndarray  # f32, clean; zeros in an empty slot
  image_start_n: np.ndarray  # i32
  image_weight_n: np.ndarray  # f32, of the image loss; 0 if clean or an empty slot
  noise_cap_n: np.ndarray  # f32 in [0, 1]


class Batch(NamedTuple, Generic[A]):
  """The rows of one step, stacked: the fields of Row, in its order, with b in front.

  `Batch[np.ndarray]` is a host's own, `Batch[jax.Array]` lies on the devices.
  """

  tokens_bl: A
  targets_bl: A
  weights_bl: A
  positions_bl: A
  lo_bl: A
  hi_bl: A
  patch_bl: A
  latents_bnhwc: A
  image_start_bn: A
  image_weight_bn: A
  noise_cap_bn: A


def unconditional() -> Document:
  """The prefix of the guidance branch: nothing, so that lay_out gives [BOS].

  Training meets it when a caption is dropped, the sampler uses it for the second
  cache row (arXiv 2408.11039 leaves the branch open; Chameleon uses [BOS, BOI] too).
  """
  return ()


def is_image(span: Span) -> bool:
  """True for an image, in patches or in codes."""
  return isinstance(span, Image | Codes)


def drop_text(document: Document) -> Document:
  """Drops every text span: a captioned image then follows `unconditional()`.

  What is left teaches how images look and nothing about text: that an image comes
  without a caption, or that nothing comes behind one, is true of no document.
  """
  return (*unconditional(), BREAK, *filter(is_image, document), BREAK)


def image_first(document: Document) -> Document:
  """Moves the images before the text, each in the order they had."""
  texts = tuple(s for s in document if not is_image(s))
  return tuple(filter(is_image, document)) + texts


def images_to_read(document: Document) -> list[int]:
  """Places of the noisy images that learned text follows, so that it is read from them.

  Codes have no noise, and an image that is not learned is clean already.
  """
  learned = [i for i, s in enumerate(document) if isinstance(s, Text) and s.weight > 0]
  last = max(learned, default=-1)
  return [
    i
    for i, s in enumerate(document[: last + 1])
    if isinstance(s, Image) and s.noise_cap > 0
  ]


def span_length(span: Span, *, patches_per_image: int) -> int:
  """Row positions of a span; those of an image count its BOI and EOI."""
  if isinstance(span, Break):
    return 0
  if isinstance(span, Text):
    return len(span.ids)
  inner = patches_per_image if isinstance(span, Image) else len(span.ids)
  return inner + 2  # BOI, EOI


def element_count(document: Document, *, patches_per_image: int) -> int:
  """Row positions that `lay_out` gives this document (its EOS takes none)."""
  return 1 + sum(span_length(s, patches_per_image=patches_per_image) for s in document)


def lay_out(
  document: Document, *, special: SpecialTokens, patches_per_image: int
) -> Elements:
  """Lays a whole document out as inputs and shifted targets, from BOS to EOS.

  Args:
    document: spans in order.
    special: ids of the special tokens.
    patches_per_image: patches between BOI and EOI, >= 1.
  """
  kinds = tuple(
    (type(s), span_length(s, patches_per_image=patches_per_image), s.weight)
    for s in document
  )
  known = sum(length for _, length, _ in kinds) <= FRAME_LENGTH
  frame = (_frame if known else _frame.__wrapped__)(kinds, special, patches_per_image)
  tokens_l, targets_l = frame.tokens_l.copy(), frame.targets_l.copy()
  images: list[Image] = []
  stop = 1  # BOS
  for span, (_, length, weight) in zip(document, kinds):
    start, stop = stop, stop + length
    if isinstance(span, Image):
      images.append(span)
    elif not isinstance(span, Break):
      edge = isinstance(span, Codes)  # BOI, EOI
      tokens_l[start + edge : stop - edge] = span.ids
      if weight > 0:
        targets_l[start + edge - 1 : stop - edge - 1] = span.ids
  targets_l[frame.weights_l == 0] = special.pad  # what follows a Break
  return Elements(
    tokens_l, targets_l, frame.weights_l, frame.hi_l, frame.patch_l, tuple(images)
  )


@functools.lru_cache(FRAMES)
def _frame(
  kinds: tuple[tuple[type, int, float], ...],
  special: SpecialTokens,
  patches_per_image: int,
) -> Elements:
  """A document of spans of these kinds, lengths and weights, its token ids all pad.

  Captioned images have few lengths, which come again and again; so the arrays are
  shared, and not to be written to.
  """
  blank: dict[type, Callable[[int, float], Span]] = {
    Text: lambda length, weight: Text(np.full(length, special.pad), weight),
    Codes: lambda length, weight: Codes(np.full(length - 2, special.pad), weight),
    Image: lambda length, weight: Image(np.zeros(0), weight),
    Break: lambda length, weight: BREAK,
  }
  document = [blank[kind](length, weight) for kind, length, weight in kinds]
  # EOS is a target only, so it takes no place among the inputs.
  last_weight = document[-1].weight if document else 1.0
  ends = (
    Text(np.asarray([special.bos], np.int32)),
    Text(np.asarray([special.eos], np.int32), last_weight),
  )
  whole = lay_out_part(
    (ends[0], *document, ends[1]), special=special, patches_per_image=patches_per_image
  )
  target_weights_l = whole.weights_l[1:]
  targets_l = np.where(target_weights_l > 0, whole.tokens_l[1:], special.pad)
  frame = Elements(
    tokens_l=whole.tokens_l[:-1],
    targets_l=targets_l.astype(np.int32, copy=False),
    weights_l=target_weights_l,
    hi_l=whole.hi_l[:-1],
    patch_l=whole.patch_l[:-1],
    images=(),
  )
  for array in frame[:-1]:
    array.flags.writeable = False
  return frame


def lay_out_part(
  spans: Document, *, special: SpecialTokens, patches_per_image: int
) -> Elements:
  """Lays spans out as elements alone: no BOS, no EOS, no targets (all pad).

  `weights_l[i]` is what element i weighs as a target: 0 for patches, which are not
  tokens, for the EOI behind them, which follows by rule, and behind a Break.
  """
  lengths = [span_length(s, patches_per_image=patches_per_image) for s in spans]
  length = sum(lengths)
  tokens_l = np.full(length, special.pad, np.int32)
  weights_l = np.zeros(length, np.float32)
  hi_l = np.arange(length, dtype=np.int32)
  patch_l = np.full(length, -1, np.int32)
  images: list[Image] = []
  breaks: list[int] = []
  stop = 0
  for span, own_length in zip(spans, lengths, strict=True):
    start, stop = stop, stop + own_length
    if isinstance(span, Break):
      breaks.append(start)
      continue
    if isinstance(span, Text):
      tokens_l[start:stop], weights_l[start:stop] = span.ids, span.weight
      continue
    tokens_l[start], tokens_l[stop - 1] = special.boi, special.eoi
    inner = slice(start + 1, stop - 1)
    if isinstance(span, Codes):
      tokens_l[inner], weights_l[start:stop] = span.ids, span.weight
      continue
    weights_l[start] = span.weight
    hi_l[inner] = stop - 2
    patch_l[inner] = np.arange(patches_per_image) + len(images) * patches_per_image
    images.append(span)
  weights_l[[at for at in breaks if at < length]] = 0
  return Elements(
    tokens_l=tokens_l,
    targets_l=np.full(length, special.pad, np.int32),
    weights_l=weights_l,
    hi_l=hi_l,
    patch_l=patch_l,
    images=tuple(images),
  )


def in_image(elements: Elements, *, special: SpecialTokens) -> np.ndarray:
  """Returns bool[l]: True between BOI and EOI, at patches and codes."""
  begins = elements.tokens_l == special.boi
  ends = elements.tokens_l == special.eoi
  return np.cumsum(begins) - begins > np.cumsum(ends)


def pack(documents: Sequence[Elements], **sizes) -> Row:
  """Places laid-out documents in a row: `pack_rows` of one.

  Args:
    documents: laid-out documents, in order.
    sizes: as for `pack_rows`.
  """
  return Row(*(field[0] for field in pack_rows([documents], **sizes)))


def pack_rows(
  rows: Sequence[Sequence[Elements]],
  *,
  row_length: int,
  image_slots: int,
  latent_shape: tuple[int, int, int],
  special: SpecialTokens,
  patches_per_image: int,
  isolate: bool = True,
  causal: bool = False,
  steps: PositionSteps = PositionSteps(),
) -> Batch[np.ndarray]:
  """Places laid-out documents one after the other in rows of fixed length.

  Args:
    rows: the laid-out documents of each, in order.
    row_length: positions in a row.
    image_slots: images a row can hold.
    latent_shape: h, w, c of every image.
    special: ids of the special tokens.
    patches_per_image: patches of every image.
    isolate: a document sees itself alone, and its positions count from 0. False lets it
      see those before it in its row, and positions count over the whole row.
    causal: patches see what stands before them and themselves, as text does.
    steps: of positions inside of images.

  Raises:
    ValueError: documents have more elements or images than their row holds, or an
      image has another shape.
  """
  batch = _empty_rows(len(rows), row_length, image_slots, tuple(latent_shape), special)
  for number, documents in enumerate(rows):
    # Latents are the most of a row by far: they are copied here, and nowhere again.
    row = Row(*(f[number] for f in batch))
    _fill(row, documents, patches_per_image, isolate, steps)
    if causal:
      patches = np.flatnonzero(row.patch_l >= 0)
      row.hi_l[patches] = patches
  return batch


def _fill(
  row: Row,
  documents: Sequence[Elements],
  patches_per_image: int,
  isolate: bool,
  steps: PositionSteps,
) -> None:
  """Places documents in an empty row."""
  lengths = [len(d.tokens_l) for d in documents]
  images = [image for d in documents for image in d.images]
  length, row_length = sum(lengths), len(row.tokens_l)
  image_slots, *latent_shape = row.latents_nhwc.shape
  if length > row_length or len(images) > image_slots:
    raise ValueError(
      f"documents of {length} elements and {len(images)} images do not fit a row of"
      f" data.row_length={row_length} and {image_slots} image slots"
    )
  row.latents_nhwc[len(images) :] = 0
  if not documents:
    return
  # For all documents at once: for each alone, every line costs nearly as much.
  tokens_l, targets_l, weights_l, hi_l, patch_l = (
    np.concatenate(fields) for fields in list(zip(*documents, strict=True))[:-1]
  )
  start_l = np.repeat(np.cumsum([0, *lengths[:-1]]), lengths)
  patches = [len(d.images) * patches_per_image for d in documents]
  before_l = np.repeat(np.cumsum([0, *patches[:-1]]), lengths)
  is_patch_l = patch_l >= 0
  row.tokens_l[:length] = tokens_l
  row.targets_l[:length] = targets_l
  row.weights_l[:length] = weights_l
  lo_l = start_l if isolate else np.zeros_like(start_l)
  positions_l = np.arange(length)
  if steps != PositionSteps():
    positions_l = count_positions(
      patch_l, steps=steps, patches_per_image=patches_per_image
    )
  row.positions_l[:length] = positions_l - positions_l[lo_l]
  row.lo_l[:length] = lo_l
  row.hi_l[:length] = start_l + hi_l
  row.patch_l[:length] = np.where(is_patch_l, patch_l + before_l, patch_l)
  firsts = np.flatnonzero(is_patch_l & (patch_l % patches_per_image == 0))
  for slot, (first, image) in enumerate(zip(firsts, images, strict=True)):
    if image.latent.shape != tuple(latent_shape):
      raise ValueError(
        f"image of shape {image.latent.shape} in a run of {tuple(latent_shape)}"
      )
    row.latents_nhwc[slot] = image.latent
    row.image_start_n[slot] = first
    row.image_weight_n[slot] = image.weight if image.noise_cap > 0 else 0
    row.noise_cap_n[slot] = image.noise_cap


def stack(rows: Sequence[Row]) -> Batch[np.ndarray]:
  """Stacks rows into a batch."""
  return Batch(*(np.stack(fields) for fields in zip(*rows, strict=True)))


def live_elements(batch: Batch[A]) -> int:
  """Positions that are not padding."""
  return int(np.sum(np.asarray(batch.hi_bl) >= np.asarray(batch.lo_bl)))


def _empty_rows(
  rows: int,
  row_length: int,
  image_slots: int,
  latent_shape: tuple[int, ...],
  special: SpecialTokens,
) -> Batch[np.ndarray]:
  """Rows of padding; what the slots hold is to be written."""
  places, slots = (rows, row_length), (rows, image_slots)
  return Batch(
    tokens_bl=np.full(places, special.pad, np.int32),
    targets_bl=np.full(places, special.pad, np.int32),
    weights_bl=np.zeros(places, np.float32),
    positions_bl=np.zeros(places, np.int32),
    lo_bl=np.full(places, row_length, np.int32),
    hi_bl=np.full(places, row_length - 1, np.int32),
    patch_bl=np.full(places, -1, np.int32),
    latents_bnhwc=np.empty((*slots, *latent_shape), np.float32),
    image_start_bn=np.zeros(slots, np.int32),
    image_weight_bn=np.zeros(slots, np.float32),
    noise_cap_bn=np.ones(slots, np.float32),
  )
