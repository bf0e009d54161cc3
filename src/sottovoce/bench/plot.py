"""Plots of benchmark results. They need matplotlib: `pip install sottovoce[plot]`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sottovoce.bench.cells import strategy
from sottovoce.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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
    with _drawn(path, 11) as figure:
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
            _ticks(axes, sorted({p["context"] for run in runs for p in run["points"]}))
        figure.axes[0].legend()


def matrix(runs: Sequence[dict[str, Any]], path: Path) -> None:
    """The last run of `bench matrix`: cost of the products for n tokens, by how they are made, over n."""
    run = runs[-1]
    if run["online"] is None:
        raise UsageError("nothing to compare: the run left online products out")
    batches = [1, *(row["batch"] for row in run["rows"])]
    panels = (("core_seconds", 1.0, "core seconds, both parties"), ("bytes", 1e-6, "MB, both ways"))
    with _drawn(path, 8) as figure:
        for axes, (key, unit, label) in zip(figure.subplots(1, 2), panels, strict=True):
            sizes = [row["batch"] for row in run["rows"]]
            made = [row["batch"] * row[key] * unit for row in run["rows"]]
            hint = run["hint"][key] * unit
            axes.plot(sizes, made, "o-", color=_COLOURS["masked"], markersize=4, label="one prepared batch")
            axes.plot(
                sizes,
                [m + hint for m in made],
                "o--",
                color=_COLOURS["masked"],
                markersize=4,
                label="… and the hint, once for a client",
            )
            axes.plot(
                batches,
                [n * run["online"][key] * unit for n in batches],
                "-",
                color=_COLOURS["ciphertext"],
                label="online, token by token",
            )
            axes.set(xscale="log", yscale="log", xlabel="tokens", ylabel=label)
            _ticks(axes, batches)
        figure.axes[0].legend()


@contextmanager
def _drawn(path: Path, width: float) -> Iterator[Figure]:
    """A figure that is written to `path` in the end. No date inside: the same results give the same file."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError("plots need matplotlib; run: pip install matplotlib") from None
    with matplotlib.rc_context({"svg.hashsalt": "sottovoce", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(width, 3.4), layout="constrained")
        yield figure
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def _ticks(axes: Axes, values: Sequence[int]) -> None:
    axes.set_xticks(values, [str(v) for v in values], minor=False)
    axes.xaxis.minorticks_off()
    axes.grid(alpha=0.3)
