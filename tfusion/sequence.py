"""What a mixed sequence is: Document -> Elements -> Row -> Batch.

Owns: the order of elements, spans, positions, intervals lo/hi, loss weights, image
slots. Not: where documents come from (data/), noise (diffusion/), the mask itself
(attention/). numpy only.

b batch  l sequence  n image slots of a kind  h w c latent height, width, channels

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
  """Token ids that are not text. `boi`/`eoi` enclose the patches of an image.

  What begins an image says of which kind it is: `boi` of the first, and `other_bois` of
  the others in their order (ours: the paper has one kind). They end alike.
  """

  pad: int
  bos: int
  eos: int
  boi: int
  eoi: int
  other_bois: tuple[int, ...] = ()

  @property
  def bois(self) -> tuple[int, ...]:
    """BOI of every kind."""
    return (self.boi, *self.other_bois)

  @property
  def ids(self) -> np.ndarray:
    """All of them, i32."""
    own = (self.pad, self.bos, self.eos, self.eoi, *self.bois)
    return np.asarray(own, np.int32)


@dataclasses.dataclass(frozen=True)
class Text:
  """A span of token ids, i32[length]; `weight` 0 marks a prompt: read, not learned."""

  ids: np.ndarray
  weight: float = 1.0


@dataclasses.dataclass(frozen=True)
class Image:
  """A clean image or latent, f32[h, w, c], or whatever else the shape of its kind is.

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
  kind: int = 0  # its place among those of the run (kinds.py)


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


class KindSizes(NamedTuple):
  """What a row must know of the images of one kind."""

  slots: int  # images that a row can hold
  shape: tuple[int, ...]  # h, w, c
  patches: int  # of one image
  steps: PositionSteps = PositionSteps()


def position_steps(positions: str, grid: tuple[int, ...]) -> PositionSteps:
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
    "axial": PositionSteps(patch=0, image=max(grid, default=1)),
  }
  return known[positions]


def locate(
  patch_l: np.ndarray, kinds: Sequence[KindSizes]
) -> tuple[np.ndarray, np.ndarray]:
  """The kind of every element and its place in its image, i32[l] each; -1 for text.

  Args:
    patch_l: i32, as in Row.
    kinds: of the run, with as many slots as the row has.
  """
  kind_l, place_l = np.full_like(patch_l, -1), np.full_like(patch_l, -1)
  first = 0
  for number, kind in enumerate(kinds):
    own_l = (patch_l >= first) & (patch_l < first + kind.slots * kind.patches)
    kind_l = np.where(own_l, number, kind_l)
    place_l = np.where(own_l, (patch_l - first) % kind.patches, place_l)
    first += kind.slots * kind.patches
  return kind_l, place_l


def count_positions(patch_l: np.ndarray, kinds: Sequence[KindSizes]) -> np.ndarray:
  """Positions i32[l] of elements that follow each other, the first being 0.

  Args:
    patch_l: i32, as in Row.
    kinds: of the run, with as many slots as the row has.
  """
  kind_l, place_l = locate(patch_l, kinds)
  inside, behind = (
    np.asarray([kind.steps[n] for kind in kinds], np.int32) for n in (0, 1)
  )
  before_l = np.append(-1, kind_l[:-1])
  behind_l = (kind_l < 0) & (before_l >= 0)
  step_l = np.where(
    place_l > 0, inside[kind_l], np.where(behind_l, behind[before_l], 1)
  )
  return (np.cumsum(step_l) - step_l[:1]).astype(np.int32)


class Elements(NamedTuple):
  """One document laid out as inputs and targets; l is its own length.

  `patch_l` counts the patches of all images from 0 and is -1 at text;
  `lo_l`/`hi_l` count from the document's own first element.
  """

  tokens_l: np.ndarray  # i32, pad at patches
  targets_l: np.ndarray  # i32, pad where nothing is predicted
  weights_l: np.ndarray  # f32, the weight of the text loss
  hi_l: np.ndarray  # i32
  patch_l: np.ndarray  # i32
  images: tuple[Image, ...]


class Slots(NamedTuple, Generic[A]):
  """A row's places for images of one kind; of a batch, with b in front."""

  latents: A  # f32[n, h, w, c], clean; zeros in an empty slot
  starts: A  # i32[n], the position of the first patch; 0 for an empty slot
  weights: A  # f32[n], of the image loss; 0 if clean or an empty slot
  noise_caps: A  # f32[n] in [0, 1]


class Row(NamedTuple):
  """Documents packed into one row. Padding sees nothing: lo = l, hi = l - 1.

  `patch_l` counts the patches of all slots of the first kind, filled or not, then those
  of the next: slot * patches of an image + patch; it is -1 where the input is no patch.
  """

  tokens_l: np.ndarray  # i32
  targets_l: np.ndarray  # i32
  weights_l: np.ndarray  # f32
  positions_l: np.ndarray  # i32, of RoPE, from 0 in each document, if it is isolated
  lo_l: np.ndarray  # i32, first key in the row that this input sees
  hi_l: np.ndarray  # i32, last key
  patch_l: np.ndarray  # i32
  slots: tuple[Slots[np.ndarray], ...]  # of every kind


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
  slots: tuple[Slots[A], ...]


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


def span_length(span: Span, *, patches_per_image: Sequence[int]) -> int:
  """Row positions of a span; those of an image count its BOI and EOI."""
  if isinstance(span, Break):
    return 0
  if isinstance(span, Text):
    return len(span.ids)
  inner = patches_per_image[span.kind] if isinstance(span, Image) else len(span.ids)
  return inner + 2  # BOI, EOI


def element_count(document: Document, *, patches_per_image: Sequence[int]) -> int:
  """Row positions that `lay_out` gives this document (its EOS takes none)."""
  return 1 + sum(span_length(s, patches_per_image=patches_per_image) for s in document)


def lay_out(
  document: Document, *, special: SpecialTokens, patches_per_image: tuple[int, ...]
) -> Elements:
  """Lays a whole document out as inputs and shifted targets, from BOS to EOS.

  Args:
    document: spans in order.
    special: ids of the special tokens.
    patches_per_image: of every kind, patches between BOI and EOI, >= 1.
  """
  forms = tuple(
    (
      type(s),
      span_length(s, patches_per_image=patches_per_image),
      s.weight,
      s.kind if isinstance(s, Image) else 0,
    )
    for s in document
  )
  known = sum(length for _, length, *_ in forms) <= FRAME_LENGTH
  frame = (_frame if known else _frame.__wrapped__)(forms, special, patches_per_image)
  tokens_l, targets_l = frame.tokens_l.copy(), frame.targets_l.copy()
  images: list[Image] = []
  stop = 1  # BOS
  for span, (_, length, weight, _) in zip(document, forms):
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
  forms: tuple[tuple[type, int, float, int], ...],
  special: SpecialTokens,
  patches_per_image: tuple[int, ...],
) -> Elements:
  """A document of spans of these types, lengths, weights and kinds, its token ids all
  pad.

  Captioned images have few lengths, which come again and again; so the arrays are
  shared, and not to be written to.
  """
  blank: dict[type, Callable[[int, float, int], Span]] = {
    Text: lambda length, weight, _: Text(np.full(length, special.pad), weight),
    Codes: lambda length, weight, _: Codes(np.full(length - 2, special.pad), weight),
    Image: lambda length, weight, kind: Image(np.zeros(0), weight, kind=kind),
    Break: lambda length, weight, _: BREAK,
  }
  document = [blank[of](length, weight, kind) for of, length, weight, kind in forms]
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
  spans: Document, *, special: SpecialTokens, patches_per_image: Sequence[int]
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
  stop = patches = 0
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
    tokens_l[start] = special.bois[span.kind]
    weights_l[start] = span.weight
    hi_l[inner] = stop - 2
    patch_l[inner] = np.arange(patches, patches + own_length - 2)
    patches += own_length - 2
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


def begins_image(tokens_l: np.ndarray, special: SpecialTokens) -> np.ndarray:
  """Returns bool[l]: True at the BOI of any kind."""
  if not special.other_bois:  # as nearly always, in a third of the time
    return tokens_l == special.boi
  return np.isin(tokens_l, special.bois)


def in_image(elements: Elements, *, special: SpecialTokens) -> np.ndarray:
  """Returns bool[l]: True between BOI and EOI, at patches and codes."""
  begins = begins_image(elements.tokens_l, special)
  ends = elements.tokens_l == special.eoi
  return np.cumsum(begins) - begins > np.cumsum(ends)


def first_patches(elements: Elements, patches_per_image: Sequence[int]) -> np.ndarray:
  """The patch, as `patch_l` counts them, with which each image begins; then, how many
  there are in all."""
  own = [patches_per_image[image.kind] for image in elements.images]
  return np.cumsum([0, *own])


def pack(documents: Sequence[Elements], **sizes) -> Row:
  """Places laid-out documents in a row: `pack_rows` of one.

  Args:
    documents: laid-out documents, in order.
    sizes: as for `pack_rows`.
  """
  return row_of(pack_rows([documents], **sizes), 0)


def row_of(batch: Batch[np.ndarray], number: int) -> Row:
  """A row of a batch, whose arrays it shares."""
  *fields, slots = batch
  own = tuple(Slots(*(x[number] for x in kind)) for kind in slots)
  return Row._make([*(x[number] for x in fields), own])


def pack_rows(
  rows: Sequence[Sequence[Elements]],
  *,
  row_length: int,
  kinds: Sequence[KindSizes],
  special: SpecialTokens,
  isolate: bool = True,
  causal: bool = False,
) -> Batch[np.ndarray]:
  """Places laid-out documents one after the other in rows of fixed length.

  Args:
    rows: the laid-out documents of each, in order.
    row_length: positions in a row.
    kinds: of the images.
    special: ids of the special tokens.
    isolate: a document sees itself alone, and its positions count from 0. False lets it
      see those before it in its row, and positions count over the whole row.
    causal: patches see what stands before them and themselves, as text does.

  Raises:
    ValueError: documents have more elements or images than their row holds, or an
      image has another shape than its kind.
  """
  batch = _empty_rows(len(rows), row_length, kinds, special)
  for number, documents in enumerate(rows):
    # Latents are the most of a row by far: they are copied here, and nowhere again.
    row = row_of(batch, number)
    _fill(row, documents, kinds, isolate)
    if causal:
      patches = np.flatnonzero(row.patch_l >= 0)
      row.hi_l[patches] = patches
  return batch


def _fill(
  row: Row,
  documents: Sequence[Elements],
  kinds: Sequence[KindSizes],
  isolate: bool,
) -> None:
  """Places documents in an empty row."""
  lengths = [len(d.tokens_l) for d in documents]
  images = [image for d in documents for image in d.images]
  length, row_length = sum(lengths), len(row.tokens_l)
  counts = np.bincount([image.kind for image in images], minlength=len(kinds))
  if length > row_length or any(counts > [kind.slots for kind in kinds]):
    raise ValueError(
      f"documents of {length} elements and {_listed(counts)} images do not fit a row"
      f" of data.row_length={row_length} and {_listed(k.slots for k in kinds)} image"
      " slots"
    )
  for slots, count in zip(row.slots, counts, strict=True):
    slots.latents[count:] = 0
  if not documents:
    return
  # For all documents at once: for each alone, every line costs nearly as much.
  tokens_l, targets_l, weights_l, hi_l, patch_l = (
    np.concatenate(fields) for fields in list(zip(*documents, strict=True))[:-1]
  )
  start_l = np.repeat(np.cumsum([0, *lengths[:-1]]), lengths)
  row.tokens_l[:length] = tokens_l
  row.targets_l[:length] = targets_l
  row.weights_l[:length] = weights_l
  lo_l = start_l if isolate else np.zeros_like(start_l)
  row.lo_l[:length] = lo_l
  row.hi_l[:length] = start_l + hi_l
  row.patch_l[:length] = patch_l
  starts = number_patches(row.patch_l, images, kinds)
  positions_l = np.arange(length)
  if any(kind.steps != PositionSteps() for kind in kinds):
    positions_l = count_positions(row.patch_l[:length], kinds)
  row.positions_l[:length] = positions_l - positions_l[lo_l]
  used = [0] * len(kinds)
  for start, image in zip(starts, images, strict=True):
    slot, slots, shape = (
      used[image.kind],
      row.slots[image.kind],
      kinds[image.kind].shape,
    )
    used[image.kind] += 1
    if image.latent.shape != tuple(shape):
      raise ValueError(
        f"image of shape {image.latent.shape} in a run of {tuple(shape)}"
      )
    slots.latents[slot] = image.latent
    slots.starts[slot] = start
    slots.weights[slot] = image.weight if image.noise_cap > 0 else 0
    slots.noise_caps[slot] = image.noise_cap


def number_patches(
  patch_l: np.ndarray, images: Sequence[Image], kinds: Sequence[KindSizes]
) -> list[int]:
  """Numbers the patches of images by their slots, as Row has them.

  Args:
    patch_l: i32[l], -1 where no patch stands; it is written.
    images: to which the patches belong, in order.
    kinds: of the run.

  Returns:
    The positions of the first patches, in the order of the images.
  """
  at = np.flatnonzero(patch_l >= 0)
  if len(kinds) == 1:
    patch_l[at] = np.arange(len(at))
    return at[:: kinds[0].patches].tolist()
  firsts = np.cumsum([0, *(kind.slots * kind.patches for kind in kinds)])
  starts, done, used = [], 0, [0] * len(kinds)
  for image in images:
    patches = kinds[image.kind].patches
    own = at[done : done + patches]
    first = firsts[image.kind] + used[image.kind] * patches
    patch_l[own] = first + np.arange(patches)
    starts.append(int(own[0]))
    done, used[image.kind] = done + patches, used[image.kind] + 1
  return starts


def _listed(counts) -> str:
  return " + ".join(str(count) for count in counts)


def stack(rows: Sequence[Row]) -> Batch[np.ndarray]:
  """Stacks rows into a batch."""
  return _join(np.stack, rows)


def concatenate(batches: Sequence[Batch[np.ndarray]]) -> Batch[np.ndarray]:
  """The rows of several batches, one behind the other."""
  return _join(np.concatenate, batches)


def flatten(batch: Batch[np.ndarray]) -> tuple[np.ndarray, ...]:
  """All arrays of a batch in a row, for what takes no trees."""
  *fields, slots = batch
  return (*fields, *(x for kind in slots for x in kind))


def unflatten(arrays: Sequence[np.ndarray]) -> Batch[np.ndarray]:
  """The inverse of `flatten`."""
  own, each = len(Batch._fields) - 1, len(Slots._fields)
  rest = arrays[own:]
  slots = (Slots(*rest[n : n + each]) for n in range(0, len(rest), each))
  return Batch._make([*arrays[:own], tuple(slots)])


def _join(
  join: Callable, parts: Sequence[Row | Batch[np.ndarray]]
) -> Batch[np.ndarray]:
  *fields, slots = zip(*parts, strict=True)
  kinds = (
    Slots(*(join(x) for x in zip(*kind, strict=True)))
    for kind in zip(*slots, strict=True)
  )
  return Batch._make([*(join(field) for field in fields), tuple(kinds)])


def live_elements(batch: Batch[A]) -> int:
  """Positions that are not padding."""
  return int(np.sum(np.asarray(batch.hi_bl) >= np.asarray(batch.lo_bl)))


def _empty_rows(
  rows: int, row_length: int, kinds: Sequence[KindSizes], special: SpecialTokens
) -> Batch[np.ndarray]:
  """Rows of padding; the latents are to be written."""
  places = (rows, row_length)
  return Batch(
    tokens_bl=np.full(places, special.pad, np.int32),
    targets_bl=np.full(places, special.pad, np.int32),
    weights_bl=np.zeros(places, np.float32),
    positions_bl=np.zeros(places, np.int32),
    lo_bl=np.full(places, row_length, np.int32),
    hi_bl=np.full(places, row_length - 1, np.int32),
    patch_bl=np.full(places, -1, np.int32),
    slots=tuple(
      Slots(
        latents=np.empty((rows, kind.slots, *kind.shape), np.float32),
        starts=np.zeros((rows, kind.slots), np.int32),
        weights=np.zeros((rows, kind.slots), np.float32),
        noise_caps=np.ones((rows, kind.slots), np.float32),
      )
      for kind in kinds
    ),
  )
