"""Whether there is memory for something large, asked before it is begun: an engine, its sessions, a client.

Estimates by ring degree, measured at N = 2^16 and rounded up.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock

from sottovoce.errors import RefusedError, UsageError

# Bytes for each coefficient of the ring.
_WORKING = 23_000  # of a refresh while it runs: 1.5 GB at N = 2^16
_MAPS = 16_000  # of an engine: the maps of a refresh, weights as plaintexts
_CLIENT = 6_200  # the largest key while it is made, and its frame: 0.4 GB

# Of both versions: what a container may use, what it uses, and how much of that are caches of files.
_CGROUPS = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file "),
    (
        "memory/memory.limit_in_bytes",
        "memory/memory.usage_in_bytes",
        "memory/memory.stat",
        "total_inactive_file ",
    ),
)


def available_memory(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes that a process can still get, where the system says so: of the machine, and of its container."""
    found = []
    try:
        text = (proc / "meminfo").read_text()
        found.append(int(text.split("MemAvailable:")[1].split()[0]) * 1024)
    except (OSError, IndexError, ValueError):
        pass
    for limit, used, stat, name in _CGROUPS:
        try:
            free = int((cgroup / limit).read_text()) - int((cgroup / used).read_text())
            caches = int((cgroup / stat).read_text().split("\n" + name)[1].split()[0])
            found.append(free + caches)
        except (OSError, IndexError, ValueError):  # "max", or another kind of system
            continue
    return max(0, min(found)) if found else None


def check_engine(degree: int, available: int | None) -> None:
    """Before a model is made ready."""
    if available is not None and _MAPS * degree > available:
        raise UsageError(
            f"the engine fhe takes {_MAPS * degree / 1e9:.1f} GB to make a model ready, and several times "
            f"that for a session; {available / 1e9:.1f} GB are free. Use a larger machine, or hybrid"
        )


def check_client(degree: int, available: int | None) -> None:
    """Before the first key is made."""
    if available is not None and _CLIENT * degree > available:
        raise UsageError(
            f"making keys for the engine fhe takes {_CLIENT * degree / 1e9:.1f} GB, {available / 1e9:.1f} GB "
            "are free; close something, or use a server with the engine hybrid"
        )


def check_session(keys: int, degree: int, available: int | None) -> None:
    """Refuse a session before its keys are uploaded, rather than run out of memory in its middle."""
    work = _WORKING * degree
    if available is not None and keys + work > available:
        raise RefusedError(
            f"this session's evaluation keys take {keys / 1e9:.1f} GB and its work {work / 1e9:.1f} GB, "
            f"the server has {available / 1e9:.1f} GB left; try again later, or on a larger machine"
        )


class Uploads:
    """Sessions whose keys are on their way: what they will take is not free for another one."""

    def __init__(self) -> None:
        self._lock, self._coming = Lock(), 0

    @contextmanager
    def one(self, keys: int, degree: int) -> Iterator[None]:
        """RefusedError if there is no room for its keys."""
        with self._lock:
            free = available_memory()
            check_session(keys, degree, None if free is None else free - self._coming)
            # Counted in full until all of it is there: too much rather than too little.
            self._coming += keys
        try:
            yield
        finally:
            with self._lock:
                self._coming -= keys
