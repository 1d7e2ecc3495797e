"""`scenes:N`: what a model makes of scenes, whatever it was trained on."""

import numpy as np
import pytest
import tiny
import tiny_trained

import tfusion
from tfusion.config_file import with_knobs
from tfusion.data.scenes.captions import claims_hold, claims_of
from tfusion.data.scenes.render import render
from tfusion.evaluate import compositions, frechet, scene_scores
from tfusion.evaluate.evaluation import Asked


def test_scenes_are_of_the_test_split_and_their_captions_are_true():
  known = scene_scores.scenes(64, 12)
  assert known == scene_scores.scenes(64, 12) and len(known) == 12
  for one in known:
    assert 1 <= len(one.scene.things) <= compositions.THINGS
    assert len(one.references) == scene_scores.REFERENCES
    for text in (one.text, *one.references):
      assert claims_hold(claims_of(text), one.scene.things), text


def test_features_are_the_mean_colours_of_fields():
  image = np.zeros((32, 32, 3), np.uint8)
  image[:8, 8:16] = 255  # the second field of the first row
  features = scene_scores._fields(image).reshape(4, 4, 3)
  want = np.full((4, 4, 3), -1.0)
  want[0, 1] = 1.0
  np.testing.assert_allclose(features, want)


def test_the_distance_of_scenes_to_themselves_is_none_and_grows_with_noise():
  images = _images(32)
  rng = np.random.default_rng(0)

  def distance(sigma):
    noisy = [
      np.clip(x + rng.normal(size=x.shape) * sigma + sigma, 0, 255).astype(np.uint8)
      for x in images
    ]
    return frechet.distance(scene_scores._moments(noisy), scene_scores._moments(images))

  assert distance(0.0) == pytest.approx(0.0, abs=1e-6)
  assert 0 < distance(10.0) < distance(40.0)


def _images(count):
  return [render(one.scene, 32) for one in scene_scores.scenes(32, count)]


@pytest.mark.parametrize("argument", ["0", "-1", "two", "2.5"])
def test_a_number_that_is_none_is_refused(argument):
  asked = Asked(None, None, None, argument=argument)
  with pytest.raises(ValueError, match=f"scenes:{argument}: give the number of images"):
    scene_scores._count(asked)


@pytest.mark.slow
def test_a_run_on_scenes_is_asked_for_all_tasks_and_captions(tmp_path):
  config = tiny.experiment("shapes", "smoke,things=2")
  knobs = {"train.steps": 2, "train.eval_every_steps": 2, "train.save_every_steps": 2}
  knobs |= {"sample.steps": 2, "sample.max_elements": 96, "eval.prompts": ()}
  knobs |= {"eval.batch": 6, "train.eval_rows": 4, "eval.text_rows": 4}
  knobs |= {"model.layers": 1, "model.unroll": 1}
  run = tfusion.train(with_knobs(config, knobs, section="train"), tmp_path / "run")
  found = run.evaluate("scenes:1")
  assert found["scenes_images"] == 12 and found["scenes_ceiling"] == 1.0
  for name in ("geneval", *compositions.TASKS, "right", "captions_right"):
    assert 0 <= found[f"scenes_{name}"] <= 1
  assert set(found["scenes_by_guidance"]) == {"1", "3"}
  assert found["scenes_guidance_best"] in (1.0, 3.0)
  assert found["scenes_frechet_best"] <= found["scenes_frechet"]
  sheets = {path.name for path in (tmp_path / "run" / "eval").glob("scenes-*")}
  assert sheets == {"scenes-guidance-1.png", "scenes-guidance-3.png"}


@pytest.mark.long
@pytest.mark.slow
def test_a_run_on_other_images_is_told_what_scenes_are(tmp_path):
  with tiny_trained.trained(tmp_path) as trained:
    asked = Asked(trained, None, tmp_path, argument="1")
    with pytest.raises(
      ValueError, match="of 4 x 4 pixels; scenes are of 32 x 32 or 64"
    ):
      scene_scores.check(asked)
