"""The plan of a matrix product by diagonals: what the client lays out, what the server multiplies and
rotates.

y = W x for W (d_out, d_in), on ciphertexts of two rows of N/2 slots. The client encrypts x already laid out;
the server computes, for every output ciphertext o,

    acc_o = sum_j rot_{B j}( sum_{i < B} sum_c P[o, c, B j + i] * rot_i(x_c) )

with B baby steps (hoisted: one decomposition for all) and the giant steps by Horner's rule. The client adds
the slots of acc that belong to one output. Every entry of W appears in exactly one plaintext, once.

*Several tokens.* With b tokens in a ciphertext the plan is one for rows of N/(2b) places; slot b v + t of a
row is place v of token t. A rotation by b k turns every token's places by k and mixes no tokens, and the b
slots of a place are multiplied by the same entry. A plaintext holds b times fewer entries, so a product takes
b times more of them, but its rotations and ciphertexts serve b tokens.

*Swapped rows.* Rows that collect different outputs need the same inputs. Instead of sending every input in
both rows, the client may send different inputs in them; the server makes the other half by exchanging the
rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from sottovoce.errors import ParameterError
from sottovoce.packing import rotations as rotating
from sottovoce.packing.cost import CostModel
from sottovoce.packing.cover import EMPTY, Index
from sottovoce.rlwe import ROW_SWAP

Words = npt.NDArray[np.uint64]


@dataclass(frozen=True, eq=False)
class MatVecPlan:
    """How one matrix shape is multiplied with encrypted vectors, `tokens` of them in a ciphertext.

    inputs: (I, 2, N/2b) index into x of each place of each input ciphertext, or EMPTY. outputs: (O, 2, N/2b)
    index into y of each place of each output ciphertext, or EMPTY. rotations: diagonals K per pair of
    ciphertexts. babies: B. swapped: only the first half of the inputs is sent, the others are the same with
    their rows exchanged.
    """

    d_out: int
    d_in: int
    degree: int
    inputs: Index
    outputs: Index
    rotations: int
    babies: int
    tokens: int = 1
    swapped: bool = False

    @property
    def input_count(self) -> int:
        """Input ciphertexts of a product."""
        return int(self.inputs.shape[0])

    @property
    def sent_count(self) -> int:
        """Those of them that the client sends."""
        return self.input_count // 2 if self.swapped else self.input_count

    @property
    def output_count(self) -> int:
        return int(self.outputs.shape[0])

    @property
    def places(self) -> int:
        """Slots of one token in a ciphertext."""
        return self.degree // self.tokens

    @property
    def giants(self) -> int:
        return -(-self.rotations // self.babies)

    @property
    def plaintext_count(self) -> int:
        return self.input_count * self.output_count * self.rotations

    @property
    def baby_steps(self) -> range:
        """Rotations of every input, by slots."""
        return range(0, self.tokens * self.babies, self.tokens)

    @property
    def giant_step(self) -> int:
        """Rotation of the outputs between two giant steps, by slots."""
        return self.tokens * self.babies

    def steps(self) -> set[int]:
        """Rotation keys that the server needs."""
        needed = rotating.keys(self.baby_steps)
        needed |= {self.giant_step} if self.giants > 1 else set()
        return needed | ({ROW_SWAP} if self.swapped else set())

    def milliseconds(self, cost: CostModel) -> float:
        """One product, its plaintexts at hand."""
        return (
            cost.rotations(self.input_count, self.output_count, self.rotations, self.babies, self.tokens)
            + cost.rotation * (self.input_count - self.sent_count)
            + cost.product * self.plaintext_count
            + cost.sent * self.sent_count
            + cost.returned * self.output_count
        )

    def lay_out(self, x: Words) -> Words:
        """x (G b, d_in) as slots (G, I, N) of the ciphertexts to send; empty slots are zero."""
        count = self.sent_count
        padded = np.concatenate([x, np.zeros((x.shape[0], 1), dtype=np.uint64)], axis=1)
        placed = padded[:, self.inputs[:count].reshape(count, self.places)]  # EMPTY = -1 reads the zero
        apart = placed.reshape(-1, self.tokens, count, self.places)
        return np.ascontiguousarray(np.moveaxis(apart, 1, -1)).reshape(-1, count, self.degree)

    def collect(self, slots: Words, modulus: int) -> Words:
        """Add the partial sums in slots (G, O, N), values in [0, modulus), into y (G b, d_out)."""
        order, starts = self._collection
        apart = slots.reshape(slots.shape[0], -1, self.tokens)
        flat = np.swapaxes(apart, 1, 2).reshape(slots.shape[0] * self.tokens, -1)
        # At most 2^13 terms below 2^43 per output: no overflow before the reduction.
        return np.add.reduceat(flat[:, order], starts, axis=1) % np.uint64(modulus)

    def diagonal_indices(self, o: int, c: int) -> Iterator[npt.NDArray[np.int64]]:
        """Yield for k = 0 .. K - 1 the flat index into W (d_out * d_in) of each place (N/b,), or EMPTY.

        Place s of diagonal k holds W[out(s), idx(s + k)], unless that entry was placed already. In the order
        of use: the plaintext for k = B j + i is rotated by -B j, because the server rotates the sum of its
        giant step afterwards.
        """
        valid = self._validity[o, c]
        half = self.places // 2
        for k in range(self.rotations):
            index = self._raw_index(o, c, k)
            index[np.unpackbits(valid[k], count=self.places).reshape(2, half) == 0] = EMPTY
            yield np.roll(index, k - k % self.babies, axis=1).ravel()

    @cached_property
    def table(self) -> Index:
        """All `diagonal_indices`, (O, I, K, N/b): 4 bytes per weight, for encoding in use."""
        shape = (self.output_count, self.input_count, self.rotations, self.places)
        table = np.empty(shape, dtype=np.int32)
        for o in range(self.output_count):
            for c in range(self.input_count):
                for row, index in zip(table[o, c], self.diagonal_indices(o, c), strict=True):
                    row[:] = index
        return table

    def _raw_index(self, o: int, c: int, k: int) -> npt.NDArray[np.int64]:
        """Index into flat W before deduplication; entries without an input or an output are EMPTY."""
        read = np.roll(self.inputs[c], -k, axis=1).astype(np.int64)
        out = self.outputs[o].astype(np.int64)
        return np.where((read == EMPTY) | (out == EMPTY), EMPTY, out * self.d_in + read)

    @cached_property
    def _validity(self) -> npt.NDArray[np.uint8]:
        """Packed bits (O, I, K, N/8b): whether the place of a diagonal carries its entry."""
        shape = (self.output_count, self.input_count, self.rotations, -(-self.places // 8))
        bits = np.zeros(shape, dtype=np.uint8)
        # owner: which place holds the entry, so that two of one diagonal cannot both claim it.
        owner = np.full(self.d_out * self.d_in, -1, dtype=np.int32)
        place = np.arange(self.places, dtype=np.int32)
        for o in range(self.output_count):
            for c in range(self.input_count):
                for k in range(self.rotations):
                    index = self._raw_index(o, c, k).ravel()
                    wanted = np.flatnonzero(index != EMPTY)
                    new = wanted[owner[index[wanted]] < 0]
                    owner[index[new]] = place[new]
                    mine = new[owner[index[new]] == place[new]]
                    flags = np.zeros(self.places, dtype=np.uint8)
                    flags[mine] = 1
                    bits[o, c, k] = np.packbits(flags)
        if (owner < 0).any():
            raise ParameterError(
                f"packing: the plan for {self.d_out} x {self.d_in} misses entries of the matrix"
            )
        return bits

    @cached_property
    def _collection(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Places sorted by output, and where each output begins in that order."""
        flat = self.outputs.ravel()
        order = np.argsort(flat, kind="stable")
        order = order[np.searchsorted(flat[order], 0) :]
        return order, np.searchsorted(flat[order], np.arange(self.d_out))
