"""`bench prefill`: private tokens in one pass, with tokens sharing the ciphertexts of matrix products and
with a ciphertext for every token.

Two sessions with fresh keys, one after the other in the same processes; the logits of the last token are
compared with the plain model's.
"""

from __future__ import annotations

from typing import Any

from sottovoce.bench.cost import agreement, by_operation, per_token, size
from sottovoce.bench.e2e import check_room, logits
from sottovoce.bench.machine import header
from sottovoce.bench.parties import Party
from sottovoce.bench.session import run_job
from sottovoce.bench.steps import Call, Forward, Job, Open, Outcome, Step, passes_of
from sottovoce.bench.text import sample_tokens
from sottovoce.engines.base import EngineOptions, Progress
from sottovoce.engines.hybrid.prepared import PreparedLinears
from sottovoce.models import load_model
from sottovoce.packing.groups import SIZES

MATRIX, VECTOR = "matrix", "vector"  # several tokens in a ciphertext, one token in a ciphertext


def run(
    model: str = "smollm2-135m",
    kv: str = "ciphertext",
    tokens: int = 64,
    progress: Progress = lambda done, total, what: None,
) -> dict[str, Any]:
    """Seconds, bytes and rounds per prefilled token in both encodings, everything counted, by operation."""
    plain = load_model(model)
    public, private = sample_tokens(plain, tokens)
    check_room(plain.config.context_length, len(public), tokens)
    reference = plain.forward([*public, *private])[-1:]
    steps: list[Step] = []
    for encoding, choose in ((MATRIX, _matrix), (VECTOR, _vector)):
        steps += [Open(tuple(public)), Call(choose, "-"), Forward(tuple(private), encoding)]
    job = Job(EngineOptions(kv=kv), model, tuple(steps))
    del plain
    client, server = run_job(job, progress)
    rows = [
        {
            "encoding": encoding,
            **_costs(job, client, server, encoding, tokens),
            **agreement(reference, logits(passes_of(job, client, encoding))),
        }
        for encoding in (MATRIX, VECTOR)
    ]
    return {
        **header(),
        "model": model,
        "kv": kv,
        "tokens": tokens,
        "public_tokens": len(public),
        "rows": rows,
        "bytes_ratio": rows[1]["linear_bytes_per_token"] / rows[0]["linear_bytes_per_token"],
    }


def _costs(job: Job, client: Outcome, server: Outcome, encoding: str, tokens: int) -> dict[str, Any]:
    """Of the one pass, divided by its tokens."""
    mine, theirs = passes_of(job, client, encoding), passes_of(job, server, encoding)
    whole = per_token(mine, theirs)
    linear = [row for row in mine[0].rows if row.operation.split("/")[0] == "linear"]
    operations = by_operation(mine)
    return {
        "seconds_per_token": whole["seconds_per_token"] / tokens,
        "cpu_seconds_per_token": {k: v / tokens for k, v in whole["cpu_seconds_per_token"].items()},
        "bytes_per_token": whole["bytes_per_token"] / tokens,
        "rounds": whole["rounds_per_token"],
        "linear_seconds_per_token": sum(row.seconds for row in linear) / tokens,
        "linear_bytes_per_token": sum(size(row) for row in linear) / tokens,
        "memory_bytes": {"client": mine[0].memory_bytes, "server": theirs[0].memory_bytes},
        "by_operation": [
            {**entry, "seconds": entry["seconds"] / tokens, "bytes": entry["bytes"] / tokens}
            for entry in operations
        ],
    }


def _matrix(party: Party) -> None:
    _put_together(party, SIZES)


def _vector(party: Party) -> None:
    _put_together(party, SIZES[:1])


def _put_together(party: Party, sizes: tuple[int, ...]) -> None:
    linears = party.execution.linears
    assert isinstance(linears, PreparedLinears)
    linears.online.put_together(sizes)
