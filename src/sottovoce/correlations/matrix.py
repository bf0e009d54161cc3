"""Products of the server's matrices with random vectors, made ahead for n tokens.

An item of a matrix W (d_out, d_in) is one token's slot: the client holds R uniform in F_p^d_in and U, the
server Z, with U + Z = W·R + ε modulo p. ε is an error of mean 0 far below the last useful bit
(`DenseParameters.noise`). R and Z are expanded from seeds in use; U is stored, 5 bytes per output.

Items leave in the order in which they were made, once. Two uses of R would give the server the difference of
two activations, two uses of Z the client W·(R − R').
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from sottovoce import _native
from sottovoce.correlations.hints import MatrixKey
from sottovoce.correlations.records import Record
from sottovoce.dense import (
    SENT_BITS,
    SENT_BYTES,
    DenseParameters,
    row_keys,
    row_residues,
    server_share,
    share_of_phase,
)
from sottovoce.errors import CorruptFileError, ParameterError
from sottovoce.net import Role
from sottovoce.ring.sampling import SEED_BYTES

U64 = npt.NDArray[np.uint64]
U8 = npt.NDArray[np.uint8]


@dataclass
class MatrixItems:
    """Consecutive slots of one matrix in one batch: slots first … first + count − 1.

    seed: of R at the client, of the masks at the server. phases: (count, 5 d_out) bytes at the client, the
    words of which U is made; None at the server.
    """

    seed: bytes = field(repr=False)
    first: int
    count: int
    phases: U8 | None = field(default=None, repr=False)

    def split(self, count: int) -> tuple[MatrixItems, MatrixItems]:
        """The first `count` slots and the rest, without a copy."""
        head = None if self.phases is None else self.phases[:count]
        tail = None if self.phases is None else self.phases[count:]
        return (
            MatrixItems(self.seed, self.first, count, head),
            MatrixItems(self.seed, self.first + count, self.count - count, tail),
        )

    def to_record(self) -> Record:
        """For a pool on disk: a row per slot, the seed as a constant. The server's rows are empty bytes."""
        rows = np.zeros((self.count, 1), np.uint8) if self.phases is None else self.phases
        constants = np.frombuffer(self.seed, np.uint8), np.array([self.first], np.uint64)
        return Record((rows,), constants, granule=1)

    @classmethod
    def from_record(cls, record: Record, role: Role) -> MatrixItems:
        """CorruptFileError if the record holds something else."""
        if len(record.arrays) != 1 or len(record.constants) != 2 or len(record.constants[0]) != SEED_BYTES:
            raise CorruptFileError("a stored record is no product of a matrix")
        (rows,), (seed, first) = record.arrays, record.constants
        phases = rows.astype(np.uint8) if role is Role.CLIENT else None
        return cls(bytes(seed.astype(np.uint8)), int(first[0]) + record.offset, len(record), phases)


class MatrixStock:
    """What is ready, by matrix: first in, first out, each slot once.

    numbers: the number of every matrix, which separates the expansions of one seed. on_take: called with the
    matrix and the number of slots before any of them is handed out.
    """

    def __init__(
        self,
        role: Role,
        parameters: DenseParameters,
        shapes: Mapping[MatrixKey, tuple[int, int]],
        on_take: Callable[[MatrixKey, int], None] | None = None,
    ) -> None:
        self.role, self.parameters, self.shapes = role, parameters, shapes
        self.consumed: dict[MatrixKey, int] = dict.fromkeys(shapes, 0)
        self._numbers = {key: number for number, key in enumerate(shapes)}
        self._items: dict[MatrixKey, deque[MatrixItems]] = {key: deque() for key in shapes}
        self._on_take = on_take

    def put(self, key: MatrixKey, items: MatrixItems) -> None:
        """Add slots behind those that are there."""
        self._items[key].append(items)

    def available(self, key: MatrixKey) -> int:
        """Slots of a matrix that are ready."""
        return sum(items.count for items in self._items[key])

    def take_client(self, key: MatrixKey, tokens: int) -> tuple[U64, U64]:
        """(R (tokens, d_in), U (tokens, d_out)) of the next slots."""
        d_out, d_in = self.shapes[key]
        parts = [
            (self.inputs(key, items.seed, items.first, items.count), self._opened(items, d_out))
            for items in self._take(key, tokens)
        ]
        r, u = zip(*parts, strict=True)
        return np.concatenate(r), np.concatenate(u)

    def take_server(self, key: MatrixKey, tokens: int) -> U64:
        """Z (tokens, d_out) of the next slots."""
        parts = [
            server_share(self.parameters, i.seed, self._numbers[key], i.first, i.count, self.shapes[key][0])
            for i in self._take(key, tokens)
        ]
        return np.concatenate(parts)

    def inputs(self, key: MatrixKey, seed: bytes, first: int, count: int) -> U64:
        """(count, d_in): the client's random inputs of slots first …, uniform modulo p."""
        keys = row_keys(seed, b"inputs of matrix %d" % self._numbers[key], first, count)
        return row_residues(keys, self.shapes[key][1], self.parameters.plaintext)

    def _opened(self, items: MatrixItems, d_out: int) -> U64:
        """U of the slots, whose stored words are wiped."""
        assert items.phases is not None
        words = np.empty((items.count, d_out), np.uint64)
        _native.unpack_bits(np.ascontiguousarray(items.phases).reshape(-1), SENT_BITS, words.reshape(-1))
        if items.phases.flags.writeable:
            items.phases[:] = 0
        return share_of_phase(self.parameters, words)

    def _take(self, key: MatrixKey, tokens: int) -> list[MatrixItems]:
        if not 1 <= tokens <= self.available(key):
            raise ParameterError(
                f"{key[0]} of layer {key[1]}: {tokens} products were asked for and"
                f" {self.available(key)} are ready; prepare more"
            )
        if self._on_take is not None:
            self._on_take(key, tokens)
        self.consumed[key] += tokens
        queue, taken = self._items[key], []
        while tokens:
            items = queue.popleft()
            if items.count > tokens:
                items, rest = items.split(tokens)
                queue.appendleft(rest)
            taken.append(items)
            tokens -= items.count
        return taken


def stored_bytes(shapes: Mapping[MatrixKey, tuple[int, int]], tokens: int) -> int:
    """Bytes that the client's stock of this many tokens takes."""
    return tokens * SENT_BYTES * sum(d_out for d_out, _ in shapes.values())
