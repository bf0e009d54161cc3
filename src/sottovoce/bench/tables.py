"""Benchmark results as Markdown tables, one function for each benchmark. Missing figures are dashes."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

Run = dict[str, Any]
_OPERATIONS = 14  # rows of a ledger table; what is cheaper is summed up in one more


def table(headers: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> list[str]:
    """Lines of a Markdown table; the first `left` columns are aligned left."""
    align = ["---" if i < left else "---:" for i in range(len(headers))]
    lines = [f"| {' | '.join(cells)} |" for cells in (headers, align, *rows)]
    return [*lines, ""]


def number(value: float | None, digits: int = 3) -> str:
    """Significant digits without an exponent; a dash for None."""
    if value is None:
        return "–"
    if value == 0 or not 1e-3 <= abs(value) < 1e6:
        return f"{value:.{digits - 1}e}" if value else "0"
    decimals = digits
    while decimals > 0 and abs(value) >= 10 ** (digits - decimals):
        decimals -= 1
    return f"{value:.{decimals}f}"


def divergence(kl: float | None) -> str:
    """Nats, which are small: two digits and an exponent."""
    return "–" if kl is None else f"{kl:.1e}"


def megabytes(count: float | None) -> str:
    """Bytes in units of 10^6."""
    return number(None if count is None else count / 1e6)


def percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def times(ratio: float | None) -> str:
    return "–" if ratio is None else f"{number(ratio)}×"


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


def batch(run: Run) -> str:
    """For how many tokens at a time matrix products were prepared."""
    return str(run["prepared"]) if run.get("prepared") else "–"


def operations(entries: Sequence[Run]) -> list[str]:
    """The ledger of a token, most expensive operation first."""
    shown, rest = list(entries[:_OPERATIONS]), entries[_OPERATIONS:]
    if rest:
        sums = {key: sum(entry[key] for entry in rest) for key in ("seconds", "bytes", "rounds")}
        shown.append({"name": f"{len(rest)} more", "phase": "", **sums})
    rows = [
        (e["name"], e["phase"], number(1e3 * e["seconds"]), megabytes(e["bytes"]), f"{e['rounds']:.1f}")
        for e in shown
    ]
    return table(("operation", "phase", "ms", "MB", "rounds"), rows, left=2)


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


def strategy(run: Run) -> str:
    """The cache strategy, and whether matrix products were prepared."""
    return f"{run['kv']}, prepared" if run.get("prepared") else str(run["kv"])


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


def he(runs: Sequence[Run]) -> list[str]:
    return [line for run in runs for line in primitives(run)]


def primitives(run: Run) -> list[str]:
    """Rows of `bench he`: everything in a result that has the keys of a comparison."""
    rows = [
        (name, _micro(entry["ours_s"]), _micro(entry["peer_s"]), times(entry["ratio"]))
        for name, entry in run.items()
        if isinstance(entry, dict) and {"ours_s", "peer_s", "ratio"} <= entry.keys()
    ]
    return table(("operation", "ours µs", "SEAL µs", "ratio"), rows)


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


def agreement(runs: Sequence[Run]) -> list[str]:
    headers = ("model", "cache", "prompts", "positions", "equal greedy tokens", "mean KL", "max KL")
    rows = [
        (
            run["model"],
            strategy(run),
            str(run["prompts"]),
            str(run["positions"]),
            percent(run["top1_agreement"]),
            divergence(run["mean_kl"]),
            divergence(run["max_kl"]),
        )
        for run in runs
    ]
    lines = table(headers, rows, left=2)
    for run in runs:
        lines += [f"## Answers of {run['model']}, {strategy(run)}", ""]
        answers = [
            (_quoted(r["prompt"]), _quoted(r["answer"]), f"{r['equal']} of {run['new_tokens']}", _miss(r))
            for r in run["rows"]
        ]
        lines += table(("prompt", "answer", "equal", "first difference: margin of the reference"), answers, 2)
    return lines


def quality(runs: Sequence[Run]) -> list[str]:
    texts = [run for run in runs if not run.get("chain")]
    lines = _texts(texts) if texts else []
    for run in runs:
        if chain := run.get("chain"):
            lines += [f"## {run['model']} writes: greedy answers to {chain['prompts']} prompts", ""]
            lines += _chains(run)
    return lines


def _texts(runs: Sequence[Run]) -> list[str]:
    headers = ["text", "tokens", "PPL float32", "PPL fixed point", "KL", "equal top token"]
    headers += ["last words right: float32", "fixed point"]
    rows, samples = [], []
    for run in runs:
        figures = (number(run["ppl_plain"], 4), number(run["ppl_fixed"], 4), divergence(run["kl"]))
        words = (_words(run, "accuracy_plain"), _words(run, "accuracy_fixed"))
        rows.append((run["text"], str(run["tokens"]), *figures, percent(run["top1"]), *words))
        if sample := run.get("encrypted"):
            perplexities = (number(sample.get(key), 4) for key in ("ppl_plain", "ppl_fixed", "ppl"))
            kl = (divergence(sample.get("kl_fixed")), divergence(sample["kl"]), percent(sample["top1"]))
            cells = (run["text"], sample.get("kv", "–"), str(sample["tokens"]), *perplexities, *kl)
            samples.append((*cells, _words(sample, "accuracy")))
    lines = table(headers, rows)
    if samples:
        headers = ["text", "cache", "positions", "PPL float32", "PPL fixed point", "PPL encrypted"]
        headers += ["KL fixed point", "KL encrypted", "equal top token", "last words right"]
        lines += ["## The encrypted sample", "", *table(headers, samples, left=2)]
    return lines


def _words(run: Run, key: str) -> str:
    share, of = run.get(key), run.get("passages")
    return "–" if share is None or not of else f"{round(share * of)} of {of}"


def _chains(run: Run) -> list[str]:
    chains = [("fixed point", run["chain"])]
    if sample := run.get("encrypted"):
        chains.append((f"encrypted, cache `{sample['kv']}`", sample))
    rows = []
    for name, chain in chains:
        parts = [(f"{part['from']}–{part['to']}", part) for part in chain["by_position"]]
        for where, part in [*parts, ("all", chain)]:
            figures = (percent(part["top1"]), divergence(part["kl"]), divergence(part["kl_max"]))
            rows.append((name, where, str(part["positions"]), *figures))
    headers = ("written by", "tokens of the answer", "positions", "equal top token", "mean KL", "max KL")
    lines = table(headers, rows, left=2)
    answers = []
    for name, chain in chains:
        for row in chain["rows"]:
            apart = row["leaves_plain_text_at"]
            margins = ", ".join(f"{d['position']}: {d['reference_margin']:.3f}" for d in row["differences"])
            equal = f"{row['equal']} of {row['equal'] + len(row['differences'])}"
            cells = (_quoted(row["prompt"]), _quoted(row["text"]), equal, margins or "–")
            answers.append((name, *cells, "never" if apart is None else f"token {apart}"))
    titles = ("written by", "prompt", "answer", "equal", "differences: margin of the reference")
    return lines + table((*titles, "leaves float32's own answer at"), answers, left=5)


def _micro(seconds: float | None) -> str:
    return number(None if seconds is None else 1e6 * seconds)


def _quoted(text: str) -> str:
    """Text in a cell: one line, no bars, bounded."""
    flat = text.strip().replace("\n", "⏎").replace("|", "\\|").replace("`", "'")
    return flat if len(flat) <= 90 else flat[:88] + "…"


def _miss(row: Run) -> str:
    miss = row["first_difference"]
    return "–" if miss is None else f"position {miss['position']}: {miss['reference_margin']:.4f}"


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
            _count(run["peer_levels"]),
            number(run["bits"]),
            number(run["worst_bits"]),
            number(run["peer_bits"]),
            number(run["peer_worst_bits"]),
            _gigabytes(run["memory_bytes"]),
            _gigabytes(run["peer_memory_bytes"]),
            _gigabytes(run["key_bytes"]),
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


def _gigabytes(count: float | None) -> str:
    return number(None if count is None else count / 1e9)


def _count(value: int | None) -> str:
    return "–" if value is None else str(value)


def _later(name: str, module: str = "robust_tables") -> Callable[[Sequence[Run]], list[str]]:
    """A table of a module that needs this one."""

    def made(runs: Sequence[Run]) -> list[str]:
        lines: list[str] = getattr(importlib.import_module(f"sottovoce.bench.{module}"), name)(runs)
        return lines

    return made


RENDERERS: dict[str, Callable[[Sequence[Run]], list[str]]] = {
    "agreement": agreement,
    "bootstrap": bootstrap,
    "chunk": _later("chunk", "fhe_tables"),
    "draft": draft,
    "e2e": e2e,
    "faults": _later("faults"),
    "fhe": _later("fhe", "fhe_tables"),
    "growth": growth,
    "he": he,
    "layer": _later("layer", "fhe_tables"),
    "load": _later("load"),
    "matrix": matrix,
    "network": network,
    "packings": _later("packings", "fhe_tables"),
    "peers": peers,
    "polynomials": polynomials,
    "prefill": prefill,
    "proxy": _later("proxy"),
    "quality": quality,
    "ranges": _later("ranges", "fhe_tables"),
    "ray": _later("ray", "ray_tables"),
    "scx": _later("scx", "scx_tables"),
}
