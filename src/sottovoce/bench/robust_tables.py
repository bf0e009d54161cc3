"""Tables of faults, of load and of the proxy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

from sottovoce.bench.cells import Run, megabytes, number, table


def faults(runs: Sequence[Run]) -> list[str]:
    """One row for each engine and cache, over all seeds."""
    headers = ["engine or cache", "seeds", "points", "nobody noticed", "reopened", "begun anew"]
    headers += ["connections resumed", "SIGKILLs", "failures", "seconds"]
    rows = []
    for kv, group in groupby(sorted(runs, key=lambda run: str(run["kv"])), lambda run: str(run["kv"])):
        same = list(group)
        sums = [sum(run[k] for run in same) for k in ("points", "seamless", "reopened", "restarted")]
        sums.append(sum(run["resumed_connections"] for run in same))
        sums.append(sum(n for run in same for what, n in run["faults"].items() if what.startswith("kill")))
        sums.append(sum(len(run["failures"]) for run in same))
        rows.append(
            [
                kv,
                _ranges(run["seed"] for run in same),
                *map(str, sums),
                number(sum(run["seconds"] for run in same)),
            ]
        )
    return table(headers, rows, left=2)


def _ranges(numbers: Iterable[int]) -> str:
    """1, 3–5."""
    spans: list[list[int]] = []
    for n in sorted(numbers):
        if spans and n == spans[-1][-1] + 1:
            spans[-1].append(n)
        else:
            spans.append([n])
    return ", ".join(f"{span[0]}" if len(span) == 1 else f"{span[0]}–{span[-1]}" for span in spans)


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


def proxy(runs: Sequence[Run]) -> list[str]:
    """One row for each engine; then how long a list of models takes without a server."""
    headers = [
        "model",
        "engine or cache",
        "tokens each",
        "times",
        "s/token direct",
        "spread",
        "s/token by proxy",
    ]
    headers += ["difference", "web server, CPU ms/token", "of the engine's time"]
    rows = [
        [
            run["model"],
            row["kv"] + (", prepared" if row["prepared"] else ""),
            str(run["new_tokens"]),
            str(run["repeat"]),
            f"{row['seconds_direct']:.4f}",
            f"{row['spread']:.1%}",
            f"{row['seconds_proxy']:.4f}",
            f"{row['overhead']:+.2%}",
            f"{1e3 * row['cpu_seconds']:.2f}",
            f"{row['cpu_overhead']:.2%}",
        ]
        for run in runs
        for row in run["rows"]
    ]
    answers = [[run["model"], number(run["models_ms"]), number(run["models_ms_worst"])] for run in runs]
    below = table(["model", "median, ms", "slowest of all, ms"], answers, left=1)
    return [*table(headers, rows, left=2), "`/v1/models` while the server is down:", "", *below]
