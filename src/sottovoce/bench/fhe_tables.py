"""Tables of the benchmarks of FHE: packings, and generation."""

from __future__ import annotations

from collections.abc import Sequence

from sottovoce.bench.cells import Run, divergence, megabytes, number, percent, table, times


def packings(runs: Sequence[Run]) -> list[str]:
    headers = ["width", "packing", "s", "IRP is faster by", "plaintexts", "rotations", "of it s", "levels"]
    headers += ["ciphertexts", "MB", "timed", "tokens when full", "s/token when full"]
    rows = []
    for run in runs:
        for row in run["rows"]:
            rows.append(
                (
                    str(run["width"]),
                    row["packing"],
                    number(row["seconds"]),
                    times(row["over_irp"]),
                    str(row["plaintexts"]),
                    str(row["rotations"]),
                    number(row["rotation_seconds"]) if "rotation_seconds" in row else "–",
                    str(row["levels"]),
                    str(row["ciphertexts"]),
                    megabytes(row["memory_bytes"]),
                    percent(row["timed_share"]) + (", scaled" if row["scaled"] else ""),
                    str(row["tokens_when_full"]),
                    number(row["seconds_per_token_when_full"]),
                )
            )
    return table(headers, rows, left=2)


def fhe(runs: Sequence[Run]) -> list[str]:
    headers = [
        "model",
        "prompt",
        "s prompt",
        "new tokens",
        "s/token",
        "CPU s server",
        "CPU s client",
        "MB/token",
    ]
    headers += ["GB keys, once", "s setup", "GB server", "GB client", "equal tokens", "mean KL", "largest KL"]
    rows = []
    for run in runs:
        memory, cpu = run["peak_memory_bytes"], run["cpu_seconds_per_token"]
        rows.append(
            (
                run["model"],
                str(run["context"]),
                number(run.get("prefill_seconds")),
                str(run["new_tokens"]),
                number(run["seconds_per_token"]),
                number(cpu["server"]),
                number(cpu["client"]),
                megabytes(run["bytes_per_token"]),
                number(run["key_bytes"] / 1e9),
                number(run["setup_seconds"]),
                number(memory["server"] / 1e9),
                number(memory["client"] / 1e9),
                percent(run["top1_agreement"]),
                divergence(run["kl"]),
                divergence(max(p["kl"] for p in run["positions"])),
            )
        )
    lines = table(headers, rows)
    for run in runs:
        lines += [f"## {run['model']}: a token by operation, at the server", ""]
        lines += table(
            ("operation", "seconds"), [(o["name"], number(o["seconds"])) for o in run["by_operation"]]
        )
        lines += table(
            ("position", "KL, nats", "same token"),
            [
                (str(i), divergence(p["kl"]), "yes" if p["top1"] else "no")
                for i, p in enumerate(run["positions"], run["public_tokens"] + run["context"] - 1)
            ],
        )
    return lines


def layer(runs: Sequence[Run]) -> list[str]:
    cases = [(run, case) for run in runs for case in run["cases"]]
    names = sorted({o["name"] for _, case in cases for o in case["by_operation"]})
    headers = ["shape", "public tokens", "private", "s", "estimated", "growth", "bootstraps", *names]
    headers += ["GB keys", "GB memory", "largest error"]
    rows = []
    for run, case in cases:
        seconds = {o["name"]: o["seconds"] for o in case["by_operation"]}
        rows.append(
            (
                run["shape"],
                str(case["public_tokens"]),
                str(case["private_tokens"]),
                number(case["seconds"]),
                number(case["estimated_seconds"]),
                number(case["seconds"] / run["cases"][0]["seconds"]),
                str(case["bootstraps"]),
                *(number(seconds.get(name)) for name in names),
                number(run["key_bytes"] / 1e9),
                number(run["memory_bytes"] / 1e9),
                number(case["largest_error"]),
            )
        )
    return table(headers, rows)


def chunk(runs: Sequence[Run]) -> list[str]:
    headers = [
        "model",
        "private tokens",
        "ciphertexts up",
        "s/layer",
        "s/layer and token",
        "faster than alone by",
    ]
    headers += ["refreshes", "estimated s", "largest error"]
    rows = []
    for run in runs:
        for row in run["rows"]:
            rows.append(
                (
                    run["model"],
                    str(row["tokens"]),
                    str(row["ciphertexts"]),
                    number(row["seconds"]),
                    number(row["seconds_per_token"]),
                    times(row["speed_up"]),
                    str(row["bootstraps"]),
                    number(row["estimated_seconds"]),
                    number(row["largest_error"]),
                )
            )
    lines = table(headers, rows)
    for run in runs:
        names = [o["name"] for o in run["rows"][-1]["by_operation"]]
        lines += [f"## {run['model']}: a layer by operation, seconds", ""]
        split = [{o["name"]: o["seconds"] for o in row["by_operation"]} for row in run["rows"]]
        lines += table(
            ("private tokens", *names),
            [
                (str(row["tokens"]), *(number(seconds.get(name)) for name in names))
                for row, seconds in zip(run["rows"], split, strict=True)
            ],
        )
    return lines


def ranges(runs: Sequence[Run]) -> list[str]:
    headers = ["model", "case", "stream", "values", "activations", "scores"]
    rows = []
    for run in runs:
        for row in run["rows"]:
            extremes = (max(row[name]) for name in headers[2:])
            rows.append((run["model"], row["case"], *map(number, extremes)))
    return table(headers, rows, left=2)
