"""The client's saved sessions: tokens, keys and its half of the state, sealed on its disk."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import CorruptFileError, RefusedError, SottovoceError, UsageError
from .kept import Checkpoints, Head, read_head
from .resume import Stamps
from .store import Entry, SessionStore

_NAME = re.compile(r"[\w.\- ]{1,64}")


@dataclass
class SavedSession:
    """One of them, opened: what a `Client` needs to go on with it, and to keep it on the way.

    notes: whatever the caller keeps with it (a conversation), JSON values, as secret as the tokens.
    """

    store: SessionStore
    entry: Entry
    head: Head = field(repr=False)

    @classmethod
    def open(cls, store: SessionStore, name: str) -> SavedSession:
        """By name or id. UsageError if there is none, CorruptFileError if it cannot be read."""
        entry = store.find(name)
        if entry is None:
            raise UsageError(f"there is no saved session {name!r}; `sottovoce session ls` lists them")
        head = read_head(entry.id, store.head(entry.id))
        saved = cls(store, entry, head)
        if len(saved.tokens) != head.stamps.size:
            raise CorruptFileError(
                "a saved session contradicts itself; remove it with `sottovoce session rm`"
            )
        return saved

    @property
    def tokens(self) -> list[int]:
        return _numbers(self.head.fields.get("tokens"))

    @property
    def public_count(self) -> int:
        """Of the tokens, those the server knows."""
        return int(self.head.fields.get("public", 0))

    @property
    def waiting(self) -> int:
        """How many of the tokens, the last ones, were on their way to the server; it may have the answer."""
        return int(self.head.fields.get("waiting", 0))

    @property
    def digest(self) -> bytes | None:
        """Of what was last sent, where the server keeps the answer."""
        return bytes.fromhex(str(self.head.fields.get("digest", ""))) or None

    @property
    def secret(self) -> bytes | None:
        """The key of the session's state, if it has one."""
        return bytes.fromhex(str(self.head.fields.get("secret", ""))) or None

    @property
    def notes(self) -> dict[str, Any]:
        return dict(self.head.fields.get("notes") or {})

    @property
    def server(self) -> str:
        """Where it was last used."""
        return str(self.entry.facts.get("server", ""))

    def checkpoints(self, epoch: int, tokens: int) -> Checkpoints:
        """To go on with the first `tokens` of them."""
        stamps = Stamps(epoch, self.head.stamps[:tokens])
        return Checkpoints(self.store, self.head.ticket, stamps, self.head.keeps)


def check_name(name: str) -> None:
    """UsageError for what cannot name a session."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r:.80} cannot name a session: take up to 64 letters, digits, dots, dashes and spaces"
        )


@contextmanager
def exclusive(store: SessionStore, name: str) -> Iterator[None]:
    """The session is this process's: another one that wants it meanwhile, by name or id, is refused."""
    check_name(name)
    entry = store.find(name)
    locked = name if entry is None or entry.name is None else entry.name
    path: Path = store.directory / f".{locked}.lock"
    descriptor = _locked(path)
    if descriptor is None:
        raise RefusedError(f"the saved session {name!r} is in use by another process; end that one first")
    try:
        yield
    finally:
        with suppress(SottovoceError):
            if store.find(locked) is None:
                path.unlink(missing_ok=True)  # of a session that is gone, or was never saved, no name is left
        os.close(descriptor)


def _locked(path: Path) -> int | None:
    """An open, locked file; None if another process has it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.exists(path) and os.path.samestat(os.stat(path), os.fstat(descriptor)):
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            return None
        except FileNotFoundError:
            pass
        os.close(descriptor)  # deleted while we were about to lock it


def _numbers(value: Any) -> list[int]:
    if not isinstance(value, list) or not all(type(n) is int and 0 <= n < 1 << 32 for n in value):
        raise CorruptFileError("a saved session cannot be read; remove it with `sottovoce session rm`")
    return value
