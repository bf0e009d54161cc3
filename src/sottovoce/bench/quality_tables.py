"""Tables of how good the answers are."""

from __future__ import annotations

from collections.abc import Sequence

from sottovoce.bench.cells import Run, divergence, number, percent, quoted, strategy, table


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
            (quoted(r["prompt"]), quoted(r["answer"]), f"{r['equal']} of {run['new_tokens']}", _miss(r))
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
            cells = (quoted(row["prompt"]), quoted(row["text"]), equal, margins or "–")
            answers.append((name, *cells, "never" if apart is None else f"token {apart}"))
    titles = ("written by", "prompt", "answer", "equal", "differences: margin of the reference")
    return lines + table((*titles, "leaves float32's own answer at"), answers, left=5)


def _miss(row: Run) -> str:
    miss = row["first_difference"]
    return "–" if miss is None else f"position {miss['position']}: {miss['reference_margin']:.4f}"
