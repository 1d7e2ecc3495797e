"""Promises of the page of `tfusion serve`, kept to a person who has it in a browser.

Chromium without a window asks a real server, whose model is a stand-in.
"""

import shutil
import threading
import urllib.parse

import numpy as np
import pytest

pytest.importorskip("aiohttp", reason="pip install '.[serve]' brings it")
from tiny_stream import RED, Model, png

from tfusion.serve import address, application

pytestmark = [pytest.mark.browser, pytest.mark.slow]
SECONDS = 20
DROP = """async ([name, coded]) => {
  const blob = await (await fetch(`data:image/png;base64,${coded}`)).blob();
  const transfer = new DataTransfer();
  transfer.items.add(new File([blob], name, { type: "image/png" }));
  const how = { dataTransfer: transfer, bubbles: true, cancelable: true };
  document.getElementById("prompt").dispatchEvent(new DragEvent("drop", how));
}"""


@pytest.fixture(scope="module")
def browser():
  from playwright.sync_api import sync_playwright

  with sync_playwright() as playwright:
    chromium = shutil.which("chromium")
    flags = ["--no-sandbox"]  # which the root of a container cannot have
    opened = playwright.chromium.launch(executable_path=chromium, args=flags)
    yield opened
    opened.close()


@pytest.fixture
def model():
  return Model()


@pytest.fixture
def page(browser, model):
  """The page of a model, which asks nobody else and has no errors in its script."""
  taken = address.listen("127.0.0.1", 0)
  port = taken.getsockname()[1]
  threading.Thread(
    target=application.serve, args=(model, taken), kwargs={"name": "tiny"}, daemon=True
  ).start()
  opened = browser.new_page()
  opened.set_default_timeout(SECONDS * 1000)
  asked, faults = [], []
  opened.on("request", lambda request: asked.append(request.url))
  opened.on("pageerror", lambda error: faults.append(error))
  opened.goto(f"http://127.0.0.1:{port}/")
  yield opened
  model.gate.set()
  opened.close()
  local = [url for url in asked if not url.startswith("data:")]
  assert {urllib.parse.urlsplit(url).port for url in local} == {port}
  assert not faults, faults


def ask(page, prompt):
  page.fill("#prompt", prompt)
  page.press("#prompt", "Control+Enter")


def ended(page, answers=1):
  """The words below the newest answer, when so many are there and it is at its end."""
  page.locator("article").nth(answers - 1).wait_for()
  status = page.locator(".status").first
  status.filter(has_text="seed").wait_for()
  return status.inner_text()


def test_text_and_image_appear_while_they_are_made(page, model):
  model.gate.clear()
  page.fill("#seed", "5")
  page.fill("[name=steps]", "3")
  ask(page, "a red square <image>")
  page.locator("progress").wait_for()  # the rest is not made yet
  assert page.locator(".status").inner_text() == "step 1 of 2"
  assert page.locator(".given").inner_text() == "a red square"
  assert page.locator("span.made").count() == 0
  assert page.locator("#make").is_disabled()
  model.gate.set()
  assert ended(page) == "seed 5"
  assert page.locator("span.made").inner_text() == "and more"
  image = page.locator("article img.made")
  shown = image.evaluate("image => [image.naturalWidth, image.complete]")
  assert shown == [8, True]
  assert page.locator("progress").count() == 0
  assert model.asked == [(("a red square", "<image>"), 5, {"steps": 3})]


def test_a_picture_that_is_dropped_is_shown_to_the_model(page, model):
  page.fill("#prompt", "as in ")
  page.evaluate(DROP, ["my <photo>.png", png()])
  page.locator("#shown img").wait_for()
  assert page.input_value("#prompt") == "as in <image:my_photo_.png>"
  page.press("#prompt", "Control+Enter")
  ended(page)
  text, pixels = model.asked[0][0]
  assert text == "as in"
  np.testing.assert_array_equal(pixels, RED)
  page.get_by_role("button", name="Remove my_photo_.png").click()
  assert page.input_value("#prompt") == "as in "
  assert page.locator("#shown img").count() == 0


@pytest.mark.parametrize("how", ["Escape", "Stop"])
def test_what_is_stopped_ends_on_the_server_too(page, model, how):
  model.gate.clear()
  ask(page, "a red square <image>")
  page.locator(".given").wait_for()
  if how == "Stop":
    page.get_by_role("button", name="Stop").click()
  else:
    page.keyboard.press("Escape")
  page.locator(".status", has_text="stopped").wait_for()
  page.wait_for_timeout(500)  # for the server to see it
  model.gate.set()
  ask(page, "again")
  ended(page, 2)
  assert model.given[0] <= 2 and model.closed == 2


def test_errors_are_shown_in_words_and_the_prompt_stays(page):
  ask(page, "an overflow")
  alert = page.locator("[role=alert]")
  alert.filter(has_text="999 elements; shorten it").wait_for()
  assert page.input_value("#prompt") == "an overflow"
  page.fill("#prompt", "fine")
  page.press("#prompt", "Control+Enter")
  ended(page)
  assert alert.inner_text() == ""


def test_what_was_made_stays_and_can_be_asked_for_again(page, model):
  page.fill("[name=guidance]", "2.5")
  ask(page, "one <image>")
  first = ended(page)
  page.fill("[name=guidance]", "")
  ask(page, "two <image>")
  ended(page, 2)
  assert page.locator("article").count() == 2
  page.locator(".again").last.click()  # of the oldest
  assert page.input_value("#prompt") == "one <image>"
  assert page.input_value("[name=guidance]") == "2.5"
  assert first == f"seed {page.input_value('#seed')}"


def test_the_page_can_be_used_with_the_keyboard_alone(page, model):
  page.keyboard.type("a red square ")  # the prompt has the focus at the start
  page.keyboard.press("Tab")
  page.keyboard.press("Enter")  # the button that writes the mark
  assert page.input_value("#prompt") == "a red square <image>"
  page.keyboard.press("Control+Enter")
  ended(page)
  assert model.asked[0][0] == ("a red square", "<image>")
