"""A matrix ready for homomorphic products: its plan, its weights, and its diagonals as plaintexts.

It holds nothing of any session: one server process has one, for all of them.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from sottovoce._native import field_matvec_i16
from sottovoce.bgv import SIMD, Encoder, Parameters
from sottovoce.errors import ParameterError
from sottovoce.mpc.executor import OnlineProducts
from sottovoce.mpc.field import add, from_signed
from sottovoce.packing import MatVecPlan, plan_matvec
from sottovoce.packing.cover import EMPTY
from sottovoce.ring import threads

Int16 = npt.NDArray[np.int16]
Words = npt.NDArray[np.uint64]

# From this many products on, about 0.1 ms, other threads are worth being woken and waited for.
_SHARED_WORK = 1 << 22
_ENCODE_AT_ONCE = 32  # diagonals per call: 2 MB of slots, 6 MB of plaintexts


@dataclass(eq=False)
class EncodedMatrix:
    """W (d_out, d_in) int16 with its plan for single tokens. bias: (d_out,) residues or None.

    keep: hold the plaintexts of that plan, (O, I, K, L, N), 24 N bytes per diagonal and about 24 per weight,
    from their first use on (or from `make`); otherwise they are encoded at every use. made: is called when
    they are there. elsewhere: who multiplies instead of this process.
    """

    plan: MatVecPlan
    weights: Int16 = field(repr=False)
    bias: Words | None = field(default=None, repr=False)
    parameters: Parameters = SIMD
    keep: bool = True
    made: Callable[[], None] | None = field(default=None, repr=False)
    elsewhere: OnlineProducts | None = field(default=None, repr=False)
    _plaintexts: Words | None = field(default=None, init=False, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    @classmethod
    def encode(
        cls,
        weights: Int16,
        bias: npt.NDArray[np.int64] | None = None,
        parameters: Parameters = SIMD,
        keep: bool = True,
    ) -> EncodedMatrix:
        """Plan a matrix, and make its plaintexts if they are to be kept."""
        matrix = cls.of(weights, bias, parameters, keep)
        if keep:
            matrix.make()
        return matrix

    @classmethod
    def of(
        cls,
        weights: Int16,
        bias: npt.NDArray[np.int64] | None = None,
        parameters: Parameters = SIMD,
        keep: bool = True,
    ) -> EncodedMatrix:
        """Plan a matrix; nothing is encoded before it is used."""
        if weights.ndim != 2 or weights.dtype != np.int16:
            raise ParameterError(
                f"linear: a matrix is int16 (outputs, inputs), not {weights.dtype} {weights.shape}"
            )
        plan = plan_matvec(weights.shape[0], weights.shape[1], parameters.degree)
        residues = None if bias is None else from_signed(bias, parameters.plaintext)
        return cls(plan, np.ascontiguousarray(weights), residues, parameters, keep)

    @property
    def is_made(self) -> bool:
        """Whether the plaintexts that are kept are there."""
        return self._plaintexts is not None

    def make(self) -> Words:
        """The plaintexts, encoded by the first caller; others wait."""
        with self._lock:
            if self._plaintexts is None:
                plan, parameters = self.plan, self.parameters
                pairs = (plan.output_count, plan.input_count)
                shape = (*pairs, plan.rotations, parameters.limbs, parameters.degree)
                plaintexts = np.empty(shape, dtype=np.uint64)
                for o, c in np.ndindex(pairs):
                    self.encode_into(o, c, plaintexts[o, c])
                self._plaintexts = plaintexts
                if self.made is not None:
                    self.made()
            return self._plaintexts

    def diagonals(self, o: int, c: int) -> Words:
        """Plaintexts (K, L, N) of the products of input ciphertext c for output ciphertext o."""
        if self.keep:
            kept: Words = self.make()[o, c]
            return kept
        shape = (self.plan.rotations, self.parameters.limbs, self.parameters.degree)
        return self.encode_into(o, c, np.empty(shape, dtype=np.uint64))

    def encoded_in_use(
        self, plan: MatVecPlan, first: int, last: int, room: Words, outputs: slice = slice(None)
    ) -> Words:
        """Plaintexts (O, I, last - first, L, N) of diagonals `first` to `last` of another plan.

        room: (n, L, N) for at least so many, which they are written into: memory that is used again.
        outputs: those of these output ciphertexts only.
        """
        indices = plan.table[outputs, :, first:last]
        small = np.append(self.weights.ravel(), np.int16(0))[indices].astype(np.int64)  # EMPTY = -1: the zero
        small += (small >> 63) & np.int64(self.parameters.plaintext)
        encoder = Encoder(self.parameters)
        plaintexts = encoder.encode_runs(small.view(np.uint64).reshape(-1, plan.places))
        made = encoder.to_ntt(plaintexts, out=room[: len(plaintexts.coefficients)])
        return made.reshape(*indices.shape[:3], *room.shape[1:])

    def clear_product(self, x: Words) -> Words:
        """W x + b mod p for x (T, d_in) of the server.

        A share of zeros, as for one-hot vectors that only the client knows, is not multiplied: it is no
        secret.
        """
        y = np.zeros((len(x), self.plan.d_out), dtype=np.uint64)
        if x.any():
            workers = threads() if self.weights.size * len(x) >= _SHARED_WORK else 1
            field_matvec_i16(self.weights, np.ascontiguousarray(x), self.parameters.plaintext, y, workers)
        return y if self.bias is None else add(y, self.bias, self.parameters.plaintext)

    def encode_into(self, o: int, c: int, out: Words, first: int = 0) -> Words:
        """Plaintexts of the diagonals from `first` on into out (n, L, N)."""
        encoder, flat = Encoder(self.parameters), self.weights.ravel()
        modulus = np.int64(self.parameters.plaintext)
        indices = itertools.islice(self.plan.diagonal_indices(o, c), first, None)
        for start in range(0, len(out), _ENCODE_AT_ONCE):
            count = min(_ENCODE_AT_ONCE, len(out) - start)
            slots = np.empty((count, self.parameters.degree), dtype=np.int64)
            for row in slots:
                index = next(indices)
                row[:] = flat[index]
                row[index == EMPTY] = 0
            slots += (slots >> 63) & modulus
            encoder.to_ntt(encoder.encode(slots.view(np.uint64)), out=out[start : start + count])
        return out
