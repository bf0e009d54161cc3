"""One answer on its way: between the web server's thread and the one that talks to the server."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Event
from typing import Any

from ..engines.base import EngineOptions
from ..parties import Completion
from .fields import Asked


@dataclass(frozen=True)
class Answer:
    """A finished answer. prompt_tokens: of the whole history, cached_tokens of which the session held.

    prepared: for how many of the tokens sent and generated everything had been made ahead; None without a
    pool. notes: what the user should know about how the request was read.
    """

    completion: Completion
    prompt_tokens: int
    public_tokens: int
    cached_tokens: int
    options: EngineOptions
    prepared: int | None = None
    notes: tuple[str, ...] = ()

    def usage(self) -> dict[str, Any]:
        """OpenAI's usage object, with ours in it."""
        done = self.completion.usage
        mine: dict[str, Any] = {
            "engine": self.options.engine,
            "kv": self.options.kv,
            "seconds": round(done.seconds, 4),
            "rounds": done.rounds,
            "bytes_up": done.bytes_up,
            "bytes_down": done.bytes_down,
            "public_tokens": self.public_tokens,
            "private_tokens": self.prompt_tokens - self.public_tokens,
            "prepared_tokens": self.prepared,
            "notes": list(self.notes),
        }
        if done.drafted_tokens:
            mine["drafted_tokens"] = done.drafted_tokens
            mine["accepted_tokens"] = done.accepted_tokens
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": done.completion_tokens,
            "total_tokens": self.prompt_tokens + done.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
            "sottovoce": mine,
        }


# What happens to a job: a piece of the answer, its end, or the reason why there is none.
Happening = str | Answer | BaseException


@dataclass
class Job:
    """on_event is called from the session's thread. `stage` says in a few words what is going on."""

    asked: Asked
    on_event: Callable[[Happening], None]
    cancelled: Event = field(default_factory=Event)
    stage: str = "waiting for a session"
    started: bool = False  # a piece of the answer was given out: it cannot begin anew

    def cancel(self) -> None:
        """Stop at the next token; nobody waits for the answer any more."""
        self.cancelled.set()

    def progress(self, done: int, total: int, what: str) -> None:
        self.stage = f"{what} {done}/{total}"

    def text(self, piece: str) -> None:
        self.started = True
        self.on_event(piece)
