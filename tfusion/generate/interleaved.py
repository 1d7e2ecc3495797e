"""Text and images in any order, for a batch of prompts, on a cache of keys.

Owns: the walk text -> BOI -> denoise -> EOI -> text (arXiv 2408.11039, section 3),
where codes that are sampled may stand in for denoising (arXiv 2405.09818, section 2);
which rows are computed together. Not: what a program computes (feeding.py, writing.py,
drawing.py, coding.py), what can be asked (prompt.py), files (samples.py).

Every row goes its own way. In each round `feed` puts what is given into the store in
the rows that have something pending, `write` goes on in those that want text, and
`draw` makes one image in each that stands behind BOI; its EOI and what the prompt gives
next are fed in the next round. A program has the rows that need it and no others.

A row's numbers depend neither on its neighbours nor on their number. Which rows are
computed together follows from sizes that each row has by itself: on a CPU, where the
number of rows decides how XLA adds up, images and given elements are computed row by
row, and text in as many as add up alike.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from tfusion import sequence
from tfusion.attention import platform
from tfusion.config import Config, diffusion_of
from tfusion.generate import coding, drawing, feeding, store, writing
from tfusion.generate.blocks import Block, make_block, round_rows, round_up
from tfusion.generate.choices import text_choice
from tfusion.generate.prompt import Blank, Prompt
from tfusion.generate.rows import Generated, Row, token
from tfusion.generate.store import Party
from tfusion.model import linear
from tfusion.model.transfusion import Params, apart, is_apart
from tfusion.sequence import CodeBook, Codes, Elements, Image, SpecialTokens, Text
from tfusion.sharding import batch_shards, fetch_rows, put_rows

MOST = 64  # rows of a program on an accelerator


class Look(NamedTuple):
  """How often somebody who watches is shown something."""

  tokens: int  # of text, at most, between two looks
  steps: int  # evaluations of the model between two looks at an image; 0: none


class Piece(NamedTuple):
  """Text that a row has got."""

  row: int
  ids: np.ndarray


class Sketch(NamedTuple):
  """An image on its way."""

  row: int
  image: Image  # what the model takes for the clean image
  step: int  # evaluations done
  steps: int  # of how many


class Made(NamedTuple):
  """An image that is finished."""

  row: int
  image: Image | Codes


Progress = Piece | Sketch | Made


def generate(
  config: Config,
  params: Params,
  prompts: Sequence[Prompt],
  *,
  special: SpecialTokens,
  key: jax.Array,
  book: CodeBook | None = None,
) -> list[Generated]:
  """Continues every prompt to its end, on the mesh in use.

  Args:
    config: its `model`, `diffusion` and `sample` are read.
    params: of the model.
    prompts: spans in order; Blank stands for an image to be made.
    special: ids of the special tokens.
    key: a row's result depends on it and on the row's place in `prompts`, not on the
      other rows. Or a key of each row.
    book: of images as codes; None: images are patches.

  Raises:
    ValueError: as check_prompts.
  """
  check_prompts(config, prompts, book=book)
  if not prompts:
    return []
  walk = Walk(config, params, prompts, special=special, key=key, book=book)
  for _ in walk.steps():
    pass
  return walk.generated


def readable(config: Config, params: Params) -> Params:
  """The parameters as programs on the mesh in use read them fastest."""
  if is_apart(params) or platform() != "cpu":
    return params
  return apart(config.model, params)


def text_rows() -> tuple[int, int]:
  """Rows of a program that writes text on a device, at least and at most. On a CPU they
  must add up alike: of several devices one row does not add up as two to 16 do."""
  if platform() != "cpu":
    return 1, MOST
  return (1, linear.ROWS) if linear.is_row_by_row(1, 1) else (2, 16)


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


class Walk:
  """The rows of one call and their store."""

  def __init__(
    self,
    config: Config,
    params: Params,
    prompts: Sequence[Prompt],
    *,
    special: SpecialTokens,
    key: jax.Array,
    book: CodeBook | None = None,
    look: Look | None = None,
  ):
    """As `generate`; with `look` it stops that often, to be watched."""
    self.config, self.params, self.special = config, readable(config, params), special
    self.book, self.look = book, look
    self.kinds = config.model.every_kind
    self.patches = (book.per_image,) if book else config.model.patches_by_kind
    self.limit = config.sample.max_elements
    self.count = len(prompts)
    self.rows = [Row(prompt, special=special) for prompt in prompts]
    # Rows are padded to what the batch axes of the mesh divide.
    for _ in range(-len(prompts) % batch_shards()):
      self.rows.append(Row((), special=special))
      self.rows[-1].done, self.rows[-1].pending = True, []
    if not key.ndim:
      key = jax.vmap(jax.random.fold_in, (None, 0))(key, np.arange(self.count))
    self.key_impl = jax.random.key_impl(key)
    self.key_data = np.asarray(jax.random.key_data(key))
    self.most = 1 if platform() == "cpu" else MOST
    self.text_rows = text_rows()
    # One more may be sampled at the limit.
    self.length = -(-(self.limit + 1) // 16) * 16
    self.store = store.empty_store(
      config.model,
      rows=len(self.rows),
      length=self.length,
      apart=is_apart(self.params),
    )

  @property
  def generated(self) -> list[Generated]:
    """What has come of the prompts."""
    return [row.generated for row in self.rows[: self.count]]

  def steps(self) -> Iterator[Progress]:
    """Goes on until all rows are done. Use it on one mesh."""
    while not all(row.done for row in self.rows):
      self.feed()
      yield from self.write()
      yield from self.draw()

  def feed(self):
    """Puts what is pending into the store, in the rows that have something."""
    waiting: dict[Any, list[int]] = {}
    laid = {n: self._lay_out(row.pending) for n, row in self._rows() if row.pending}
    for number, elements in laid.items():
      images = [image.kind for image in elements.images]
      counts = [images.count(kind) for kind in range(len(self.kinds))]
      size = round_up(len(elements.tokens_l)), *(n and round_rows(n) for n in counts)
      reach = round_up(self.rows[number].at + size[0])
      waiting.setdefault((size, reach), []).append(number)
    for (size, reach), numbers in waiting.items():
      for party in self._parties(numbers, most=self.most):
        self._feed(party, laid, length=size[0], reach=reach)

  def _feed(self, party: Party, laid: dict[int, Elements], *, length: int, reach: int):
    model = self.config.model
    rows = [None if place is None else self.rows[place] for place in party.places]
    block = make_block(
      model,
      [self._lay_out([]) if n is None else laid[n] for n in party.places],
      at=[row.at if row else 0 for row in rows],
      first=[row.next if row else 0 for row in rows],
      length=length,
    )
    self.store = feeding.feed(
      model,
      self.params,
      length=reach,
      store=self.store,
      index_b=party.index_b,
      live_d=party.live_d,
      block=put_rows(block),
    )
    for number, row in enumerate(rows):
      if row is None:
        continue
      count = int(block.count_b[number])
      row.at, row.pending = row.at + count, []
      positions_bl = block.positions_bl
      last = None if positions_bl is None else positions_bl[number, count - 1]
      row.next = row.at if last is None else int(last) + 1

  def write(self) -> Iterator[Progress]:
    """Goes on with the text of the rows that want some, by at most CHUNK tokens."""
    waiting: dict[int, list[int]] = {}
    for number, row in self._rows():
      if row.writes and not row.pending:
        length = min(writing.reach(row.at), self.length)
        waiting.setdefault(length, []).append(number)
    least, most = self.text_rows
    for length, numbers in sorted(waiting.items()):
      for party in self._parties(numbers, least=least, most=most):
        yield from self._write(party, length=length)

  def _write(self, party: Party, *, length: int) -> Iterator[Progress]:
    own = [n for n in party.places if n is not None]
    room = length - max(self.rows[n].at for n in own)
    tokens = self.look.tokens if self.look else writing.CHUNK
    # Where half of the rows have ended, the others go on in a smaller program.
    smaller = len(party.places) // batch_shards() > self.text_rows[0]
    self.store, written = writing.write(
      self.config.model,
      self.params,
      special=self.special,
      book=self.book,
      choice=text_choice(self.config.sample),
      length=length,
      store=self.store,
      index_b=party.index_b,
      live_d=party.live_d,
      at_b=self._at(party),
      writing_b=party.array([True] * len(self.rows), False),
      keys_b=self._keys(party),
      limit=np.int32(self.limit),
      most=np.int32(min(tokens, room, writing.CHUNK)),
      least=np.int32(len(own) // 2 if smaller else 0),
      next_b=self._next(party),
      seen_bv=self._seen(party),
    )
    ids_bl, count_b, ended_b = (fetch_rows(x) for x in written)
    for place, number in enumerate(party.places):
      if number is None or not count_b[place]:
        continue
      text = self.rows[number].take_text(
        ids_bl[place, : count_b[place]],
        ended=bool(ended_b[place]),
        limit=self.limit,
        patches=self.patches,
      )
      if len(text):
        yield Piece(number, text)

  def draw(self) -> Iterator[Progress]:
    """Makes one image in every row that stands behind BOI."""
    waiting: dict[tuple[int, int, bool], list[int]] = {}
    by_images = self.config.sample.guidance_by_images != 0.0 and not self.book
    for number, row in self._rows():
      if row.at_kind is not None and not row.pending:
        length = round_up(row.at + self.patches[row.at_kind])
        apart = by_images and any(map(sequence.is_image, row.spans))
        waiting.setdefault((row.at_kind, length, apart), []).append(number)
    for (kind, length, apart), numbers in sorted(waiting.items()):
      if self.book:
        # Three branches, which count as rows of a matmul.
        least, most = self.text_rows
        for party in self._parties(numbers, least=least, most=max(1, most // 4)):
          yield from self._write_codes(party, length=length)
        continue
      for party in self._parties(numbers, most=self.most):
        yield from self._denoise(party, kind, length=length, apart=apart)

  def _denoise(
    self, party: Party, number: int, *, length: int, apart: bool
  ) -> Iterator[Progress]:
    """Makes an image of a kind in rows that wait for one; apart: the images before it
    guide it apart from the text."""
    config, kind = self.config, self.kinds[number]
    diffusion, sample = diffusion_of(config, kind), config.sample
    model = (config.model, self.params)
    who = dict(image_b=self._images_made(party), keys_b=self._keys(party))
    others: tuple[Block, ...] = ()
    if apart:
      others = (put_rows(self._images(number, party)),)
    if apart or sample.guidance != 1.0:
      others += (put_rows(self._unconditional(number, party)),)
    drawn = drawing.begin(
      *model,
      kind=kind,
      length=length,
      store=self.store,
      index_b=party.index_b,
      others=others,
      at_b=self._at(party),
      next_b=self._next(party),
      **who,
    )
    steps = len(drawing.evaluations(sample, diffusion).t)
    each = (self.look.steps if self.look else 0) or steps
    how: dict[str, Any] = dict(kind=kind, diffusion=diffusion, sample=sample, **who)
    for first in range(0, steps, each):
      last = min(first + each, steps)
      span = dict(first=np.int32(first), last=np.int32(last))
      drawn = drawing.advance(*model, drawing=drawn, **how, **span)
      if last < steps:
        for place, clean in self._of_rows(party, drawn.walk.clean):
          yield Sketch(place, Image(clean, kind=number), last, steps)
    self.store, images = drawing.finish(
      *model,
      kind=kind,
      store=self.store,
      index_b=party.index_b,
      live_d=party.live_d,
      drawing=drawn,
    )
    for place, image in self._of_rows(party, images):
      yield self._take_image(place, Image(image, kind=number))

  def _write_codes(self, party: Party, *, length: int) -> Iterator[Progress]:
    """Samples the codes of an image in rows that wait for one."""
    assert self.book is not None
    others: tuple[Block, ...] = ()
    if coding.is_guided(self.config.sample):
      blocks = self._images(0, party), self._unconditional(0, party)
      others = tuple(put_rows(block) for block in blocks)
    self.store, codes = coding.sample_codes(
      self.config.model,
      self.params,
      special=self.special,
      book=self.book,
      sample=self.config.sample,
      length=length,
      store=self.store,
      index_b=party.index_b,
      live_d=party.live_d,
      others=others,
      at_b=self._at(party),
      image_b=self._images_made(party),
      keys_b=self._keys(party),
    )
    for place, ids in self._of_rows(party, codes):
      yield self._take_image(place, Codes(ids))

  def _take_image(self, number: int, image: Image | Codes) -> Made:
    kind = image.kind if isinstance(image, Image) else 0
    patches = self.patches[kind]
    steps = sequence.position_steps(self.config.model.positions, self.kinds[kind].grid)
    positions = (patches - 1) * steps.patch + steps.image
    self.rows[number].take_image(image, patches=patches, positions=positions)
    return Made(number, image)

  def _unconditional(self, number: int, party: Party) -> Block[np.ndarray]:
    """The prefix of the branch of guidance that is not told what to make."""
    bos, boi = token(self.special.bos), token(self.special.bois[number])
    null = self._lay_out([bos, *sequence.unconditional(), boi])
    return self._first_block([null] * len(party.places))

  def _images(self, number: int, party: Party) -> Block[np.ndarray]:
    """What stands in every row up to its BOI, without text: the second branch of
    guidance. In a row that has no image it is the third."""
    bos, boi = token(self.special.bos), token(self.special.bois[number])
    rows = [[] if n is None else self.rows[n].spans for n in party.places]
    own = [[span for span in spans if sequence.is_image(span)] for spans in rows]
    return self._first_block([self._lay_out([bos, *spans, boi]) for spans in own])

  def _first_block(self, laid: Sequence[Elements]) -> Block[np.ndarray]:
    """A block that begins its rows."""
    length = round_up(max(len(elements.tokens_l) for elements in laid))
    return make_block(self.config.model, laid, at=[0] * len(laid), length=length)

  def _rows(self) -> Iterator[tuple[int, Row]]:
    return ((n, row) for n, row in enumerate(self.rows) if not row.done)

  def _parties(self, numbers: Sequence[int], **how: int) -> list[Party]:
    return store.parties(numbers, of=len(self.rows), **how)

  def _of_rows(self, party: Party, x: jax.Array) -> Iterator[tuple[int, np.ndarray]]:
    """What a program gave of each row, by the number of the row."""
    pairs = zip(party.places, fetch_rows(x), strict=True)
    return ((number, own) for number, own in pairs if number is not None)

  def _at(self, party: Party) -> jax.Array:
    return party.array([row.at for row in self.rows], np.int32(0))

  def _next(self, party: Party) -> jax.Array | None:
    """Positions of the next elements, if they are not as many as stand before."""
    if self.config.model.positions == "sequence":
      return None
    return party.array([row.next for row in self.rows], np.int32(0))

  def _images_made(self, party: Party) -> jax.Array:
    return party.array([row.images for row in self.rows], np.int32(0))

  def _keys(self, party: Party) -> jax.Array:
    data = party.array(self.key_data, np.zeros_like(self.key_data[0]))
    return jax.random.wrap_key_data(data, impl=self.key_impl)

  def _seen(self, party: Party) -> jax.Array | None:
    """Which tokens stand in each row, bool[b, v]; None: nothing asks."""
    if self.config.sample.repetition == 1.0:
      return None
    seen = np.zeros((len(self.rows), self.config.model.vocab_size), bool)
    for own, row in zip(seen, self.rows):
      for span in row.spans:
        if isinstance(span, Text):
          own[span.ids] = True
    return party.array(list(seen), np.zeros_like(seen[0]))

  def _lay_out(self, spans: Sequence[sequence.Span]) -> Elements:
    return sequence.lay_out_part(
      tuple(spans), special=self.special, patches_per_image=self.patches
    )
