"""Rows as documents: what is there is read, or the row is rejected and says why."""

import pytest

from tfusion.data.balance import Amount
from tfusion.prepare import raw, rows
from tfusion.prepare.raw import Raw, Rejected

PICTURES = {"a.png": b"A", "b.png": b"B", "test/c.png": b"C"}


def read(row, **options) -> Raw | Rejected:
  def holds_out(*names):
    return any(name.startswith("test/") for name in names)

  return rows.document(row, "id", holds_out=holds_out, image=PICTURES.__getitem__)


@pytest.mark.parametrize(
  ("row", "spans"),
  [
    ({"text": "a", "image": "a.png"}, ("a", b"A")),
    ({"caption": "a", "image": b"bytes"}, ("a", b"bytes")),
    ({"file": "a.png", "caption": "a"}, ("a", b"A")),
    ({"file_name": "a.png", "caption": "a"}, ("a", b"A")),
    ({"file_name": "a.png", "text": "a"}, ("a", b"A")),
    ({"text": "a", "images": ["a.png", "b.png"]}, ("a", b"A", b"B")),
    ({"caption": "a", "images": [{"bytes": b"1", "path": None}]}, ("a", b"1")),
    ({"text": "a", "images": [{"bytes": None, "path": "b.png"}]}, ("a", b"B")),
    ({"text": "a", "images": [None, "b.png"]}, ("a", b"B")),
    ({"text": "a", "images": []}, ("a",)),
    ({"text": "a"}, ("a",)),
    ({"image": "a.png"}, (b"A",)),
    ({"text": None, "caption": "a", "image": "a.png"}, ("a", b"A")),
    ({"text": "a", "caption": "a", "image": "a.png"}, ("a", b"A")),
    ({"texts": ["a", None], "images": [None, "b.png"]}, ("a", b"B")),
    ({"texts": ["a", "b"]}, ("a", "b")),
    ({"texts": ["a"], "images": []}, ("a",)),
    # What says where something is from, or how large it is, is not in the way.
    ({"text": "a", "url": "http://x.org/page.html", "timestamp": "now"}, ("a",)),
    ({"text": "a", "file": "docs/a.html", "meta": {"pile": "x"}}, ("a",)),
    ({"text": "a", "title": "Two words", "author": "Some One"}, ("a",)),
    ({"image": "a.png", "id": "7", "width": 3, "license": "CC BY 4.0"}, (b"A",)),
    ({"image": "a.png", "label": 3, "class": "cat", "image_id": "a b"}, (b"A",)),
    ({"image": "a.png", "url": "http://x.org/a.png", "prompt": None}, (b"A",)),
    ({"text": "a", "image": "a.png", "url": "http://x.org/a.png"}, ("a", b"A")),
  ],
)
def test_every_layout_gives_all_that_it_holds(row, spans):
  found = read(row)
  assert isinstance(found, Raw), found
  assert found.spans == spans
  assert found.amount == rows.amount(row) or rows.unread(row)


@pytest.mark.parametrize(
  ("row", "reason", "amount"),
  [
    ({"text": None, "image": "a.png"}, raw.NO_TEXT, Amount(1, 1)),
    ({"caption": None, "file": "a.png"}, raw.NO_TEXT, Amount(1, 1)),
    ({"texts": None, "images": ["a.png"]}, raw.NO_TEXT, Amount(1, 1)),
    ({"texts": [None, None], "images": ["a.png", None]}, raw.NO_TEXT, Amount(1, 1)),
    ({"text": "a", "image": None}, raw.LOST_IMAGE, Amount(1, 0, 1)),
    ({"text": "a", "image": ""}, raw.LOST_IMAGE, Amount(1, 0, 1)),
    ({"text": "a", "images": None}, raw.LOST_IMAGE, Amount(1, 0, 1)),
    ({"text": "a", "images": [None]}, raw.LOST_IMAGE, Amount(1, 0, 1)),
    ({"text": "a", "file_name": None}, raw.LOST_IMAGE, Amount(1, 0, 1)),
    ({"caption": "a", "file": None}, raw.LOST_IMAGE, Amount(1, 0, 1)),
    ({"texts": ["a", "b"], "images": [None, None]}, raw.LOST_IMAGE, Amount(1, 0, 2)),
    ({"texts": ["a"], "images": None}, raw.LOST_IMAGE, Amount(1, 0, 1)),
    (
      {"text": "a", "image": {"bytes": None, "path": None}},
      raw.LOST_IMAGE,
      Amount(1, 1, 1),
    ),
    (
      {"input": "a.png", "instruction": None, "output": "b.png"},
      raw.NO_TEXT,
      Amount(1, 2),
    ),
    (
      {"input": "a.png", "instruction": "a", "output": None},
      raw.LOST_IMAGE,
      Amount(1, 1, 1),
    ),
    ({"text": "a", "image": "gone.png"}, raw.NO_IMAGE, Amount(1, 1, 1)),
    ({"text": None, "image": None}, raw.NO_TEXT, Amount(1)),
  ],
)
def test_a_row_that_lost_its_text_or_its_image_is_not_kept(row, reason, amount):
  found = read(row)
  assert isinstance(found, Rejected), found
  assert (found.reason, found.amount) == (reason, amount)


@pytest.mark.parametrize("value", ["", " \n", "\u200b", "\x00\x01", "a\0b\0"])
@pytest.mark.parametrize(
  "layout",
  [
    lambda text: {"text": text, "image": "a.png"},
    lambda text: {"caption": text, "images": ["a.png"]},
    lambda text: {"texts": [text, None], "images": [None, "a.png"]},
    lambda text: {"spans": [{"text": text}, {"image": "a.png"}]},
    lambda text: {"input": "a.png", "instruction": text, "output": "b.png"},
  ],
)
def test_a_text_that_shows_nothing_is_lost_in_every_layout(layout, value):
  found = raw.clean(read(layout(value)))
  assert isinstance(found, Rejected)
  assert found.reason == (raw.BAD_TEXT if "\0" in value else raw.EMPTY)
  assert found.amount.images >= 1


@pytest.mark.parametrize(
  "row",
  [
    *(
      {"image": "a.png", name: "a red square"}
      for name in "prompt captions sentence alt_text TEXT Caption description"
      " instruction_text userPrompt tags beschreibung".split()
    ),
    {"image": "a.png", "captions": ["one", "two"]},
    {"image": "a.png", "conversations": [{"from": "human", "value": "what?"}]},
    {"image": "a.png", "alt": "square"},
    {"image": "a.png", "bu": "\u732b\u304c\u3044\u308b"},
    *(
      {"text": "a red square", name: "x"}
      for name in "img jpg picture photo webp input_image".split()
    ),
    {"text": "a", "path": "photos/a.jpg"},
    {"text": "a", "url": "https://x.org/a.JPG?size=large"},
    {"text": "a", "anything": b"\x89PNG"},
    {"text": "a", "pixels": [{"bytes": b"x", "path": None}]},
    {"text": "a", "encoded": "data:image/png;base64,AAAA"},
    {"texts": ["a"], "image": "a.png"},
    {"spans": [{"text": "a"}], "image": "a.png"},
    {"URL": "https://x.org/a.jpg", "TEXT": "a red square"},
  ],
)
def test_a_name_that_may_be_the_missing_half_is_not_passed_over(row):
  found = read(row)
  assert isinstance(found, Rejected) and found.reason == raw.UNKNOWN, found
  unread = [name for name in row if repr(name) in found.detail]
  assert unread and "or leave it out" in found.detail
  assert found.amount.images and found.amount.texts


@pytest.mark.parametrize(
  ("row", "how"),
  [
    ({"texts": ["a"], "image": "a.png"}, "only 'images' is read beside 'texts'"),
    ({"spans": [{"text": "a"}], "image": "a.png"}, "put it into 'spans'"),
    ({"image": "a.png", "captions": ["b", "c"]}, "give each text a row of its own"),
    ({"image": "a.png", "messages": [{"role": "user"}]}, "give each text a row"),
    ({"text": "a", "imgs": ["a.png"]}, "rename it to 'images'"),
    ({"text": "a", "img": "a.png"}, "rename it to 'image'"),
  ],
)
def test_the_advice_on_a_name_can_be_followed(row, how):
  said = read(row).detail
  assert how in said, said
  for name in row:
    assert f"rename it to {name!r}" not in said


@pytest.mark.parametrize(
  ("name", "why"),
  [
    ("https://x.org/a.png", "download the image"),
    ("data:image/png;base64,iVBORw0KGgo", "is the image itself"),
    ("/9j/4AAQSkZJRgABAQ", "is the image itself"),
    (".\\photos\\a.png", "write / between folders"),
    ("gone.png", "gone.png"),
  ],
)
def test_an_image_that_is_not_there_says_what_its_name_may_be_instead(name, why):
  for value in (name, {"path": name, "bytes": None}):
    found = read({"text": "a", "image": value})
    assert found.reason == raw.NO_IMAGE and why in found.detail


def test_what_used_rows_hold_under_names_that_are_not_read_is_counted():
  passed = rows.Passed()
  for row in (
    {"text": "a", "image": "a.png", "alt": "a red square", "img": "b.png"},
    {"text": "a", "image": "a.png", "alt": "a blue one", "split": "test"},
    {"texts": ["a"], "caption": "another", "image": "b.png"},
    {"text": "a", "image": "a.png", "alt": ["x", None, "y"], "image2": None},
    # Neither is one of these, nor is the address of the image itself.
    {"text": "a", "image": "a.png", "url": "https://x.org/a.png", "id": "a b", "w": 3},
    {"text": "a", "image": "gone.png", "alt": "goes with its row"},
  ):
    passed.look(row, read(row))
  assert [(r.reason, r.detail, r.amount, r.test) for r in passed.rejected()] == [
    (raw.UNREAD, "'alt' in 2 rows", Amount(0, 0, 3), False),
    (raw.UNREAD, "'alt' in 1 row", Amount(0, 0, 1), True),
    (raw.UNREAD, "'img' in 1 row", Amount(0, 1, 0), False),
  ]


def test_an_address_is_to_be_downloaded_first():
  found = read({"text": "a", "url": "https://x.org/a.jpg"})
  assert "download it, name the file as 'image'" in found.detail


@pytest.mark.parametrize(
  ("row", "says"),
  [
    ({"text": "a", "caption": "b", "image": "a.png"}, "keep one of the columns"),
    ({"text": "a", "image": "a.png", "images": ["b.png"]}, "keep one of the columns"),
    ({"spans": [{"image": "a.png", "caption": "a red one"}]}, "a span has"),
    ({"spans": [{"text": None}]}, "a span has"),
    ({"text": ["a", "b"], "image": "a.png"}, "text is"),
    ({"text": "a", "image": 7}, "image is"),
    ({"text": "a", "split": "some"}, '"split" is'),
    ({"words": "a"}, "has ['words']"),
    ([1], "a list"),
    ("text", "a text"),
    (None, "null"),
    ({"text": b"a", "image": "a.png"}, "bytes; write it as text"),
    ({"text": 7, "image": "a.png"}, "text is '7', a number"),
    ({"text": "a", "images": "a.png"}, "a list is needed, or 'image'"),
    ({"texts": "a", "images": ["a.png"]}, "texts are 'a'"),
    ({"texts": 7}, "texts are '7', a number; a list is needed"),
    ({"texts": ["a"], "images": ["a.png", "b.png"]}, "has 1 texts and 2 images"),
    ({"spans": ["a"]}, "a span is 'a'"),
    ({"spans": 7}, "spans are '7', a number"),
    ({"spans": [{"text": "a", "weight": [1]}]}, "weight is [1]; a number"),
    ({"spans": [{"text": "a", "weight": 10**400}]}, "a number from 0 on is needed"),
    ({"spans": [{"text": "a", "weight": float("nan")}]}, "weight is nan"),
  ],
)
def test_a_row_in_no_layout_says_what_it_has(row, says):
  found = read(row)
  assert found.reason == raw.BAD_LAYOUT and says in found.detail, found.detail
  for word in ("Error", "object has", "argument", "NoneType", "'str'"):
    assert word not in found.detail


def test_a_row_is_held_out_by_its_split_or_by_where_its_image_lies():
  assert read({"text": "a", "split": "Validation"}).test
  assert read({"text": "a", "image": "test/c.png"}).test
  assert read({"text": "a", "image": {"bytes": b"x", "path": "test/c.png"}}).test
  assert not read({"text": "a", "image": "test/c.png", "split": "train"}).test
  assert not read({"text": "a", "image": "a.png"}).test
  assert read({"text": None, "image": "a.png", "split": "dev"}).test
