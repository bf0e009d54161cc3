"""Benchmarks of the engine scx: `bench e2e` and `bench quality` with `--engine scx`, and `bench keys`, in one
table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sottovoce.bench import scx_e2e, scx_keys, scx_quality
from sottovoce.engines.base import Progress
from sottovoce.errors import UsageError


def run(
    what: str,
    model: str = "smollm2-135m",
    engine: str = "scx",
    profile: str = "paper",
    context: int = 64,
    new_tokens: int = 4,
    text: str | Path | None = None,
    repeat: int = 1,
    tokens: int | None = None,
    start: int = 0,
    progress: Progress = lambda done, total, what: None,
) -> dict[str, Any]:
    """what: 'e2e', 'quality' or 'keys'; their settings stand in `scx_e2e`, `scx_quality`, `scx_keys`."""
    if engine != "scx":
        raise UsageError("this benchmark measures the engine scx")
    if what == "e2e":
        found = scx_e2e.run(model, profile, context, new_tokens, text, repeat, progress)
    elif text is None:
        raise UsageError("name a text with --text")
    elif what == "keys":
        found = scx_keys.run(text, model, profile, tokens, progress)
    else:
        found = scx_quality.run(text, model, profile, tokens, start, progress)
    return {"what": what, **found}
