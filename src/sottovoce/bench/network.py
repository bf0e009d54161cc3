"""`bench network`: the same decode step over emulated networks, in one session."""

from __future__ import annotations

from typing import Any

from sottovoce.bench.e2e import check_room, cost_at, decode_steps, opening
from sottovoce.bench.machine import header
from sottovoce.bench.session import run_job
from sottovoce.bench.shaped import NETWORKS, Network
from sottovoce.bench.steps import Job, Shape
from sottovoce.bench.text import sample_tokens
from sottovoce.engines.base import EngineOptions, Progress
from sottovoce.models import load_model


def run(
    model: str = "smollm2-135m",
    kv: str = "ciphertext",
    context: int = 64,
    new_tokens: int = 3,
    networks: tuple[Network, ...] = NETWORKS,
    prepared: int = 0,
    progress: Progress = lambda done, total, what: None,
) -> dict[str, Any]:
    """Seconds, bytes and rounds per token over each network; the context grows by `new_tokens` each time.

    prepared: as for `bench e2e`; the batch is made over the network that is there when it is needed.
    """
    plain = load_model(model)
    public, tokens = sample_tokens(plain, context + new_tokens * len(networks))
    check_room(plain.config.context_length, len(public), len(tokens))
    del plain
    steps = opening(kv, public, prepared)
    cached = 0
    for network in networks:
        at = cached or context
        steps.append(Shape(network))
        steps += decode_steps(kv, tokens, cached, at, new_tokens, network.name, prepared)
        cached = at + new_tokens
    job = Job(EngineOptions(kv=kv), model, tuple(steps), shaped=True)
    client, server = run_job(job, progress)
    rows = []
    for network in networks:
        shape = {"net": network.name, "rtt_ms": network.rtt_ms, "mbit": network.mbit or None}
        rows.append(shape | cost_at(job, client, server, network.name))
    return {
        **header(),
        "model": model,
        "kv": kv,
        "context": context,
        "public_tokens": len(public),
        "new_tokens": new_tokens,
        "prepared": prepared,
        "rows": rows,
    }
