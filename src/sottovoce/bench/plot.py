"""The growth of a decode step's cost as a plot. Needs matplotlib: `pip install sottovoce[plot]`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sottovoce.bench.tables import strategy
from sottovoce.errors import UsageError

_PANELS = (
    ("seconds_per_token", 1.0, "seconds per token"),
    ("bytes_per_token", 1e-6, "MB per token"),
    ("memory_bytes", 1e-9, "memory of both parties, GB"),
)
_COLOURS = {"masked": "#1b7f5c", "ciphertext": "#2b5f9e", "none": "#a8432f"}


def _style(run: dict[str, Any]) -> dict[str, Any]:
    """Colour by strategy; dashed where matrix products were made online."""
    dashed = run["kv"] != "none" and not run.get("prepared")
    return {
        "label": strategy(run),
        "color": _COLOURS.get(run["kv"]),
        "linestyle": "--" if dashed else "-",
        "marker": "o",
        "markersize": 4,
    }


def growth(runs: Sequence[dict[str, Any]], path: Path) -> None:
    """Runs of `bench growth` as an SVG (or whatever the suffix says), three panels over the context."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError("plots need matplotlib; run: pip install matplotlib") from None
    with matplotlib.rc_context({"svg.hashsalt": "sottovoce", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(11, 3.4), layout="constrained")
        for axes, (key, unit, label) in zip(figure.subplots(1, len(_PANELS)), _PANELS, strict=True):
            for run in runs:
                points = run["points"]
                x, y = [p["context"] for p in points], [p[key] * unit for p in points]
                axes.plot(x, y, **_style(run))
            axes.set(xscale="log", xlabel="context (private tokens)", ylabel=label)
            if key == "memory_bytes":
                axes.set_ylim(bottom=0)
            else:
                axes.set_yscale("log")
            contexts = sorted({p["context"] for run in runs for p in run["points"]})
            axes.set_xticks(contexts, [str(c) for c in contexts], minor=False)
            axes.xaxis.minorticks_off()
            axes.grid(alpha=0.3)
        figure.axes[0].legend()
        # No date inside: the same results give the same file.
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
