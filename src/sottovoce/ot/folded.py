"""The sender's pads of 1-of-2^m transfers before they are hashed: 16 bytes each instead of 8·2^m·words."""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from sottovoce.ot.hashing import hash_rows, polynomial_multiples

U8 = npt.NDArray[np.uint8]
U64 = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class FoldedPads:
    """n random 1-of-2^m OTs at their sender.

    The m rows of one OT are combined as K = Σ X^t·K_t in GF(2^128), so that the receiver's entry i stands for
    Q ⊕ i(X)·Δ; every entry is hashed by itself. (An XOR of hashes of the m rows would be insecure: the pads
    of entries 00, 01, 10, 11 would cancel.) Secret as a whole: rows and Δ give every pad.
    """

    rows: U64 = field(repr=False)  # (n, 2) combined rows Q
    delta: U64 = field(repr=False)  # (2,)
    hash_key: U8  # (16,) of this session and direction; public
    first: int  # index of the first row's hash; row r has first + r
    m_bits: int
    words: int
    # The multiples of Δ that `unfold` needs, found once for all slices; secret like Δ.
    _multiples: list[U64] = field(default_factory=list, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.rows)

    def slice(self, start: int, stop: int) -> "FoldedPads":
        """Some of the transfers, with their own indices."""
        rows = self.rows[start:stop]
        first = self.first + start
        return FoldedPads(rows, self.delta, self.hash_key, first, self.m_bits, self.words, self._multiples)

    def unfold(self) -> U64:
        """Pads (n, 2^m, words), all uniform 64-bit words."""
        if not self._multiples:
            self._multiples.append(polynomial_multiples(self.delta, self.m_bits))
        return hash_rows(self.hash_key, self.rows, self._multiples[0], self.first, self.words)
