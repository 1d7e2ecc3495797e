"""The web application: a page, JSON that answers at once, JSON that streams.

Owns: addresses, limits, which status an error has. Not: what a body says (body.py), the
line of those who wait (turns.py), the events (told.py), sockets (address.py).

  GET  /             the page
  GET  /api/model    what model this is
  POST /api/sample   a body, as body.py has it -> all that was made
  POST /api/stream   the same -> an object a line (NDJSON), as soon as it is known

Errors are {"error": "..."}: 400 for what the client can mend, 413 for a body that is
too large, 415 for one that is not application/json, 500 for what it cannot.
"""

import asyncio
import contextlib
import functools
import ipaddress
import json
import socket
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from typing import Any, Protocol

from absl import logging
from aiohttp import web

from tfusion import errors, progress
from tfusion.config import Config
from tfusion.generate.events import Ended, Event
from tfusion.serve import body as body_lib
from tfusion.serve import page, told
from tfusion.serve.body import Asked
from tfusion.serve.turns import Turns

MOST_BYTES = 32 << 20  # of a body: a dozen photographs
LOOPBACK = ("127.0.0.1", "localhost", "::1")
NDJSON = "application/x-ndjson"
PREVIEWS = 25  # of an image that is being made, about

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Model(Protocol):
  """What is served; a Run is one."""

  config: Config
  step: int

  def stream(
    self, prompt: Any, *, seed: int, every: int, **knobs: Any
  ) -> Iterator[Event]:
    """What comes of a prompt, event by event.

    Raises:
      ValueError: when it is called, for what is wrong with the prompt or a knob.
    """


def serve(model: Model, taken: socket.socket, *, name: str) -> None:
  """Answers until Ctrl-C or SIGTERM.

  Args:
    model: what is served.
    taken: as `listen` gives it.
    name: of the run, for the page.
  """
  host, port = taken.getsockname()[:2]
  here = ipaddress.ip_address(host).is_loopback
  if not here:
    logging.warning(
      "anyone who reaches this machine at %s can sample with this model: there is no"
      " password; without --host only programs of this machine can",
      host,
    )
  shown = f"[{host}]" if ":" in host else host
  built = Application(model, name=name, hosts=LOOPBACK if here else ()).build()
  progress.say(f"http://{shown}:{port}/ shows {name}; Ctrl-C ends it")
  web.run_app(
    built,
    sock=taken,
    print=None,
    handler_cancellation=True,
    handle_signals=threading.current_thread() is threading.main_thread(),
  )


class Application:
  """The handlers of one model."""

  def __init__(self, model: Model, *, name: str, hosts: tuple[str, ...]):
    """Takes what is served.

    Args:
      model: what is asked.
      name: of the run, for the page.
      hosts: that a browser may have asked for, so that no other page can, by a name
        that leads here; empty: any.
    """
    self.model, self.hosts = model, hosts
    self.about = told.about(model.config, name=name, step=model.step)
    self.turns = Turns()

  def build(self) -> web.Application:
    """The application, with its addresses."""
    built = web.Application(
      client_max_size=MOST_BYTES, middlewares=[_as_json, self._only_here]
    )
    built.router.add_get("/", self.show)
    built.router.add_get("/api/model", self.tell)
    built.router.add_post("/api/sample", self.sample)
    built.router.add_post("/api/stream", self.stream)
    built.on_cleanup.append(self.turns.close)
    return built

  async def show(self, request: web.Request) -> web.Response:
    """The page."""
    return web.Response(text=page.page(self.about), content_type="text/html")

  async def tell(self, request: web.Request) -> web.Response:
    """What model this is, and how many wait."""
    return web.json_response(self.about | {"in_line": len(self.turns)})

  async def sample(self, request: web.Request) -> web.Response:
    """All that came of a prompt, when it is done."""
    asked = await self._asked(request)
    answer: dict[str, Any] = {"seed": asked.seed}
    async with contextlib.aclosing(self._generate(asked)) as events:
      async for event in events:
        if isinstance(event, Ended):
          answer |= told.whole(event.sample)
    return web.json_response(answer)

  async def stream(self, request: web.Request) -> web.StreamResponse:
    """Each event in a line or some, as it comes."""
    asked = await self._asked(request)
    teller = told.Teller(asked.given)
    response = web.StreamResponse(headers={"Cache-Control": "no-store"})
    response.content_type = NDJSON
    async with contextlib.aclosing(self._generate(asked)) as events:
      try:
        async for event in events:
          if not response.prepared:  # from here on, errors are lines
            await response.prepare(request)
          await response.write(b"".join(map(_line, teller.tell(event))))
      except Exception as error:
        if not response.prepared or isinstance(error, ConnectionError):
          raise
        await response.write(_line({"event": "error", "error": _said(error)}))
    await response.write_eof()
    return response

  async def _asked(self, request: web.Request) -> Asked:
    """The body.

    Raises:
      ValueError: something in it is wrong.
      HTTPException: it is too large, or no JSON by its header.
    """
    # A form of another page can send no such header without asking first.
    if request.content_type != "application/json":
      raise web.HTTPUnsupportedMediaType(
        text=f"Content-Type: {request.content_type}: send application/json"
      )
    kinds = self.model.config.model.every_kind
    data = await request.read()
    return await asyncio.to_thread(body_lib.read, data, kinds)

  async def _generate(
    self, asked: Asked
  ) -> AsyncGenerator[Event | told.Waiting | told.Begun]:
    """The events of a prompt, behind those of the waiting for it.

    Raises:
      ValueError: before the first event, if it cannot be continued.
    """
    steps = asked.knobs.get("steps", self.model.config.sample.steps)
    every = max(1, steps // PREVIEWS) if isinstance(steps, int) else 1
    begin = functools.partial(self.model.stream, asked.prompt, **asked.knobs)
    events = await asyncio.to_thread(begin, seed=asked.seed, every=every)
    ticket = object()
    try:
      async for before in self.turns.wait(ticket):
        yield told.Waiting(before)
      yield told.Begun(asked.seed)
      async for event in self.turns.take(events):
        yield event
    finally:  # also when the client has gone, which cancels this
      self.turns.leave(ticket, events)

  @web.middleware
  async def _only_here(
    self, request: web.Request, handler: Handler
  ) -> web.StreamResponse:
    """Refuses what a page of elsewhere asks by a name of its own for this machine."""
    host = request.url.host
    if self.hosts and host not in self.hosts:
      raise web.HTTPForbidden(text=f"Host: {host}: ask for {' or '.join(self.hosts)}")
    return await handler(request)


@web.middleware
async def _as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
  """Says errors in JSON."""
  try:
    return await handler(request)
  except web.HTTPException as error:
    if error.status < 400:
      raise
    return _refusal(error.text or error.reason, error.status)
  except (ConnectionError, asyncio.CancelledError):
    raise  # nobody listens any more
  except ValueError as error:
    return _refusal(str(error), 400)
  except Exception as error:
    return _refusal(_said(error), 500)


def _refusal(said: str, status: int) -> web.Response:
  return web.json_response({"error": said}, status=status)


def _said(error: Exception) -> str:
  """What a client is told of an error; what nobody but us can mend is logged whole."""
  said = errors.explain(error)
  if said is None:
    logging.exception("while sampling")
    said = f"{type(error).__name__}: the server's log says more"
  return said


def _line(one: dict[str, Any]) -> bytes:
  return json.dumps(one).encode() + b"\n"
