"""The pool's ledger: what was made, what was taken, and in which epoch, kept so that a crash cannot undo it.

One SQLite database in WAL mode with full synchronisation: every call that changes something is one
transaction, on the disk before the call returns. What the parties compare on connect is `State`.
"""

import json
import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sottovoce.correlations.records import Layout
from sottovoce.errors import CorruptFileError, IntegrityError, StorageError
from sottovoce.storage import reason, transaction

ID_BYTES = 16
EPOCH_BYTES = 32
_SCHEMA = 1
_LARGEST = 1 << 60
_MAX_ENTRIES = 1 << 16

_TABLES = """
CREATE TABLE IF NOT EXISTS facts(name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS streams(
    name TEXT PRIMARY KEY, taken INTEGER NOT NULL, made INTEGER NOT NULL, wiped INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS batches(
    number INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, size INTEGER NOT NULL, contents TEXT NOT NULL
);
"""


@dataclass(frozen=True)
class State:
    """What one party's ledger says. Rows of a stream below `taken` are gone, those below `made` exist."""

    generation: int  # how often the pool was opened by both parties together
    epoch: bytes  # names the last opening; fresh each time
    pending: bytes | None  # an opening that this party has agreed to and not seen completed
    takes: int  # how often something was taken
    streams: Mapping[str, tuple[int, int]]  # name -> (taken, made)
    batches: tuple[bytes, ...]  # ids of the batches on disk, oldest first

    def to_bytes(self) -> bytes:
        fields = {
            "generation": self.generation,
            "epoch": self.epoch.hex(),
            "pending": None if self.pending is None else self.pending.hex(),
            "takes": self.takes,
            "streams": {name: list(marks) for name, marks in self.streams.items()},
            "batches": [id.hex() for id in self.batches],
        }
        return json.dumps(fields).encode()

    @classmethod
    def from_bytes(cls, raw: bytes | memoryview) -> "State":
        """From the other party: IntegrityError for anything malformed or out of range."""
        try:
            fields = json.loads(bytes(raw))
            pending = fields["pending"]
            state = cls(
                _number(fields["generation"]),
                _named(fields["epoch"], EPOCH_BYTES),
                None if pending is None else _named(pending, EPOCH_BYTES),
                _number(fields["takes"]),
                {str(name): (_number(t), _number(m)) for name, (t, m) in fields["streams"].items()},
                tuple(_named(id, ID_BYTES) for id in fields["batches"]),
            )
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise IntegrityError("the other side's account of the correlation pool is malformed") from None
        if max(len(state.streams), len(state.batches)) > _MAX_ENTRIES:
            raise IntegrityError("the other side's account of the correlation pool is too large")
        return state


@dataclass(frozen=True)
class Batch:
    """One file of the pool: a layout for every stream in it."""

    number: int
    id: bytes
    size: int
    contents: dict[str, Layout]


class Marks:
    """The database of one pool at one party. Used by one thread at a time, of one process (`Pool` locks)."""

    def __init__(self, path: Path) -> None:
        """Open, or create empty with mode 0600."""
        self._directory = path.parent
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600))
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        try:
            for pragma in ("journal_mode=WAL", "synchronous=FULL", "secure_delete=ON"):
                self._db.execute(f"PRAGMA {pragma}").fetchall()
            self._db.executescript(_TABLES)
            schema = self.fact("schema", _SCHEMA)
        except sqlite3.OperationalError as error:  # the disk, not what is on it
            self._db.close()
            raise unwritable(path.parent, error) from None
        except sqlite3.DatabaseError as error:
            self._db.close()
            raise CorruptFileError(
                f"the ledger of the correlation pool in {path.parent} cannot be read ({error});"
                " reset the pool with `sottovoce prepare SERVER --reset`"
            ) from None
        if schema != _SCHEMA:
            self._db.close()
            raise CorruptFileError(
                f"the correlation pool in {path.parent} was written by another version of sottovoce;"
                " reset it with `sottovoce prepare SERVER --reset`"
            )

    def fact(self, name: str, default: Any = None) -> Any:
        """A named value: identity, secret, epoch, …"""
        row = self._db.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return default if row is None else row[0]

    def set_facts(self, **values: Any) -> None:
        with self._transaction():
            self._set(values)

    def state(self) -> State:
        streams = {name: (taken, made) for name, taken, made, _ in self._streams()}
        return State(
            self.fact("generation", 0),
            bytes(self.fact("epoch")),
            self.fact("pending"),
            self.fact("takes", 0),
            streams,
            tuple(batch.id for batch in self.batches()),
        )

    def batches(self) -> list[Batch]:
        rows = self._db.execute("SELECT number, id, size, contents FROM batches ORDER BY number")
        return [
            Batch(
                number,
                bytes(id),
                size,
                {name: Layout.from_json(layout) for name, layout in json.loads(contents).items()},
            )
            for number, id, size, contents in rows
        ]

    def unwiped(self) -> dict[str, tuple[int, int]]:
        """Rows [from, to) by stream that were taken and perhaps not wiped."""
        return {name: (wiped, taken) for name, taken, _, wiped in self._streams() if wiped < taken}

    def add(self, batch: Batch) -> None:
        """A batch whose file is safely on the disk."""
        contents = json.dumps({name: layout.to_json() for name, layout in batch.contents.items()})
        with self._transaction():
            self._db.execute(
                "INSERT INTO batches VALUES(?, ?, ?, ?)", (batch.number, batch.id, batch.size, contents)
            )
            self._made({name: layout.end for name, layout in batch.contents.items()})

    def take(self, marks: Mapping[str, int]) -> None:
        """Rows below the marks are taken. What was taken before has been wiped."""
        with self._transaction():
            self._db.execute("UPDATE streams SET wiped = taken WHERE wiped < taken")
            self._db.executemany(
                "UPDATE streams SET taken = ? WHERE name = ?", [(mark, name) for name, mark in marks.items()]
            )
            self._set({"takes": self.fact("takes", 0) + 1})

    def agree(self, state: State) -> None:
        """First step of an opening: the agreed marks and batches hold from now on, whether it completes or
        not."""
        with self._transaction():
            self._made({name: made for name, (_, made) in state.streams.items()})
            self._db.executemany(
                "UPDATE streams SET taken = max(taken, ?) WHERE name = ?",
                [(taken, name) for name, (taken, _) in state.streams.items()],
            )
            for batch in self.batches():
                if batch.id not in state.batches:
                    self._db.execute("DELETE FROM batches WHERE number = ?", (batch.number,))
            self._set(
                {
                    "takes": state.takes,
                    "epoch": state.epoch,
                    "generation": state.generation,
                    "pending": state.pending,
                }
            )

    def confirm(self, epoch: bytes, generation: int) -> None:
        """Second step: the other party has agreed as well."""
        with self._transaction():
            self._set({"epoch": epoch, "generation": generation, "pending": None})

    def forget(self, numbers: list[int]) -> None:
        """Batches whose files are gone."""
        if numbers:
            with self._transaction():
                self._db.executemany("DELETE FROM batches WHERE number = ?", [(n,) for n in numbers])

    def close(self) -> None:
        self._db.close()

    def _streams(self) -> list[tuple[str, int, int, int]]:
        return self._db.execute("SELECT name, taken, made, wiped FROM streams ORDER BY name").fetchall()

    def _made(self, ends: Mapping[str, int]) -> None:
        self._db.executemany(
            "INSERT INTO streams VALUES(?, 0, ?, 0)"
            " ON CONFLICT(name) DO UPDATE SET made = max(made, excluded.made)",
            list(ends.items()),
        )

    def _set(self, values: Mapping[str, Any]) -> None:
        self._db.executemany("INSERT OR REPLACE INTO facts VALUES(?, ?)", list(values.items()))

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """StorageError if the disk is full: then nothing has changed."""
        try:
            with transaction(self._db):
                yield
        except sqlite3.OperationalError as error:
            raise unwritable(self._directory, error) from None


def unwritable(directory: Path, error: Exception) -> StorageError:
    """Why prepared material cannot be kept."""
    return StorageError(
        f"prepared material cannot be kept in {directory} ({reason(error)}); make room or permissions there,"
        " or go on without it (--no-pool, --no-pools)"
    )


def _number(value: Any) -> int:
    if type(value) is not int or not 0 <= value < _LARGEST:
        raise ValueError
    return value


def _named(value: Any, size: int) -> bytes:
    raw = bytes.fromhex(value)
    if len(raw) != size:
        raise ValueError
    return raw
