"""Samples on the page: what was asked for beside what came.

Owns: images on the page, and their size in bytes. Not: sampling them (evaluate/), which
leaves them in the folders samples/ and eval/.
"""

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

from tfusion.report.run import spread

LARGE_BYTES, SMALL_BYTES = 450_000, 80_000  # of an image; keeps the page under 3 MB
SIDE_PX = 280  # of a sample on the page, at most
HEIGHT_PX = 560  # of any image, at most
EARLIER = 6  # images of earlier samples
SHOWN = 160  # characters of a text


def newest(folder: Path, sentence: str) -> dict[str, Any] | None:
  """Returns the newest samples, each with its prompt, and some earlier images.

  Args:
    folder: with step_NNNNNNNN.png and, from runs that know their prompts, .json.
    sentence: says of what they are.

  Returns:
    The values of the macro `samples`; None if there are no samples.
  """
  found = latest(folder)
  if not found:
    return None
  paths = [p for p in sorted(folder.glob("step_*.png")) if _name(p) != found["name"]]
  earlier = [image(path, width_px=150) for path in spread(paths, EARLIER)]
  return found | {"sentence": sentence, "earlier": earlier}


def latest(folder: Path, *, limit_bytes: int = LARGE_BYTES) -> dict[str, Any] | None:
  """Returns the newest samples alone: whole, and by prompt where that is known.

  Args:
    folder: as for `newest`.
    limit_bytes: an image that takes more is made smaller.

  Returns:
    `name`, `newest` and `by_prompt`; None if there are no samples.
  """
  steps = [p.stem for kind in ("png", "json") for p in folder.glob(f"step_*.{kind}")]
  if not steps:
    return None
  path = folder / f"{max(steps)}.png"
  return {
    "by_prompt": _by_prompt(path, _asked(path.with_suffix(".json")), limit_bytes),
    "name": _name(path),
    "newest": image(path, width_px=1080, limit_bytes=limit_bytes),
  }


def image(
  path: Path, *, width_px: int, limit_bytes: int = SMALL_BYTES
) -> dict[str, Any]:
  """Returns an image for the macro of that name, or that it cannot be read yet.

  Args:
    path: of a PNG.
    width_px: on the page, at most.
    limit_bytes: one that takes more is made smaller.
  """
  from PIL import Image

  try:
    data = path.read_bytes()
    with Image.open(io.BytesIO(data)) as opened:
      opened.load()
      return _embedded(opened, data, _name(path), width_px, limit_bytes)
  except (OSError, SyntaxError, ValueError):  # what PIL raises for half a file
    return {"unreadable": True, "file": path.name}


def _by_prompt(
  path: Path, asked: list[dict[str, Any]], limit_bytes: int
) -> list[dict[str, Any]]:
  """What came of every prompt; nothing if the image or the prompts are not whole."""
  from PIL import Image

  count = sum(len(one["boxes"]) for one in asked)
  limit = max(2 * limit_bytes // max(count, 1), 4000)
  found = []
  try:
    sheet = Image.new("RGB", (1, 1))
    if count:
      sheet = Image.open(io.BytesIO(path.read_bytes())).convert("RGB")
    for one in asked:
      prompt, text = one["prompt"] or "(nothing)", one["text"]
      images = []
      for box in one["boxes"]:
        cut, file = sheet.crop(box), io.BytesIO()
        cut.save(file, "png")
        images.append(_embedded(cut, file.getvalue(), prompt, SIDE_PX, limit))
      said = text if text.replace("<image>", "").strip() else ""
      said = said[:SHOWN] + "..." * (len(said) > SHOWN)
      found.append({"prompt": prompt, "text": said, "images": images})
  except (OSError, SyntaxError, ValueError):
    return []
  return found


def _embedded(
  image: Any, data: bytes, name: str, width_px: int, limit_bytes: int
) -> dict[str, Any]:
  """The values of the macro `img`: `data`, or a smaller JPEG of the same image."""
  kind, (w, h) = "png", image.size
  while len(data) > limit_bytes and max(image.size) > 1:
    image = image.convert("RGB").resize([max(1, x * 3 // 4) for x in image.size])
    image.save(smaller := io.BytesIO(), "jpeg", quality=85)
    data, kind = smaller.getvalue(), "jpeg"
  width_px = min(width_px, HEIGHT_PX * w // h)
  return {
    "unreadable": False,
    "name": name,
    "width_px": width_px,
    "enlarged": w < width_px,  # then every pixel is shown as a square
    "source": f"data:image/{kind};base64,{base64.b64encode(data).decode()}",
  }


def _name(path: Path) -> str:
  """Such as "step 240" for step_00000240.png."""
  return re.sub("_0*", " ", path.stem)


def _asked(path: Path) -> list[dict[str, Any]]:
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
