"""Tables of homomorphic work: operations, products of matrices, bootstraps, beside other libraries."""

from __future__ import annotations

from collections.abc import Sequence

from sottovoce.bench.cells import (
    Run,
    batch,
    count_text,
    gigabytes,
    megabytes,
    micro,
    number,
    operations,
    strategy,
    table,
    times,
)


def he(runs: Sequence[Run]) -> list[str]:
    return [line for run in runs for line in primitives(run)]


def primitives(run: Run) -> list[str]:
    """Rows of `bench he`: everything in a result that has the keys of a comparison."""
    rows = [
        (name, micro(entry["ours_s"]), micro(entry["peer_s"]), times(entry["ratio"]))
        for name, entry in run.items()
        if isinstance(entry, dict) and {"ours_s", "peer_s", "ratio"} <= entry.keys()
    ]
    return table(("operation", "ours µs", "SEAL µs", "ratio"), rows)


def peers(runs: Sequence[Run]) -> list[str]:
    headers = ["cache", "context", "prepared for", "ours s", "SPU Cheetah s", "ratio"]
    headers += ["ours CPU s", "SPU CPU s", "ratio", "ours MB", "SPU MB", "ratio"]
    rows = []
    for run in runs:
        b = run["spu_block"]
        rows.append(
            (
                run["kv"],
                str(run["context"]),
                batch(run),
                number(b["ours_s"]),
                number(b["peer_s"]),
                times(b["ratio"]),
                number(b.get("ours_cpu_s")),
                number(b.get("peer_cpu_s")),
                times(b.get("cpu_ratio")),
                megabytes(b["ours_bytes"]),
                megabytes(b["peer_bytes"]),
                times(b["bytes_ratio"]),
            )
        )
    lines = table(headers, rows)
    for run in runs:
        lines += [f"## Ours by operation: {strategy(run)}", "", *operations(run["by_operation"])]
        lines += [f"## Lattice operations in the same run: {strategy(run)}", "", *primitives(run["he"])]
    return lines


def matrix(runs: Sequence[Run]) -> list[str]:
    lines: list[str] = []
    for run in runs:
        entries = [(f"prepared for {row['batch']} tokens", row) for row in run["rows"]]
        if run["online"] is not None:
            entries.append(("made online", run["online"]))
        entries.append(("the hint, once for a client", run["hint"]))
        rows = [(name, number(row["core_seconds"]), megabytes(row["bytes"])) for name, row in entries]
        lines += table(("all matrices of one token", "core seconds, both parties", "MB"), rows)
        lines += _crossovers(run["crossover_tokens"])
    return [*lines, "![cost over the number of tokens](matrix.svg)", ""]


def _crossovers(found: dict[str, dict[str, float | None]] | None) -> list[str]:
    """From how many tokens on it pays to prepare."""
    if found is None:
        return []
    rows = [
        (
            what,
            *(number(v) if (v := found[key][name]) is not None else "–" for key in ("core_seconds", "bytes")),
        )
        for what, name in (("one prepared batch", "batch"), ("the hint as well", "with_hint"))
    ]
    return table(("cheaper than online from so many tokens on", "core seconds", "MB"), rows)


def bootstrap(runs: Sequence[Run]) -> list[str]:
    headers = ["set, slots", "threads", "ours s", "Lattigo s", "ratio", "CPU s", "Lattigo", "ratio"]
    headers += ["levels", "Lattigo", "bits mean"]
    headers += ["worst", "Lattigo mean", "worst", "GB", "Lattigo", "of it keys", "keys s"]
    rows = [
        (
            f"{run['set']}, {run['slots']:,}",
            str(run["threads"]),
            number(run["ours_s"]),
            number(run["peer_s"]),
            times(run["ratio"]),
            number(run["ours_cpu_s"]),
            number(run["peer_cpu_s"]),
            times(run["cpu_ratio"]),
            f"{run['levels']} × {run['level_bits']:.0f} bits",
            count_text(run["peer_levels"]),
            number(run["bits"]),
            number(run["worst_bits"]),
            number(run["peer_bits"]),
            number(run["peer_worst_bits"]),
            gigabytes(run["memory_bytes"]),
            gigabytes(run["peer_memory_bytes"]),
            gigabytes(run["key_bytes"]),
            number(run["key_seconds"]),
        )
        for run in runs
    ]
    lines = table(headers, rows)
    for run in runs:
        shares = ", ".join(f"{name.replace('_', ' ')} {number(s)} s" for name, s in run["steps"].items())
        lines += [f"{run['set']}, {run['slots']:,} slots: {shares}.", ""]
    return lines


def polynomials(runs: Sequence[Run]) -> list[str]:
    headers = ["function", "degree", "on", "fit bits", "key switches", "slim", "levels", "slim"]
    headers += ["seconds", "slim", "speed-up", "bits", "slim"]
    rows = [
        (
            row["function"],
            str(row["degree"]),
            f"[1/{round(1 / row['low'])}, 1]",
            number(row["fit_bits"]),
            str(row["key_switches"]),
            str(row["slim_key_switches"]),
            str(row["levels"]),
            str(row["slim_levels"]),
            number(row["seconds"]),
            number(row["slim_seconds"]),
            times(row["speedup"]),
            number(row["bits"]),
            number(row["slim_bits"]),
        )
        for run in runs
        for row in run["rows"]
    ]
    return table(headers, rows)
