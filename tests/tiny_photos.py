"""Folders of small images with captions, as a person has them.

Not a test: shared by the tests of whatever reads a folder.
"""

from pathlib import Path

from PIL import Image

COLOR = (200, 40, 90)


def add(
  root: Path,
  name: str,
  caption: str | bytes | None = "a square",
  *,
  color: tuple[int, int, int] = COLOR,
  size: tuple[int, int] = (20, 20),
) -> Path:
  """Writes an image of one colour, and its caption beside it.

  Args:
    root: the folder; made if it is not there.
    name: below it; whatever it is, the image is a PNG.
    caption: None writes no .txt.
    color: of all its pixels.
    size: in pixels.

  Returns:
    The path of the image.
  """
  path = root / name
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.new("RGB", size, color).save(path, "PNG")
  if caption is not None:
    data = caption if isinstance(caption, bytes) else caption.encode()
    path.with_suffix(".txt").write_bytes(data)
  return path


def squares(root: Path) -> Path:
  """Four images with captions that are as they should be; returns their folder."""
  for i in range(4):
    add(root, f"good{i}.png", f"square number {i}")
  return root
