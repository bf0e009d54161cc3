"""`bench e2e`: decode of a private token, end to end, everything counted.

To reach a context without waiting for its prefill, real keys and values of that text are appended, freshly
shared and encrypted, untimed. One more token is passed untimed, so that the measured ones find the session as
it is in the middle of an answer: with the correlations in stock that the token before replaced.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sottovoce.bench.cost import agreement, by_operation, per_token, size
from sottovoce.bench.machine import header
from sottovoce.bench.session import run_job
from sottovoce.bench.steps import (
    Fill,
    Forward,
    Hints,
    Job,
    Open,
    Outcome,
    Pass,
    Prepare,
    Step,
    passes_of,
)
from sottovoce.bench.text import sample_tokens
from sottovoce.engines.base import EngineOptions, Progress
from sottovoce.errors import UsageError
from sottovoce.models import load_model

POINT = "decode"
BATCH = 64  # tokens for which material is prepared together, by engines that do so


def run(
    model: str = "smollm2-135m",
    engine: str = "hybrid",
    kv: str = "ciphertext",
    context: int = 64,
    new_tokens: int = 4,
    text: str | Path | None = None,
    repeat: int = 1,
    prepared: int = 0,
    progress: Progress = lambda done, total, what: None,
) -> dict[str, Any]:
    """Seconds, bytes and rounds per generated token (medians), by operation; see docs/benchmarks.

    text: a file to decode along (default: text that ships with the package). repeat: sessions, each with
    fresh keys, over which the medians are taken. prepared: tokens for which the products of matrices are made
    ahead, together (0: they are made online).
    """
    check_engine(engine)
    plain = load_model(model)
    public, tokens = sample_tokens(plain, context + new_tokens, text)
    check_room(plain.config.context_length, len(public), len(tokens))
    session = opening(kv, public, prepared)
    session += decode_steps(kv, tokens, 0, context, new_tokens, prepared=prepared)
    reference = plain.forward([*public, *tokens])[len(public) + context :]
    job = Job(EngineOptions(engine=engine, kv=kv), model, tuple(session * max(1, repeat)))
    del plain  # neither party's memory
    client, server = run_job(job, progress)
    mine = passes_of(job, client, POINT)
    assert client.setup is not None
    return {
        **header(),
        "model": model,
        "engine": engine,
        "kv": kv,
        "context": context,
        "public_tokens": len(public),
        "new_tokens": new_tokens,
        "prepared": prepared,
        "repeat": max(1, repeat),
        "text": None if text is None else Path(text).name,
        **cost_at(job, client, server),
        "peak_memory_bytes": {"client": client.peak_memory_bytes, "server": server.peak_memory_bytes},
        **hint_cost(job, client),
        "setup_seconds": client.setup.seconds,
        "setup_bytes": client.setup.wire_up + client.setup.wire_down,
        **agreement(np.tile(reference, (max(1, repeat), 1)), logits(mine)),
        "by_operation": by_operation(mine, batch_at(job, client)),
    }


def opening(kv: str, public: Sequence[int], prepared: int) -> list[Step]:
    """A new session, with the server's hints if matrix products are to be prepared."""
    return [Open(tuple(public)), *([Hints()] if prepared and kv != "none" else [])]


def decode_steps(
    kv: str,
    tokens: Sequence[int],
    cached: int,
    context: int,
    new_tokens: int,
    point: str = POINT,
    prepared: int = 0,
) -> list[Step]:
    """Steps that bring a session from `cached` private tokens to `context` and then measure `new_tokens`.

    prepared: matrix products are made for so many tokens together, 0: online. Under `none` every pass
    recomputes the whole context: there is nothing to fill or to warm up, nothing is prepared, and the first
    pass takes all tokens that are missing.
    """
    ends = range(context + 1, context + new_tokens + 1)
    single = [Forward((tokens[end - 1],), point) for end in ends]
    if kv == "none":
        return [Forward(tuple(tokens[cached : context + 1]), point), *single[1:]]
    steps: list[Step] = []
    if context - 1 > cached:
        steps.append(Fill(tuple(tokens[cached : context - 1])))
    steps.append(Prepare(max(BATCH, new_tokens + 1), prepared, new_tokens + 1, point=point))
    if context > cached:
        steps.append(Forward((tokens[context - 1],)))
    return [*steps, *single]


def cost_at(job: Job, client: Outcome, server: Outcome, point: str = POINT) -> dict[str, Any]:
    """What a token costs at one point of a job made of `decode_steps`."""
    mine, theirs = passes_of(job, client, point), passes_of(job, server, point)
    return per_token(
        mine, theirs, zip(batch_at(job, client, point), batch_at(job, server, point), strict=True)
    )


def batch_at(job: Job, outcome: Outcome, point: str = POINT) -> list[Pass]:
    """Material that the tokens of a point live on: of each kind the batch made for it, or the last before."""
    last: dict[str, Pass] = {}
    own: list[Pass] = []
    for step, passes in zip(job.steps, outcome.passes, strict=True):
        if isinstance(step, Open):
            last.clear()
        if isinstance(step, Prepare):
            last |= {one.kind: one for one in passes}
            own += last.values() if step.point == point else []
    return own


def hint_cost(job: Job, client: Outcome) -> dict[str, Any]:
    """Seconds and bytes of the hints, which a client receives once from a server; null without."""
    steps = zip(job.steps, client.passes, strict=True)
    hints = [one for step, passes in steps if isinstance(step, Hints) for one in passes]
    if not hints:
        return {"hint_seconds": None, "hint_bytes": None}
    return {"hint_seconds": hints[0].seconds, "hint_bytes": sum(size(row) for row in hints[0].rows)}


def logits(passes: Sequence[Pass]) -> np.ndarray[Any, Any]:
    """(passes, vocab), of the client's passes."""
    return np.stack([one.logits for one in passes if one.logits is not None])


def check_engine(engine: str) -> None:
    if engine != "hybrid":
        raise UsageError(f"this benchmark measures the hybrid engine; for {engine!r} use `generate --json`")


def check_room(limit: int, public: int, private: int) -> None:
    if public + private > limit:
        raise UsageError(
            f"{public} public and {private} private tokens do not fit the model's context of {limit}"
        )
