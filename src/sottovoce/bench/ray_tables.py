"""The table of `bench ray`."""

from __future__ import annotations

from collections.abc import Sequence

from sottovoce.bench.cells import Run, number, table, times


def ray(runs: Sequence[Run]) -> list[str]:
    headers = ["work", "matrix", "tokens", "ms one core", "ms one process", "ms cluster"]
    headers += ["over one core", "over one process", "same bits"]
    lines: list[str] = []
    for run in runs:
        rows = [
            (
                row["work"],
                f"{row['matrix']}, {row['shape'][0]:,} × {row['shape'][1]:,}",
                str(row["tokens"]),
                number(1e3 * row["one_core_s"]),
                number(1e3 * row["one_process_s"]),
                number(1e3 * row["cluster_s"]),
                times(row["over_one_core"]),
                times(row["over_one_process"]),
                "yes" if row["same_bits"] else "**no**",
            )
            for row in run["rows"]
        ]
        where = f"{run['workers']} workers on {run['nodes_used']} of {run['nodes']} nodes ({run['cluster']})"
        here = f"one process with {run['threads']} threads; the machine has {run['machine']['cores']} cores"
        lines += [f"## {run['model']}: {where}, against {here}", "", *table(headers, rows, left=2)]
    return lines
