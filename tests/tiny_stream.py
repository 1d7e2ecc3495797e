"""What is served instead of a model: its events come when a test lets them.

Not a test: shared by those of tests/serve.
"""

import asyncio
import base64
import contextlib
import io
import threading
import time

import numpy as np
import tiny
from aiohttp import test_utils
from PIL import Image

from tfusion.generate.events import Denoised, Drew, Ended, Wrote
from tfusion.generate.samples import Sample
from tfusion.serve.application import Application

RED = np.full((8, 8, 3), (200, 30, 40), np.uint8)


MADE = Sample(
  prompt="a red square <image>",
  parts=("a red square", RED, "and more"),
  made=(False, True, True),
  finished=True,
  number=0,
  call={},
  marks=("", "<image>", ""),
)
EVENTS = (
  Denoised(Image.fromarray(RED // 2), 0, 1, 2),
  Drew(Image.fromarray(RED), 0),
  Wrote("and "),
  Wrote("more"),
  Ended(MADE),
)


class Model:
  """Answers every prompt with the same events.

  Attributes:
    asked: the prompt, seed and knobs of every call.
    given: for each generation that has begun, how many events it has made.
    closed: how many generations have ended, of whatever cause.
    gate: while it is not set, each generation stops before its second event.
    busy: how many are between two events; more than one would be an error.
  """

  def __init__(self, events=EVENTS):
    self.config, self.step, self.events = tiny.config(), 7, events
    self.asked, self.given = [], []
    self.closed = self.busy = self.most = 0
    self.gate = threading.Event()
    self.gate.set()

  def stream(self, prompt, *, seed, every, **knobs):
    if any(isinstance(part, str) and "overflow" in part for part in prompt):
      raise ValueError("prompt 0: 999 elements; shorten it")
    self.asked.append((prompt, seed, knobs))
    return self._events()

  def _events(self):
    mine = len(self.given)
    self.given.append(0)
    try:
      for number, event in enumerate(self.events):
        self.busy += 1
        self.most = max(self.most, self.busy)
        while number and not self.gate.wait(0.01):
          pass
        self.busy -= 1
        if isinstance(event, Exception):
          raise event
        self.given[mine] += 1
        yield event
    finally:
      self.closed += 1


@contextlib.asynccontextmanager
async def client(model, *, hosts=("127.0.0.1", "localhost", "::1")):
  """A client of the application on a port of this machine."""
  built = Application(model, name="tiny", hosts=hosts).build()
  server = test_utils.TestServer(built, host="127.0.0.1")
  await server.start_server()  # ends handlers whose client has gone
  async with test_utils.TestClient(server) as opened:
    yield opened


def png(pixels=RED, kind="PNG"):
  """An image as a client sends it."""
  data = io.BytesIO()
  Image.fromarray(pixels).save(data, kind)
  return base64.b64encode(data.getvalue()).decode()


def pixels_of(coded):
  return np.asarray(Image.open(io.BytesIO(base64.b64decode(coded))).convert("RGB"))


async def until(holds, seconds=10.0):
  """Waits until something holds."""
  end = time.monotonic() + seconds
  while not holds():
    assert time.monotonic() < end, "it never was so"
    await asyncio.sleep(0.01)
