"""Results of attacks on disk: `attacks.json` holds every run, `attacks.md` the table made from it, and
`privacy-speed.svg` shows what a profile gives away against what it costs.

A run replaces the one before it of the same attack, target and profile.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sottovoce import __version__
from sottovoce.attacks.plot import points, privacy_speed
from sottovoce.errors import UsageError
from sottovoce.runs import Run, add, load

DATA, TABLE, PLOT = "attacks.json", "attacks.md", "privacy-speed.svg"
_KEYS = ("target", "profile", "attack")


def save(outcome: Mapping[str, Any], directory: str | Path) -> Path:
    """Add a run and make table and plot again."""
    folder = Path(directory)
    path = folder / DATA
    made = {"date": datetime.now(UTC).date().isoformat(), "version": __version__}
    add(path, {**made, **outcome}, _KEYS)
    render(folder)
    return path


def render(folder: Path) -> None:
    """Write the table from the data, and the plot if matplotlib is there and a speed beside it."""
    runs = load(folder / DATA)
    with suppress(UsageError):
        privacy_speed(runs, folder.parent / "benchmarks", folder / PLOT)
    lines = ["# Attacks and what they got", ""]
    lines += [
        "Share of tokens, weights or trials recovered. A control is the same attack with a safeguard left "
        "out:"
    ]
    lines += [
        "where it does not break, the attack proves nothing; it runs on a quarter of the samples or more. "
        "Each row was made by `sottovoce attack`.",
        "",
    ]
    lines += ["| engine | profile | attack | recovered | controls | samples |", "|---|---|---|---:|---|---:|"]
    for run in runs:
        controls = "; ".join(f"{c['name']}: {_percent(c['success_rate'])}" for c in run["controls"])
        cells = (run["target"], run["profile"], f"`{run['attack']}`", _percent(run["success_rate"]), controls)
        lines.append("| " + " | ".join([*cells, str(run["samples"])]) + " |")
    lines += _against_speed(runs, folder.parent / "benchmarks")
    lines += ["", "## Details", ""]
    for run in runs:
        details = ", ".join(f"{name} {_shown(value)}" for name, value in run["details"].items())
        lines.append(f"- {run['target']} {run['profile']}, `{run['attack']}` ({run['date']}): {details}")
    lines += ["", f"Generated from `{DATA}`; do not edit."]
    (folder / TABLE).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _against_speed(runs: Sequence[Run], benchmarks: Path) -> list[str]:
    """What the best attack on each engine or profile got, beside the seconds that a token takes."""
    found = points(runs, benchmarks)
    if not found:
        return []
    lines = [
        "",
        "## Privacy against speed",
        "",
        "Seconds are those of [benchmarks](../benchmarks/README.md).",
    ]
    lines += ["", "| engine | model | seconds a token | read by the best attack | which |"]
    lines += ["|---|---|---:|---:|---|"]
    for one in found:
        cells = (one.label, one.model, f"{one.seconds:.3g}", _percent(one.recovered))
        lines.append("| " + " | ".join([*cells, f"`{one.attack}`" if one.recovered else "–"]) + " |")
    return lines


def _percent(rate: float) -> str:
    return f"{100 * rate:.1f} %"


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else str(value)
