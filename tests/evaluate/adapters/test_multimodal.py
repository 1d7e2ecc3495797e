"""Promises of tfusion/evaluate/adapters/multimodal.py, with the real lmms_eval."""

import json
import pathlib
import re

import pytest
import tiny_experiments
from PIL import Image

import tfusion

ROOT = pathlib.Path(__file__).parents[3]
TASKS = pathlib.Path(__file__).parent / "tasks"
REASON = "lmms_eval is in the extra `eval`"
pytestmark = pytest.mark.slow  # a whole run is trained


@pytest.fixture(scope="module")
def multimodal():
  pytest.importorskip("lmms_eval.api.model", reason=REASON)
  from tfusion.evaluate.adapters import multimodal

  return multimodal


@pytest.fixture(scope="module")
def workdir(multimodal, tmp_path_factory):
  folder = tmp_path_factory.mktemp("model")
  config = tfusion.experiment(tiny_experiments.write(folder, tiny_experiments.MODEL))
  return tfusion.train(config, folder / "run").workdir


class Request:
  """As the package's `Instance`."""

  def __init__(self, *args):
    self.args = args


def ask(model, text, images, number=0, **wishes):
  model.task_dict = {"seen": {"test": {number: images}}}
  return Request(text, wishes, lambda images: images, number, "seen", "test")


def test_answers_are_text_up_to_a_stop(multimodal, workdir):
  model = multimodal.Multimodal(str(workdir))
  image = Image.new("RGB", (9, 9), "red")
  asked = ask(model, "<image> image 2", [image], max_new_tokens=3)
  (text,) = model.generate_until([asked])
  assert isinstance(text, str)
  with pytest.raises(NotImplementedError):
    model.loglikelihood([asked])


def test_images_come_back_as_a_json_of_paths(multimodal, workdir, tmp_path):
  model = multimodal.Multimodal(str(workdir), mode="draw", out=str(tmp_path))
  found = [
    json.loads(model.generate_until([ask(model, "image 2", [], number)])[0])
    for number in range(2)
  ]
  names = ["seen_test_0.png", "seen_test_1.png"]
  assert [one["images"] for one in found] == [[str(tmp_path / name)] for name in names]
  assert all(set(one) == {"text", "images"} for one in found)
  with Image.open(found[0]["images"][0]) as image:
    assert image.size == (8, 8)


@pytest.mark.parametrize("mode, answered", [("read", 1.0), ("draw", 11.0)])
def test_the_package_runs_a_task_with_it(
  multimodal, workdir, tmp_path, monkeypatch, mode, answered
):
  monkeypatch.setenv("HF_HUB_OFFLINE", "1")
  monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
  monkeypatch.chdir(TASKS)
  evaluator = pytest.importorskip("lmms_eval.evaluator", reason=REASON)
  from lmms_eval.tasks import TaskManager

  model = multimodal.Multimodal(str(workdir), mode=mode, out=str(tmp_path / "made"))
  found = evaluator.simple_evaluate(
    model=model,
    tasks=["tfusion_see"],
    task_manager=TaskManager(include_path=str(TASKS), include_defaults=False),
    bootstrap_iters=0,
    log_samples=False,
  )
  (value,) = (
    x for k, x in found["results"]["tfusion_see"].items() if k.startswith("answered,")
  )
  assert value == answered


def test_the_package_finds_it_by_its_name(multimodal):
  (module, function) = re.search(
    r'"lmms_eval.models": \["tfusion = ([\w.]+):(\w+)"\]',
    (ROOT / "setup.py").read_text(),
  ).groups()
  assert module == multimodal.__name__
  from lmms_eval.models.registry_v2 import ModelRegistryV2

  registry = ModelRegistryV2()
  registry.register_manifest(getattr(multimodal, function)())
  assert registry.get_model_class("tfusion") is multimodal.Multimodal


def test_an_image_stands_where_its_mark_is(multimodal):
  one, two = pathlib.Path("a"), pathlib.Path("b")
  assert multimodal.interleave("x <image> y<image>", [one, two]) == [
    "x ",
    one,
    " y",
    two,
  ]
  assert multimodal.interleave(" x ", [one, two]) == [one, two, "x"]
  with pytest.raises(ValueError, match="1 marks <image> for 2 images"):
    multimodal.interleave("x <image>", [one, two])


def test_arguments_that_mean_nothing_are_refused(multimodal, workdir, tmp_path):
  with pytest.raises(ValueError, match="mode='write': choose one of"):
    multimodal.Multimodal(str(workdir), mode="write")
  with pytest.raises(ValueError, match="model_args: dtype is unknown"):
    multimodal.Multimodal(str(workdir), dtype="fp16", batch_size=1)
  with pytest.raises(ValueError, match="holds no config.json"):
    multimodal.Multimodal(str(tmp_path))
