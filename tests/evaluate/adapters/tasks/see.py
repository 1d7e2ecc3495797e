"""Functions of see.yaml, a task of lmms-eval as WISE is: it reads results[0]."""

import json
import pathlib

from PIL import Image


def to_visual(doc):
  return [Image.new("RGB", (8, 8), (60 * doc["answer"], 0, 0))]


def to_text(doc):
  return f"<image>{doc['question']}"


def to_target(doc):
  return doc["choices"][doc["answer"]]


def process_results(doc, results):
  try:
    path = pathlib.Path(json.loads(results[0])["images"][0])
  except (ValueError, TypeError):
    return {"answered": float(isinstance(results[0], str))}
  with Image.open(path) as image:
    return {"answered": 10.0 + (image.mode == "RGB")}
