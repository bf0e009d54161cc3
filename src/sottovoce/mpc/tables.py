"""Public look-up tables that a shared index is evaluated on (protocols.md 4.6 and 4.7).

Both kinds describe a function of y = y0 + y1, y0 with the client and y1 with the server. Only the client's
share is split: its segment number i = y0 // u and its remainder φ = y0 mod u, u = 2^remainder_bits. The
server knows the start a_i = (y1 + i·u) mod length of *every* segment exactly, looks all of them up, and the
client obtains the one that is its own by a 1-of-2^segment_bits transfer.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class SplineTable:
    """F(y) = entries[a, 0] + Σ_l entries[a, l]·basis[l - 1, φ] mod modulus, with y = a + φ.

    entries: (length, terms) uint64 residues mod `modulus`, indexed by the segment's start a; read by the
    server only. basis: (products, u) uint64 residues mod `modulus`, indexed by the client's remainder φ; read
    by the client only. products = terms - 1 when `constant` is true (the first entry stands alone), else
    products = terms (a pure product, which is how 2^-y = 2^-a · 2^-φ is written). length = 2^segment_bits ·
    u: shares are of a value mod length.
    """

    segment_bits: int
    modulus: int
    entries: NDArray[np.uint64]
    basis: NDArray[np.uint64]
    constant: bool = True

    def __post_init__(self) -> None:
        products, remainder = self.basis.shape
        if self.entries.shape != (remainder << self.segment_bits, products + self.constant):
            raise ValueError(f"spline entries {self.entries.shape} do not fit basis {self.basis.shape}")

    @property
    def remainder_bits(self) -> int:
        """lg u: how many low bits of its share the client keeps as φ."""
        return int(self.basis.shape[1]).bit_length() - 1

    @property
    def ring_bits(self) -> int:
        """The shares of y are mod 2^ring_bits."""
        return self.segment_bits + self.remainder_bits

    @property
    def terms(self) -> int:
        """Field elements per segment that the server sends."""
        return int(self.entries.shape[1])

    @property
    def products(self) -> int:
        """Terms that are multiplied by a value the client knows."""
        return int(self.basis.shape[0])

    @cached_property
    def rolled(self) -> NDArray[np.uint64]:
        """(u, 2^segment_bits, terms): the entries of all segments of a share side by side, at row a mod u.

        In `entries` they are u rows apart, a power of two: they would compete for the same lines of a cache.
        """
        rows: NDArray[np.uint64] = self.entries.reshape(1 << self.segment_bits, -1, self.terms)
        return np.ascontiguousarray(rows.swapaxes(0, 1))


@dataclass(frozen=True, eq=False)
class RegionTable:
    """`width` XOR-shared bits that depend only on the start a = (y1 + i·u) mod length of the client's
    segment.

    entries: (length,) uint8, bit b of entries[a] is output b; read by the server only. The client's share
    must lie in [0, 2^segment_bits · u). Usually that equals length (shares mod length); a longer table with u
    = 1 describes a function of the sum *without* reduction, e.g. the carry of two digits. Thresholds on y are
    fuzzy by u - 1.
    """

    segment_bits: int
    remainder_bits: int
    width: int
    entries: NDArray[np.uint8]

    def __post_init__(self) -> None:
        length = len(self.entries)
        if (
            length & (length - 1)
            or length < 1 << (self.segment_bits + self.remainder_bits)
            or not 0 < self.width <= 8
        ):
            raise ValueError(f"region table of {length} entries, width {self.width} is malformed")

    @property
    def phase_bits(self) -> int:
        """lg of the rows of `rolled`: u, or the length where the table is longer than the client's range."""
        length = len(self.entries)
        short = length == 1 << (self.segment_bits + self.remainder_bits)
        return self.remainder_bits if short else length.bit_length() - 1

    @cached_property
    def rolled(self) -> NDArray[np.uint8]:
        """(2^phase_bits, 2^(segment_bits + 1)): row a mod 2^phase_bits holds the entries of all segments of a
        share, twice, so that any rotation of them lies in a row."""
        starts = np.arange(1 << self.phase_bits)[:, None]
        segments = np.tile(np.arange(1 << self.segment_bits), 2) << self.remainder_bits
        rows: NDArray[np.uint8] = self.entries[(starts + segments) % len(self.entries)]
        return rows
