"""A server's log: one event a line, as text or as JSON. Sizes, times, names of errors; never tokens, text,
shares, keys or noise.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from threading import Lock
from typing import IO, TYPE_CHECKING

from .observer import Observer

if TYPE_CHECKING:
    from .session import ServerSession, SessionReport

Value = str | int | float | None


def json_line(event: str, fields: dict[str, Value]) -> str:
    """Time, event, fields."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    return json.dumps({"time": now, "event": event, **fields})


class JsonLog:
    """Appends JSON lines to a file; every line at once, from any thread."""

    def __init__(self, file: IO[str]) -> None:
        self._file, self._lock = file, Lock()

    def __call__(self, event: str, fields: dict[str, Value]) -> None:
        with self._lock:
            self._file.write(json_line(event, fields) + "\n")
            self._file.flush()


class EventLog(Observer):
    """Turns what happens into events. write: gets each one's name and fields."""

    def __init__(self, write: Callable[[str, dict[str, Value]], None]) -> None:
        self.write = write

    def opened(self, session: ServerSession) -> None:
        report = session.report
        self.write(
            "session opened",
            {**_who(report), "resumed_tokens": report.resumed_tokens},
        )

    def failed(self, session: ServerSession, what: str, why: str) -> None:
        self.write("failure", {**_who(session.report), "what": what, "why": why})

    def closed(self, report: SessionReport) -> None:
        total = {name: sum(int(row[name]) for row in report.ledger) for name in _SUMS}
        fields: dict[str, Value] = {
            **_who(report),
            "ended": report.ended,
            "private_tokens": report.private_tokens,
            "public_tokens": report.public_tokens,
            "seconds": round(report.seconds, 3),
            "cpu_seconds": round(report.cpu_seconds, 3),
            **total,
        }
        self.write("session ended", fields)


_SUMS = ("bytes_up", "bytes_down", "rounds")


def _who(report: SessionReport) -> dict[str, Value]:
    return {"session": report.id, "peer": report.peer, "account": report.account}


def sentence(event: str, fields: dict[str, Value]) -> str:
    """An event for people. What of it came from a client cannot move their cursor."""
    return "".join(c if c.isprintable() else "?" for c in _sentence(event, fields))


def _sentence(event: str, fields: dict[str, Value]) -> str:
    if event == "session opened":
        resumed = fields["resumed_tokens"]
        more = f", {resumed} tokens resumed" if resumed else ""
        return f"session {fields['session']} from {fields['peer']} opened{more}"
    if event == "session ended":
        tokens = f"{fields['public_tokens']} public and {fields['private_tokens']} private tokens"
        return (
            f"session {fields['session']} from {fields['peer']} ended: {fields['ended']} "
            f"({tokens}, {fields['seconds']:.1f} s)"
        )
    rest = ", ".join(f"{name} {value}" for name, value in fields.items() if value not in ("", None))
    return f"{event}: {rest}" if rest else event
