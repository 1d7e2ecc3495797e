"""Found = used + skipped, or it is said."""

import dataclasses
import json

from tfusion import parsing
from tfusion.data import balance
from tfusion.data.balance import Amount, Balance, Rejected


def make() -> Balance:
  lost = [
    Rejected("a", "no caption", amount=Amount(1, 1)),
    Rejected("b", "no caption", amount=Amount(1, 1)),
    Rejected("c", "no such image", "gone.png", Amount(1, 0, 1)),
  ]
  return balance.settle(Amount(10, 12, 11), lost)


def test_a_settled_balance_adds_up_by_reason():
  made = make()
  assert made.found == Amount(13, 14, 12) and made.adds_up
  assert made.skipped == {
    "no caption": Amount(2, 2),
    "no such image": Amount(1, 0, 1),
  }
  made.found += Amount(0, 1)
  assert not made.adds_up


def test_what_is_of_no_document_is_called_so():
  lost = [Rejected("*.md", "neither an image nor a caption", amount=Amount())]
  *_, line = balance.lines({"train": balance.settle(Amount(1, 1, 1), lost)})
  assert line.strip() == "skipped, neither an image nor a caption: no document"


def test_shares_of_a_split_merge():
  both = make()
  both.merge(make())
  both.merge(balance.settle(Amount(), [Rejected("d", "other", amount=Amount(1))]))
  assert both.found == Amount(27, 28, 24) and both.adds_up
  assert both.skipped["no caption"] == Amount(4, 4)


def test_a_balance_comes_back_from_json():
  text = json.dumps(dataclasses.asdict(make()))
  assert parsing.build(balance.Balance, json.loads(text)) == make()


def test_lines_say_all_numbers_for_each_split():
  lines = list(balance.lines({"train": make(), "test": Balance()}))
  assert lines == [
    "train:    13 documents = 10 used + 3 skipped; 14 images = 12 used + 2 skipped;"
    " 12 texts = 11 used + 1 skipped",
    "          skipped, no caption: 2 documents, 2 images",
    "          skipped, no such image: 1 document, 1 text",
    "held out: 0 documents = 0 used + 0 skipped; 0 images = 0 used + 0 skipped;"
    " 0 texts = 0 used + 0 skipped",
  ]


def test_an_id_that_is_taken_gets_a_number():
  taken: set[str] = set()
  assert [balance.free_id("a", taken) for _ in range(3)] == ["a", "a 2", "a 3"]


def test_examples_are_one_of_each_reason_and_how_many_there_are():
  lost = [Rejected(f"{i}.png", "no caption") for i in range(1200)]
  lost.insert(0, Rejected("x.png", "cannot be decoded", "cut short"))
  assert balance.examples(lost) == (
    "1,200 no caption, such as 0.png; 1 cannot be decoded, such as x.png (cut short)"
  )
  assert balance.examples([]) == ""
