"""The answer: prefill the prompt, then choose and decode token by token, all at the client."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..engines.base import Progress
from ..errors import PromptTooLongError, UsageError
from ..models.chat import Prompt
from ..net.ledger import LedgerRow, diff, total
from .client import Client
from .sampling import Sampler, SamplingOptions
from .stops import StopFilter


@dataclass(frozen=True)
class GenerationOptions:
    """max_tokens: new tokens at most. stop: strings that end the answer (they are not part of it)."""

    max_tokens: int = 64
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise UsageError(f"--max-tokens must be at least 1, not {self.max_tokens}")


@dataclass(frozen=True)
class Usage:
    """prompt_tokens counts public and private ones. Bytes count frames with their headers, without TLS."""

    prompt_tokens: int
    public_tokens: int
    completion_tokens: int
    seconds: float
    bytes_up: int
    bytes_down: int
    rounds: int

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))


@dataclass(frozen=True)
class Completion:
    """finish_reason: "stop" (end token or stop string), "length", or "cancelled".

    rows: what the ledger booked for this answer. per_token: (seconds, wire bytes both ways) of each decode
    step.
    """

    text: str
    token_ids: list[int]
    finish_reason: str
    usage: Usage
    rows: list[LedgerRow]
    per_token: list[tuple[float, int]]

    def to_json(self) -> dict[str, Any]:
        return {
            "text": self.text,
            "token_ids": self.token_ids,
            "finish_reason": self.finish_reason,
            "usage": self.usage.to_json(),
        }


def check_room(client: Client, prompt: Prompt, options: GenerationOptions) -> None:
    """PromptTooLongError unless prompt and answer fit the model's context. Nothing is sent."""
    limit = client.card.config.context_length
    needed = client.length + len(prompt) + options.max_tokens
    if needed > limit:
        raise PromptTooLongError(
            f"a prompt of {len(prompt)} tokens and {options.max_tokens} new ones do not fit the model's "
            f"context of {limit}; shorten the prompt or ask for fewer new tokens (-n)"
        )


def generate(
    client: Client,
    prompt: Prompt,
    options: GenerationOptions,
    on_text: Callable[[str], None] = lambda text: None,
    progress: Progress | None = None,
) -> Completion:
    """Generate an answer; `on_text` gets it piece by piece.

    The server learns prompt.public, the number of private tokens, and when each step happens. A
    KeyboardInterrupt ends the answer (finish_reason "cancelled"), and the session with it.
    """
    if not prompt.private:
        raise UsageError("the prompt is empty: there must be at least one private token")
    check_room(client, prompt, options)
    run = _Run(client, options, on_text, progress)
    return run.complete(prompt)


class _Run:
    """The state of one answer."""

    def __init__(
        self,
        client: Client,
        options: GenerationOptions,
        on_text: Callable[[str], None],
        progress: Progress | None,
    ) -> None:
        self.client, self.options, self.progress = client, options, progress
        self.on_text = on_text
        self.sampler = Sampler(options.sampling)
        self.decoder = client.card.tokenizer.stream()
        self.filter = StopFilter(options.stop)
        self.tokens: list[int] = []
        self.pieces: list[str] = []
        self.per_token: list[tuple[float, int]] = []

    def complete(self, prompt: Prompt) -> Completion:
        before, start = self.client.ledger.snapshot(), time.perf_counter()
        try:
            reason = self._loop(prompt)
        except KeyboardInterrupt as interrupt:
            self.client.close(interrupt)
            reason = "cancelled"
        self._emit(self.filter.push(self.decoder.finish()) + self.filter.finish())
        rows = diff(before, self.client.ledger.snapshot())
        cost = total(rows)
        usage = Usage(
            prompt_tokens=len(prompt),
            public_tokens=len(prompt.public),
            completion_tokens=len(self.tokens),
            seconds=time.perf_counter() - start,
            bytes_up=cost.wire_up,
            bytes_down=cost.wire_down,
            rounds=cost.rounds,
        )
        return Completion("".join(self.pieces), self.tokens, reason, usage, rows, self.per_token)

    def _loop(self, prompt: Prompt) -> str:
        logits = self.client.prefill(prompt.public, prompt.private, self.progress)
        ends = self.client.card.tokenizer.eos_ids
        while True:
            token = self.sampler.choose(logits)
            if token in ends:
                return "stop"
            self.tokens.append(token)
            self._emit(self.filter.push(self.decoder.push(token)))
            if self.filter.stopped:
                return "stop"
            if len(self.tokens) == self.options.max_tokens:
                return "length"
            logits = self._decode(token)

    def _decode(self, token: int) -> Any:
        before, start = self.client.ledger.total(), time.perf_counter()
        logits = self.client.decode(token, self.progress)
        after = self.client.ledger.total()
        sent = after.wire_up + after.wire_down - before.wire_up - before.wire_down
        self.per_token.append((time.perf_counter() - start, sent))
        return logits

    def _emit(self, text: str) -> None:
        if text:
            self.pieces.append(text)
            self.on_text(text)
