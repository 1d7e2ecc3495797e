"""A row as an HTML page: its documents, texts, pictures, and who sees whom.

Owns: the page. Not: which row (replay.py), how latents or codes become pictures (the
caller hands that in).

l sequence  n image slots
"""

import base64
import html
import io
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

from tfusion import sequence
from tfusion.data.tokenizer import Tokenizer
from tfusion.inspect.replay import Row

BAND_PX = 768  # side of the picture of the intervals, at most twice
PICTURE_PX = 96  # side of a picture on the page
TEXT, PATCH = (60, 90, 160), (220, 120, 40)  # colours of who sees, in the band picture
STYLE = """
  body { font: 15px/1.5 sans-serif; margin: 2em; max-width: 60em; }
  section { border-left: 3px solid #ccc; padding-left: 1em; margin: 1.5em 0; }
  b { background: #e4e8f2; border-radius: 3px; padding: 0 .3em; font-weight: normal; }
  .read { color: #999; }
  img { vertical-align: middle; margin: .2em; image-rendering: pixelated; }
  pre { white-space: pre-wrap; font: inherit; margin: .5em 0; }
  small { color: #666; }
"""


def page(
  row: Row,
  tokenizer: Tokenizer,
  *,
  title: str,
  pictures: Callable[[np.ndarray], np.ndarray],
  patches_per_image: int,
) -> str:
  """Draws a row.

  Args:
    row: from `replay.rows_of_step`.
    tokenizer: of the run.
    title: heading of the page.
    pictures: turns latents f32[n, h, w, c], or codes i32[n, codes] from 0 on, into
      u8[n, px, px, 1 or 3].
    patches_per_image: positions of an image in patches.

  Returns:
    One page that needs no other file.
  """
  batch = row.batch
  live = batch.hi_bl >= batch.lo_bl
  used = len(np.unique(batch.patch_bl[batch.patch_bl >= 0] // patches_per_image))
  drawn = pictures(batch.latents_bnhwc[:used]) if used else ()
  sections, stop = [], 0
  for name, length in zip(row.documents, row.lengths, strict=True):
    start, stop = stop, stop + length
    own = np.arange(start, stop)
    spans = "".join(_spans(batch, own, tokenizer, drawn, pictures))
    sections.append(
      f"<section><small>{html.escape(name)}: positions {own[0]} to {own[-1]}</small>"
      f"<pre>{spans}</pre></section>"
    )
  filled = f"{np.sum(live)} of {len(live)} positions filled"
  return (
    f"<!doctype html><meta charset=utf-8><title>{html.escape(title)}</title>"
    f"<style>{STYLE}</style><h1>{html.escape(title)}</h1>"
    f"<p>Lane {row.lane}; {filled}, {used} of {len(batch.image_start_bn)} image slots"
    " used. Grey is read, not learned.</p>"
    f"{''.join(sections)}<h2>Who sees whom</h2><p>Down: the position that looks;"
    " across: what it sees. Text is blue, patches are orange.</p>"
    f"{_img(band(batch), width=None)}\n"
  )


def band(batch: sequence.Batch) -> np.ndarray:
  """The intervals lo..hi of a row as a picture u8[side, side, 3].

  Long rows are drawn at every few positions, short ones several pixels a position.
  """
  length = len(batch.lo_bl)
  stride = -(-length // BAND_PX)
  at = np.arange(0, length, stride)
  lo, hi = batch.lo_bl[at, None], batch.hi_bl[at, None]
  sees = (lo <= at) & (at <= hi)
  colours = np.where(batch.patch_bl[at, None] >= 0, PATCH, TEXT)
  picture = np.where(sees[..., None], colours[:, None], 255).astype(np.uint8)
  scale = max(1, BAND_PX // len(at))
  return picture.repeat(scale, axis=0).repeat(scale, axis=1)


def _spans(
  batch: sequence.Batch, own: np.ndarray, tokenizer: Tokenizer, drawn, pictures
) -> Iterator[str]:
  """The document at positions `own`, span by span."""
  special = {i: n.upper() for n, i in tokenizer.special._asdict().items() if n != "pad"}
  starts = {int(s): n for n, s in enumerate(batch.image_start_bn[: len(drawn)])}
  # Position i is learned as the target of the position before it.
  learned = np.append(False, batch.weights_bl[own[:-1]] > 0)
  kinds = [_kind(batch, i, special, tokenizer.vocab_size) for i in own]
  begin = 0
  while begin < len(own):
    end = begin + 1
    while (
      end < len(own)
      and (kinds[end], learned[end]) == (kinds[begin], learned[begin])
      and int(own[end]) not in starts
      and kinds[begin] != "special"
    ):
      end += 1
    ids = batch.tokens_bl[own[begin:end]]
    if kinds[begin] == "patch":
      slot = starts[int(own[begin])]
      yield _img(drawn[slot], width=PICTURE_PX)
      yield f"<small>{end - begin} patches, {_noise(batch, slot)}</small>"
    elif kinds[begin] == "code":
      yield _img(pictures(ids[None] - tokenizer.vocab_size)[0], width=PICTURE_PX)
      yield f"<small>{end - begin} codes</small>"
    else:
      shown = html.escape(tokenizer.decode(ids))
      shown = f"<b>{special[int(ids[0])]}</b>" if kinds[begin] == "special" else shown
      yield shown if learned[begin] else f"<span class=read>{shown}</span>"
    begin = end
  if batch.targets_bl[own[-1]] == tokenizer.special.eos:
    yield "<b>EOS</b>"  # a target alone
  elif batch.targets_bl[own[-1]] == tokenizer.special.pad:
    yield "<span class=read>(what follows is not learned)</span>"


def _noise(batch: sequence.Batch, slot: int) -> str:
  """What the image of a slot is trained on."""
  weight, cap = batch.image_weight_bn[slot], batch.noise_cap_bn[slot]
  if cap == 0:
    return "clean: to be read, no noise to learn"
  bound = f"t up to {cap:g} T: to be read" if cap < 1 else "t up to T"
  return f"{bound}, weight {weight:g}"


def _kind(batch: sequence.Batch, i: int, special: dict, vocab_size: int) -> str:
  if batch.patch_bl[i] >= 0:
    return "patch"
  if batch.tokens_bl[i] >= vocab_size:
    return "code"
  return "special" if int(batch.tokens_bl[i]) in special else "text"


def _img(picture: np.ndarray, *, width: int | None) -> str:
  data = io.BytesIO()
  if picture.shape[-1] == 1:
    picture = picture[..., 0]
  Image.fromarray(picture).save(data, "PNG")
  coded = base64.b64encode(data.getvalue()).decode()
  size = f" width={width}" if width else ""
  return f'<img{size} src="data:image/png;base64,{coded}">'
