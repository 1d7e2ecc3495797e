"""Images that stand twice: clean for what follows, noised to be learned.

Owns: which images, and the branches that hold their noised copies. Not: the document's
layout (sequence.py), where a long one is cut (pieces.py), which row a branch goes to
(lanes.py).

With diffusion.context=both a document "a [image] b" (BOI x x EOI) is given as two:

  input     BOS a BOI x x EOI b      x is clean, t = 0, and has no image loss
  target    a BOI  .  . .  b  EOS
  input     BOS a BOI x x            the branch: x is noised, and learned
  target    .  .   .  . .

So it is in BAGEL (arXiv 2505.14683, generalized causal attention): what follows an
image sees a clean copy of it; noise is learned from another copy, which sees what
stands before the image, clean, and itself, at the same positions, and which nothing
else sees. BAGEL lays both copies in one sequence, whose mask has holes. The intervals
of attention have none, so here the prefix is computed again for every branch: ours,
exact, and dearer by the elements before each image.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from tfusion.sequence import Elements, SpecialTokens, first_patches


def branch(
  whole: Elements, *, special: SpecialTokens, patches_per_image: Sequence[int]
) -> list[Elements]:
  """Gives every image that something follows a branch of its own.

  That something is any target that is learned but EOS: text, or that another image
  comes. An image that has no image loss already needs none.

  Args:
    whole: a document or a piece of one.
    special: ids of the special tokens.
    patches_per_image: patches of an image of every kind.

  Returns:
    The document, in which these images are clean, then their branches, in order; the
    document as it was if there are none.
  """
  firsts = first_patches(whole, patches_per_image)
  places = np.flatnonzero(whole.patch_l >= 0)
  starts = places[firsts[:-1]]
  learned = (whole.weights_l > 0) & (whole.targets_l != special.eos)
  last = int(np.max(np.flatnonzero(learned), initial=-1))
  twice = [
    n
    for n, (start, image) in enumerate(zip(starts, whole.images, strict=True))
    if image.noise_cap > 0 and image.weight > 0 and start < last
  ]
  clean = tuple(
    dataclasses.replace(image, noise_cap=0.0) if n in twice else image
    for n, image in enumerate(whole.images)
  )
  document = whole._replace(images=clean)
  return [
    document,
    *(
      _ending_with(document, whole, n, int(places[firsts[n + 1] - 1]) + 1, special)
      for n in twice
    ),
  ]


def _ending_with(
  document: Elements, whole: Elements, n: int, stop: int, special: SpecialTokens
) -> Elements:
  """The first elements up to `stop`, of which image n, noised, is the last."""
  return Elements(
    tokens_l=document.tokens_l[:stop],
    targets_l=np.full(stop, special.pad, np.int32),
    weights_l=np.zeros(stop, np.float32),
    hi_l=document.hi_l[:stop],
    patch_l=document.patch_l[:stop],
    images=(*document.images[:n], whole.images[n]),
  )
