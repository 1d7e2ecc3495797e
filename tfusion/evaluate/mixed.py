"""Is what is made of every kind what was asked for? Metrics of runs on `mixed`.

Owns: their names. Not: the rules that read images and waves (data/mixed.py), sampling
(answers.py).
"""

from tfusion.config import Config
from tfusion.data import mixed
from tfusion.data.pipeline import Corpus
from tfusion.data.tokenizer import Tokenizer
from tfusion.evaluate import answers
from tfusion.generate.interleaved import check_prompts
from tfusion.generate.prompt import Blank, Prompt
from tfusion.generate.trained import Trained
from tfusion.sequence import Image, Text


def check_mixed(config: Config, corpus: Corpus) -> None:
  """Raises ValueError if what is asked for here does not fit sample.max_elements."""
  check_prompts(config, [prompt for _, prompt in _asked(config, corpus.tokenizer)])


def evaluate_mixed(trained: Trained) -> dict[str, int]:
  """Has the model make eval.samples_per_class of what every caption says, in the kind
  of its shape, and counts what the rules read right."""
  asked = _asked(trained.config, trained.tokenizer)
  made = answers.answer(trained, [prompt for _, prompt in asked], "images")
  kinds = trained.config.model.every_kind
  found: dict[str, int] = {}
  for (caption, _), one in zip(asked, made, strict=True):
    image = next(span for span in one.spans if isinstance(span, Image))
    name = kinds[image.kind].name
    right = mixed.is_right(caption, image.latent)
    for key, add in ((f"made_{name}_right", right), (f"made_{name}", 1)):
      found[key] = found.get(key, 0) + int(add)
  return found


def _asked(config: Config, tokenizer: Tokenizer) -> list[tuple[str, Prompt]]:
  """Captions and the prompts that ask for them."""
  kinds = {kind.shape: number for number, kind in enumerate(config.model.every_kind)}
  return [
    (caption, (Text(tokenizer.encode(caption)), Blank(kinds[shape])))
    for caption, shape in mixed.captions()
    for _ in range(config.eval.samples_per_class)
  ]
