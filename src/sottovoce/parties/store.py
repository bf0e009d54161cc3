"""Saved sessions on disk: metadata in SQLite, state in safetensors files, one for every checkpoint.

A checkpoint writes what changed into a new file, then one transaction makes that file part of the session and
drops what it replaces; files that nothing needs any more are deleted after it. Whatever moment a process is
killed at, the last complete checkpoint is what the next start finds.

With a vault (at the client) heads and files are sealed. Directory 0700, files 0600.
"""

import hashlib
import json
import os
import shutil
import sqlite3
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from ..errors import CorruptFileError, StorageError, UsageError
from ..net.tls import make_private_directory
from ..storage import reason, transaction
from .vault import Vault

FORMAT = 1
_TOKENS = "tokens."
# Bytes that a session counts for at least: empty ones take place in the database, too.
_FLOOR = 1 << 18
_TABLES = """
CREATE TABLE IF NOT EXISTS sessions(
    id TEXT PRIMARY KEY, name TEXT UNIQUE, created REAL NOT NULL, touched REAL NOT NULL, facts TEXT NOT NULL,
    head BLOB NOT NULL, files INTEGER NOT NULL, size INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS files(
    session TEXT NOT NULL, number INTEGER NOT NULL, size INTEGER NOT NULL, digest BLOB NOT NULL,
    PRIMARY KEY(session, number)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS pieces(
    session TEXT NOT NULL, name TEXT NOT NULL, number INTEGER NOT NULL, PRIMARY KEY(session, name)
) WITHOUT ROWID;
"""

Piece = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Entry:
    """What may be shown of a saved session. facts: public numbers and names, size in bytes."""

    id: str
    name: str | None
    created: float
    touched: float
    facts: dict[str, Any]
    size: int


class SessionStore:
    """All sessions of one party. Threads may share it; at the client processes may, too."""

    def __init__(self, directory: Path, vault: Vault | None = None) -> None:
        """CorruptFileError if the database cannot be read, StorageError if it cannot be made."""
        self.directory = directory
        self._vault, self._lock = vault, RLock()
        path = directory / "sessions.db"
        try:
            make_private_directory(directory)
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600))
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=30)
            for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "secure_delete=ON"):
                self._db.execute(f"PRAGMA {pragma}").fetchall()
            (version,) = self._db.execute("PRAGMA user_version").fetchone()
            if version == 0:
                self._db.executescript(_TABLES + f"PRAGMA user_version={FORMAT};")
        except (OSError, sqlite3.OperationalError) as error:  # the disk, not what is on it
            raise _unwritable(directory, error) from None
        except sqlite3.DatabaseError as error:
            raise CorruptFileError(
                f"the saved sessions in {directory} cannot be read ({error});"
                " delete the directory to begin anew"
            ) from None
        if version not in (0, FORMAT):
            raise CorruptFileError(
                f"the saved sessions in {directory} have format {version}, this release reads {FORMAT};"
                " use the release that wrote them"
            )

    def close(self) -> None:
        """No checkpoint is under way after it, and none begins."""
        with self._lock:
            self._db.close()

    def entries(self) -> list[Entry]:
        """All sessions, the last used first."""
        return self._entries("ORDER BY touched DESC, id")

    def find(self, name: str) -> Entry | None:
        """By name, or by id."""
        return next(iter(self._entries("WHERE name = ? OR id = ? ORDER BY touched DESC", name, name)), None)

    def _entries(self, which: str, *arguments: str) -> list[Entry]:
        rows = self._rows(f"SELECT id, name, created, touched, facts, size FROM sessions {which}", *arguments)
        return [Entry(id, name, a, b, json.loads(facts), size) for id, name, a, b, facts, size in rows]

    def create(self, id: str, name: str | None, facts: Mapping[str, Any], head: bytes) -> None:
        """A new session. UsageError if the name is taken."""
        sealed = self._seal(f"{id} head", head)
        with self._writing():
            if name is not None and self.find(name):
                raise UsageError(f"there is already a saved session named {name!r}; choose another name")
            now = time.time()
            self._db.execute(
                "INSERT INTO sessions VALUES(?, ?, ?, ?, ?, ?, 0, 0)",
                (id, name, now, now, json.dumps(facts), sealed),
            )
            make_private_directory(self.directory / id)

    def rename(self, id: str, name: str) -> None:
        """UsageError if the name is taken."""
        with self._writing():
            if self.find(name):
                raise UsageError(f"there is already a saved session named {name!r}; choose another name")
            self._db.execute("UPDATE sessions SET name = ? WHERE id = ?", (name, id))

    def checkpoint(self, id: str, head: bytes, pieces: Mapping[str, Piece], facts: Mapping[str, Any]) -> None:
        """Replace the head, add pieces. StorageError if the disk is full; then nothing has changed."""
        with self._writing():
            row = self._db.execute("SELECT files FROM sessions WHERE id = ?", (id,)).fetchone()
            if row is None:
                raise UsageError("the saved session was removed meanwhile; it is not saved any more")
            number, gone = row[0], list[int]()
            if pieces:
                digest, size = self._write(id, number, pieces)
                self._db.execute("INSERT INTO files VALUES(?, ?, ?, ?)", (id, number, size, digest))
                self._replace(id, number, pieces)
                gone = self._unneeded(id)
            (size,) = self._db.execute(
                "SELECT coalesce(sum(size), 0) FROM files WHERE session = ?", (id,)
            ).fetchone()
            self._db.execute(
                "UPDATE sessions SET head = ?, files = ?, touched = ?, facts = ?, size = ? WHERE id = ?",
                (self._seal(f"{id} head", head), number + 1, time.time(), json.dumps(facts), size, id),
            )
        for old in gone:
            self._path(id, old).unlink(missing_ok=True)

    def head(self, id: str) -> bytes:
        """What the last checkpoint said. UsageError if there is no such session."""
        rows = self._rows("SELECT head FROM sessions WHERE id = ?", id)
        if not rows:
            raise UsageError("there is no such saved session; `sottovoce session ls` lists them")
        return self._unseal(f"{id} head", bytes(rows[0][0]))

    def pieces(self, id: str) -> list[tuple[str, Piece]]:
        """All pieces, oldest first. CorruptFileError if a file is missing or was changed."""
        with self._lock:
            files = self._rows("SELECT number, size, digest FROM files WHERE session = ? ORDER BY number", id)
            names = dict(self._rows("SELECT name, number FROM pieces WHERE session = ?", id))
            found: list[tuple[str, Piece]] = []
            for number, size, digest in files:
                for name, piece in self._read(id, number, size, bytes(digest)).items():
                    if names.get(name) == number:
                        found.append((name, piece))
        return found

    def remove(self, id: str) -> None:
        """Delete a session and its files."""
        with self._writing():
            for table, column in (("pieces", "session"), ("files", "session"), ("sessions", "id")):
                self._db.execute(f"DELETE FROM {table} WHERE {column} = ?", (id,))
        shutil.rmtree(self.directory / id, ignore_errors=True)

    def evict(self, limit: int, max_idle: float, busy: frozenset[str] = frozenset()) -> int:
        """Delete sessions unused for `max_idle` seconds, and some while all are above `limit` bytes; returns
        how many. A clock that was set back makes none older.

        Above the limit the client (fact `client`) that takes most loses its oldest one: nobody can push out
        others' sessions by saving many.
        """
        now, gone = time.time(), 0
        ((total, oldest),) = self._rows(f"SELECT sum(max(size, {_FLOOR})), min(touched) FROM sessions")
        if oldest is None or (total <= limit and now - oldest <= max_idle):
            return 0
        shares: dict[str, list[Entry]] = defaultdict(list)
        sizes: Counter[str] = Counter()
        for entry in self.entries():
            if entry.id not in busy and now - entry.touched > max_idle:
                self.remove(entry.id)
                gone += 1
                continue
            client = str(entry.facts.get("client", ""))
            sizes[client] += max(entry.size, _FLOOR)
            if entry.id not in busy:
                shares[client].append(entry)
        while sizes.total() > limit and any(shares.values()):
            client = max((name for name in shares if shares[name]), key=lambda name: sizes[name])
            entry = shares[client].pop()
            self.remove(entry.id)
            sizes[client] -= max(entry.size, _FLOOR)
            gone += 1
        return gone

    def _rows(self, query: str, *arguments: str) -> list[Any]:
        with self._lock:
            try:
                return self._db.execute(query, arguments).fetchall()
            except sqlite3.OperationalError as error:
                raise _unwritable(self.directory, error) from None
            except sqlite3.Error as error:
                raise CorruptFileError(
                    f"the saved sessions in {self.directory} cannot be read ({error})"
                ) from None

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with self._lock:
            try:
                with transaction(self._db):
                    yield
            except (OSError, sqlite3.Error) as error:
                raise _unwritable(self.directory, error) from None

    def _write(self, id: str, number: int, pieces: Mapping[str, Piece]) -> tuple[bytes, int]:
        arrays = {
            f"{piece}/{name}": np.ascontiguousarray(array)
            for piece, part in pieces.items()
            for name, array in part.items()
        }
        data = self._seal(f"{id} {number}", save(arrays, {"sottovoce": str(FORMAT)}))
        path = self._path(id, number)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
        except OSError:
            path.unlink(missing_ok=True)
            raise
        return _digest(data), len(data)

    def _read(self, id: str, number: int, size: int, digest: bytes) -> dict[str, dict[str, npt.NDArray[Any]]]:
        try:
            data = self._path(id, number).read_bytes()
            if len(data) != size or _digest(data) != digest:
                raise ValueError
            arrays = load(self._unseal(f"{id} {number}", data))
        except (OSError, ValueError, SafetensorError):
            raise CorruptFileError(
                f"a file of the saved session {id[:8]} is missing or damaged; it cannot go on from there,"
                " remove it with `sottovoce session rm`"
            ) from None
        pieces: dict[str, dict[str, npt.NDArray[Any]]] = {}
        for key, array in sorted(arrays.items()):
            piece, _, name = key.rpartition("/")
            pieces.setdefault(piece, {})[name] = array
        return pieces

    def _replace(self, id: str, number: int, pieces: Mapping[str, Piece]) -> None:
        """The new file's pieces hold from now on; rows of tokens cut off older rows."""
        for name in pieces:
            self._db.execute("INSERT OR REPLACE INTO pieces VALUES(?, ?, ?)", (id, name, number))
        first = min((_first(name) for name in pieces if name.startswith(_TOKENS)), default=None)
        if first is not None:
            rows = self._db.execute("SELECT name FROM pieces WHERE session = ? AND number < ?", (id, number))
            old = [(id, name) for (name,) in rows if name.startswith(_TOKENS) and _first(name) >= first]
            self._db.executemany("DELETE FROM pieces WHERE session = ? AND name = ?", old)

    def _unneeded(self, id: str) -> list[int]:
        """Forget files of which no piece holds any more."""
        where = "session = ? AND number NOT IN (SELECT number FROM pieces WHERE session = ?)"
        rows = self._db.execute(f"SELECT number FROM files WHERE {where}", (id, id)).fetchall()
        self._db.execute(f"DELETE FROM files WHERE {where}", (id, id))
        return [number for (number,) in rows]

    def _seal(self, label: str, data: bytes) -> bytes:
        return data if self._vault is None else self._vault.seal(label, data)

    def _unseal(self, label: str, data: bytes) -> bytes:
        return data if self._vault is None else self._vault.open(label, data)

    def _path(self, id: str, number: int) -> Path:
        return self.directory / id / f"{number:08d}.safetensors{'' if self._vault is None else '.sealed'}"


def _first(name: str) -> int:
    return int(name.removeprefix(_TOKENS))


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def _unwritable(directory: Path, error: Exception) -> StorageError:
    return StorageError(
        f"saved sessions cannot be kept in {directory} ({reason(error)}); make room or permissions there, "
        "set SOTTOVOCE_CONFIG_DIR, or go on without them (--no-sessions at a server)"
    )
