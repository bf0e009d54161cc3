"""`bench growth`: how the cost of a decode step grows with the context, for one strategy of the cache.

One session goes through all contexts: measure, fill up to the next, measure again.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from sottovoce.bench.e2e import check_room, cost_at, decode_steps, opening
from sottovoce.bench.machine import header
from sottovoce.bench.session import run_job
from sottovoce.bench.steps import Job, Outcome, Step, passes_of
from sottovoce.bench.text import sample_tokens
from sottovoce.engines.base import EngineOptions, Progress
from sottovoce.errors import UsageError
from sottovoce.models import load_model

CONTEXTS = (64, 128, 256, 512, 1024)


def run(
    kv: str = "ciphertext",
    contexts: Sequence[int] = CONTEXTS,
    model: str = "smollm2-135m",
    new_tokens: int = 2,
    prepared: int = 0,
    progress: Progress = lambda done, total, what: None,
) -> dict[str, Any]:
    """Decode seconds, bytes and memory (both parties) at every context; medians over `new_tokens` tokens.

    contexts: private positions cached before the first measured token, ascending. `none` recomputes all of
    them for every token: its points cost a prefill each. prepared: as for `bench e2e`.
    """
    _check(contexts, new_tokens)
    plain = load_model(model)
    public, tokens = sample_tokens(plain, contexts[-1] + new_tokens)
    check_room(plain.config.context_length, len(public), len(tokens))
    del plain
    steps: list[Step] = opening(kv, public, prepared)
    cached = 0
    for context in contexts:
        steps += decode_steps(kv, tokens, cached, context, new_tokens, str(context), prepared)
        cached = context + new_tokens
    job = Job(EngineOptions(kv=kv), model, tuple(steps))
    client, server = run_job(job, progress)
    return {
        **header(),
        "model": model,
        "kv": kv,
        "public_tokens": len(public),
        "new_tokens": new_tokens,
        "prepared": prepared,
        "points": [_point(job, client, server, context) for context in contexts],
    }


def _point(job: Job, client: Outcome, server: Outcome, context: int) -> dict[str, Any]:
    mine, theirs = passes_of(job, client, str(context)), passes_of(job, server, str(context))
    memory = {
        "client": max(one.memory_bytes for one in mine),
        "server": max(one.memory_bytes for one in theirs),
    }
    return {
        "context": context,
        **cost_at(job, client, server, str(context)),
        "memory_bytes": sum(memory.values()),
        "memory": memory,
    }


def _check(contexts: Sequence[int], new_tokens: int) -> None:
    gaps = [b - a for a, b in pairwise(contexts)]
    if not contexts or contexts[0] < 1 or any(gap < new_tokens + 2 for gap in gaps):
        raise UsageError(
            f"contexts must ascend by at least {new_tokens + 2} (the measured tokens, one before, one to "
            "fill), for example 64,128,256"
        )
