"""A party's half of the one-time items that were made ahead, in a directory that survives restarts.

The other party holds the other halves in a pool of its own; `agreement.py` keeps the two in step. The rule
that everything here serves: a row is marked as taken, on the disk, before anybody sees it. Then it is wiped.
A crash in between burns the row; it never hands it out again.

The directory (mode 0700) holds `marks.db`, files of items (0600) and nothing else. The items are secret, and
so is `marks.db` (it has the pool's key). Wiping overwrites the bytes and deletes the file; a disk that
writes elsewhere instead of in place, or a snapshot, may keep old bytes all the same.
"""

import fcntl
import hashlib
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sottovoce.correlations.marks import EPOCH_BYTES, ID_BYTES, Batch, Marks, State, unwritable
from sottovoce.correlations.records import Layout, Record, read_rows, wipe_rows, write_records
from sottovoce.errors import RefusedError, UsageError

DEFAULT_LIMIT = 4 << 30
_LEDGER = "marks.db"
_SUFFIX = ".items"
# Programs that make backups leave a directory out that has this file. (A restored pool is refused anyway.)
_TAG = (
    "CACHEDIR.TAG",
    "Signature: 8a477f597d28d172789f06886806bc55\nOne-time secrets; worthless in a backup.\n",
)


# Rows [start, stop) of a batch.
Part = tuple[Batch, Layout, int, int]


class PoolBusyError(RefusedError):
    """Another session uses the pool."""


@dataclass(frozen=True)
class Staged:
    """A batch that is on the disk and that the other party has not confirmed yet."""

    path: Path
    size: int
    contents: dict[str, Layout]


class Pool:
    """An open pool, locked against every other process and thread that would open it.

    limit: bytes of items it may hold. One thread uses it, as one thread owns a session's channel.
    """

    def __init__(self, directory: Path, limit: int = DEFAULT_LIMIT) -> None:
        """Open. UsageError if there is no pool, RefusedError if it is in use or others can read it."""
        self.directory, self.limit = directory, limit
        self._lock = _lock(directory)
        try:
            if not (directory / _LEDGER).exists():
                raise _missing(directory)
            self.marks = Marks(directory / _LEDGER)
            if self.marks.fact("secret") is None:  # its creation was interrupted
                self.marks.close()
                raise _missing(directory)
        except BaseException:
            os.close(self._lock)
            raise
        self.id = bytes(self.marks.fact("id"))
        self.secret = bytes(self.marks.fact("secret"))
        self._epoch, self._stored = bytes(EPOCH_BYTES), 0  # until an opening is agreed on
        self._load()

    @classmethod
    def create(cls, directory: Path, id: bytes, secret: bytes, limit: int = DEFAULT_LIMIT) -> "Pool":
        """A new, empty pool, in place of one whose creation was interrupted.

        id: public name, the same at both parties. secret: a key that both know, by which they recognise each
        other.
        """
        with _writing(directory):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            _sync(directory.parent)
        lock = _lock(directory)
        try:
            with _writing(directory), closing(Marks(directory / _LEDGER)) as marks:
                if marks.fact("secret") is not None:
                    raise UsageError(f"there is already a correlation pool in {directory}")
                (directory / _TAG[0]).write_text(_TAG[1])
                # Both parties start from the same epoch, which no opening ever has.
                marks.set_facts(id=id, epoch=id + bytes(len(id)), generation=0, takes=0, secret=secret)
                _sync(directory)
        finally:
            os.close(lock)
        return cls(directory, limit)

    @property
    def size(self) -> int:
        """Bytes of the items on disk."""
        return sum(batch.size for batch in self._batches)

    def streams(self) -> list[str]:
        """Names of all streams that the batches on disk hold, in order."""
        return sorted({name for batch in self._batches for name in batch.contents})

    def available(self, stream: str) -> int:
        """Rows of a stream that can be taken."""
        taken = self._taken.get(stream, 0)
        layouts = [batch.contents[stream] for batch in self._batches if stream in batch.contents]
        return sum(max(0, layout.end - max(taken, layout.first)) for layout in layouts)

    def state(self) -> State:
        """What the ledger says, for the other party."""
        return self.marks.state()

    def agree(self, agreed: State) -> None:
        """Continue from the marks and batches that both parties agreed on; the rest is wiped."""
        self.marks.agree(agreed)
        kept = {batch.number for batch in self.marks.batches()}
        for batch in self._batches:
            if batch.number not in kept:
                _erase(self._path(batch.number))
        self._load()

    def begin(self, epoch: bytes, generation: int) -> None:
        """The other party has agreed as well: a new epoch."""
        self.marks.confirm(epoch, generation)
        self._epoch, self._stored = epoch, 0

    def stage(self, records: Mapping[str, Record]) -> Staged | None:
        """Write a batch, safely on the disk but not part of the pool yet; None if it exceeds the limit.

        StorageError if the disk is full.
        """
        with _writing(self.directory):
            return self._stage(records)

    def _stage(self, records: Mapping[str, Record]) -> Staged | None:
        number = 1 + max((batch.number for batch in self._batches), default=-1)
        path = self.directory / f"{number:08d}{_SUFFIX}"
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            contents, size = write_records(file, records, self._made)
            os.fsync(file)
        except BaseException:
            _erase(path)
            raise
        finally:
            os.close(file)
        staged = Staged(path, size, contents)
        if self.size + size > self.limit:
            self.discard(staged)
            return None
        _sync(self.directory)
        return staged

    def commit(self, staged: Staged) -> None:
        """Make a staged batch part of the pool.

        Its id is the same at both parties: the epoch, and how many batches were stored in it.
        """
        number = int(staged.path.name.removesuffix(_SUFFIX))
        id = hashlib.blake2b(self._epoch + self._stored.to_bytes(8, "little"), digest_size=ID_BYTES).digest()
        self._stored += 1
        batch = Batch(number, id, staged.size, staged.contents)
        self.marks.add(batch)
        self._batches.append(batch)
        self._made.update({name: layout.end for name, layout in staged.contents.items()})

    def discard(self, staged: Staged) -> None:
        """Wipe a staged batch."""
        _erase(staged.path)

    def take(self, wanted: Mapping[str, int]) -> dict[str, list[Record]]:
        """Take up to so many rows of each stream (whole granules, so perhaps a few more), for good.

        Both parties call it alike. One transaction marks all of them; then they are read and wiped. Streams
        that have run dry give fewer rows or none.
        """
        plan = {name: self._plan(name, n) for name, n in wanted.items()}
        marks = {name: layout.first + stop for name, parts in plan.items() for _, layout, _, stop in parts}
        if not marks:
            return {}
        self.marks.take(marks)
        self._taken.update(marks)
        with _writing(self.directory):
            found = self._read_and_wipe(plan)
            self._drop_exhausted()
        return found

    def _read_and_wipe(self, plan: Mapping[str, Sequence[Part]]) -> dict[str, list[Record]]:
        found: dict[str, list[Record]] = {}
        files: dict[int, int] = {}
        try:
            for name, parts in plan.items():
                for batch, layout, start, stop in parts:
                    if batch.number not in files:
                        files[batch.number] = os.open(self._path(batch.number), os.O_RDWR | os.O_NOFOLLOW)
                    found.setdefault(name, []).append(read_rows(files[batch.number], layout, start, stop))
                    wipe_rows(files[batch.number], layout, start, stop)
        finally:
            for file in files.values():
                os.close(file)
        return found

    def close(self) -> None:
        """Release the pool. Idempotent."""
        if self._lock >= 0:
            self.marks.close()
            os.close(self._lock)
            self._lock = -1

    def destroy(self) -> None:
        """Wipe and delete everything, ledger last."""
        if self._lock >= 0:
            for path in self.directory.glob("*" + _SUFFIX):
                _erase(path)
            self.marks.close()
            for name in (_TAG[0], _LEDGER + "-wal", _LEDGER + "-shm", _LEDGER):
                _erase(self.directory / name)
            with suppress(OSError):  # something of somebody else's in it
                os.rmdir(self.directory)
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _load(self) -> None:
        """Take stock after a start or an agreement: finish what a crash interrupted."""
        state = self.marks.state()
        self._taken = {name: taken for name, (taken, _) in state.streams.items()}
        self._made = {name: made for name, (_, made) in state.streams.items()}
        known = self.marks.batches()
        self._batches = [batch for batch in known if self._is_whole(batch)]
        self.marks.forget([batch.number for batch in known if batch not in self._batches])
        expected = {self._path(batch.number) for batch in self._batches}
        for path in self.directory.glob("*" + _SUFFIX):
            if path not in expected:
                _erase(path)
        unwiped = self.marks.unwiped()
        for batch in self._batches:
            self._wipe_again(batch, unwiped)
        self._drop_exhausted()

    def _plan(self, stream: str, n: int) -> list[Part]:
        """The parts of batches (rows counted in the batch) that n rows of a stream come from."""
        parts, taken = [], self._taken.get(stream, 0)
        for batch in self._batches:
            layout = batch.contents.get(stream)
            if layout is None or layout.end <= taken or n <= 0:
                continue
            start = max(0, taken - layout.first)
            stop = min(layout.count, start + -(-n // layout.granule) * layout.granule)
            parts.append((batch, layout, start, stop))
            n -= stop - start
        return parts

    def _drop_exhausted(self) -> None:
        gone = []
        for batch in self._batches:
            if all(layout.end <= self._taken.get(name, 0) for name, layout in batch.contents.items()):
                self._path(batch.number).unlink(missing_ok=True)  # row by row it has been wiped
                gone.append(batch.number)
        self.marks.forget(gone)
        self._batches = [batch for batch in self._batches if batch.number not in gone]

    def _wipe_again(self, batch: Batch, unwiped: Mapping[str, tuple[int, int]]) -> None:
        file = os.open(self._path(batch.number), os.O_RDWR | os.O_NOFOLLOW)
        try:
            for name, (low, high) in unwiped.items():
                layout = batch.contents.get(name)
                if layout is not None and layout.first < high and low < layout.end:
                    start = max(0, low - layout.first) // layout.granule * layout.granule
                    wipe_rows(file, layout, start, min(high, layout.end) - layout.first)
        finally:
            os.close(file)

    def _is_whole(self, batch: Batch) -> bool:
        try:
            return self._path(batch.number).stat().st_size == batch.size
        except FileNotFoundError:
            return False

    def _path(self, number: int) -> Path:
        return self.directory / f"{number:08d}{_SUFFIX}"


def _lock(directory: Path) -> int:
    """Lock a directory for this opening; another one, even in this process, is refused."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        raise _missing(directory) from None
    info = os.fstat(descriptor)
    if stat.S_IMODE(info.st_mode) & 0o077 or info.st_uid != os.geteuid():
        os.close(descriptor)
        raise RefusedError(
            "the directory of the correlation pool is not private to its user; if nobody can have read it,"
            f" `chmod 700` the directory {directory.name} among the pools, otherwise delete it"
        )
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise PoolBusyError(
            "the correlation pool is in use by another session; wait until it ends, or use --no-pool"
        ) from None
    if not info.st_nlink or not directory.exists():  # deleted while we were about to lock it
        os.close(descriptor)
        raise _missing(directory)
    return descriptor


@contextmanager
def _writing(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise unwritable(directory, error) from None


def _missing(directory: Path) -> UsageError:
    return UsageError(f"there is no correlation pool in {directory}; `sottovoce prepare SERVER` makes one")


def _erase(path: Path) -> None:
    """Overwrite and delete a file, if there is one."""
    try:
        with path.open("r+b", buffering=0) as file:
            left = os.fstat(file.fileno()).st_size
            zeros = np.zeros(min(left, 1 << 20), np.uint8).data
            while left > 0:
                left -= file.write(zeros[:left]) or 0
    except FileNotFoundError:
        return
    path.unlink()


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
