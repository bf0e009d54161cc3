"""`bench e2e --engine fhe`: tokens generated greedily by the server alone, everything counted.

A server in a process of its own, TLS over the loopback interface. The client encrypts a prompt of a few
tokens, which go together where the engine takes chunks, then every token that the encrypted logits chose. The
plain model reads the same tokens afterwards.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from sottovoce.bench.cost import size
from sottovoce.bench.machine import header
from sottovoce.bench.parties import peak_memory
from sottovoce.bench.quality import log_softmax
from sottovoce.bench.served import ServerProcess
from sottovoce.engines.base import EngineOptions, Progress
from sottovoce.engines.fhe import FheEngine
from sottovoce.engines.fhe.description import Description
from sottovoce.errors import PromptTooLongError
from sottovoce.models import Model, load_model
from sottovoce.net.ledger import diff

PROMPT = "Once upon"


def run(
    model: str = "stories260K",
    new_tokens: int = 8,
    prompt: str = PROMPT,
    what: str = "e2e",
    engine: str = "fhe",
    progress: Progress = lambda done, total, what: None,
) -> dict[str, Any]:
    """Seconds of the prompt; seconds and bytes per token (medians over the steps behind it, or the prompt's
    where there is none); KL and top-1 agreement per position from the prompt's last on.

    what, engine: how the command is called, nothing else.
    """
    plain = load_model(model)
    text = plain.card.plain(prompt)
    steps = len(text.private) + new_tokens - 1
    if len(text.public) + steps > FheEngine(EngineOptions(engine="fhe"), plain).shape.tokens:
        raise PromptTooLongError(f"{steps} tokens do not fit a session of this model; ask for fewer")
    with ServerProcess(EngineOptions(engine="fhe"), model) as server:
        found = _generate(server, text.public, text.private, new_tokens, progress)
        memory = {"client": peak_memory(), "server": server.memory()}
        ledger = server.ledger()
    positions = _compare(plain, [*text.public, *text.private, *found.tokens[:-1]], found.logits)
    description = found.description
    assert description is not None
    parameters = description.parameters
    return {
        **header(),
        "parameters": {
            "security_bits": 128,
            "N": parameters.degree,
            "moduli": [int(q) for q in (*parameters.primes, *parameters.special)],
            "slots": description.shape.n,
        },
        "model": model,
        "engine": "fhe",
        "kv": "ciphertext",
        "context": len(text.private),
        "public_tokens": len(text.public),
        "new_tokens": new_tokens,
        "prepared": 0,
        "repeat": 1,
        "text": plain.card.tokenizer.decode(list(found.tokens)),
        "seconds_per_token": statistics.median(found.seconds),
        "online_seconds_per_token": statistics.median(found.seconds),
        "preparation_seconds_per_token": 0.0,
        "bytes_per_token": statistics.median(found.bytes),
        "online_bytes_per_token": statistics.median(found.bytes),
        "rounds_per_token": statistics.median(found.rounds),
        "cpu_seconds_per_token": {
            "client": statistics.median(c for c, _ in found.cpu),
            "server": statistics.median(s for _, s in found.cpu),
        },
        "peak_memory_bytes": memory,
        "preparation_batch": None,
        "prefill_seconds": found.prefill_seconds,
        "setup_seconds": found.setup_seconds,
        "key_bytes": found.key_bytes,
        "keys": 3 + len(description.steps),
        "top1_agreement": float(np.mean([p["top1"] for p in positions])),
        "kl": float(np.mean([p["kl"] for p in positions])),
        "positions": positions,
        "by_operation": _by_operation(ledger, "decode" if new_tokens > 1 else "prefill", len(found.seconds)),
    }


@dataclass
class _Run:
    description: Description | None = None
    setup_seconds: float = 0.0
    prefill_seconds: float = 0.0
    key_bytes: int = 0
    tokens: list[int] = field(default_factory=list)
    logits: list[npt.NDArray[np.float64]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    bytes: list[int] = field(default_factory=list)
    rounds: list[int] = field(default_factory=list)
    cpu: list[tuple[float, float]] = field(default_factory=list)


def _generate(
    server: ServerProcess, public: Sequence[int], private: Sequence[int], count: int, progress: Progress
) -> _Run:
    """The prompt, then token by token. The prompt is the only step if one token is wanted."""
    found, start = _Run(), time.perf_counter()
    with server.connect() as client:
        found.description = Description.from_json(client.welcome.public)
        client.setup(progress)
        found.setup_seconds = time.perf_counter() - start
        found.key_bytes = client.ledger.total("setup").bytes_up
        for i in range(count):
            progress(i, count, "tokens")
            before, busy = client.ledger.snapshot(), (time.process_time(), server.cpu())
            start = time.perf_counter()
            logits = client.decode(found.tokens[-1]) if i else client.prefill(public, private)
            seconds = time.perf_counter() - start
            found.logits.append(logits)
            found.tokens.append(int(np.argmax(logits)))
            if not i:
                found.prefill_seconds = seconds
            if i or count == 1:
                found.seconds.append(seconds)
                found.cpu.append((time.process_time() - busy[0], server.cpu() - busy[1]))
                rows = diff(before, client.ledger.snapshot())
                found.bytes.append(sum(map(size, rows)))
                found.rounds.append(sum(row.rounds for row in rows))
        progress(count, count, "tokens")
    return found


def _compare(
    plain: Model, tokens: Sequence[int], logits: Sequence[npt.NDArray[np.float64]]
) -> list[dict[str, Any]]:
    """KL(plain, encrypted) in nats and equality of the likeliest token, for every encrypted position."""
    reference = log_softmax(plain.forward(tokens)[-len(logits) :].astype(np.float64))
    mine = log_softmax(np.stack(logits))
    kl = (np.exp(reference) * (reference - mine)).sum(axis=1)
    same = reference.argmax(axis=1) == mine.argmax(axis=1)
    return [{"kl": float(k), "top1": bool(s)} for k, s in zip(kl, same, strict=True)]


def _by_operation(ledger: Sequence[dict[str, Any]], phase: str, steps: int) -> list[dict[str, Any]]:
    """The server's seconds of a step by operation, the most first."""
    sums: dict[str, list[float]] = {}
    for row in ledger:
        if row["phase"] != phase:
            continue
        name = row["operation"].split("/")[0] or "(other)"
        if name in ("idle", "command"):
            continue
        entry = sums.setdefault(name, [0.0, 0.0, 0.0])
        for i, value in enumerate((row["seconds"], row["bytes_up"] + row["bytes_down"], row["rounds"])):
            entry[i] += value / steps
    rows = [
        {"name": name, "phase": "decode", "seconds": s, "bytes": b, "rounds": r}
        for name, (s, b, r) in sums.items()
    ]
    return sorted(rows, key=lambda row: -float(str(row["seconds"])))
