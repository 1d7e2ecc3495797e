"""Promises of tfusion/serve/application.py, turns.py and told.py, by real requests."""

import asyncio
import json

import numpy as np
import pytest

pytest.importorskip("aiohttp", reason="pip install '.[serve]' brings it")

from PIL import Image
from tiny_stream import MADE, RED, Model, client, pixels_of, png, until

from tfusion.generate.events import Drew, Ended, Wrote
from tfusion.serve import application

ASKED = {"prompt": "a red square <image>"}


def run(steps):
  """What `async def steps(...)` returns."""
  return asyncio.run(asyncio.wait_for(steps, 60))


async def lines(response):
  return [json.loads(line) async for line in response.content]


def test_all_that_was_made_comes_in_one_answer():
  async def steps():
    async with client(Model()) as c:
      response = await c.post("/api/sample", json=ASKED | {"seed": 3})
      return response.status, await response.json()

  status, found = run(steps())
  assert status == 200
  assert found["text"] == "<image>and more" and found["finished"] and found["seed"] == 3
  assert [p.get("text") for p in found["parts"]] == ["a red square", None, "and more"]
  assert [p["made"] for p in found["parts"]] == [False, True, True]
  np.testing.assert_array_equal(pixels_of(found["images"][0]), RED)


def test_a_stream_has_a_line_for_each_event_as_soon_as_it_is_known():
  async def steps():
    model = Model()
    model.gate.clear()
    async with client(model) as c:
      response = await c.post("/api/stream", json=ASKED)
      assert response.content_type == "application/x-ndjson"
      early = [json.loads(await response.content.readline()) for _ in range(2)]
      assert not model.closed  # the rest is not made yet
      model.gate.set()
      return early + await lines(response)

  found = run(steps())
  assert [one["event"] for one in found] == [
    *("begun", "text", "preview", "image", "text", "text", "end"),
  ]
  assert found[1] == {"event": "text", "text": "a red square", "made": False}
  assert (found[2]["step"], found[2]["steps"]) == (1, 2)
  np.testing.assert_array_equal(pixels_of(found[2]["png"]), RED // 2)
  np.testing.assert_array_equal(pixels_of(found[3]["png"]), RED)


def test_what_a_prompt_gives_is_told_where_it_stands():
  async def steps():
    draws = tuple(Drew(Image.fromarray(RED), n) for n in range(3))
    async with client(Model((*draws, Ended(MADE)))) as c:
      asked = {"prompt": "one <image> two <image:a> three <image>"}
      asked |= {"images": {"a": png()}}
      return await lines(await c.post("/api/stream", json=asked))

  found = run(steps())
  shown = [(x.get("text", x["event"]), x["made"]) for x in found if "made" in x]
  made = ("image", True)  # the last of them nobody asked for
  given = [("two", False), ("image", False), ("three", False)]
  assert shown == [("one", False), made, *given, made, made]


def test_one_is_made_at_a_time_and_the_others_are_told_how_many_are_before_them():
  async def steps():
    model = Model()
    model.gate.clear()
    async with client(model) as c:
      first = await c.post("/api/stream", json=ASKED)
      await first.content.readline()
      second = await c.post("/api/stream", json=ASKED)
      third = await c.post("/api/stream", json=ASKED)
      said = [json.loads(await r.content.readline()) for r in (second, third)]
      about = await (await c.get("/api/model")).json()
      model.gate.set()
      rest = [await lines(r) for r in (first, second, third)]
    return model, said, about, rest

  model, said, about, rest = run(steps())
  assert said == [{"event": "waiting", "before": n} for n in (1, 2)]
  assert about["in_line"] == 3
  assert all(one[-1] == {"event": "end", "finished": True} for one in rest)
  assert {"event": "waiting", "before": 1} in rest[2]  # it moved up
  assert model.most == 1 and model.closed == 3


@pytest.mark.parametrize("address", ["/api/stream", "/api/sample"])
def test_a_client_that_goes_away_ends_what_is_made_for_it(address):
  async def steps():
    model = Model()
    model.gate.clear()
    async with client(model) as c:
      asking = asyncio.ensure_future(c.post(address, json=ASKED))
      await until(lambda: model.given == [1])  # and is at its second event
      if address == "/api/stream":
        (await asking).close()  # as when Stop is pressed, or the window is closed
      asking.cancel()
      other = asyncio.ensure_future(c.post(address, json=ASKED))
      await until(lambda: len(model.asked) == 2)
      await asyncio.sleep(1)  # for the server to see it
      model.gate.set()
      await (await other).read()
    return model

  model = run(steps())
  first, second = model.given
  assert first <= 2 and second == len(model.events) and model.closed == 2


def test_a_client_that_goes_away_while_it_waits_leaves_the_line():
  async def steps():
    model = Model()
    model.gate.clear()
    async with client(model) as c:
      first = await c.post("/api/stream", json=ASKED)
      second = await c.post("/api/stream", json=ASKED)
      second.close()
      for _ in range(500):
        about = await (await c.get("/api/model")).json()
        if about["in_line"] == 1:
          break
        await asyncio.sleep(0.01)
      model.gate.set()
      await lines(first)
    return model, about

  model, about = run(steps())
  assert about["in_line"] == 1 and model.given == [len(model.events)]


def refused(body, *, address="/api/sample", model=None, **more):
  """The status and the words of an answer."""

  async def steps():
    async with client(model or Model()) as c:
      how = {"json": body} if not isinstance(body, bytes) else {"data": body}
      response = await c.post(address, **how, **more)
      return response.status, (await response.json())["error"]

  return run(steps())


JSON = {"Content-Type": "application/json"}
SEEN = {"prompt": "<image:a.png>"}


@pytest.mark.parametrize("address", ["/api/stream", "/api/sample"])
@pytest.mark.parametrize(
  "body, says",
  [
    ({"prompt": "an overflow"}, "999 elements; shorten it"),
    ({"prompt": "an <imgae>"}, "'<imgae>' is an unknown mark, or nearly a known one"),
    ({"prompt": 3}, "prompt=3: expected str"),
    ({}, "the body: unknown [], missing ['prompt']"),
    ({"prompt": "", "steps": 3}, "the body: unknown ['steps']"),
    ({"prompt": "", "seed": -1}, "seed=-1: must be at least 0 and below 4294967296"),
    ({"prompt": "", "knobs": {"stepps": 3}}, "knobs.stepps: is unknown; known: ["),
    ({"prompt": "", "knobs": [3]}, "knobs=[3]: expected keys and values"),
    (SEEN, "<image:a.png>: is none of the images that were sent (none); put it into"),
    ({"prompt": "<image:/etc/passwd>"}, "none of the images that were sent"),
    ({"prompt": "", "images": {"b": png()}}, "images.b: the prompt does not show it"),
    (SEEN | {"images": {"a.png": "%"}}, "images.a.png: is no base64"),
    (
      SEEN | {"images": {"a.png": "aGVsbG8="}},
      "images.a.png: not an image that can be",
    ),
    (SEEN | {"images": {"a.png": png()[:60]}}, "images.a.png: not an image that can"),
    (SEEN | {"images": {"a.png": png(kind="TIFF")}}, "not an image that can be read"),
    ([1], "the body=[1]: expected keys and values"),
  ],
)
def test_what_cannot_be_answered_is_refused_in_words(address, body, says):
  status, said = refused(body, address=address)
  assert status == 400 and says in said, said


def test_a_body_that_is_no_json_is_refused():
  status, said = refused(b"{", headers=JSON)
  assert status == 400 and said.startswith("the body is no JSON")
  status, said = refused(b"{}", headers={"Content-Type": "text/plain"})
  assert status == 415 and "send application/json" in said


def test_a_body_that_is_too_large_is_refused(monkeypatch):
  monkeypatch.setattr(application, "MOST_BYTES", 1000)
  status, said = refused({"prompt": "a" * 2000})
  assert status == 413 and "1000" in said


def test_what_breaks_on_the_way_is_told_where_the_client_looks():
  broken = Model((Wrote("a"), RuntimeError("RESOURCE_EXHAUSTED: much")))
  status, said = refused(ASKED, model=broken)
  assert status == 500 and said.startswith("the memory of the device is full")

  async def steps():
    async with client(broken) as c:
      return await lines(await c.post("/api/stream", json=ASKED))

  found = run(steps())
  assert [one["event"] for one in found] == ["begun", "text", "text", "error"]
  assert found[-1]["error"] == said and broken.closed == 2


def test_an_error_of_ours_is_logged_and_not_shown():
  broken = Model((KeyError("secret"),))
  status, said = refused(ASKED, model=broken)
  assert status == 500 and said == "KeyError: the server's log says more"


def test_images_reach_the_model_in_their_places_upright_and_on_white():
  turned = np.zeros((2, 4, 4), np.uint8)  # transparent
  turned[:, 0] = (200, 30, 40, 255)
  model = Model()

  async def steps():
    async with client(model) as c:
      images = {"a b.png": f"data:image/png;base64,{png(turned)}", "c": png()}
      asked = {"prompt": r"as \<image> <image:a b.png> and <image:c> <image>"}
      asked |= {"images": images, "knobs": {"steps": 3}, "seed": 5}
      response = await c.post("/api/sample", json=asked)
      assert response.status == 200, await response.text()

  run(steps())
  ((prompt, seed, knobs),) = model.asked
  assert (seed, knobs) == (5, {"steps": 3})
  assert [p for p in prompt if isinstance(p, str)] == [
    r"as \<image\>",
    "and",
    "<image>",
  ]
  first, second = (p for p in prompt if not isinstance(p, str))
  assert first.shape == (2, 4, 3) and (first[:, 1:] == 255).all()
  np.testing.assert_array_equal(first[0, 0], (200, 30, 40))
  np.testing.assert_array_equal(second, RED)


def test_a_page_of_elsewhere_cannot_ask_by_a_name_that_leads_here():
  elsewhere = {"Host": "evil.example"}
  status, said = refused(ASKED, headers=elsewhere)
  assert status == 403 and "evil.example" in said

  async def steps():  # --host lets others in
    async with client(Model(), hosts=()) as c:
      return (await c.post("/api/sample", json=ASKED, headers=elsewhere)).status

  assert run(steps()) == 200


def test_the_model_says_what_it_is_and_shows_no_place_on_the_machine():
  async def steps():
    async with client(Model()) as c:
      return await (await c.get("/api/model")).json(), await (await c.get("/")).text()

  about, page = run(steps())
  assert about["name"] == "tiny" and about["step"] == 7
  assert about["knobs"]["guidance"] == Model().config.sample.guidance
  assert about["image_shape"] == list(Model().config.model.image_shape)
  assert "<title>tiny - tfusion</title>" in page
  # Nothing is fetched from elsewhere.
  assert not [word for word in ("http://", "https://", "//cdn") if word in page]


def test_an_unknown_address_is_said_in_json():
  async def steps():
    async with client(Model()) as c:
      response = await c.get("/api/none")
      return response.status, await response.json()

  assert run(steps()) == (404, {"error": "404: Not Found"})
