"""What is said of the data before training begins.

Owns: what was found and skipped, as lines and as JSON, and the warnings. Not: the
accounts themselves (balance.py), opening sources (pipeline.py).
"""

import collections
import dataclasses
import functools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from tfusion import files, sequence
from tfusion.config import Config
from tfusion.data import balance as balance_lib
from tfusion.data import forms
from tfusion.data.balance import Balance
from tfusion.data.source import Source, some_documents
from tfusion.data.tokenizer import Tokenizer

SAMPLED = 200  # documents of a source that a warning looks at
ENCODED = 1 << 16  # encodings that are remembered

Sources = Sequence[Source]
Encode = Callable[[str], np.ndarray]


def warn(sources: Sources, tokenizer: Tokenizer, config: Config, workdir: Path) -> None:
  """Logs what a person should know before training: what was skipped, whether the mix
  of text and images is out of reach, from which source no image is learned in full.

  Args:
    sources: to train on.
    tokenizer: encodes their texts.
    config: of the run.
    workdir: gets skipped.json.
  """
  encode = functools.lru_cache(ENCODED)(tokenizer.encode)
  _report_skipped(sources, workdir)
  _report_doubtful(sources)
  _report_unreachable(sources, encode, config)
  _report_never_all_noise(sources, encode, config)


def found(train: Sources, test: Sources) -> dict[str, dict[str, Any]]:
  """What became of all that the sources hold, for JSON.

  Args:
    train: the training sources.
    test: their held-out splits, in the same order.

  Returns:
    Source -> split -> its balance as a dict; None where it is not known. Sources that
    leave nothing out are not there.
  """
  return {
    name: {split: b and dataclasses.asdict(b) for split, b in splits.items()}
    for name, splits in _balances(train, test).items()
  }


def found_lines(train: Sources, test: Sources) -> Iterator[str]:
  """Shows what the sources hold, what of it is used, and what is skipped and why."""
  balances = _balances(train, test)
  for own, held_out in zip(train, test):
    splits = balances.get(own.name, {})
    known = {split: b for split, b in splits.items() if b is not None}
    if known and len(known) == len(splits):
      yield f"{own.name}:"
      yield from (f"  {line}" for line in balance_lib.lines(known))
      continue
    yield (
      f"{own.name}: {len(own):,} documents to train on, {len(held_out):,} held out"
      + ("; what preparing skipped is not known" if splits else "")
    )


def _balances(train: Sources, test: Sources) -> dict[str, dict[str, Balance | None]]:
  pairs = [(s, t) for s, t in zip(train, test) if s.leaves_out]
  return {s.name: {"train": s.balance, "test": t.balance} for s, t in pairs}


def _report_skipped(sources: Sources, workdir: Path) -> None:
  skipped = {source.name: source.skipped for source in sources if source.skipped}
  path = workdir / "skipped.json"
  if not skipped:
    path.unlink(missing_ok=True)
    return
  files.write_whole(path, json.dumps(skipped, indent=2) + "\n")
  for name, reasons in skipped.items():
    kinds = collections.Counter(r.split(": ")[0] for r in reasons.values())
    logging.warning(
      "%s: skipped %d: %s; %s lists them",
      name,
      len(reasons),
      ", ".join(f"{n} {kind}" for kind, n in kinds.most_common(5)),
      path,
    )


def _report_doubtful(sources: Sources) -> None:
  """Names folders that are trained on and sound as if they should not be."""
  for source in sources:
    if said := source.advice():
      logging.warning("%s: %s", source.name, said)


def _report_never_all_noise(sources: Sources, encode: Encode, config: Config) -> None:
  """Says when learned text follows every image of a source: none is ever all noise."""
  diffusion = config.diffusion
  if diffusion.image_first_noise_cap == 1 and not diffusion.image_first_clean:
    return
  for source in sources:
    images = 0
    for index, spans in some_documents(source, SAMPLED):
      document = forms.form(spans, encode, config, name=source.name, showing=index)
      own = [s for s in document if isinstance(s, sequence.Image) and s.weight]
      images += len(own)
      if any(image.noise_cap == 1 for image in own):
        break
    else:
      if images:
        logging.warning(
          "%s: learned text follows every image, so none is noised beyond"
          " diffusion.image_first_noise_cap=%g and sampling from pure noise is not"
          " learned; set it to 1 and diffusion.image_first_clean to 0, or add a source"
          " whose images end their documents",
          source.name,
          diffusion.image_first_noise_cap,
        )


def _report_unreachable(sources: Sources, encode: Encode, config: Config) -> None:
  """Says when captions alone exceed the text share, so text-only sources wait."""
  captioned = [s for s in sources if s.has_images]
  text_only = [s.name for s in sources if not s.has_images]
  if config.data.weights or not captioned or not text_only:
    return
  text = patches = 0
  for source in captioned:
    for _, spans in some_documents(source, SAMPLED):
      for span in spans:
        if isinstance(span, str):
          text += len(encode(span))
        elif isinstance(span, sequence.Text):
          text += len(span.ids)
        elif isinstance(span, sequence.Codes):
          text, patches = text + 2, patches + len(span.ids)  # BOI and EOI
        elif not isinstance(span, sequence.Break):
          image = forms.image_of(span, config)
          text += 2
          patches += config.model.patches_by_kind[image.kind]
      text += 1
  if patches and text >= config.data.text_per_patch * patches:
    logging.warning(
      "data.text_per_patch=%g cannot be reached: captions alone give %.2f text elements"
      " per patch, so %s will hardly be read; raise it, or use smaller patches",
      config.data.text_per_patch,
      text / patches,
      ", ".join(text_only),
    )
