"""Promises of tfusion/evaluate/adapters/generator.py."""

import numpy as np
import pytest
import tiny_trained
from PIL import Image as Pillow

from tfusion.evaluate.adapters.generator import MOST, Generator, Wishes, cut, wishes
from tfusion.generate.canvas import open_canvas
from tfusion.generate.choices import TextChoice
from tfusion.generate.rows import Generated
from tfusion.sequence import Image, Text


@pytest.fixture(scope="module")
def generator(tmp_path_factory):
  folder = tmp_path_factory.mktemp("trained")
  with tiny_trained.trained(folder) as trained:
    yield Generator(trained, open_canvas(trained.config, folder))


@pytest.fixture(scope="module")
def image(tmp_path_factory):
  path = tmp_path_factory.mktemp("image") / "a.png"
  Pillow.new("L", (8, 8), 200).save(path)
  return path


def test_a_prompt_keeps_the_order_of_texts_and_images(generator, image):
  one, shown, two = generator.prompt(["a <image>", image, "", "seven"])
  decode = generator.trained.tokenizer.decode
  assert decode(one.ids) == "a <image>" and decode(two.ids) == "seven"
  np.testing.assert_allclose(shown.latent, np.full((4, 4, 1), 200 / 127.5 - 1))


def test_an_answer_is_the_text_up_to_an_image_a_stop_or_its_most(generator):
  encode = generator.trained.tokenizer.encode
  ids = encode("seven and some more text")
  image = Image(np.zeros((4, 4, 1), np.float32))
  spans = (Text(encode("asked")), Text(ids), image, Text(encode("text")))
  one = Generated(spans, (False, True, True, True), finished=True)
  assert generator._text(one, 99, ()) == "seven and some more text"
  assert generator._text(one, 99, ("more", " some")) == "seven and"
  assert generator._text(one, 3, ()) == generator.trained.tokenizer.decode(ids[:3])


def test_a_stop_is_a_text_and_no_pattern():
  assert cut("a.b*c", [".", "*"]) == "a"
  assert cut("axb*c", ["", "*"]) == "axb"
  assert cut("abc", []) == "abc"


@pytest.mark.slow
def test_many_prompts_of_any_length_are_answered_each_as_if_alone(generator, image):
  asked = [["seven"], ["and some more text", image, "a"], [image]]
  found = generator.say(asked, most=5)
  assert len(found) == 3 and all(isinstance(text, str) for text in found)
  # Greedy: what stands beside a prompt changes nothing.
  assert generator.say(asked[1:2], most=5) == found[1:2]


@pytest.mark.slow
def test_the_image_that_is_asked_for_comes_back_in_pixels(generator, image):
  found = generator.draw([["seven"], [image, "text"]])
  assert [(x.shape, x.dtype) for x in found] == [((4, 4, 1), np.uint8)] * 2
  with pytest.raises(ValueError, match="prompt 0: .* sample.max_elements=32"):
    generator.draw([["seven " * 30]])


@pytest.mark.parametrize(
  "asked,wanted",
  [
    ({}, Wishes((), MOST, TextChoice())),
    ({"until": "\n", "max_gen_toks": 5}, Wishes(("\n",), 5, TextChoice())),
    ({"until": ["a", "b"]}, Wishes(("a", "b"), MOST, TextChoice())),
    ({"max_new_tokens": 7}, Wishes((), 7, TextChoice())),
    ({"temperature": 0.5}, Wishes((), MOST, TextChoice(0.5))),
    ({"temperature": 0.5, "do_sample": False}, Wishes((), MOST, TextChoice())),
    ({"do_sample": True}, Wishes((), MOST, TextChoice(1.0))),
    (
      {"do_sample": True, "top_k": 9, "top_p": 0.9, "min_p": 0.1},
      Wishes((), MOST, TextChoice(1.0, top_k=9, top_p=0.9, min_p=0.1)),
    ),
    ({"repetition_penalty": 1.2}, Wishes((), MOST, TextChoice(repetition=1.2))),
    ({"num_beams": 1, "top_p": None}, Wishes((), MOST, TextChoice())),
  ],
)
def test_what_a_task_wants_is_read_in_the_words_of_transformers(asked, wanted):
  assert wishes(asked) == wanted


def test_a_search_over_beams_is_refused():
  with pytest.raises(ValueError, match="num_beams=4: this is not built"):
    wishes({"num_beams": 4})
