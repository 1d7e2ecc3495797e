"""A model with random numbers, as if it had been trained, to sample with.

Not a test: shared by the tests of whatever samples.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import tiny

from tfusion.data.tokenizer import Tokenizer
from tfusion.generate.trained import Trained

WORDS = "a handwritten seven and some more text"
SHAPE = (4, 4, 1)


@contextlib.contextmanager
def trained(folder: Path) -> Iterator[Trained]:
  """The model, on one device; its rows never end before sample.max_elements."""
  path = folder / "tokenizer.model"
  tokenizer = Tokenizer.train([WORDS], vocab_size=300, path=path)
  config = tiny.config(
    model__vocab_size=tokenizer.vocab_size,
    model__image_shape=SHAPE,
    sample__sampler="ddim",
    sample__steps=2,
    sample__guidance=1.0,
    sample__max_elements=32,
    eval__prompts=("seven <image>", "<image> <image>", "text", ""),
  )
  with tiny.one_device() as mesh:
    params = tiny.params(config.model)
    params["head"] = params["head"].at[:, tokenizer.special.eos].set(0)
    yield Trained(config, 1, params, tokenizer, mesh)
