"""How well scenes are read back is tried, and plotted, against noise and blur."""

import numpy as np
import pytest
from PIL import Image as Pillow

from tfusion.evaluate import trials


@pytest.mark.slow
def test_the_classifier_is_plotted_against_noise_and_blur(tmp_path, monkeypatch):
  monkeypatch.setattr(trials, "NOISES", (0.0, 1.0))
  monkeypatch.setattr(trials, "BLURS", (0.0, 0.1))
  made = trials.plot_classifier(tmp_path / "plot.png", images=4)
  assert [(t.px, t.noise, t.blur) for t in made] == [
    *((32, 0.0, 0.0), (32, 1.0, 0.0), (64, 0.0, 0.0), (64, 1.0, 0.0)),
    *((32, 0.0, 0.0), (32, 0.0, 0.1), (64, 0.0, 0.0), (64, 0.0, 0.1)),
  ]
  assert all(trial.marks["right"] == 1 for trial in made[::2])
  assert all(trial.marks["shape"] < 1 for trial in made[1::2])
  with Pillow.open(tmp_path / "plot.png") as plot:
    assert len(np.unique(np.asarray(plot.convert("L")))) > 20  # lines and words
