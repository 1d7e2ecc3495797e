"""`tfusion serve` as a user starts it: a process of its own, with a trained model."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request

import numpy as np
import pytest
import tiny_experiments
from tiny_stream import pixels_of, png

import tfusion
from tfusion.serve import body

pytest.importorskip("aiohttp", reason="pip install '.[serve]' brings it")

pytestmark = pytest.mark.slow  # a whole run is trained
ROOT = pathlib.Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "serve.md").read_text()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  folder = tmp_path_factory.mktemp("model")
  config = tfusion.experiment(tiny_experiments.write(folder, tiny_experiments.MODEL))
  return tfusion.train(config, folder / "tiny")


@pytest.fixture(scope="module")
def server(run):
  """The address of a process that serves it; Ctrl-C ends it well."""
  command = [sys.executable, "-m", "tfusion", "serve", "--workdir", str(run.workdir)]
  env = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
  how = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
  with subprocess.Popen([*command, "--port=0"], **how) as process:
    try:
      said = process.stdout.readline()
      yield re.match(r"(http://127\.0\.0\.1:\d+)/ shows tiny", said)[1]
    finally:
      process.send_signal(signal.SIGINT)
      _, err = process.communicate(timeout=60)
  assert process.returncode == 0, err
  assert "Traceback" not in err


def ask(server, path, asked):
  data = json.dumps(asked).encode()
  headers = {"Content-Type": "application/json"}
  request = urllib.request.Request(f"{server}{path}", data, headers)
  try:
    with urllib.request.urlopen(request, timeout=300) as answer:
      return answer.status, answer.read()
  except urllib.error.HTTPError as error:
    return error.code, error.read()


ASKED = {
  "prompt": "image 2 of <image:a> train <image>",
  "images": {"a": png()},
  "seed": 3,
}


def test_a_client_gets_what_the_same_run_samples_in_python(run, server):
  status, answer = ask(server, "/api/sample", ASKED)
  found = json.loads(answer)
  assert status == 200, found
  prompt = body.read(json.dumps(ASKED).encode(), run.config.model.every_kind).prompt
  made = run.sample(prompt, seed=3)
  assert found["text"] == made.text and found["finished"] == made.finished
  for own, image in zip(found["images"], made.images, strict=True):
    np.testing.assert_array_equal(pixels_of(own), np.asarray(image))
  assert len(found["parts"]) == len(made.parts)


def test_a_stream_shows_the_image_before_it_is_done_and_then_the_same(server):
  _, answer = ask(server, "/api/sample", ASKED)
  status, streamed = ask(server, "/api/stream", ASKED)
  told = [json.loads(line) for line in streamed.splitlines()]
  assert status == 200 and told[-1]["event"] == "end"
  events = [one["event"] for one in told]
  assert events[:4] == ["begun", "text", "image", "text"]  # what the prompt gives
  assert events[4:6] == ["preview", "image"]  # of two steps the first is shown
  made = [one for one in told if one.get("made")]
  images = [one["png"] for one in made if one["event"] == "image"]
  assert images == json.loads(answer)["images"]
  text = "".join(one.get("text", "<image>") for one in made)
  assert text.strip() == json.loads(answer)["text"]


@pytest.mark.parametrize(
  "asked, says",
  [
    ({"prompt": "<image>" * 9}, "sample.max_elements=64; shorten it"),
    ({"prompt": "a", "knobs": {"steps": 0}}, "sample.steps=0"),
    ({"prompt": "a", "knobs": {"steps": 2.5}}, "sample.steps=2.5: expected int"),
    ({"prompt": "a", "knobs": {"steps": "2"}}, "sample.steps='2': expected int"),
    ({"prompt": "a", "knobs": {"steps": 5000}}, "sample.steps=5000: more than the"),
    ({"prompt": "a", "knobs": {"temperature": -1}}, "sample.temperature=-1"),
    ({"prompt": "a", "knobs": {"guidance": float("nan")}}, "sample.guidance=nan"),
    ({"prompt": "a", "knobs": {"guidance": float("inf")}}, "sample.guidance=inf"),
    ({"prompt": "a", "knobs": {"guidance": None}}, "sample.guidance=None"),
    ({"prompt": "a", "knobs": {"sampler": "none"}}, "sample.sampler='none'"),
  ],
)
def test_what_the_model_cannot_do_is_refused_in_words(server, asked, says):
  for address in ("/api/sample", "/api/stream"):
    status, answer = ask(server, address, asked)
    assert status == 400 and says in json.loads(answer)["error"], answer


def test_the_body_on_the_page_is_one_that_is_read(run):
  (shown,) = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
  asked = body.read(shown.encode(), run.config.model.every_kind)
  assert [type(part) is str for part in asked.prompt] == [False, True, True]
  assert asked.knobs == {"steps": 50, "guidance": 3.0}
  (typed,) = re.findall(r"-d '(.*)'$", PAGE, re.MULTILINE)
  assert body.read(typed.encode(), run.config.model.every_kind).seed == 0


def test_the_page_names_every_key_and_event():
  from tfusion.serve import told

  source = pathlib.Path(told.__file__).read_text()
  for event in re.findall(r'"event": "(\w+)"', source):
    assert f"| `{event}` |" in PAGE, event
  for key in ("text", "images", "parts", "finished", "seed"):
    assert f"| `{key}` |" in PAGE, key
