"""The plan of a matrix-vector product by diagonals: what the client lays out, what the server multiplies and
rotates.

y = W x for W (d_out, d_in), on ciphertexts of two rows of N/2 slots. The client encrypts x already laid out;
the server computes, for every output ciphertext o,

    acc_o = sum_j rot_{B j}( sum_{i < B} sum_c P[o, c, B j + i] * rot_i(x_c) )

with B baby steps (hoisted: one decomposition for all) and the giant steps by Horner's rule, so that the only
rotation keys in use are 1 .. B, shared by all plans of a model. The client adds the slots of acc that belong
to one output. Every entry of W appears in exactly one plaintext, once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt

from sottovoce.errors import ParameterError
from sottovoce.packing.cost import CostModel
from sottovoce.packing.cover import EMPTY, Cover, Index, covers

Words = npt.NDArray[np.uint64]

DEFAULT_BABIES = 32  # rotation keys 1 .. 32, 614 KB each; more would gain 2 % on the head, nothing elsewhere


@dataclass(frozen=True, eq=False)
class MatVecPlan:
    """How one matrix shape is multiplied with one encrypted vector.

    inputs: (I, 2, N/2) index into x of each slot of each input ciphertext, or EMPTY. outputs: (O, 2, N/2)
    index into y of each slot of each output ciphertext, or EMPTY. rotations: diagonals K per pair of
    ciphertexts. babies: B.
    """

    d_out: int
    d_in: int
    degree: int
    inputs: Index
    outputs: Index
    rotations: int
    babies: int

    @property
    def input_count(self) -> int:
        return int(self.inputs.shape[0])

    @property
    def output_count(self) -> int:
        return int(self.outputs.shape[0])

    @property
    def giants(self) -> int:
        return -(-self.rotations // self.babies)

    @property
    def plaintext_count(self) -> int:
        return self.input_count * self.output_count * self.rotations

    def steps(self) -> set[int]:
        """Rotation keys that the server needs: the baby steps, and the giant step if there is one."""
        return set(range(1, self.babies + (1 if self.giants > 1 else 0)))

    def milliseconds(self, cost: CostModel) -> float:
        return (
            cost.rotations(self.input_count, self.output_count, self.rotations, self.babies)
            + cost.product * self.plaintext_count
            + cost.sent * self.input_count
            + cost.returned * self.output_count
        )

    def lay_out(self, x: Words) -> Words:
        """Return x (T, d_in) as slots (T, I, N); empty slots are zero."""
        padded = np.concatenate([x, np.zeros((x.shape[0], 1), dtype=np.uint64)], axis=1)
        return padded[:, self.inputs.reshape(self.input_count, self.degree)]  # EMPTY = -1 reads the zero

    def collect(self, slots: Words, modulus: int) -> Words:
        """Add the partial sums in slots (T, O, N), values in [0, modulus), into y (T, d_out)."""
        order, starts = self._collection
        flat = slots.reshape(slots.shape[0], -1)
        # At most 2^13 terms below 2^43 per output: no overflow before the reduction.
        return np.add.reduceat(flat[:, order], starts, axis=1) % np.uint64(modulus)

    def diagonal_indices(self, o: int, c: int) -> Iterator[npt.NDArray[np.int64]]:
        """Yield for k = 0 .. K - 1 the flat index into W (d_out * d_in) of each slot (N,), or EMPTY.

        Slot s of diagonal k holds W[out(s), idx(s + k)], unless that entry was placed already. In the order
        of use: the plaintext for k = B j + i is rotated by -B j, because the server rotates the sum of its
        giant step afterwards.
        """
        valid = self._validity[o, c]
        half = self.degree // 2
        for k in range(self.rotations):
            index = self._raw_index(o, c, k)
            index[np.unpackbits(valid[k], count=self.degree).reshape(2, half) == 0] = EMPTY
            yield np.roll(index, k - k % self.babies, axis=1).ravel()

    def _raw_index(self, o: int, c: int, k: int) -> npt.NDArray[np.int64]:
        """Index into flat W before deduplication; entries without an input or an output are EMPTY."""
        read = np.roll(self.inputs[c], -k, axis=1).astype(np.int64)
        out = self.outputs[o].astype(np.int64)
        return np.where((read == EMPTY) | (out == EMPTY), EMPTY, out * self.d_in + read)

    @cached_property
    def _validity(self) -> npt.NDArray[np.uint8]:
        """Packed bits (O, I, K, N/8): whether the slot of a diagonal carries its entry."""
        bits = np.zeros(
            (self.output_count, self.input_count, self.rotations, self.degree // 8), dtype=np.uint8
        )
        # owner: which slot holds the entry, so that two slots of one diagonal cannot both claim it.
        owner = np.full(self.d_out * self.d_in, -1, dtype=np.int32)
        slot = np.arange(self.degree, dtype=np.int32)
        for o in range(self.output_count):
            for c in range(self.input_count):
                for k in range(self.rotations):
                    index = self._raw_index(o, c, k).ravel()
                    wanted = np.flatnonzero(index != EMPTY)
                    new = wanted[owner[index[wanted]] < 0]
                    owner[index[new]] = slot[new]
                    mine = new[owner[index[new]] == slot[new]]
                    flags = np.zeros(self.degree, dtype=np.uint8)
                    flags[mine] = 1
                    bits[o, c, k] = np.packbits(flags)
        if (owner < 0).any():
            raise ParameterError(
                f"packing: the plan for {self.d_out} x {self.d_in} misses entries of the matrix"
            )
        return bits

    @cached_property
    def _collection(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Slots sorted by output, and where each output begins in that order."""
        flat = self.outputs.ravel()
        order = np.argsort(flat, kind="stable")
        order = order[np.searchsorted(flat[order], 0) :]
        return order, np.searchsorted(flat[order], np.arange(self.d_out))


@lru_cache(maxsize=64)
def plan_matvec(
    d_out: int, d_in: int, degree: int = 8192, babies: int = DEFAULT_BABIES, cost: CostModel | None = None
) -> MatVecPlan:
    """Return the cheapest plan for a (d_out, d_in) matrix; `babies` bounds the rotation keys 1 .. babies.

    Both parties call it with public sizes and get the same plan.
    """
    if d_out < 1 or d_in < 1:
        raise ParameterError(f"packing: a matrix needs rows and columns, got {d_out} x {d_in}")
    model = cost or CostModel()
    candidates = [
        plan
        for split in (False, True)
        for inputs, outputs in _ciphertext_counts(d_out, d_in, degree // 2, split)
        for plan in _plans(d_out, d_in, degree, inputs, outputs, split, babies, model)
    ]
    if not candidates:
        raise ParameterError(f"packing: no plan for a {d_out} x {d_in} matrix in rows of {degree // 2} slots")
    return min(candidates, key=lambda plan: plan.milliseconds(model))


def _ciphertext_counts(d_out: int, d_in: int, columns: int, split: bool) -> Iterator[tuple[int, int]]:
    """Numbers of input and output ciphertexts worth trying: the fewest that hold the values, and one more."""
    inputs = -(-d_in // (columns * (2 if split else 1)))
    outputs = -(-d_out // (columns * (1 if split else 2)))
    for more_in in range(2):
        for more_out in range(2):
            yield inputs + more_in, outputs + more_out


def _plans(
    d_out: int, d_in: int, degree: int, inputs: int, outputs: int, split: bool, babies: int, cost: CostModel
) -> Iterator[MatVecPlan]:
    """Plans with given numbers of ciphertexts.

    split: the two rows hold different inputs and collect the same outputs; otherwise the rows hold the same
    inputs and collect different outputs.
    """
    columns = degree // 2
    chunks = inputs * (2 if split else 1)
    rows = outputs * (1 if split else 2)
    chunk = -(-d_in // chunks)
    for cover in covers(chunk, d_out, columns, rows):
        best = cost.best_babies(inputs, outputs, cover.rotations, babies)
        yield MatVecPlan(
            d_out,
            d_in,
            degree,
            _input_layout(cover, d_in, inputs, chunk, split),
            _output_layout(cover, outputs, split),
            cover.rotations,
            best,
        )


def _input_layout(cover: Cover, d_in: int, inputs: int, chunk: int, split: bool) -> Index:
    row = np.arange(2 * inputs).reshape(inputs, 2, 1)
    offset = chunk * (row if split else row // 2)
    index = np.where(cover.inputs == EMPTY, EMPTY, cover.inputs + offset)
    return np.where(index >= d_in, EMPTY, index).astype(np.int32)


def _output_layout(cover: Cover, outputs: int, split: bool) -> Index:
    if split:
        return np.repeat(cover.outputs[:, None, :], 2, axis=1)
    return cover.outputs.reshape(outputs, 2, -1)
