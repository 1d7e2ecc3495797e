"""Promises of tfusion/generate/prompt.py."""

import numpy as np
import pytest

from tfusion.generate.prompt import Draw, parse_prompt, split_at_draws
from tfusion.sequence import Image, Text

LATENT = np.zeros((4, 4, 1), np.float32)


def parse(prompt):
  """Parses; text comes back as its characters, an image as its file."""
  files = []

  def load_image(file):
    files.append(file)
    return LATENT

  spans = parse_prompt(
    prompt,
    encode=lambda text: np.asarray([ord(c) for c in text], np.int32),
    load_image=load_image,
  )
  for span in spans:
    assert not isinstance(span, Image) or span.latent is LATENT
  return [
    "".join(map(chr, s.ids)) if isinstance(s, Text)
    else s if isinstance(s, Draw)
    else [files.pop(0)]
    for s in spans
  ]  # fmt: skip


def test_marks_and_text_come_in_the_order_of_the_prompt():
  prompt = "a cat <image> and <image:my photos/dog 1.png> a dog<image>"
  expected = ["a cat", Draw(), "and", ["my photos/dog 1.png"], "a dog", Draw()]
  assert parse(prompt) == expected


def test_a_prompt_may_be_empty_or_a_mark_alone():
  assert parse("") == []
  assert parse("<image>") == [Draw()]
  assert parse("<image:a.png>") == [["a.png"]]
  assert parse(" <image>\n<image> ") == [Draw(), Draw()]


def test_white_space_is_dropped_around_marks_and_kept_elsewhere():
  assert parse(" a  b \n<image>  c ") == [" a  b", Draw(), "c "]
  assert parse("  a ") == ["  a "]


@pytest.mark.parametrize(
  "token", ["<boi>", "</image>", "<image2>", "<|image|>", "<Image>", "<video:a.mp4>"]
)
def test_an_unknown_special_token_is_named_with_the_known_ones(token):
  with pytest.raises(ValueError) as error:
    parse(f"draw {token} here")
  for part in (f"unknown special token {token!r}", "<image>", "<image:FILE>"):
    assert part in str(error.value)


@pytest.mark.parametrize("text", ["a < b and c > d", "I <3 you>", "x <> y", "1 <2> 3"])
def test_other_angle_brackets_are_text(text):
  assert parse(text) == [text]


def test_a_prompt_falls_into_what_stands_around_its_places_to_draw():
  a, b, image = Text(np.zeros(1)), Text(np.zeros(2)), Image(LATENT)
  assert split_at_draws(()) == [[]]
  assert split_at_draws((Draw(),)) == [[], []]
  assert split_at_draws((a, image, Draw(), Draw(), b)) == [[a, image], [], [b]]
