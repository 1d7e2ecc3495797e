"""Which of the documents that wait go into the next row.

Owns: the choice. Not: which documents wait (lanes.py), how a row is laid out
(sequence.py).
"""

from collections.abc import Sequence

SUMS_BITS = 1 << 30  # of all subset sums, at most: 128 MiB, and tenths of a second


def choose(
  elements: Sequence[int],
  images: Sequence[Sequence[int]],
  *,
  row_length: int,
  image_slots: Sequence[int],
) -> list[int]:
  """Chooses documents that together fill a row as far as any choice can.

  The first document is always chosen, so that none waits for ever. Of equally full
  rows, the one with the earlier documents is chosen.

  First-fit would leave half a document free in every row: 5 % where a row holds 14
  captioned images. Among three rows' worth of documents there are nearly always some
  that fill a row to the last element. First-fit is used only where images fill their
  slots before the row is full: in rows of tens of thousands of elements, or of several
  kinds of images.

  Args:
    elements: of each document, in the order in which they came; none above row_length.
    images: of each document, by kind; none above image_slots.
    row_length: elements in the row.
    image_slots: images of every kind that it can hold.

  Returns:
    Indices in ascending order, 0 among them.
  """
  bits = len(elements) * 2 * (row_length + 1)
  if bits <= SUMS_BITS:
    chosen = _fill(elements, [0] * len(elements), row_length, 0)
    held = map(sum, zip(*(images[i] for i in chosen)))
    if all(n <= slots for n, slots in zip(held, image_slots, strict=True)):
      return chosen
  if len(image_slots) > 1 or bits * (image_slots[0] + 1) > SUMS_BITS:
    return _first_fit(elements, images, row_length, image_slots)
  return _fill(elements, [own for (own,) in images], row_length, image_slots[0])


def _first_fit(elements, images, row_length: int, image_slots) -> list[int]:
  chosen = []
  for index, (size, own) in enumerate(zip(elements, images, strict=True)):
    left = [slots - n for slots, n in zip(image_slots, own, strict=True)]
    if size <= row_length and min(left) >= 0:
      chosen.append(index)
      row_length, image_slots = row_length - size, left
  return chosen


def _fill(elements, images, row_length: int, image_slots: int) -> list[int]:
  """Chooses by subset sums, which are the bits of one number: bit n * width + e is set
  if some documents have n images and e elements together. Sums that exceed the row land
  in the upper half of a width, and are masked out."""
  width = 2 * (row_length + 1)
  row = (1 << (row_length + 1)) - 1
  valid = sum(row << (n * width) for n in range(image_slots + 1))
  sizes = [n * width + e for n, e in zip(images, elements, strict=True)]
  reached = [1 << sizes[0]]
  for size in sizes[1:]:
    reached.append(reached[-1] | (reached[-1] << size) & valid)
  fullest = [
    (reached[-1] >> (n * width) & row).bit_length() - 1 for n in range(image_slots + 1)
  ]
  images_used = fullest.index(max(fullest))
  at = images_used * width + fullest[images_used]
  chosen = []
  for index in range(len(sizes) - 1, 0, -1):
    if not reached[index - 1] >> at & 1:  # not without this document
      chosen.append(index)
      at -= sizes[index]
  return [0, *reversed(chosen)]
