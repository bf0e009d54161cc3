"""One of a team's workers: its rows of the matrices, its tiles of them, and the keys of its sessions.

It sees what the server sees: weights, ciphertexts under clients' keys, products before they are masked.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from sottovoce.bgv import SIMD, Ciphertext, Evaluator, GaloisKeys
from sottovoce.dense import matrix_product
from sottovoce.mpc.encoded import EncodedMatrix
from sottovoce.mpc.linear import baby_steps
from sottovoce.mpc.tiles import Tile, cut, fold, tile_sums
from sottovoce.packing import MatVecPlan, plan_matvec
from sottovoce.ring import set_threads

Int16 = npt.NDArray[np.int16]
Words = npt.NDArray[np.uint64]
Sent = tuple[Words, float, int]  # a ciphertext between machines: data, noise, factor

_GIANTS_AT_ONCE = 8  # of plaintexts that are encoded in use


@dataclass
class _Session:
    evaluator: Evaluator
    sums: dict[tuple[int, int], list[Ciphertext]] = field(default_factory=dict)  # by call and output


class Worker:
    """Number `part` of `parts`. threads: of its kernels; None for all cores."""

    def __init__(self, part: int, parts: int, threads: int | None = None) -> None:
        self._part, self._parts = part, parts
        self._rows: dict[int, Int16] = {}
        self._matrices: dict[int, EncodedMatrix] = {}
        self._kept: dict[int, list[Words]] = {}
        self._sessions: dict[str, _Session] = {}
        if threads is not None:
            set_threads(threads)

    def place_rows(self, number: int, rows: Int16) -> None:
        """This worker's rows of matrix `number`, for `rows`."""
        self._rows[number] = np.array(rows)  # shared memory may be taken away

    def rows(self, number: int, begin: int, end: int, first: int, words: Words) -> Words:
        """Prepared products: rows[begin:end, first : first + k] · words (k, n) modulo 2^52."""
        out = np.empty((end - begin, words.shape[1]), np.uint64)
        return matrix_product(self._rows[number][begin:end], first, words, out, False)

    def place(self, number: int, weights: Int16) -> None:
        """Matrix `number`, for online products: 2 bytes a weight, and 24 for those of its own tiles, once
        used."""
        self._matrices[number] = EncodedMatrix.of(np.array(weights), keep=False)

    def make(self, number: int) -> list[Words]:
        """Plaintexts (I, K, L, N) of its tiles of a matrix, kept from the first use on."""
        if number not in self._kept:
            matrix = self._matrices[number]
            plan, parameters = matrix.plan, matrix.parameters
            made = []
            for tile in self._tiles(plan):
                first, last = tile.diagonals(plan)
                shape = (plan.input_count, last - first, parameters.limbs, parameters.degree)
                plaintexts = np.empty(shape, np.uint64)
                for c in range(plan.input_count):
                    matrix.encode_into(tile.output, c, plaintexts[c], first)
                made.append(plaintexts)
            self._kept[number] = made
        return self._kept[number]

    def warm(self, number: int) -> None:
        """Make what `make` keeps."""
        self.make(number)

    def open(self, session: str, keys: bytes) -> None:
        """A session's rotation keys."""
        rotations = GaloisKeys.from_bytes(SIMD, memoryview(keys))
        self._sessions[session] = _Session(Evaluator(SIMD, None, rotations))

    def close(self, session: str) -> None:
        self._sessions.pop(session, None)

    def begin(self, session: str, call: int, number: int, tokens: int, sent: Sent) -> None:
        """Sums of this worker's giant steps of a product, for `finish`. sent: inputs (G, I) of a plan for
        `tokens` in a ciphertext."""
        own = self._sessions[session]
        matrix = self._matrices[number]
        plan = matrix.plan if tokens == 1 else _plan(matrix, tokens)
        tiles = self._tiles(plan)
        if not tiles:
            return
        babies = baby_steps(own.evaluator, plan, received(sent))
        for i, tile in enumerate(tiles):
            if tokens == 1:
                sums = tile_sums(own.evaluator, plan, babies, self.make(number)[i])
            else:
                sums = self._in_use(own.evaluator, matrix, plan, babies, tile)
            own.sums[call, tile.output] = sums

    def finish(
        self, session: str, call: int, number: int, tokens: int, output: int, above: Sent | None
    ) -> Sent:
        """Horner's rule over them, going on from what the worker with higher giant steps came to."""
        own = self._sessions[session]
        matrix = self._matrices[number]
        plan = matrix.plan if tokens == 1 else _plan(matrix, tokens)
        sums = own.sums.pop((call, output))
        return sent(fold(own.evaluator, plan, sums, None if above is None else received(above)))

    def node(self) -> str:
        """Where it is."""
        import ray

        return str(ray.get_runtime_context().get_node_id())

    def _tiles(self, plan: MatVecPlan) -> list[Tile]:
        return cut(plan, self._parts)[self._part]

    def _in_use(
        self,
        evaluator: Evaluator,
        matrix: EncodedMatrix,
        plan: MatVecPlan,
        babies: list[list[Ciphertext]],
        tile: Tile,
    ) -> list[Ciphertext]:
        """With plaintexts that are encoded for it, a few giant steps at a time."""
        most = _GIANTS_AT_ONCE * plan.babies * plan.input_count
        room = np.empty((most, matrix.parameters.limbs, plan.degree), np.uint64)
        sums: list[Ciphertext] = []
        for first in range(tile.first, tile.last, _GIANTS_AT_ONCE):
            part = Tile(tile.output, first, min(first + _GIANTS_AT_ONCE, tile.last))
            chosen = slice(tile.output, tile.output + 1)
            plaintexts = matrix.encoded_in_use(plan, *part.diagonals(plan), room, chosen)
            sums += tile_sums(evaluator, plan, babies, plaintexts[0])
        return sums


def sent(ciphertext: Ciphertext) -> Sent:
    """For another machine."""
    return ciphertext.data, ciphertext.noise, ciphertext.factor


def received(values: Sent) -> Ciphertext:
    """From another machine of the same owner: not checked."""
    return Ciphertext(SIMD, *values)


def _plan(matrix: EncodedMatrix, tokens: int) -> MatVecPlan:
    return plan_matvec(matrix.plan.d_out, matrix.plan.d_in, matrix.plan.degree, tokens=tokens)
