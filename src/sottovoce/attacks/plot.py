"""Privacy against speed: what the best attack on a profile recovers, over the seconds that a token takes.

Needs matplotlib (`pip install sottovoce[plot]`). Speeds are those of `docs/benchmarks`, SmolLM2-135M or, for
`fhe`, the model that was measured.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sottovoce.errors import UsageError

Run = Mapping[str, Any]
_COLOURS = {"paper": "#a8432f", "hardened": "#1b7f5c", "hybrid": "#2b5f9e", "fhe": "#6b4a8f"}
_TABLES = ("scx", "e2e", "fhe")


@dataclass(frozen=True)
class Point:
    """An engine or profile: seconds a token of the quickest run and its model; share that the best attack
    recovered."""

    name: str
    model: str
    seconds: float
    recovered: float
    attack: str

    @property
    def label(self) -> str:
        return f"scx {self.name}" if self.name in ("paper", "hardened") else self.name


def points(attacks: Sequence[Run], benchmarks: Path) -> list[Point]:
    """What was not both attacked and timed is left out."""
    seconds: dict[str, tuple[float, str]] = {}
    for table in _TABLES:
        path = benchmarks / f"{table}.json"
        for run in json.loads(path.read_text()) if path.is_file() else []:
            value, name = run.get("seconds_per_token"), run.get("engine", table)
            if value is None or run.get("what", "e2e") != "e2e" or run.get("arrays", "numpy") != "numpy":
                continue
            name = run["profile"] if name == "scx" else name
            found = (value, str(run.get("model", "")))
            seconds[name] = min(found, seconds.get(name, found))
    best: dict[str, tuple[float, str]] = {}
    for run in attacks:
        name = run["profile"] if run["target"] == "scx" else run["target"]
        reached = (run["success_rate"], run["attack"])
        best[name] = max(reached, best.get(name, reached))
    known = [name for name in _COLOURS if name in seconds and name in best]
    return [Point(name, seconds[name][1], seconds[name][0], *best[name]) for name in known]


def privacy_speed(attacks: Sequence[Run], benchmarks: Path, path: Path) -> None:
    """Write the plot. UsageError without matplotlib, or if nothing was measured."""
    found = points(attacks, benchmarks)
    if not found:
        raise UsageError("there is no profile with both an attack and a speed yet")
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError("plots need matplotlib; run: pip install matplotlib") from None
    with matplotlib.rc_context({"svg.hashsalt": "sottovoce", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(6.4, 3.4), layout="constrained")
        axes = figure.subplots()
        for one in found:
            place = (one.seconds, 100 * one.recovered)
            axes.plot(*place, "o", color=_COLOURS[one.name], markersize=8)
            axes.annotate(one.label, place, xytext=(8, 6), textcoords="offset points")
        axes.set(
            xscale="log", xlabel="seconds per token", ylabel="read by the best attack, %", ylim=(-5, 112)
        )
        axes.margins(x=0.25)
        axes.grid(alpha=0.3)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
