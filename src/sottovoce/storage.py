"""What pools, saved sessions and known hosts share: transactions, locks, why something cannot be written."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """All that is written inside, or nothing: sqlite3's errors, at the commit too, leave what was there."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):
            db.execute("ROLLBACK")
        raise


@contextmanager
def locked(descriptor: int) -> Iterator[None]:
    """No other process is inside with the same file or directory. Waits for it; closes the descriptor."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def reason(error: Exception) -> str:
    """Why something cannot be written, in the system's words."""
    return getattr(error, "strerror", None) or str(error)
