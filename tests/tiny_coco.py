"""A folder of MS-COCO with Karpathy's splits, of a few images of noise.

Not a test: shared by the tests of whatever reads it.
"""

import json
import pathlib

import numpy as np
from PIL import Image

SPLITS = ("test", "val", "restval", "test", "train")  # of image 0, 1, ...


def write(folder: pathlib.Path) -> list[list[str]]:
  """Writes dataset_coco.json and the images; returns the captions of each."""
  rng, images, texts = np.random.default_rng(0), [], []
  for number, split in enumerate(SPLITS):
    place = "train2014" if split == "train" else "val2014"
    name = f"COCO_{place}_{number:012d}.jpg"
    own = [f"seven  and number {number}.", f"a seven {number}"]
    texts.append([" ".join(text.split()) for text in own])
    path = folder / place / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = rng.integers(0, 256, (12, 10, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    sentences = [
      {"tokens": text.lower().split(), "raw": text, "imgid": number, "sentid": 10 * i}
      for i, text in enumerate(own)
    ]
    images.append(
      {
        "filepath": place,
        "sentids": [10 * i for i in range(len(own))],
        "filename": name,
        "imgid": number,
        "split": split,
        "sentences": sentences,
        "cocoid": number,
      }
    )
  values = {"images": images, "dataset": "coco"}
  (folder / "dataset_coco.json").write_text(json.dumps(values))
  return texts
