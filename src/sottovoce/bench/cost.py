"""From measured passes to the figures that benchmarks report: medians per token, both parties counted."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, median
from typing import Any

import numpy as np
import numpy.typing as npt

from sottovoce.bench.quality import log_softmax
from sottovoce.bench.session import Pass
from sottovoce.net import LedgerRow
from sottovoce.net.ledger import total

PREPARATION = "correlations"  # the operation under which the engine books input-independent material


def per_token(client: Sequence[Pass], server: Sequence[Pass]) -> dict[str, Any]:
    """Seconds, bytes and rounds of one decode step.

    Bytes are both directions with frame headers. Preparation is what the engine books as `correlations`:
    it does not depend on the token, wherever in the step it was made. It comes in batches that last for
    several tokens, so its share is the mean; of everything else the median is taken.
    """
    ahead = [total([row for row in one.rows if is_preparation(row)]) for one in client]
    online = [total([row for row in one.rows if not is_preparation(row)]) for one in client]
    preparation_s = mean(row.seconds for row in ahead)
    online_s = median(one.seconds - row.seconds for one, row in zip(client, ahead, strict=True))
    online_bytes = median(size(row) for row in online)
    return {
        "seconds_per_token": online_s + preparation_s,
        "online_seconds_per_token": online_s,
        "preparation_seconds_per_token": preparation_s,
        "bytes_per_token": online_bytes + mean(size(row) for row in ahead),
        "online_bytes_per_token": online_bytes,
        "rounds_per_token": median(row.rounds for row in online) + mean(row.rounds for row in ahead),
        "cpu_seconds_per_token": {
            "client": median(one.cpu_seconds for one in client),
            "server": median(one.cpu_seconds for one in server),
        },
    }


def by_operation(passes: Sequence[Pass]) -> list[dict[str, Any]]:
    """Mean cost of each operation per token, the most seconds first; preparation under a phase of its own."""
    sums: dict[tuple[str, str], LedgerRow] = {}
    for one in passes:
        for row in one.rows:
            key = _named(row)
            sums.setdefault(key, LedgerRow(*key)).add(row)
    table = [
        {
            "name": row.operation,
            "phase": row.phase,
            "seconds": row.seconds / len(passes),
            "bytes": size(row) / len(passes),
            "rounds": row.rounds / len(passes),
        }
        for row in sums.values()
    ]
    return sorted(table, key=lambda entry: -float(entry["seconds"]))


def size(row: LedgerRow) -> int:
    """Bytes both ways with frame headers."""
    return row.wire_up + row.wire_down


def is_preparation(row: LedgerRow) -> bool:
    return PREPARATION in row.operation.split("/")


def agreement(reference: npt.NDArray[Any], logits: npt.NDArray[Any]) -> dict[str, Any]:
    """Both (positions, vocab): how often the most likely token is the same; KL(reference || logits)."""
    p, q = log_softmax(reference), log_softmax(logits)
    divergence = np.sum(np.exp(p) * (p - q), axis=-1)
    return {
        "top1_agreement": float(np.mean(reference.argmax(-1) == logits.argmax(-1))),
        "mean_kl": float(divergence.mean()),
        "max_kl": float(divergence.max()),
    }


def _named(row: LedgerRow) -> tuple[str, str]:
    """(phase, name): the outermost operation, or what kind of correlation was made."""
    path = row.operation.split("/")
    if is_preparation(row):
        return "preparation", "/".join(dict.fromkeys(path[path.index(PREPARATION) :]))
    return row.phase, path[0] or "(other)"
