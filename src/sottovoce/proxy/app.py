"""The web application: OpenAI's routes, a few of vLLM's, and the chat page."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from .. import __version__
from ..errors import SottovoceError
from .body import json_body
from .compose import Histories, compose
from .fields import Asked, parse_chat, parse_completion, parse_messages
from .gateway import Gateway, no_such_model
from .guard import Guard
from .metrics import CONTENT_TYPE
from .problems import Problem, problem_of, wrong
from .stream import Answering
from .token import Token

_ADDRESSES = "/v1/models, /v1/chat/completions, /v1/completions, /tokenize, /detokenize, /health and /metrics"
_PAGE = {
    "index.html": "text/html; charset=utf-8",
    "style.css": "text/css; charset=utf-8",
    "app.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}


def create_app(
    gateway: Gateway,
    *,
    keep_alive: float = 10.0,
    patience: float = 60.0,
    warm: bool = True,
    token: Token | None = None,
) -> ASGIApp:
    """The application in front of a gateway, which it starts and stops. Times as in `Answering`.

    token: what every request must show; None for nothing.
    """
    routes = Routes(gateway, keep_alive, patience)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        gateway.start(warm)
        try:
            yield
        finally:
            await asyncio.to_thread(gateway.stop)

    app = Starlette(
        routes=routes.table(),
        middleware=[Middleware(Guard, token=token)],
        exception_handlers={
            Problem: _problem,
            SottovoceError: _problem,  # its own line, because what only Exception names is logged as a bug
            HTTPException: _http_error,
            Exception: _problem,
        },
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False  # no addresses of ours need it, and it fails on odd query strings
    return app


class Routes:
    """What each address does."""

    def __init__(self, gateway: Gateway, keep_alive: float, patience: float) -> None:
        self._gateway, self._keep_alive, self._patience = gateway, keep_alive, patience

    def table(self) -> list[Route]:
        """All addresses."""
        get, post = ["GET"], ["POST"]
        return [
            Route("/", self.page, methods=get),
            Route("/page/{name}", self.page, methods=get),
            Route("/v1/models", self.models, methods=get),
            Route("/v1/models/{name:path}", self.model, methods=get),
            Route("/v1/chat/completions", self.chat, methods=post),
            Route("/v1/completions", self.completions, methods=post),
            Route("/tokenize", self.tokenize, methods=post),
            Route("/detokenize", self.detokenize, methods=post),
            Route("/health", self.health, methods=get),
            Route("/metrics", self.metrics, methods=get),
            Route("/version", self.version, methods=get),
            Route("/sottovoce/wire", self.wire, methods=get),
        ]

    async def page(self, request: Request) -> Response:
        name = request.path_params.get("name", "index.html")
        if name not in _PAGE:
            raise HTTPException(404)
        content = files(__package__).joinpath("page", name).read_bytes()
        return Response(content, media_type=_PAGE[name])

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [await self._entry()]})

    async def model(self, request: Request) -> Response:
        entry = await self._entry()
        if request.path_params["name"] != entry["id"]:
            raise no_such_model(request.path_params["name"], entry["id"])
        return JSONResponse(entry)

    async def _entry(self) -> dict[str, Any]:
        gateway = self._gateway
        if gateway.statement is None:  # never connected, on this machine
            await asyncio.to_thread(gateway.card)
        assert gateway.statement is not None
        return gateway.statement.model_entry(gateway.server, gateway.connected)

    async def chat(self, request: Request) -> Answering:
        return self._answering(parse_chat(await json_body(request), self._gateway.plan.defaults.sampling))

    async def completions(self, request: Request) -> Answering:
        body = await json_body(request)
        return self._answering(parse_completion(body, self._gateway.plan.defaults.sampling))

    def _answering(self, asked: Asked) -> Answering:
        return Answering(self._gateway, asked, self._keep_alive, self._patience)

    async def tokenize(self, request: Request) -> Response:
        """vLLM's: {prompt} or {messages} to token ids; ours: how many of them the server may see."""
        body = await json_body(request)
        if "messages" in body:
            messages, public, late = parse_messages(body["messages"])
            asked = Asked("", messages=messages, public=public, late=late)
        elif isinstance(body.get("prompt"), str) and body["prompt"]:
            asked = parse_completion(
                {"model": "-", "prompt": body["prompt"]}, self._gateway.plan.defaults.sampling
            )
        else:
            raise wrong("prompt", "give a prompt, not empty, or messages")
        card = await asyncio.to_thread(self._gateway.card)
        prompt = compose(card, asked, Histories())
        return JSONResponse(
            {
                "count": len(prompt),
                "max_model_len": card.config.context_length,
                "tokens": list(prompt.tokens),
                "public_count": len(prompt.public),
            }
        )

    async def detokenize(self, request: Request) -> Response:
        body = await json_body(request)
        tokens = body.get("tokens")
        card = await asyncio.to_thread(self._gateway.card)
        size = card.config.vocab_size
        if not isinstance(tokens, list) or not all(type(t) is int and 0 <= t < size for t in tokens):
            raise wrong("tokens", f"tokens must be a list of ids below {size}")
        return JSONResponse({"prompt": card.tokenizer.decode(tokens, keep_special=True)})

    async def health(self, request: Request) -> Response:
        """200 while this proxy works; whether its server does is in the body."""
        gateway = self._gateway
        running, waiting = gateway.load
        return JSONResponse(
            {
                "status": "ok",
                "server": gateway.server,
                "connected": gateway.connected,
                "running": running,
                "waiting": waiting,
            }
        )

    async def metrics(self, request: Request) -> Response:
        text = self._gateway.metrics.render(*self._gateway.load)
        return PlainTextResponse(text, media_type=CONTENT_TYPE)

    async def version(self, request: Request) -> Response:
        return JSONResponse({"version": __version__})

    async def wire(self, request: Request) -> Response:
        """For the chat page: what went over the wire after sample number `since`."""
        since = request.query_params.get("since", "0")
        if not since.isdecimal() or len(since) > 15:
            raise wrong("since", "since must be the number of a sample")
        running, waiting = self._gateway.load
        found = self._gateway.wire.since(int(since))
        return JSONResponse({**found, "running": running, "waiting": waiting})


def _problem(request: Request, error: Exception) -> Response:
    problem = problem_of(error)
    return JSONResponse(problem.to_json(), problem.status, headers=problem.headers)


def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    words = {
        404: f"there is nothing at this address; there are {_ADDRESSES}",
        405: "this address takes another method",
    }
    problem = Problem(error.status_code, words.get(error.status_code, str(error.detail)))
    return JSONResponse(problem.to_json(), problem.status, headers=error.headers)
