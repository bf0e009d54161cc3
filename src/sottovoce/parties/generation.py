"""The answer: prefill the prompt, then choose and decode token by token, all at the client."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..engines.base import Logits, Progress
from ..errors import PromptTooLongError, UsageError
from ..models.chat import Prompt
from ..net.ledger import LedgerRow, diff, total
from .client import Client
from .sampling import Sampler, SamplingOptions
from .speculative import Speculation
from .stops import StopFilter


@dataclass(frozen=True)
class GenerationOptions:
    """max_tokens: new tokens at most. stop: strings that end the answer (they are not part of it).
    ignore_eos: the model's end token does not end it; for measuring answers of one length."""

    max_tokens: int = 64
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise UsageError(f"--max-tokens must be at least 1, not {self.max_tokens}")


@dataclass(frozen=True)
class Usage:
    """prompt_tokens counts public and private ones. Bytes count frames with their headers, without TLS.

    drafted_tokens of which accepted_tokens were right, in verification_steps passes; 0 without a drafter.
    cached_tokens: of the history that the answer continues, those that the session held already; they are not
    among the prompt_tokens.
    """

    prompt_tokens: int
    public_tokens: int
    completion_tokens: int
    seconds: float
    bytes_up: int
    bytes_down: int
    rounds: int
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    verification_steps: int = 0
    cached_tokens: int = 0

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))


@dataclass(frozen=True)
class Completion:
    """finish_reason: "stop" (end token or stop string), "length", or "cancelled".

    rows: what the ledger booked for this answer. per_token: (seconds, wire bytes both ways) of each token
    but the first; tokens of one step share its cost.
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


def check_room(client: Client, prompt: Prompt, options: GenerationOptions, answered: int = 0) -> None:
    """PromptTooLongError unless prompt and answer fit the model's context. Nothing is sent."""
    limit = client.context_length
    needed = client.length + len(prompt) + options.max_tokens - answered
    if needed > limit:
        held = f" behind the {client.length} that the session holds" if client.length else ""
        way_out = ", or begin a new session" if held else ""
        raise PromptTooLongError(
            f"a prompt of {len(prompt)} tokens and {options.max_tokens} new ones{held} do not fit the "
            f"model's context of {limit}; shorten the prompt or ask for fewer new tokens (-n){way_out}"
        )


def generate(
    client: Client,
    prompt: Prompt,
    options: GenerationOptions,
    on_text: Callable[[str], None] = lambda text: None,
    progress: Progress | None = None,
    speculation: Speculation | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    *,
    answered: Sequence[int] | None = None,
    noting: Callable[[list[int]], None] = lambda tokens: None,
) -> Completion:
    """Generate an answer; `on_text` gets it piece by piece.

    answered: tokens of this answer that were chosen before it was interrupted; `prompt` is then what the
    session lacks of the text with them, and may be empty. noting: gets the answer's tokens before every step.

    The prompt goes behind what the session holds already. The server learns prompt.public, the number of
    private tokens, when each step happens, and with `speculation` how many guesses each step verified and
    accepted. `should_stop` is asked between steps: the answer then ends (finish_reason "cancelled") and the
    session can go on. A KeyboardInterrupt ends the answer at once, and the session with it.
    """
    if not prompt.private and answered is None:
        raise UsageError("the prompt is empty: there must be at least one private token")
    check_room(client, prompt, options, len(answered or ()))
    run = _Run(client, options, on_text, progress, speculation, should_stop, noting)
    return run.complete(prompt, answered or ())


class _Run:
    """The state of one answer."""

    def __init__(
        self,
        client: Client,
        options: GenerationOptions,
        on_text: Callable[[str], None],
        progress: Progress | None,
        speculation: Speculation | None,
        should_stop: Callable[[], bool],
        noting: Callable[[list[int]], None],
    ) -> None:
        self.client, self.options, self.progress = client, options, progress
        self.speculation, self.should_stop = speculation, should_stop
        self.on_text, self.noting = on_text, noting
        self.sampler = Sampler(options.sampling)
        self.decoder = client.card.tokenizer.stream()
        self.filter = StopFilter(options.stop)
        self.tokens: list[int] = []
        self.pieces: list[str] = []
        self.per_token: list[tuple[float, int]] = []

    def complete(self, prompt: Prompt, answered: Sequence[int]) -> Completion:
        cached = self.client.length
        before, start = self.client.ledger.snapshot(), time.perf_counter()
        guesses = self._guesses()
        try:
            reason = self._loop(prompt, answered)
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
            cached_tokens=cached,
            **{name: count - guesses[name] for name, count in self._guesses().items()},
        )
        return Completion("".join(self.pieces), self.tokens, reason, usage, rows, self.per_token)

    def _loop(self, prompt: Prompt, answered: Sequence[int]) -> str:
        length = self.client.length + len(prompt) - len(answered)  # of what stands before the answer
        reason = self._take(answered)
        if reason is None:
            chosen = [self.sampler.choose(self._begun(prompt, answered))]
            while (reason := self._take(chosen)) is None:
                if self.should_stop():
                    reason = "cancelled"
                    break
                self.noting(self.tokens)
                chosen = self._advance(chosen[-1])
        if self.client.length > length + len(self.tokens):  # accepted guesses behind the end of the answer
            self.client.truncate(length + len(self.tokens))
        return reason

    def _begun(self, prompt: Prompt, answered: Sequence[int]) -> Logits:
        """Logits behind what there is of the text."""
        for _ in answered:
            self.sampler.skip()
        self.noting(self.tokens)
        if not len(prompt):
            return self.client.last()
        return self.client.prefill(prompt.public, prompt.private, self.progress)

    def _take(self, chosen: Sequence[int]) -> str | None:
        """Add tokens to the answer up to its end; why it ended, or None."""
        for token in chosen:
            if token in self.client.card.tokenizer.eos_ids and not self.options.ignore_eos:
                return "stop"
            self.tokens.append(token)
            self._emit(self.filter.push(self.decoder.push(token)))
            if self.filter.stopped:
                return "stop"
            if len(self.tokens) == self.options.max_tokens:
                return "length"
        return None

    def _advance(self, pending: int) -> list[int]:
        """Append the last chosen token; the next one, or several."""
        before, start = self.client.ledger.total(), time.perf_counter()
        if self.speculation is None:
            chosen = [self.sampler.choose(self.client.decode(pending, self.progress))]
        else:
            room = self.options.max_tokens - len(self.tokens)
            chosen = self.speculation.advance(self.client, pending, room, self.sampler, self.progress)
        after, seconds = self.client.ledger.total(), time.perf_counter() - start
        sent = after.wire_up + after.wire_down - before.wire_up - before.wire_down
        self.per_token += [(seconds / len(chosen), sent // len(chosen))] * len(chosen)
        return chosen

    def _guesses(self) -> dict[str, int]:
        s = self.speculation
        drafted, accepted, steps = (0, 0, 0) if s is None else (s.drafted, s.accepted, s.steps)
        return {"drafted_tokens": drafted, "accepted_tokens": accepted, "verification_steps": steps}

    def _emit(self, text: str) -> None:
        if text:
            self.pieces.append(text)
            self.on_text(text)
