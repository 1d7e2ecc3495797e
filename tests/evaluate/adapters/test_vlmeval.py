"""Promises of tfusion/evaluate/adapters/vlmeval.py, on a stand-in of its base class.

VLMEvalKit is in no package index: this has not been run with the real one.
"""

import pytest
import tiny_experiments
from PIL import Image

import tfusion
from tfusion.evaluate.adapters import vlmeval


class BaseModel:
  """What VLMEvalKit's class of that name does with a message, and asks of a model."""

  INTERLEAVE = False
  allowed_types = ["text", "image"]

  def use_custom_prompt(self, dataset):
    return False

  def generate_inner(self, message, dataset=None):
    raise NotImplementedError

  def generate(self, message, dataset=None):
    if isinstance(message, str):
      message = [{"type": "text", "value": message}]
    assert all(part["type"] in self.allowed_types for part in message)
    return self.generate_inner(message, dataset)


@pytest.mark.slow
def test_a_message_of_texts_and_images_is_answered_with_text(tmp_path):
  config = tfusion.experiment(
    tiny_experiments.write(tmp_path, tiny_experiments.MODEL), steps=2
  )
  workdir = tfusion.train(config, tmp_path / "run").workdir
  model = vlmeval.model_for(BaseModel)(workdir=str(workdir), most=4)
  assert model.INTERLEAVE and not model.use_custom_prompt("MMMU_DEV_VAL")
  path = tmp_path / "a.png"
  Image.new("RGB", (9, 9), "red").save(path)
  message = [
    {"type": "text", "value": "an image"},
    {"type": "image", "value": str(path)},
    {"type": "text", "value": "of train"},
  ]
  found = model.generate(message, dataset="MMMU_DEV_VAL")
  assert isinstance(found, str) and found == model.generate(message)
  assert isinstance(model.generate("image 2"), str)


def test_parts_keep_their_order_and_a_video_is_refused(tmp_path):
  message = [{"type": "image", "value": "a"}, {"type": "text", "value": "b"}]
  image, text = vlmeval.parts_of(message)
  assert image.name == "a" and text == "b"
  with pytest.raises(ValueError, match="a message holds video"):
    vlmeval.parts_of([{"type": "video", "value": "a.mp4"}])
