"""Promises of tfusion/generate/prompt.py."""

import numpy as np
import pytest

from tfusion import kinds
from tfusion.generate import prompt as prompt_lib
from tfusion.generate.prompt import Blank, escape, parse_prompt, split_at_blanks
from tfusion.sequence import Image, Text

LATENT = np.zeros((4, 4, 1), np.float32)


def parse(prompt):
  """Parses; text comes back as its characters, an image as its file."""
  files = []

  def load_image(file, kind):
    files.append(file)
    return Image(LATENT, kind=kind)

  spans = parse_prompt(
    prompt,
    encode=lambda text: np.asarray([ord(c) for c in text], np.int32),
    load_image=load_image,
  )
  for span in spans:
    assert not isinstance(span, Image) or span.latent is LATENT
  return [
    "".join(map(chr, s.ids)) if isinstance(s, Text)
    else s if isinstance(s, Blank)
    else [files.pop(0)]
    for s in spans
  ]  # fmt: skip


def test_marks_and_text_come_in_the_order_of_the_prompt():
  prompt = "a cat <image> and <image:my photos/dog 1.png> a dog<image>"
  expected = ["a cat", Blank(), "and", ["my photos/dog 1.png"], "a dog", Blank()]
  assert parse(prompt) == expected


def test_a_prompt_may_be_empty_or_a_mark_alone():
  assert parse("") == []
  assert parse("<image>") == [Blank()]
  assert parse("<image:a.png>") == [["a.png"]]
  assert parse(" <image>\n<image> ") == [Blank(), Blank()]


def test_white_space_is_dropped_around_marks_and_kept_elsewhere():
  assert parse(" a  b \n<image>  c ") == [" a  b", Blank(), "c "]
  assert parse("  a ") == ["  a "]


@pytest.mark.parametrize(
  "mark",
  # Not closed, not opened, not empty enough.
  "<image;<image:a.png;<image |<IMAGE;image>;image:a.png>;<image:>;<image: >;"
  "<image:a<b.png>;<image<image>;<image];<<image>>;<<image>;<image>>;"
  # Space and signs inside, another spelling, another word for it.
  "<image >;< image>;< image >;<image\n>;<image a.png>;<image=a.png>;<image/>;</image>;"
  "<Image>;<images>;<img>;<img;<img src='a.png'>;<imgae>;<imgae;<an image>;<my image>;"
  "< the image >;<\u200bimage>;<image2>;<|image|>;"
  # Marks of other programs.
  "[image];{image};[ IMAGE ];[img];[image:a.png];{image: a.png};[images];"
  "\uff1cimage\uff1e;\uff1cimage\uff1aa.png\uff1e;\u3008image\u3009;\u2039image\u203a;\u00abimage\u00bb;"
  "<boi>;</s>;<|endoftext|>;<video:a.mp4>;<video:my a.mp4>;<picture>;<b>".split(";"),
)
def test_what_is_nearly_a_mark_is_named_with_how_to_write_it_and_a_literal_sign(mark):
  for prompt in (mark, f"draw {mark} here", f"<image> {mark}", f"{mark} <image:a.png>"):
    with pytest.raises(ValueError) as error:
      parse(prompt)
    for part in (
      f"prompt {prompt!r}: ",
      "<image> where the model",
      "<image:FILE>",
      r"\<",
    ):
      assert part in str(error.value)


def test_a_mark_of_which_one_sign_is_text_is_shown_as_it_is_written():
  for mark in (r"<image\>", r"<image:a\>b"):
    with pytest.raises(ValueError) as error:
      parse(f"a {mark}")
    assert f"{mark!r} is an unknown mark" in str(error.value)


@pytest.mark.parametrize(
  "text",
  [
    *("a < b", "3 <4", "x<y", "a < b and c > d", "I <3 you>", "x <> y", "1 <2> 3"),
    *(
      "a -> b",
      "<- b",
      "a <= b",
      "a << b >> c",
      "the image > 3",
      "<",
      ">",
      "\\",
      "a\\b",
    ),
    *("if x<y then the image is good", "5 < 6, so the image of b > 3", "<3 images"),
    *("an image", "image: a.png", "a page <page 3", "\ue000"),
  ],
)
def test_other_angle_brackets_are_text(text):
  assert parse(text) == [text] and escape(text) == text


def test_a_backslash_makes_a_sign_text_and_is_itself_written_twice_before_one():
  assert parse(r"the word \<image\>") == ["the word <image>"]
  assert parse(r"\<image> <image>") == ["<image>", Blank()]
  assert parse(r"\<b\>bold\</b\>") == ["<b>bold</b>"]
  assert parse(r"a\\<image>") == ["a\\", Blank()]
  assert parse(r"a\\\<image>") == ["a\\<image>"]
  assert parse(r"c:\pictures <image:c:\a.png>") == ["c:\\pictures", ["c:\\a.png"]]
  assert parse(r"<image:a\<b.png>") == [["a<b.png"]]


def test_a_mark_in_other_brackets_can_be_a_word():
  for mark in ("[image]", "{img}", "\uff1cimage\uff1e", "[image: a.png]"):
    with pytest.raises(ValueError) as error:
      parse(f"see {mark}")
    assert rf"write \{mark} if it is text" in str(error.value)
    assert parse(rf"see \{mark}") == [f"see {mark}"]
    assert parse(rf"see \\{mark[:1]}") == [rf"see \\{mark[:1]}"]
  for text in ("[an image]", "image]", "(image)", "[7]", "{imagery}", r"\[x\]"):
    assert parse(text) == [text] and escape(text) == text


def test_any_text_can_be_written_and_a_place_to_draw_behind_it():
  rng = np.random.default_rng(0)
  pieces = ["<", ">", "\\", "image", " ", "a", ":", "<image>", "<b>", "img"]
  pieces += ["[", "]", "[image]", "{img:"]
  for _ in range(2000):
    text = "".join(rng.choice(pieces, rng.integers(1, 8)))
    assert parse(escape(text)) == [text]
    shown = [text.rstrip(), Blank()] if text.strip() else [Blank()]
    assert parse(f"{escape(text)} <image>") == shown


def test_white_space_around_the_name_of_a_file_is_not_of_it():
  assert parse("<image: my dog.png >") == [["my dog.png"]]


def test_a_prompt_falls_into_what_stands_around_its_places_to_draw():
  a, b, image = Text(np.zeros(1)), Text(np.zeros(2)), Image(LATENT)
  assert split_at_blanks(()) == [[]]
  assert split_at_blanks((Blank(),)) == [[], []]
  assert split_at_blanks((a, image, Blank(), Blank(), b)) == [[a, image], [], [b]]


KINDS = kinds.parse(
  ("wide:2x8x2,like=image", "tone:6x1"), kinds.Kind("image", (4, 4, 2), (2, 2))
)


@pytest.mark.parametrize(
  "prompt, want",
  [
    ("a cat <image:wide>", ["a cat", (1, None)]),
    ("<tone> and <image>", [(2, None), "and", (0, None)]),
    ("<tone:a b.npy> then < tone", [(2, "a b.npy"), "then < tone"]),
    ("<image:wide.png><wide>", [(0, "wide.png"), (1, None)]),
    ("<wide: wide >", [(1, "wide")]),
  ],
)
def test_marks_of_several_kinds_name_the_kind(prompt, want):
  found = prompt_lib.split(prompt, KINDS)
  assert [tuple(x) if isinstance(x, prompt_lib.Mark) else x for x in found] == want


def test_a_kind_that_a_run_has_not_is_no_mark_and_those_it_has_are_named():
  with pytest.raises(ValueError, match="kinds of this run: image, wide, tone"):
    prompt_lib.split("<video>", KINDS)
  with pytest.raises(ValueError, match="'<tone>' is an unknown mark"):
    prompt_lib.split("<tone>")


def test_a_mark_is_what_a_prompt_asks_with():
  for number, kind in enumerate(KINDS):
    assert prompt_lib.split(prompt_lib.mark_of(kind), KINDS) == [(number, None)]
