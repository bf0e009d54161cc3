"""From measured passes to the figures that benchmarks report: medians per token, both parties counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from statistics import mean, median
from typing import Any

import numpy as np
import numpy.typing as npt

from sottovoce.bench.quality import log_softmax
from sottovoce.bench.steps import Pass
from sottovoce.net import LedgerRow
from sottovoce.net.ledger import total

PREPARATION_PHASE = "preparation"
PREPARATION = "correlations"  # the operation under which the engine books input-independent material


def per_token(
    client: Sequence[Pass], server: Sequence[Pass], batches: Iterable[tuple[Pass, Pass]] = ()
) -> dict[str, Any]:
    """Seconds, bytes and rounds of one decode step, everything counted.

    Bytes are both directions with frame headers. Preparation is what the engine books as `correlations`: it
    does not depend on the token, wherever in the step it was made. It comes in batches that last for several
    tokens, so its share is the mean; of everything else the median is taken. `batches`: of material made for
    many tokens at once, (client's, server's) passes; a token's share is added.
    """
    ahead = [total([row for row in one.rows if is_preparation(row)]) for one in client]
    online = [total([row for row in one.rows if not is_preparation(row)]) for one in client]
    online_s = median(one.seconds - row.seconds for one, row in zip(client, ahead, strict=True))
    online_bytes = median(size(row) for row in online)
    made = [(mine, theirs, total(mine.rows)) for mine, theirs in batches]

    def share(value: Callable[[Pass, Pass, LedgerRow], float]) -> float:
        """A token's share of the batches: of each kind the mean, kinds added up."""
        result = 0.0
        for kind in {mine.kind for mine, _, _ in made}:
            same = [batch for batch in made if batch[0].kind == kind]
            result += sum(value(*batch) for batch in same) / sum(mine.tokens for mine, _, _ in same)
        return result

    preparation_s = mean(r.seconds for r in ahead) + share(lambda mine, theirs, row: mine.seconds)
    preparation_bytes = mean(size(r) for r in ahead) + share(lambda mine, theirs, row: size(row))
    rounds = mean(r.rounds for r in ahead) + share(lambda mine, theirs, row: row.rounds)
    return {
        "seconds_per_token": online_s + preparation_s,
        "online_seconds_per_token": online_s,
        "preparation_seconds_per_token": preparation_s,
        "bytes_per_token": online_bytes + preparation_bytes,
        "online_bytes_per_token": online_bytes,
        "rounds_per_token": median(row.rounds for row in online) + rounds,
        "cpu_seconds_per_token": {
            "client": median(one.cpu_seconds for one in client)
            + share(lambda mine, theirs, row: mine.cpu_seconds),
            "server": median(one.cpu_seconds for one in server)
            + share(lambda mine, theirs, row: theirs.cpu_seconds),
        },
        "preparation_batch": max((mine.tokens for mine, _, _ in made), default=1),
    }


def by_operation(passes: Sequence[Pass], batches: Sequence[Pass] = ()) -> list[dict[str, Any]]:
    """Mean cost of each operation per token, the most seconds first; preparation under a phase of its own.

    batches: material for many tokens at once, of which a token's share is added.
    """
    sums: dict[tuple[str, str], list[float]] = {}

    def add(key: tuple[str, str], row: LedgerRow, tokens: int) -> None:
        entry = sums.setdefault(key, [0.0, 0.0, 0.0])
        for i, value in enumerate((row.seconds, size(row), row.rounds)):
            entry[i] += value / tokens

    for one in passes:
        for row in one.rows:
            add(_named(row), row, len(passes))
    tokens = Counter[str]()
    for one in batches:
        tokens[one.kind] += one.tokens
    for one in batches:
        for row in one.rows:
            add((PREPARATION_PHASE, one.kind), row, tokens[one.kind])
    table = [
        {"name": name, "phase": phase, "seconds": seconds, "bytes": count, "rounds": rounds}
        for (phase, name), (seconds, count, rounds) in sums.items()
    ]
    return sorted(table, key=lambda entry: -float(str(entry["seconds"])))


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
        return PREPARATION_PHASE, "/".join(dict.fromkeys(path[path.index(PREPARATION) :]))
    return row.phase, path[0] or "(other)"
