"""Promises of tfusion/evaluate/likelihood.py."""

import jax
import numpy as np
import pytest
import tiny
import tiny_trained

from tfusion import sequence
from tfusion.evaluate import likelihood
from tfusion.model.transfusion import bind

TEXT = "a handwritten seven and some more text"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  with tiny_trained.trained(tmp_path_factory.mktemp("trained")) as trained:
    yield trained


def ids_of(trained, text):
  return trained.tokenizer.encode(text).tolist()


def by_hand(trained, ids):
  """Logs of the probabilities [l, v] of what follows BOS and each token."""
  config = trained.config
  laid = sequence.lay_out(
    (sequence.Text(np.asarray(ids, np.int32)),),
    special=trained.tokenizer.special,
    patches_per_image=config.model.patches_by_kind,
  )
  row = sequence.pack(
    [laid],
    row_length=32,
    kinds=tiny.kind_sizes(config),
    special=trained.tokenizer.special,
  )
  batch = tiny.put(sequence.stack([row]))
  model = bind(config.model, trained.params)

  @jax.jit
  def forward(batch):
    (slots,) = batch.slots
    return model(batch, (slots.latents,), (slots.starts,))

  return np.asarray(jax.nn.log_softmax(forward(batch)[0][0]))


@pytest.mark.slow
def test_it_is_the_sum_of_the_logs_of_the_continuation_alone(trained):
  ids = ids_of(trained, TEXT)
  logs = by_hand(trained, ids)
  own = [logs[i, token] for i, token in enumerate(ids)]
  cuts = (0, 3, len(ids) - 1)
  found = likelihood.measure(trained, [(ids[:n], ids[n:]) for n in cuts])
  for n, one in zip(cuts, found):
    assert one.log == pytest.approx(np.sum(own[n:]), rel=1e-5)
  best = int(np.argmax(logs[len(ids)]))
  other = (best + 1) % 5 + 5
  likely, unlikely = likelihood.measure(trained, [(ids, [best]), (ids, [other])])
  assert likely.greedy and not unlikely.greedy and likely.log > unlikely.log
  # All of a continuation have to be the likeliest.
  assert not likelihood.measure(trained, [(ids, [best, other])])[0].greedy


@pytest.mark.slow
def test_neither_order_nor_batch_nor_padding_changes_it(trained):
  pairs = [
    (ids_of(trained, TEXT)[:n], ids_of(trained, "more text"))
    for n in (0, 9, 2, 5, 1, 7)
  ]
  found = likelihood.measure(trained, pairs)
  alone = [likelihood.measure(trained, [pair])[0] for pair in pairs]
  for one, other in zip(found, alone):
    assert one.log == pytest.approx(other.log, rel=1e-5)
    assert one.greedy == other.greedy


@pytest.mark.slow
def test_a_context_that_is_too_long_loses_its_beginning(trained):
  room = trained.config.data.row_length - 1
  continuation = ids_of(trained, "more text")
  context = (ids_of(trained, TEXT) * 9)[: 3 * room]
  kept = context[len(context) - (room - len(continuation)) :]
  cut, whole = (
    likelihood.measure(trained, [(own, continuation)])[0] for own in (context, kept)
  )
  assert cut == whole


def test_windows_hold_every_token_once_and_fit_a_row():
  for count in (1, 7, 8, 9, 20, 22):
    pairs = likelihood.windows(list(range(count)), room=8)
    assert [x for _, own in pairs for x in own] == list(range(count))
    assert all(len(a) + len(b) <= 8 for a, b in pairs)
    assert all(a == [b[0] - 1] for a, b in pairs[1:]) and pairs[0][0] == []


@pytest.mark.parametrize("count", [0, 200])
def test_what_no_row_holds_is_refused(trained, count):
  with pytest.raises(ValueError, match=f"a continuation of {count} tokens: give 1 to"):
    likelihood.measure(trained, [([], [5] * count)])
