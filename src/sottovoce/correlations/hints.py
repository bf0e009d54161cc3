"""The fixed halves of all products of a model: made once by the server, sent once to each client, kept in a
file.

A hint hides the weights as a ciphertext hides a message (its key never leaves the server) and serves every
batch of every client. 40 bits for each of N coefficients of every output row: 10 KB a row.
"""

from __future__ import annotations

import hashlib
import os
import struct
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sottovoce.correlations.row_products import LocalRows, RowProducts
from sottovoce.dense import FRESH_BITS, LOG_Q, SENT_BITS, SENT_BYTES, DenseParameters, HintSecret
from sottovoce.errors import CorruptFileError, IntegrityError, RefusedError, StorageError
from sottovoce.net import Channel
from sottovoce.ring.sampling import SEED_BYTES, fresh_seed

U8 = npt.NDArray[np.uint8]
Int16 = npt.NDArray[np.int16]
MatrixKey = tuple[str, int]  # the name of a matrix and its layer
Shapes = Mapping[MatrixKey, tuple[int, int]]  # (outputs, inputs); its order is the numbering of the matrices
Report = Callable[[int, int], None]  # rows done, rows in all

ROWS = 1024  # output rows per frame: 10 MB of hint
_VERSION = 2
_HEADER = struct.Struct("<4sHHQ32s16x")  # magic, version, complete, rows, identity


def identity(parameters: DenseParameters, shapes: Shapes, seed: bytes) -> bytes:
    """32 bytes that name a hint: its uniform halves, the sizes of the matrices, the layout."""
    words = [
        _VERSION,
        parameters.degree,
        parameters.block,
        parameters.plaintext,
        LOG_Q,
        SENT_BITS,
        FRESH_BITS,
    ]
    named = [f"{name} {layer} {d_out} {d_in}" for (name, layer), (d_out, d_in) in shapes.items()]
    text = ",".join(map(str, words)) + ";" + ";".join(named)
    return hashlib.blake2b(text.encode() + seed, digest_size=32).digest()


class HintFile:
    """Rows of all matrices in one file, mapped into memory; complete or not.

    path: where it stays (mode 0600), or None for a file that vanishes with its last user. CorruptFileError if
    a file is there that is not a hint of this identity; the caller may delete it.
    """

    def __init__(self, path: Path | None, parameters: DenseParameters, shapes: Shapes, name: bytes) -> None:
        self.identity = name
        self._rows = {key: shape[0] for key, shape in shapes.items()}
        self._width = SENT_BYTES * parameters.degree
        total = sum(self._rows.values())
        size = _HEADER.size + total * self._width
        if path is None:
            self._file = tempfile.TemporaryFile(prefix="sottovoce-hint")  # noqa: SIM115
        else:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            self._file = os.fdopen(handle, "r+b")
        here = self._file.seek(0, os.SEEK_END)
        if here == 0:
            self._allocate(size)
            self._write_header(False)
        self._file.seek(0)
        head = self._file.read(_HEADER.size)
        if here not in (0, size) or head not in (self._header(False), self._header(True)):
            self._file.close()
            raise CorruptFileError(f"{path} is not the hint of this model; delete it")
        self.complete = head == self._header(True)
        self._map = np.memmap(self._file, np.uint8, "r+", _HEADER.size, (total, self._width))
        starts = np.cumsum([0, *self._rows.values()])
        self._starts = dict(zip(self._rows, starts.tolist(), strict=False))

    def _allocate(self, size: int) -> None:
        """StorageError if the disk is full: found later, by a write into the mapped memory, it would end the
        process."""
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self._file.fileno(), 0, size)
            else:
                zeros = bytes(1 << 20)
                for at in range(0, size, len(zeros)):
                    self._file.write(zeros[: size - at])
                self._file.flush()
        except OSError as error:
            os.ftruncate(self._file.fileno(), 0)
            self._file.close()
            reason = error.strerror or str(error)
            raise StorageError(
                f"there is no room for the {size / 1e9:.1f} GB of prepared products' fixed halves ({reason});"
                " make room, or go on without prepared tokens"
            ) from None

    def rows(self, key: MatrixKey, first: int, count: int) -> U8:
        """A writable view: (count, 5 N)."""
        assert 0 <= first and first + count <= self._rows[key]
        start = self._starts[key] + first
        view: U8 = self._map[start : start + count]
        return view

    def finish(self) -> None:
        """All rows are written."""
        self._map.flush()
        self._write_header(True)
        self.complete = True

    def close(self) -> None:
        self._file.close()

    def _header(self, complete: bool) -> bytes:
        return _HEADER.pack(b"SVDH", _VERSION, complete, sum(self._rows.values()), self.identity)

    def _write_header(self, complete: bool) -> None:
        self._file.seek(0)
        self._file.write(self._header(complete))
        self._file.flush()


class ModelHints:
    """The server's hints: one object per model, shared by its sessions. Rows are made when first asked
    for.

    directory: where the hints and what they are derived from stay (mode 0600), so that after a restart
    clients find those they have; None to begin anew with every process.
    """

    def __init__(
        self,
        parameters: DenseParameters,
        shapes: Shapes,
        matrices: Mapping[MatrixKey, Int16],
        directory: Path | None = None,
    ) -> None:
        self.parameters, self.shapes, self.matrices = parameters, shapes, matrices
        self.products: RowProducts = LocalRows(matrices)  # who multiplies; may be put elsewhere before use
        self.secret = _hint_secret(parameters, shapes, matrices, directory)
        self.identity = identity(parameters, shapes, self.secret.seed)
        self._shelf = HintShelf(directory)
        self._file: HintFile | None = None
        self._missing = {(key, first) for key, first, _ in _pieces(shapes)}
        self._lock = threading.Lock()

    def rows(self, key: MatrixKey, first: int, count: int) -> U8:
        """Rows of one matrix's hint, (count, 5 N); asked for in the pieces of a frame."""
        with self._lock:
            if self._file is None:
                self._file = self._shelf.open(self.parameters, self.shapes, self.identity)
                if self._file.complete:
                    self._missing.clear()
            rows = self._file.rows(key, first, count)
            if (key, first) in self._missing:
                number = list(self.shapes).index(key)
                rows[:] = self.secret.hint(number, self.matrices[key], first, count)
                self._missing.remove((key, first))
                if not self._missing:
                    self._file.finish()
        return rows


class HintShelf:
    """A place for one hint; another one takes its place. directory: None to forget it with the session."""

    def __init__(self, directory: Path | None = None) -> None:
        self._directory = directory

    def open(self, parameters: DenseParameters, shapes: Shapes, name: bytes) -> HintFile:
        """The file of a hint, complete or empty."""
        if self._directory is None:
            return HintFile(None, parameters, shapes, name)
        path = self._directory / f"{name.hex()[:32]}.hint"
        for other in self._directory.glob("*.hint"):
            if other != path:
                other.unlink(missing_ok=True)  # of weights or a server's secret that are gone
        return HintFile(path, parameters, shapes, name)


def send_hints(channel: Channel, hints: ModelHints, progress: Report | None = None) -> None:
    """Server: offer the hints, and send them if the client has none.

    Cost: 64 bytes down, 1 up; then 5 N bytes for each output row.
    """
    channel.send(hints.identity + hints.secret.seed)
    if channel.recv(1)[0]:
        return
    total, done = sum(shape[0] for shape in hints.shapes.values()), 0
    for key, first, count in _pieces(hints.shapes):
        channel.send(hints.rows(key, first, count))
        done += count
        if progress is not None:
            progress(done, total)


def receive_hints(
    channel: Channel,
    parameters: DenseParameters,
    shapes: Shapes,
    shelf: HintShelf,
    progress: Report | None = None,
) -> tuple[HintFile, bytes]:
    """Client: the hints and the seed of their uniform halves; see `send_hints`."""
    offer = bytes(channel.recv(64))
    name, seed = offer[:32], offer[32:]
    if name != identity(parameters, shapes, seed):
        raise IntegrityError("the server offers hints for other matrices than it announced")
    file = shelf.open(parameters, shapes, name)
    channel.send(bytes([file.complete]))
    if file.complete:
        return file, seed
    total, done = sum(shape[0] for shape in shapes.values()), 0
    for key, first, count in _pieces(shapes):
        size = count * SENT_BYTES * parameters.degree
        file.rows(key, first, count)[:] = np.frombuffer(channel.recv(size), np.uint8).reshape(count, -1)
        done += count
        if progress is not None:
            progress(done, total)
    file.finish()
    return file, seed


def _pieces(shapes: Shapes) -> list[tuple[MatrixKey, int, int]]:
    """(matrix, first row, rows) of every frame."""
    return [
        (key, first, min(ROWS, d_out - first))
        for key, (d_out, _) in shapes.items()
        for first in range(0, d_out, ROWS)
    ]


def _hint_secret(
    parameters: DenseParameters,
    shapes: Shapes,
    matrices: Mapping[MatrixKey, Int16],
    directory: Path | None,
) -> HintSecret:
    """Fresh, or derived from a key on disk and the weights: two hints with the same randomness would tell how
    two sets of weights differ."""
    if directory is None:
        return HintSecret.generate(parameters)
    weights = hashlib.blake2b(identity(parameters, shapes, b""), digest_size=32)
    for key in shapes:
        weights.update(np.ascontiguousarray(matrices[key]).view(np.uint8).data)
    master = _master_key(directory / "hints.key")

    def derived(label: bytes) -> bytes:
        return hashlib.blake2b(label + weights.digest(), key=master, digest_size=SEED_BYTES).digest()

    return HintSecret(parameters, derived(b"uniform halves"), derived(b"re-randomisation"))


def _master_key(path: Path) -> bytes:
    """The server's key, made on first use and then never changed. RefusedError if others can read it."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}")
    if not path.exists():
        handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as out:
            out.write(fresh_seed())
            out.flush()
            os.fsync(out.fileno())
        try:
            os.link(fresh, path)  # the first of several processes wins
        except FileExistsError:
            pass
        finally:
            fresh.unlink()
    if path.stat().st_mode & 0o077:
        raise RefusedError(f"{path} can be read by others: whoever has it can read the weights; chmod 600")
    key = path.read_bytes()
    if len(key) != SEED_BYTES:
        raise CorruptFileError(f"{path} is not a key of {SEED_BYTES} bytes; delete it to begin anew")
    return key
