"""What a server writes about its sessions if asked to: a line of JSON for each session, or for each frame."""

import json
import os
import threading
from dataclasses import asdict
from typing import IO, Any


class Journal:
    """One line of JSON per ended session."""

    def __init__(self, path: str | None) -> None:
        self._path = path
        self._lock = threading.Lock()
        if path:
            append_private(path).close()  # what cannot be written is said now, not after the first session

    def write(self, report: Any) -> None:
        if self._path:
            with self._lock, append_private(self._path) as file:
                file.write(json.dumps(asdict(report)) + "\n")


class Recorder:
    """One line of JSON per received frame: session, size, first 32 bytes in hexadecimal."""

    def __init__(self, path: str | None) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._file = append_private(path) if path else None

    def write(self, session: str, view: memoryview) -> None:
        if self._file:
            entry = {"session": session, "size": len(view), "first": bytes(view[:32]).hex()}
            with self._lock:
                self._file.write(json.dumps(entry) + "\n")

    def flush(self) -> None:
        if self._file:
            with self._lock:
                self._file.flush()


def append_private(path: str) -> IO[str]:
    """Addresses of clients, sizes, and with engine `clear` their tokens: for the owner's eyes (mode 0600)."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "a")
