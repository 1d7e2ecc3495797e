"""A row as an HTML page: its documents, texts, images, and what sees what.

Owns: the page. Not: which row (replay.py), what latents or codes look like
(generate/canvas.py).

l sequence  n image slots
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tfusion import sequence, templates
from tfusion.data.tokenizer import Tokenizer
from tfusion.generate import png
from tfusion.inspect.replay import TakenRow
from tfusion.kinds import FIRST

BAND_PX = 768  # side of the plot of the intervals, at most twice
IMAGE_PX = 96  # side of an image on the page
TEXT, PATCH = (60, 90, 160), (220, 120, 40)  # colours of what sees, in the plot
FOLDER = Path(__file__).parent


class Span(NamedTuple):
  """A piece of a document as the page shows it."""

  text: str  # or what is said of the image
  learned: bool = True
  mark: bool = False  # a special token
  image: str = ""  # its `src`


def page(
  taken: TakenRow,
  tokenizer: Tokenizer,
  *,
  title: str,
  show: Callable[[Sequence[np.ndarray]], Sequence[np.ndarray]],
  kinds: Sequence[str] = (FIRST,),
) -> str:
  """Makes the page of a row.

  Args:
    taken: from `replay.rows_of_step`.
    tokenizer: of the run.
    title: heading of the page.
    show: turns latents f32[h, w, c], or codes i32[codes] from 0 on, into
      u8[px, px, 1 or 3] each.
    kinds: names of the kinds of images of the run.

  Returns:
    One page that needs no other file.
  """
  row = taken.row
  live = row.hi_l >= row.lo_l
  images = dict(_images(row, kinds))
  pixels = show([image.latent for image in images.values()]) if images else ()
  shown = dict(zip(images, pixels, strict=True))
  documents, stop = [], 0
  for name, length in zip(taken.documents, taken.lengths, strict=True):
    start, stop = stop, stop + length
    own = np.arange(start, stop)
    spans = list(_spans(row, own, tokenizer, images, shown, show))
    documents.append({"name": name, "first": start, "last": stop - 1, "spans": spans})
  page = templates.environment(FOLDER).get_template("row_page.html.j2")
  return page.render(
    title=title,
    style=(FOLDER / "row_page.css").read_text(),
    lane=taken.lane,
    filled=np.sum(live),
    positions=len(live),
    used=len(images),
    slots=sum(len(kind.starts) for kind in row.slots),
    documents=documents,
    band=png.data_url(band(row)),
    image_px=IMAGE_PX,
  )


def band(row: sequence.Row) -> np.ndarray:
  """The intervals lo..hi of a row as a plot u8[side, side, 3].

  Of long rows every few positions are shown, of short ones each as several pixels.
  """
  length = len(row.lo_l)
  stride = -(-length // BAND_PX)
  at = np.arange(0, length, stride)
  lo, hi = row.lo_l[at, None], row.hi_l[at, None]
  sees = (lo <= at) & (at <= hi)
  colours = np.where(row.patch_l[at, None] >= 0, PATCH, TEXT)
  plot = np.where(sees[..., None], colours[:, None], 255).astype(np.uint8)
  scale = max(1, BAND_PX // len(at))
  return plot.repeat(scale, axis=0).repeat(scale, axis=1)


class _Shown(NamedTuple):
  """An image in patches and how it is trained on."""

  latent: np.ndarray
  weight: float
  noise_cap: float
  kind: str


def _images(row: sequence.Row, kinds: Sequence[str]) -> Iterator[tuple[int, _Shown]]:
  """The images of a row by the position of their first patch, kind by kind."""
  for name, slots in zip(kinds, row.slots, strict=True):
    for latent, start, weight, noise_cap in zip(*slots, strict=True):
      if row.patch_l[start] >= 0:  # an empty slot starts at 0, where BOS stands
        yield int(start), _Shown(latent, weight, noise_cap, name)


def _spans(
  row: sequence.Row, own: np.ndarray, tokenizer: Tokenizer, images, pixels, show
) -> Iterator[Span]:
  """The document at positions `own`, span by span."""
  special = {
    i: n.upper()
    for n, i in tokenizer.special._asdict().items()
    if n not in ("pad", "other_bois")
  }
  special |= dict.fromkeys(tokenizer.special.other_bois, "BOI")
  # Position i is learned as the target of the position before it.
  learned = np.append(False, row.weights_l[own[:-1]] > 0)
  kinds = [_kind(row, i, special, tokenizer.vocab_size) for i in own]
  begin = 0
  while begin < len(own):
    end = begin + 1
    while (
      end < len(own)
      and (kinds[end], learned[end]) == (kinds[begin], learned[begin])
      and kinds[begin] != "special"
    ):
      end += 1
    ids = row.tokens_l[own[begin:end]]
    if kinds[begin] == "patch":
      image = images[int(own[begin])]
      of = "" if image.kind == FIRST else f" of {image.kind}"
      text = f"{end - begin} patches{of}, {_noise(image)}"
      yield Span(text, image=png.data_url(pixels[int(own[begin])]))
    elif kinds[begin] == "code":
      shown = show([ids - tokenizer.vocab_size])[0]
      yield Span(f"{end - begin} codes", image=png.data_url(shown))
    elif kinds[begin] == "special":
      yield Span(special[int(ids[0])], bool(learned[begin]), mark=True)
    else:
      yield Span(tokenizer.decode(ids), bool(learned[begin]))
    begin = end
  if row.targets_l[own[-1]] == tokenizer.special.eos:
    yield Span("EOS", mark=True)  # a target alone
  elif row.targets_l[own[-1]] == tokenizer.special.pad:
    yield Span("(what follows is not learned)", learned=False)


def _noise(image: _Shown) -> str:
  """What an image is trained on."""
  weight, cap = image.weight, image.noise_cap
  if cap == 0:
    return "clean: to be read, no noise to learn"
  bound = f"t up to {cap:g} T: to be read" if cap < 1 else "t up to T"
  return f"{bound}, weight {weight:g}"


def _kind(row: sequence.Row, i: int, special: dict, vocab_size: int) -> str:
  if row.patch_l[i] >= 0:
    return "patch"
  if int(row.tokens_l[i]) in special:
    return "special"
  return "code" if row.tokens_l[i] >= vocab_size else "text"
