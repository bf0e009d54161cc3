"""Tables of what a token takes: one step, growing contexts, networks, prefill, guesses."""

from __future__ import annotations

from collections.abc import Sequence

from sottovoce.bench.cells import (
    Run,
    batch,
    divergence,
    megabytes,
    number,
    operations,
    percent,
    strategy,
    table,
    times,
)


def e2e(runs: Sequence[Run]) -> list[str]:
    headers = [
        "model",
        "cache",
        "context",
        "prepared for",
        "s/token",
        "of it online",
        "CPU s client",
        "CPU s server",
    ]
    headers += ["MB/token", "of it online", "rounds", "MB client", "MB server", "equal tokens", "mean KL"]
    rows = []
    for run in runs:
        cpu, memory = run["cpu_seconds_per_token"], run["peak_memory_bytes"]
        rows.append(
            (
                run["model"],
                run["kv"],
                str(run["context"]),
                batch(run),
                number(run["seconds_per_token"]),
                number(run["online_seconds_per_token"]),
                number(cpu["client"]),
                number(cpu["server"]),
                megabytes(run["bytes_per_token"]),
                megabytes(run["online_bytes_per_token"]),
                f"{run['rounds_per_token']:.0f}",
                megabytes(memory["client"]),
                megabytes(memory["server"]),
                percent(run["top1_agreement"]),
                divergence(run["mean_kl"]),
            )
        )
    lines = table(headers, rows, left=2)
    for run in runs:
        lines += [f"## By operation: {run['model']}, {strategy(run)}, context {run['context']}", ""]
        lines += operations(run["by_operation"])
    return lines


def growth(runs: Sequence[Run]) -> list[str]:
    names = [strategy(run) for run in runs]
    points = {name: {p["context"]: p for p in run["points"]} for name, run in zip(names, runs, strict=True)}
    headers = ["context"]
    for name in names:
        headers += [f"{name}: s/token", "MB/token", "MB memory"]
    reused = [name for name in names if name != "none" and "none" in names]
    headers += [f"none ÷ {name}" for name in reused]
    rows = []
    for context in sorted({c for known in points.values() for c in known}):
        cells = [str(context)]
        for name in names:
            p = points[name].get(context, {})
            cells += [number(p.get("seconds_per_token"))]
            cells += [megabytes(p.get("bytes_per_token")), megabytes(p.get("memory_bytes"))]
        for name in reused:
            slow, fast = (points[k].get(context, {}).get("seconds_per_token") for k in ("none", name))
            cells.append(times(slow / fast if slow and fast else None))
        rows.append(cells)
    return ["![Decode time, bytes and memory against the context](growth.svg)", "", *table(headers, rows)]


def network(runs: Sequence[Run]) -> list[str]:
    headers = ("network", "cache", "round trip ms", "Mbit/s", "s/token", "MB/token", "rounds")
    rows = [
        (
            row["net"],
            f"{strategy(run)}, context {run['context']}",
            number(row["rtt_ms"]),
            "–" if row["mbit"] is None else f"{row['mbit']:.0f}",
            number(row["seconds_per_token"]),
            megabytes(row["bytes_per_token"]),
            f"{row['rounds_per_token']:.0f}",
        )
        for run in runs
        for row in run["rows"]
    ]
    return table(headers, rows, left=2)


def prefill(runs: Sequence[Run]) -> list[str]:
    headers = ["model", "cache", "tokens", "encoding", "s/token", "linear s/token", "CPU s/token"]
    headers += ["MB/token", "linear MB/token", "rounds of the pass", "MB client", "MB server", "KL"]
    rows = [
        (
            run["model"],
            run["kv"],
            str(run["tokens"]),
            row["encoding"],
            number(row["seconds_per_token"]),
            number(row["linear_seconds_per_token"]),
            number(sum(row["cpu_seconds_per_token"].values())),
            megabytes(row["bytes_per_token"]),
            megabytes(row["linear_bytes_per_token"]),
            f"{row['rounds']:.0f}",
            megabytes(row["memory_bytes"]["client"]),
            megabytes(row["memory_bytes"]["server"]),
            divergence(row["mean_kl"]),
        )
        for run in runs
        for row in run["rows"]
    ]
    return table(headers, rows, left=4)


def draft(runs: Sequence[Run]) -> list[str]:
    headers = ["draft", "cache", "network", "s/token plain", "s/token drafted", "speed-up"]
    headers += ["MB/token plain", "MB/token drafted", "accepted guesses", "same tokens"]
    rows = [
        (
            run["draft"],
            strategy(run),
            row["net"],
            number(row["plain"]["seconds"]),
            number(row["drafted"]["seconds"]),
            times(row["speedup"]),
            megabytes(row["plain"]["bytes"]),
            megabytes(row["drafted"]["bytes"]),
            f"{row['accepted_tokens']} of {row['drafted_tokens']}",
            "yes" if row["same_tokens"] else "no",
        )
        for run in runs
        for row in run["rows"]
    ]
    return table(headers, rows, left=3)
