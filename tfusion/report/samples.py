"""Samples on the page: what was asked for beside what came.

Owns: pictures and their size in bytes. Not: drawing them (evaluate/pictures.py).
"""

import base64
import io
import json
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

LARGE_BYTES, SMALL_BYTES = 450_000, 80_000  # of a picture; keeps the page under 3 MB
SIDE_PX = 280  # of a sample on the page, at most
MADE = 160  # characters of a text that are shown


def show(folder: Path, sentence: str) -> str:
  """The newest samples, each with its prompt, and pictures of the earlier ones.

  Args:
    folder: with step_NNNNNNNN.png and, from runs that know their prompts, .json.
    sentence: says of what they are.

  Returns:
    HTML; nothing if there are none.
  """
  paths = sorted(folder.glob("step_*.png"))
  steps = sorted({p.stem for p in [*paths, *folder.glob("step_*.json")]})
  if not steps:
    return ""
  newest = folder / f"{steps[-1]}.png"
  earlier = [path for path in paths if path != newest]
  strip = (picture(path, 150) for path in spread(earlier, 6))
  asked = _read(newest.with_suffix(".json"))
  return (
    f"<p>{sentence} at every evaluation; the newest is large.</p>"
    f'<div class="strip">{"".join(f"<div>{x}</div>" for x in strip)}</div>'
    + (_beside(newest, asked) or picture(newest, 1080, limit_bytes=LARGE_BYTES))
  )


def picture(path: Path, width_px: int, *, limit_bytes: int = SMALL_BYTES) -> str:
  """Embeds a picture over its name; one that takes too many bytes is made smaller."""
  from PIL import Image

  name = escape(re.sub("_0*", " ", path.stem))
  try:
    with Image.open(path) as image:
      image.load()
      tag = _embedded(image, path.read_bytes(), name, width_px, limit_bytes)
  except (OSError, SyntaxError, ValueError):  # what PIL raises for half a file
    return f"<small>{escape(path.name)} cannot be read yet</small>"
  return f"{tag}<small>{name}</small>"


def spread(items: Any, most: int) -> list:
  """At most so many of the items, evenly, the first and the last among them."""
  n = len(items)
  return [items[round(i)] for i in np.linspace(0, n - 1, min(most, n))]


def _beside(path: Path, asked: Sequence[dict[str, Any]]) -> str:
  """A figure for every prompt; nothing if the picture or the prompts are not whole."""
  from PIL import Image

  count = sum(len(one["boxes"]) for one in asked)
  figures = ""
  try:
    sheet = Image.open(path).convert("RGB") if count else None
    for one in asked:
      prompt, tags = escape(one["prompt"]) or "(nothing)", ""
      for box in one["boxes"]:
        (image := sheet.crop(box)).save(whole := io.BytesIO(), "png")
        limit = max(2 * LARGE_BYTES // count, 4000)
        tags += _embedded(image, whole.getvalue(), prompt, SIDE_PX, limit)
      text = one["text"] if one["text"].replace("<image>", "").strip() else ""
      text = escape(text[:MADE]) + "..." * (len(text) > MADE)
      figures += (
        f"<figure>{tags}<figcaption>{prompt}<small>{text}</small></figcaption></figure>"
      )
  except (OSError, SyntaxError, ValueError):
    return ""
  name = escape(re.sub("_0*", " ", path.stem))
  return figures and f'<div class="grid samples">{figures}</div><small>{name}</small>'


def _embedded(image: Any, data: bytes, name: str, width_px: int, limit: int) -> str:
  kind, (w, h) = "png", image.size
  while len(data) > limit and max(image.size) > 1:
    image = image.convert("RGB").resize([max(1, x * 3 // 4) for x in image.size])
    image.save(smaller := io.BytesIO(), "jpeg", quality=85)
    data, kind = smaller.getvalue(), "jpeg"
  width_px = min(width_px, 560 * w // h)
  look = f'alt="{name}" width="{width_px}"' + " class=pixel" * (w < width_px)
  return (
    f'<img {look} src="data:image/{kind};base64,{base64.b64encode(data).decode()}">'
  )


def _read(path: Path) -> list[dict[str, Any]]:
  """What was asked for; nothing of what is damaged or half written."""
  try:
    asked = json.loads(path.read_text())["prompts"]
    return [
      {
        "prompt": str(one["prompt"]),
        "text": str(one["text"]),
        "boxes": [tuple(map(int, box)) for box in one["boxes"]],
      }
      for one in asked
    ]
  except (OSError, ValueError, TypeError, KeyError):
    return []
