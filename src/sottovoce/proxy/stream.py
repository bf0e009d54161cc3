"""Sending an answer while it is made, however long that takes, and noticing when nobody listens any more."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress

from starlette.types import Message, Receive, Scope, Send

from .answers import Shape, comment, event
from .fields import Asked
from .gateway import Gateway
from .jobs import Answer, Happening, Job
from .problems import Problem, problem_of

_EVENTS = {"content-type": "text/event-stream; charset=utf-8", "x-accel-buffering": "no"}
_JSON = {"content-type": "application/json"}
# An empty comment before the first event behind a comment: vLLM's `bench serve` strips white space off
# whatever arrives at once, and would take the event for a part of the comment.
_AGAIN = b":\n\n"


class Answering:
    """The response to one request for an answer.

    keep_alive: seconds after which a stream that has nothing to say sends a comment. patience: seconds after
    which an answer in one piece begins, with spaces, so that the client's time-out does not end it; from then
    on an error can only break the connection.
    """

    def __init__(
        self, gateway: Gateway, asked: Asked, keep_alive: float = 10.0, patience: float = 60.0
    ) -> None:
        self._asked, self._shape = asked, Shape(asked)
        self._keep_alive, self._patience = keep_alive, patience
        self._events: asyncio.Queue[Happening] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def hand_over(happening: Happening) -> None:
            with suppress(RuntimeError):  # the web server is gone already
                loop.call_soon_threadsafe(self._events.put_nowait, happening)

        self._job: Job = gateway.submit(asked, hand_over)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answering = asyncio.create_task(self._stream(send) if self._asked.stream else self._whole(send))
        leaving = asyncio.create_task(_gone(receive))
        try:
            await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
            if answering.done():
                answering.result()
        finally:
            self._job.cancel()
            for task in (answering, leaving):
                task.cancel()
                with suppress(asyncio.CancelledError, Exception):
                    await task

    async def _stream(self, send: Send) -> None:
        first = await self._early()
        if isinstance(first, BaseException):
            await _refuse(send, problem_of(first))
            return
        await send(_start(200, _EVENTS))
        await send(_part(self._shape.role()))
        behind = b""
        async for happening in self._happenings(first):
            if happening is None:
                await send(_part(comment(f"sottovoce: {self._job.stage}")))
                behind = _AGAIN
                continue
            if isinstance(happening, str):
                part = self._shape.piece(happening)
            elif isinstance(happening, Answer):
                part = self._shape.end(happening)
            else:
                part = event(problem_of(happening).to_json())
            await send(_part(behind + part))
            behind = b""
        await send(_part(b"", last=True))

    async def _early(self) -> Happening | None:
        """Errors that show at once get a status of their own; anything else starts the stream."""
        with suppress(TimeoutError):
            return await asyncio.wait_for(self._events.get(), min(0.25, self._keep_alive))
        return None

    async def _happenings(self, first: Happening | None) -> AsyncIterator[Happening | None]:
        """What happens up to the end of the answer; None whenever nothing did for a while."""
        happening = first
        while True:
            yield happening
            if happening is not None and not isinstance(happening, str):
                return
            try:
                happening = await asyncio.wait_for(self._events.get(), self._keep_alive)
            except TimeoutError:
                happening = None

    async def _whole(self, send: Send) -> None:
        begun = False
        wait = self._patience
        deadline = asyncio.get_running_loop().time() + wait
        while True:
            left = deadline - asyncio.get_running_loop().time()
            try:
                happening = await asyncio.wait_for(self._events.get(), max(0.0, left))
            except TimeoutError:
                if not begun:
                    await send(_start(200, _JSON))
                    begun = True
                await send(_part(b" "))
                deadline = asyncio.get_running_loop().time() + self._keep_alive
                continue
            if isinstance(happening, str):
                continue
            if isinstance(happening, Answer):
                body = json.dumps(self._shape.whole(happening), ensure_ascii=False).encode()
                if not begun:
                    await send(_start(200, _JSON))
                await send(_part(body, last=True))
                return
            if begun:
                raise RuntimeError("an answer failed after its beginning was sent") from None
            await _refuse(send, problem_of(happening))
            return


async def _gone(receive: Receive) -> None:
    """Returns when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _refuse(send: Send, problem: Problem) -> None:
    await send(_start(problem.status, {**_JSON, **problem.headers}))
    await send(_part(json.dumps(problem.to_json()).encode(), last=True))


def _start(status: int, headers: dict[str, str]) -> Message:
    pairs = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http.response.start", "status": status, "headers": pairs}


def _part(body: bytes, last: bool = False) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": not last}
