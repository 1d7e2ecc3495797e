"""Documents longer than a row, cut into pieces.

Owns: where they are cut and what a piece repeats. Not: the document's layout
(sequence.py), which row a piece goes to (lanes.py).

A document of 9 elements in rows of 6, data.overlap=2 (BOI x x EOI is an image):

  input     BOS a b  c  BOI x x EOI d       whole
  target    a   b c BOI  .  . . d   EOS
  input     BOS a b  c                      first piece
  target    a   b c BOI
  input         b c BOI x  x EOI            second: b and c are read, not learned
  target        . .  .  .  . d
  input                          d          third: the image does not fit again
  target                         EOS

Everything is learned once, from the same targets as in the whole document.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from tfusion import sequence
from tfusion.sequence import Elements, SpecialTokens


def cut(
  whole: Elements,
  *,
  endings: np.ndarray,
  special: SpecialTokens,
  row_length: int,
  image_slots: Sequence[int],
  patches_per_image: Sequence[int],
  overlap: int,
) -> list[Elements]:
  """Cuts a laid-out document into pieces that fit a row.

  A cut never lies inside an image. It lies in the second half of the row: behind a
  paragraph or at an image if there is one, else behind a sentence, else between tokens.

  Args:
    whole: from `sequence.lay_out`.
    endings: u8[vocabulary], Tokenizer.endings.
    special: ids of the special tokens.
    row_length: elements of a piece, at most.
    image_slots: images of a piece, at most, of every kind.
    patches_per_image: patches of an image of every kind.
    overlap: elements of the piece before that a piece repeats, not learned and without
      noise; fewer where that would cut an image or leave no room for the next one.

  Returns:
    The pieces in order; none if an image fits no row.
  """
  length = len(whole.tokens_l)
  # Cut c lies before element c.
  inside = sequence.in_image(whole, special=special)
  cuts = np.flatnonzero(~np.append(inside | (whole.tokens_l == special.eoi), False))
  firsts = sequence.first_patches(whole, patches_per_image)
  # Of every kind, before each cut.
  images = _images_before(whole, firsts, kinds=len(image_slots))
  nice = _niceness(whole.tokens_l, endings, special)

  def fits(start, stop):
    few = images[:, stop] - images[:, start, None] <= np.reshape(image_slots, (-1, 1))
    return (stop - start <= row_length) & np.all(few, axis=0)

  pieces, start = [], 0
  while start < length:
    after = int(np.searchsorted(cuts, start, side="right"))
    # BOS begins a document, so it is not repeated; the first piece repeats nothing.
    before = np.searchsorted(cuts, min(max(start - overlap, 1), start))
    contexts = [c for c in cuts[before:after] if fits(c, cuts[after : after + 1])[0]]
    if not contexts:
      return []
    reachable = cuts[after : np.searchsorted(cuts, contexts[0] + row_length, "right")]
    reachable = reachable[fits(contexts[0], reachable)]
    stop = last = int(reachable[-1])
    if last < length:
      good = reachable[reachable > (start + last) // 2][::-1]
      stop = int(good[np.argmax(nice[good])])
    pieces.append(_piece(whole, int(contexts[0]), start, stop, special, firsts))
    start = stop
  return pieces


def _niceness(tokens_l, endings, special) -> np.ndarray:
  """How good a place to cut lies before each element, and at the end."""
  own_l = np.zeros(len(tokens_l) + 1, np.uint8)
  known = tokens_l < len(endings)  # codes of images lie above
  own_l[1:][known] = endings[tokens_l[known]]
  begins = sequence.begins_image(tokens_l, special)
  own_l[:-1][begins] = endings.max(initial=1)
  own_l[1:][tokens_l == special.eoi] = endings.max(initial=1)
  return own_l


def _images_before(whole: Elements, firsts: np.ndarray, *, kinds: int) -> np.ndarray:
  """The images of each kind that begin before each cut, i32[kinds, cuts]."""
  starts = np.flatnonzero(whole.patch_l >= 0)[firsts[:-1]]
  begins = np.zeros((kinds, len(whole.tokens_l) + 1), np.int32)
  for start, image in zip(starts, whole.images, strict=True):
    begins[image.kind, start + 1] += 1
  return np.cumsum(begins, axis=1)


def _piece(
  whole: Elements, context: int, start: int, stop: int, special, firsts: np.ndarray
) -> Elements:
  """Elements start..stop of a document, behind context..start, which is not learned."""
  own = slice(context, stop)
  repeated_l = np.arange(context, stop) < start
  patch_l = whole.patch_l[own]

  def images_of(patches):
    return np.unique(np.searchsorted(firsts, patches, side="right") - 1)

  used = images_of(patch_l[patch_l >= 0])
  read = set(images_of(patch_l[repeated_l & (patch_l >= 0)]))
  before = firsts[used[0]] if len(used) else 0
  return Elements(
    tokens_l=whole.tokens_l[own],
    targets_l=np.where(repeated_l, special.pad, whole.targets_l[own]).astype(np.int32),
    weights_l=np.where(repeated_l, 0, whole.weights_l[own]).astype(np.float32),
    hi_l=whole.hi_l[own] - context,
    patch_l=np.where(patch_l >= 0, patch_l - before, patch_l).astype(np.int32),
    images=tuple(
      dataclasses.replace(whole.images[n], weight=0.0, noise_cap=0.0)
      if n in read
      else whole.images[n]
      for n in used
    ),
  )
