"""What a session costs: bytes each way, rounds, seconds and counted operations, by phase and operation.

Both parties keep one and see the same events in the same order, so their bytes and rounds agree; seconds are
each party's own.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from time import perf_counter
from typing import Any

from .frame import HEADER_SIZE

Key = tuple[str, str]


@dataclass
class LedgerRow:
    """Cost of one operation in one phase.

    bytes_up (client to server) and bytes_down count payload; every frame adds HEADER_SIZE on the wire
    (`wire_up`, `wire_down`), and TLS about 22 bytes a record on top, which is not counted. `seconds` excludes
    nested operations, which have rows of their own; `wait_seconds` is the part of it spent waiting for the
    other party.
    """

    phase: str
    operation: str
    bytes_up: int = 0
    bytes_down: int = 0
    frames_up: int = 0
    frames_down: int = 0
    rounds: int = 0
    seconds: float = 0.0
    wait_seconds: float = 0.0
    counters: dict[str, int] = field(default_factory=dict)

    @property
    def wire_up(self) -> int:
        return self.bytes_up + HEADER_SIZE * self.frames_up

    @property
    def wire_down(self) -> int:
        return self.bytes_down + HEADER_SIZE * self.frames_down

    def add(self, other: "LedgerRow", sign: int = 1) -> None:
        for name in _SUMS:
            setattr(self, name, getattr(self, name) + sign * getattr(other, name))
        for name, n in other.counters.items():
            self.counters[name] = self.counters.get(name, 0) + sign * n
            if not self.counters[name]:
                del self.counters[name]

    def is_empty(self) -> bool:
        return not (self.bytes_up or self.bytes_down or self.rounds or self.seconds > 0 or self.counters)


_SUMS = (
    "bytes_up",
    "bytes_down",
    "frames_up",
    "frames_down",
    "rounds",
    "seconds",
    "wait_seconds",
)

Snapshot = dict[Key, LedgerRow]


class Ledger:
    """Accumulates costs under the current phase and operation. Used by one thread: the one that owns the
    channel.
    """

    def __init__(self) -> None:
        self._rows: Snapshot = {}
        self._phase = ""
        self._path: list[str] = []
        self._direction: int | None = None
        self._current = self._row()
        self._mark = perf_counter()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Book what happens inside under phase `name` ("setup", "prefill", …); nested phases replace."""
        outer = self._phase
        self._switch(name, self._path)
        try:
            yield
        finally:
            self._switch(outer, self._path)

    @contextmanager
    def operation(self, name: str) -> Iterator[None]:
        """Book what happens inside under operation `name`; nested names are joined with '/'."""
        outer = self._path
        self._switch(self._phase, [*outer, name])
        try:
            yield
        finally:
            self._switch(self._phase, outer)

    def count(self, name: str, n: int = 1) -> None:
        """Add n to a counter of the current row, e.g. count("ots", 4096)."""
        self._current.counters[name] = self._current.counters.get(name, 0) + n

    @property
    def place(self) -> tuple[str, str]:
        """Phase and operation that are being booked now."""
        return self._phase, "/".join(self._path)

    def message(self, direction: int, size: int) -> None:
        """One one-way message of `size` payload bytes; direction 0 is up (client to server), 1 is down.

        It opens a round unless the message before it went the same way: those travel together.
        """
        if direction != self._direction:
            self._current.rounds += 1
            self._direction = direction
        self._add_bytes(direction, size)

    def exchange(self, up: int, down: int) -> None:
        """Both parties send at the same time: one round."""
        self._current.rounds += 1
        self._direction = None
        self._add_bytes(0, up)
        self._add_bytes(1, down)

    def waited(self, seconds: float) -> None:
        self._current.wait_seconds += seconds

    def rows(self) -> list[LedgerRow]:
        """Copies of all rows that hold anything, in the order of first use."""
        return [row for row in self.snapshot().values() if not row.is_empty()]

    def snapshot(self) -> Snapshot:
        """A copy of the state, to compare with a later one."""
        self._tick()
        return {key: _copy(row) for key, row in self._rows.items()}

    def since(self, earlier: Snapshot) -> list[LedgerRow]:
        """The rows of what happened after `earlier = ledger.snapshot()`."""
        return diff(earlier, self.snapshot())

    def total(self, phase: str | None = None) -> LedgerRow:
        """All rows (of one phase) added up."""
        return total(row for row in self.rows() if phase is None or row.phase == phase)

    def to_json(self) -> list[dict[str, Any]]:
        return [asdict(row) for row in self.rows()]

    def _add_bytes(self, direction: int, size: int) -> None:
        row = self._current
        if direction == 0:
            row.bytes_up += size
            row.frames_up += 1
        else:
            row.bytes_down += size
            row.frames_down += 1

    def _tick(self) -> None:
        now = perf_counter()
        self._current.seconds += now - self._mark
        self._mark = now

    def _switch(self, phase: str, path: list[str]) -> None:
        self._tick()
        self._phase, self._path = phase, path
        self._current = self._row()

    def _row(self) -> LedgerRow:
        key = (self._phase, "/".join(self._path))
        row = self._rows.get(key)
        if row is None:
            row = self._rows[key] = LedgerRow(*key)
        return row


def _copy(row: LedgerRow) -> LedgerRow:
    new = LedgerRow(row.phase, row.operation)
    new.add(row)
    return new


def diff(earlier: Snapshot, later: Snapshot) -> list[LedgerRow]:
    """later - earlier, row by row; rows in which nothing happened are left out."""
    result = []
    for key, row in later.items():
        new = _copy(row)
        if key in earlier:
            new.add(earlier[key], -1)
        if not new.is_empty():
            result.append(new)
    return result


def total(rows: "Iterator[LedgerRow] | list[LedgerRow]") -> LedgerRow:
    """The sum of rows, with empty names."""
    result = LedgerRow("", "")
    for row in rows:
        result.add(row)
    return result
