"""What a token of a server took last time, said before the next answer.

Exact figures need a few seconds of counting (`sottovoce estimate`), too long for the first lines of a
command. Kept are, for each server, model, engine and cache, two numbers: seconds and bytes of a token.
Nothing is kept of what was asked.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from statistics import median
from typing import Any

_MOST = 100  # servers that are remembered


class Pace:
    """Of one server; `client` is connected to it."""

    def __init__(self, client: Any, server: str, path: Path | None = None) -> None:
        from ..parties.paths import config_dir

        options = client.welcome.options
        self._key = f"{server} {client.card.model_digest[:16]} {options.engine} {options.kv}"
        self._path = path or config_dir() / "paces.json"

    def say(self, console: Any, tokens: int) -> None:
        """About what an answer of so many tokens will take."""
        from .console import seconds_text, size_text

        known = self._read().get(self._key)
        if known is None:
            console.note(
                "expected: not known before the first answer of this server; `sottovoce estimate` counts it"
            )
            return
        seconds, size = known
        console.note(
            f"expected: {tokens} tokens in about {seconds_text(seconds * tokens)} and "
            f"{size_text(size * tokens)}, as the last answer of this server"
        )

    def learn(self, done: Any) -> None:
        """Remember an answer's pace. A file that cannot be written is no reason to fail."""
        if not done.per_token:
            return
        paces = self._read()
        paces.pop(self._key, None)
        paces[self._key] = (median(s for s, _ in done.per_token), median(b for _, b in done.per_token))
        kept = dict(list(paces.items())[-_MOST:])
        part = self._path.with_suffix(f".{os.getpid()}.part")
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                json.dump(kept, file)
            part.replace(self._path)

    def _read(self) -> dict[str, tuple[float, float]]:
        """What is in the file and makes sense."""
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        entries = found.items() if isinstance(found, dict) else ()
        return {key: (float(pair[0]), float(pair[1])) for key, pair in entries if _is_pace(pair)}


def _is_pace(pair: object) -> bool:
    return (
        isinstance(pair, list)
        and len(pair) == 2
        and all(type(x) in (int, float) and 0 <= x < 1e18 for x in pair)
    )
