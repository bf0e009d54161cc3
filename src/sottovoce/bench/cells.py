"""What every table of results is made of: cells as text, and a few pieces that several tables share.

Missing figures are dashes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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


def gigabytes(count: float | None) -> str:
    return number(None if count is None else count / 1e9)


def percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def times(ratio: float | None) -> str:
    return "–" if ratio is None else f"{number(ratio)}×"


def micro(seconds: float | None) -> str:
    return number(None if seconds is None else 1e6 * seconds)


def count_text(value: int | None) -> str:
    return "–" if value is None else str(value)


def quoted(text: str) -> str:
    """Text in a cell: one line, no bars, bounded."""
    flat = text.strip().replace("\n", "⏎").replace("|", "\\|").replace("`", "'")
    return flat if len(flat) <= 90 else flat[:88] + "…"


def batch(run: Run) -> str:
    """For how many tokens at a time matrix products were prepared."""
    return str(run["prepared"]) if run.get("prepared") else "–"


def strategy(run: Run) -> str:
    """The cache strategy, and whether matrix products were prepared."""
    return f"{run['kv']}, prepared" if run.get("prepared") else str(run["kv"])


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
