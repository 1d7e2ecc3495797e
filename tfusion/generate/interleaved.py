"""Text and images in any order, for a batch of prompts, on a cache of keys.

Owns: the walk text -> BOI -> denoise -> EOI -> text (arXiv 2408.11039, section 3),
where codes that are sampled may stand in for denoising (arXiv 2405.09818, section 2).
Not: what a phase computes (phases.py), what can be asked (prompt.py), files (cli.py).

All rows walk in step: `feed` puts what is given into the cache, `sample_text` writes
until every row stands behind BOI or at its end, `sample_images` makes one image in
every row that stands behind BOI; its EOI and what the prompt gives next are then fed.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from tfusion import sequence
from tfusion.config import Config, diffusion_of
from tfusion.generate import phases
from tfusion.generate.choices import text_choice
from tfusion.generate.prompt import Blank, Given, Prompt, split_at_blanks
from tfusion.model.transfusion import Params
from tfusion.sequence import CodeBook, Codes, Elements, Image, SpecialTokens, Text
from tfusion.sharding import batch_shards, fetch_rows, put_rows, spec

LENGTH_MULTIPLE = 16  # lengths are rounded up to it, so that few are compiled


class Generated(NamedTuple):
  """What stands after the prompt began: its own spans and the model's, in order."""

  spans: tuple[Given, ...]
  made: tuple[bool, ...]  # the model made this span
  finished: bool  # it ended with EOS; False: max_elements stopped it

  @property
  def made_images(self) -> list[np.ndarray]:
    """The images that the model made, f32[h, w, c] each; codes are not among them."""
    own = (span for span, made in zip(self.spans, self.made) if made)
    return [span.latent for span in own if isinstance(span, Image)]


def generate(
  config: Config,
  params: Params,
  prompts: Sequence[Prompt],
  *,
  special: SpecialTokens,
  key: jax.Array,
  book: CodeBook | None = None,
) -> list[Generated]:
  """Continues every prompt to its end, all rows at once, on the mesh in use.

  Args:
    config: its `model`, `diffusion` and `sample` are read.
    params: of the model.
    prompts: spans in order; Blank stands for an image to be made.
    special: ids of the special tokens.
    key: a row's result depends on it and on the row's place in `prompts`, not on the
      other rows.
    book: of images as codes; None: images are patches.

  Raises:
    ValueError: as check_prompts.
  """
  check_prompts(config, prompts, book=book)
  if not prompts:
    return []
  walk = _Walk(config, params, prompts, special=special, key=key, book=book)
  while not all(row.done for row in walk.rows):
    walk.feed()
    walk.sample_text()
    walk.sample_images()
  return [
    Generated(tuple(row.spans), tuple(row.made), row.finished)
    for row in walk.rows[: len(prompts)]
  ]


def check_prompts(
  config: Config, prompts: Sequence[Prompt], *, book: CodeBook | None = None
) -> None:
  """Checks that every prompt can be continued.

  Raises:
    ValueError: a prompt and its images do not fit config.sample.max_elements, a given
      image has another shape than the run's, or the model has no images at all.
  """
  for number, prompt in enumerate(prompts):
    _check(config, prompt, book, number=number)


def _check(
  config: Config, prompt: Prompt, book: CodeBook | None, *, number: int
) -> None:
  kinds, limit = config.model.every_kind, config.sample.max_elements
  for span in prompt:
    if isinstance(span, Image) and span.latent.shape != kinds[span.kind].shape:
      what = "model.image_shape" if not span.kind else kinds[span.kind].name
      raise ValueError(
        f"prompt {number}: an image of shape {span.latent.shape}, but the model takes"
        f" {what}={kinds[span.kind].shape}"
      )
  by_kind: tuple[int, ...] = config.model.patches_by_kind
  if book is not None:
    by_kind = (book.per_image,)
  elif config.model.patches == "none" and not all(isinstance(s, Text) for s in prompt):
    raise ValueError(
      f"prompt {number}: has an image, but model.patches=none: this model has none"
    )
  whole = tuple(
    Image(np.empty(0), kind=s.kind) if isinstance(s, Blank) else s for s in prompt
  )
  count = sequence.element_count(whole, patches_per_image=by_kind)
  if count > limit:
    raise ValueError(
      f"prompt {number}: {count} elements with images of"
      f" {' or '.join(map(str, by_kind))} {'codes' if book else 'patches'} each, but"
      f" sample.max_elements={limit}; shorten it or raise sample.max_elements"
    )


class _Row:
  """Where one sequence stands."""

  def __init__(self, prompt: Prompt, *, special: SpecialTokens):
    self.special = special
    self.parts = split_at_blanks(prompt)
    self.blanks = [span.kind for span in prompt if isinstance(span, Blank)]
    self.pending: list[Given] = [_token(special.bos)]  # not in the cache yet
    self.at = 0  # elements in the cache
    self.next = 0  # position, of RoPE, of the element behind them
    self.images = 0  # that the model made
    # Of which kind BOI is the last element, in the cache or pending; None: it is not.
    self.at_kind: int | None = None
    self.done = self.finished = False
    self.spans: list[Given] = []
    self.made: list[bool] = []
    self._take_part()

  def take_text(self, ids: np.ndarray, *, room: int, patches: Sequence[int]):
    """Takes sampled ids; the last ended the text: BOI, EOS or one too many.

    Args:
      ids: i32[l].
      room: elements that fit behind them.
      patches: elements between BOI and EOI, of every kind.
    """
    text, end = ids[:-1], int(ids[-1])
    if len(text):
      self._add(Text(text))
    self.at += len(text)
    self.next += len(text)
    bois = self.special.bois
    if end in bois and patches[bois.index(end)] + 1 <= room:
      self.at += 1  # `sample_text` has put it into the cache
      self.next += 1
      self.at_kind = bois.index(end)
    else:
      self.done, self.finished = True, end == self.special.eos

  def take_image(self, image: Image | Codes, *, patches: int, positions: int):
    """Takes the finished image, puts EOI behind it and goes on with the prompt.

    Args:
      image: behind BOI.
      patches: elements that it takes.
      positions: from its first patch to EOI.
    """
    self._add(image)
    self.at += patches
    self.next += positions
    self.images += 1
    self.at_kind = None
    self.pending.append(_token(self.special.eoi))
    if self.parts:
      self._take_part()

  def _take_part(self):
    """Takes what is given up to the next blank, and BOI there."""
    part = self.parts.pop(0)
    self.pending += part
    self.spans += part
    self.made += [False] * len(part)
    if self.parts:
      self.at_kind = self.blanks.pop(0)
      self.pending.append(_token(self.special.bois[self.at_kind]))

  def _add(self, span: Given):
    self.spans.append(span)
    self.made.append(True)


class _Walk:
  """The rows of one call and their cache."""

  def __init__(
    self, config: Config, params: Params, prompts, *, special, key, book=None
  ):
    self.config, self.params, self.special = config, params, special
    self.book: CodeBook | None = book
    self.kinds = config.model.every_kind
    self.patches = (book.per_image,) if book else config.model.patches_by_kind
    self.limit = config.sample.max_elements
    self.rows = [_Row(prompt, special=special) for prompt in prompts]
    # Rows are padded to what the batch axes of the mesh divide.
    for _ in range(-len(prompts) % batch_shards()):
      self.rows.append(_Row((), special=special))
      self.rows[-1].done = True
    b = len(self.rows)
    keys_b = jax.vmap(jax.random.fold_in, (None, 0))(key, np.arange(b))
    self.keys_b = jax.sharding.reshard(keys_b, spec("batch"))
    # Room for a row at the limit that is padded to another's EOI, next part and BOI.
    parts = [part for row in self.rows for part in row.parts]
    longest = max((len(self._lay_out(part).tokens_l) for part in parts), default=0)
    if len(self.kinds) > 1:  # a row at a short image stands by where long ones are made
      longest = max(longest, *self.patches)
    self.cache = phases.empty_cache(
      config.model, batch=b, length=self.limit + _round_up(longest + 2)
    )

  def feed(self):
    """Puts what is pending into the cache."""
    block = self._block(
      [row.pending for row in self.rows], at=self._at(), first=self._next()
    )
    self.cache, self.logits_bv = phases.feed(
      self.config.model, self.params, cache=self.cache, block=put_rows(block)
    )
    for row, count in zip(self.rows, block.count_b):
      row.at += int(count)
      row.pending = []
    if block.positions_bl is not None:
      for row, positions_l, count in zip(self.rows, block.positions_bl, block.count_b):
        row.next = int(positions_l[count - 1]) + 1 if count else row.next

  def sample_text(self):
    """Samples text in the rows that are neither at an image nor done."""
    writing_b = np.asarray([not row.done and row.at_kind is None for row in self.rows])
    if not writing_b.any():
      return
    self.cache, ids_bl, count_b = phases.sample_text(
      self.config.model,
      self.params,
      special=self.special,
      book=self.book,
      choice=text_choice(self.config.sample),
      limit=self.limit,
      cache=self.cache,
      logits_bv=self.logits_bv,
      at_b=put_rows(self._at()),
      writing_b=put_rows(writing_b),
      keys_b=self.keys_b,
      next_b=put_rows(self._next()),
      seen_bv=put_rows(self._seen()),
    )
    for row, ids_l, count in zip(self.rows, fetch_rows(ids_bl), fetch_rows(count_b)):
      if count:
        room = self.limit - row.at - int(count)
        row.take_text(ids_l[:count], room=room, patches=self.patches)

  def _seen(self) -> np.ndarray | None:
    """Which tokens stand in each row, bool[b, v]; None: nothing asks."""
    if self.config.sample.repetition == 1.0:
      return None
    seen = np.zeros((len(self.rows), self.config.model.vocab_size), bool)
    for own, row in zip(seen, self.rows):
      for span in row.spans:
        if isinstance(span, Text):
          own[span.ids] = True
    return seen

  def sample_images(self):
    """Samples one image in every row that stands behind BOI, kind by kind."""
    waiting: dict[int, list[_Row]] = {}
    for row in self.rows:
      if row.at_kind is not None:
        waiting.setdefault(row.at_kind, []).append(row)
    # Found before any is made: a row that has got its image may stand at the next
    # blank, of which EOI and BOI are not in the cache yet.
    for number, rows in sorted(waiting.items()):
      self._sample_image(number, rows)

  def _sample_image(self, number: int, rows: Sequence[_Row]):
    """Samples an image of a kind in those rows that wait for one."""
    at_b, patches = self._at(), self.patches[number]
    common: dict[str, Any] = dict(
      sample=self.config.sample,
      length=_round_up(int(at_b.max()) + patches),
      cache=self.cache,
      unconditional=put_rows(self._unconditional(number)),
      at_b=put_rows(at_b),
      image_b=put_rows(np.asarray([row.images for row in self.rows], np.int32)),
      keys_b=self.keys_b,
    )
    made: Callable[[np.ndarray], Image | Codes] = Codes
    if self.book:
      self.cache, images = phases.sample_codes(
        self.config.model,
        self.params,
        special=self.special,
        book=self.book,
        images=put_rows(self._images()),
        **common,
      )
    else:
      self.cache, images = phases.sample_image(
        self.config.model,
        self.params,
        kind=self.kinds[number],
        diffusion=diffusion_of(self.config, self.kinds[number]),
        next_b=put_rows(self._next()),
        **common,
      )
      made = functools.partial(Image, kind=number)
    steps = sequence.position_steps(
      self.config.model.positions, self.kinds[number].grid
    )
    positions = (patches - 1) * steps.patch + steps.image
    for row, image in zip(self.rows, fetch_rows(images)):
      if row in rows:
        row.take_image(made(image), patches=patches, positions=positions)

  def _unconditional(self, number: int) -> phases.Block[np.ndarray]:
    """The prefix of the branch of guidance that is not told what to make."""
    special, b = self.special, len(self.rows)
    bos, boi = _token(special.bos), _token(special.bois[number])
    null = (bos, *sequence.unconditional(), boi)
    return self._block([null] * b, at=[0] * b)

  def _images(self) -> phases.Block[np.ndarray]:
    """What stands in every row up to its BOI, without text: the second branch of
    guidance. In a row that is not at an image, or has none, it is the third."""
    bos, boi = _token(self.special.bos), _token(self.special.boi)
    own = [
      [span for span in row.spans if row.at_kind == 0 and isinstance(span, Codes)]
      for row in self.rows
    ]
    return self._block([[bos, *codes, boi] for codes in own], at=[0] * len(own))

  def _at(self) -> np.ndarray:
    """Elements of every row; 0 for one that is done, so that it needs no room."""
    return np.asarray([0 if row.done else row.at for row in self.rows], np.int32)

  def _next(self) -> np.ndarray | None:
    """Positions of the next elements, if they are not as many as stand before."""
    if self.config.model.positions == "sequence":
      return None
    return np.asarray([0 if row.done else row.next for row in self.rows], np.int32)

  def _block(
    self,
    documents: Sequence[Sequence[sequence.Span]],
    *,
    at: Sequence[int] | np.ndarray,
    first: np.ndarray | None = None,
  ) -> phases.Block[np.ndarray]:
    laid = [self._lay_out(document) for document in documents]
    length = _round_up(max(len(elements.tokens_l) for elements in laid))
    model = self.config.model
    return phases.make_block(model, laid, at=at, length=length, first=first)

  def _lay_out(self, spans: Sequence[sequence.Span]) -> Elements:
    return sequence.lay_out_part(
      tuple(spans), special=self.special, patches_per_image=self.patches
    )


def _token(token: int) -> Text:
  return Text(np.asarray([token], np.int32))


def _round_up(length: int) -> int:
  return -(-length // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
