"""What a protocol function asks an `Arithmetic` to do: one small record per interactive primitive.

Requests handed over together travel together: `Arithmetic.exchange` runs any mixture of the symmetric ones in
a single exchange, `Arithmetic.lookup` any number of table look-ups in two messages. Each record states its
payload, and the two-party run must send exactly that: per request, first its bits and then its residues, each
block packed densely (`packed_size`) and starting on a byte; requests follow each other in the order given.

`lead` is the number of leading party axes of the arrays: 0 in the two-party run, 1 in the model.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sottovoce.mpc.field import Bits, Field, width
from sottovoce.mpc.tables import RegionTable, SplineTable
from sottovoce.ring.primes import P_FIELD

Share = Field


def packed_size(count: int, width: int) -> int:
    """Bytes of `count` values of `width` bits, densely packed."""
    return (count * width + 7) // 8


def _count(x: NDArray[Any], lead: int) -> int:
    return int(np.prod(x.shape[lead:], dtype=np.int64))


@dataclass(frozen=True)
class WrapOutput:
    """One result of a wrap: the value divided by 2^shift, as a share mod `modulus` (a prime or a power of
    two)."""

    shift: int
    modulus: int = P_FIELD


def offset_of(outputs: tuple[WrapOutput, ...], signed: bool, modulus: int) -> int:
    """What makes a signed value of a wrap with these outputs non-negative; see `Wrap.signed_offset`."""
    step = 1 << max(out.shift for out in outputs)
    return (modulus // 4 + step // 2) // step * step if signed else 0


@dataclass(frozen=True, eq=False)
class Wrap:
    """4.1: from one wrap bit, x / 2^shift mod M for every output. -> list[Share], one per output.

    x: shares mod `modulus` (an odd prime), 0 <= x < modulus/2, or abs(x) < modulus/4 if `signed`. Result
    error in (-1, 1), mean 0, standard deviation 0.41 unit (exact when shift = 0). With `signed` the public
    offset is `signed_offset()`, added by the server before and taken off after. Prepared: one COT per element
    with the outputs' correlations concatenated. Online: 1 bit each way.
    """

    x: Share
    outputs: tuple[WrapOutput, ...]
    signed: bool = True
    modulus: int = P_FIELD

    def signed_offset(self) -> int:
        """modulus/4 rounded to a multiple of 2^shift for every shift (a fraction would bias the result)."""
        return offset_of(self.outputs, self.signed, self.modulus)

    def payload(self, lead: int) -> int:
        return packed_size(_count(self.x, lead), 1)


@dataclass(frozen=True, eq=False)
class And:
    """4.2: a ∧ b. -> Bits. Same shapes. Prepared: one bit triple. Online: 2 bits each way (all of a, then all
    of b)."""

    a: Bits
    b: Bits

    def payload(self, lead: int) -> int:
        return packed_size(2 * _count(self.a, lead), 1)


@dataclass(frozen=True, eq=False)
class Mux:
    """4.3: bit · value mod `modulus`. -> Share. Same shapes. Online: 1 bit and 1 residue each way."""

    bit: Bits
    value: Share
    modulus: int = P_FIELD

    def payload(self, lead: int) -> int:
        n = _count(self.value, lead)
        return packed_size(n, 1) + packed_size(n, width(self.modulus))


@dataclass(frozen=True, eq=False)
class ToArithmetic:
    """An XOR-shared bit as a share of 0 or 1 mod `modulus`. -> Share. Online: 1 bit each way."""

    bit: Bits
    modulus: int = P_FIELD

    def payload(self, lead: int) -> int:
        return packed_size(_count(self.bit, lead), 1)


@dataclass(frozen=True, eq=False)
class Mul:
    """4.4: x · y mod p, same shapes. -> Share. Prepared: one triple. Online: 2 residues each way."""

    x: Share
    y: Share

    def payload(self, lead: int) -> int:
        return packed_size(2 * _count(self.x, lead), width(P_FIELD))


@dataclass(frozen=True, eq=False)
class SumSquares:
    """Σ_i x_i² mod p over the last axis. x: (..., n). -> Share (...). Online: 1 residue per input each way.

    Open x - r, then Σ(x - r)² + 2Σ(x - r)·r + Σr²; the last term is prepared.
    """

    x: Share

    def payload(self, lead: int) -> int:
        return packed_size(_count(self.x, lead), width(P_FIELD))


@dataclass(frozen=True, eq=False)
class MaskRows:
    """First half of scalar × vector (4.5): open v - r. v: (..., n). -> MaskedRows, to be used by one
    `ScaleRows`.

    Online: 1 residue per element each way. Worth asking early: it can ride with anything before the scalar is
    known.
    """

    v: Share

    def payload(self, lead: int) -> int:
        return packed_size(_count(self.v, lead), width(P_FIELD))


@dataclass(eq=False)
class MaskedRows:
    """Opaque result of `MaskRows`: the opened v - r and what goes with it (shares of r, t, r·t). Use it
    once."""

    shape: tuple[int, ...]
    state: Any = field(repr=False)
    used: bool = False


@dataclass(frozen=True, eq=False)
class ScaleRows:
    """Second half (4.5): v · s mod p, s one scalar per row. rows: of v (..., n), scalar: (...). -> Share
    (..., n).

    Opens s - t; v·s = (v - r)·s + r·(s - t) + r·t. Online: 1 residue per *row* each way.
    """

    rows: MaskedRows
    scalar: Share

    def payload(self, lead: int) -> int:
        return packed_size(_count(self.scalar, lead), width(P_FIELD))


@dataclass(frozen=True, eq=False)
class SplineLookup:
    """4.6: F(y). y: shares mod 2^table.ring_bits. -> Share mod table.modulus, same shape.

    Prepared per element: one 1-of-2^segment_bits transfer; α_l (client) and ρ_l (server) random with shares
    of Σ_l α_l·ρ_l mod modulus. First message (client): segment number minus the random index (segment_bits
    bits; all elements), then basis[l, φ] - α_l for all l ((products, *S) order). Second (server):
    2^segment_bits · terms masked entries per element ((*S, 2^segment_bits, terms) order, rotated by the
    received difference).
    """

    y: Share
    table: SplineTable

    def up(self, lead: int) -> int:
        n = _count(self.y, lead)
        residues = packed_size(n * self.table.products, width(self.table.modulus))
        return packed_size(n, self.table.segment_bits) + residues

    def down(self, lead: int) -> int:
        per_element = self.table.terms << self.table.segment_bits
        return packed_size(_count(self.y, lead) * per_element, width(self.table.modulus))


@dataclass(frozen=True, eq=False)
class RegionLookup:
    """4.7: the table's bits for y. y: (*S) shares as the table says. -> Bits (*S, table.width).

    First message (client): segment_bits bits; second (server): 2^segment_bits · width bits per element
    ((*S, 2^segment_bits) values of `width` bits).
    """

    y: Share
    table: RegionTable

    def up(self, lead: int) -> int:
        return packed_size(_count(self.y, lead), self.table.segment_bits)

    def down(self, lead: int) -> int:
        return packed_size(_count(self.y, lead) << self.table.segment_bits, self.table.width)


Request = Wrap | And | Mux | ToArithmetic | Mul | SumSquares | MaskRows | ScaleRows
Lookup = SplineLookup | RegionLookup
