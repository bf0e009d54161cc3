"""Tables of faults and of load."""

from __future__ import annotations

from collections.abc import Sequence

from sottovoce.bench.tables import Run, megabytes, number, table


def faults(runs: Sequence[Run]) -> list[str]:
    """One row for each engine and cache."""
    headers = ["engine or cache", "points", "seed", "nobody noticed", "reopened", "begun anew"]
    headers += ["connections resumed", "failures", "seconds"]
    rows = [
        [
            run["kv"],
            *(str(run[k]) for k in ("points", "seed", "seamless", "reopened", "restarted")),
            *(str(run[k]) for k in ("resumed_connections",)),
            str(len(run["failures"])),
            number(run["seconds"]),
        ]
        for run in runs
    ]
    return table(headers, rows)


def load(runs: Sequence[Run]) -> list[str]:
    """One row for each engine and number of sessions."""
    headers = [
        "model",
        "engine or cache",
        "sessions",
        "tokens each",
        "first done, s",
        "last done, s",
        "ratio",
    ]
    headers += [
        "tokens/s",
        "alone, tokens/s",
        "sessions after",
        "memory half way, MB",
        "memory at the end, MB",
    ]
    rows = [
        [
            run["model"],
            run["kv"],
            str(run["sessions"]),
            str(run["tokens"]),
            number(min(run["seconds"])),
            number(max(run["seconds"])),
            number(run["ratio"]),
            number(run["throughput"]),
            number(run["throughput_alone"]),
            str(run["sessions_after"]),
            megabytes(run["memory_half"]),
            megabytes(run["memory_last"]),
        ]
        for run in runs
    ]
    return table(headers, rows, left=2)
