"""Results of the engine scx as Markdown tables."""

from __future__ import annotations

import math
from collections.abc import Sequence

from sottovoce.bench.cells import Run, divergence, megabytes, number, operations, percent, table, times


def scx(runs: Sequence[Run]) -> list[str]:
    timed = [run for run in runs if run["what"] == "e2e"]
    read = [run for run in runs if run["what"] == "quality"]
    lines = _times(timed) if timed else []
    lines += _texts(read) if read else []
    kept = [run for run in runs if run["what"] == "keys"]
    lines += _keys(kept) if kept else []
    for run in timed:
        lines += [f"## By operation: {run['profile']}, {run['arrays']}, context {run['context']}", ""]
        lines += operations(run["by_operation"])
    return lines


def _times(runs: Sequence[Run]) -> list[str]:
    headers = ["profile", "arrays", "context", "first token s", "plain", "ratio"]
    headers += ["s/token", "plain", "ratio"]
    headers += [
        "preparation s/token",
        "setup s",
        "again s",
        "MB first",
        "kB/token",
        "rounds",
        "MB client",
        "MB server",
        "largest difference",
    ]
    rows = []
    for run in runs:
        memory = run["peak_memory_bytes"]
        rows.append(
            (
                run["profile"],
                run["arrays"],
                str(run["context"]),
                number(run["first_token_seconds"]),
                number(run["plain_first_token_seconds"]),
                times(run["ratio_first_token"]),
                number(run["online_seconds_per_token"]),
                number(run["plain_seconds_per_token"]),
                times(run["ratio_per_token"]),
                number(run["preparation_seconds_per_token"]),
                number(run["setup_seconds"]),
                number(run.get("setup_again_seconds")),
                megabytes(run["first_token_bytes"]),
                number(run["bytes_per_token"] / 1e3),
                f"{run['rounds_per_token']:.0f}",
                megabytes(memory["client"]),
                megabytes(memory["server"]),
                f"{run['largest_difference']:.1e}",
            )
        )
    return table(headers, rows, left=2)


def _texts(runs: Sequence[Run]) -> list[str]:
    """Parts of a text are added up."""
    headers = ["profile", "text", "tokens", "PPL float32", "PPL scx", "difference", "equal top token", "KL"]
    headers += ["largest difference"]
    rows = []
    for name, text in sorted({(run["profile"], run["text"]) for run in runs}):
        parts = [run for run in runs if (run["profile"], run["text"]) == (name, text)]
        positions = sum(run["positions"] for run in parts)
        plain, mine = (
            math.exp(sum(run[key] for run in parts) / positions) for key in ("nll_plain", "nll_scx")
        )
        mean = {k: sum(run[k] * run["positions"] for run in parts) / positions for k in ("top1", "kl")}
        rows.append(
            (
                name,
                text,
                str(sum(run["tokens"] for run in parts)),
                number(plain, 6),
                number(mine, 6),
                f"{mine - plain:.1e}",
                percent(mean["top1"]),
                divergence(mean["kl"]),
                f"{max(run['largest_difference'] for run in parts):.1e}",
            )
        )
    return ["## Exactness", "", *table(headers, rows, left=2)]


def _keys(runs: Sequence[Run]) -> list[str]:
    headers = ["profile", "text", "what is left", "context", "tokens", "PPL"]
    rows = []
    for run in runs:
        found = [(case["name"], case["ppl"]) for case in run["cases"]]
        for name, ppl in [*found, ("no context: the model alone", run["ppl_no_context"])]:
            sizes = (str(run["context"]), str(run["tokens"]))
            rows.append((run["profile"], run["text"], name, *sizes, number(ppl, 4)))
    lines = ["## Without the user's keys", "", "Perplexity of the tokens behind a context.", ""]
    return [*lines, *table(headers, rows, left=3)]
