"""The arithmetic that protocol functions are written on: shares of integers, and a few interactive
primitives.

Two implementations run the same functions: `TwoPartyArithmetic` (one party's share, a channel, correlations)
and `ModelArithmetic` (both shares in one process, no cryptography, the readable definition of every
primitive).

*Arrays.* A share of a tensor of shape S is a uint64 array (residues mod p, mod a small prime, or mod 2^k), a
shared bit is a uint8 array (0 or 1, XOR). In the two-party run the array has shape S: this party's share. In
the model it has shape (2, *S): `lead` = 1 party axis in front. Functions therefore use trailing axes only
(negative axis numbers, `x[..., i]`), and `shape(x)`, `reshape(x, S)` for the logical shape.

*Who knows what.* A public constant enters through `from_public` / `add_public`; what only one party knows
enters through `from_client` / `from_server`, whose argument is None at the other party (the model is given it
always).

*Cost.* Local operations are free. `exchange` is one exchange however many requests it is given, `lookup` two
messages; bytes are stated by the requests (`sottovoce.mpc.requests`). *Leakage*: none; every opened value is
masked by a fresh uniform one. *Errors*: a value outside its range is not detected by the protocol; the model
raises RangeError.

Source: protocols.md 4 (the wrap bit and the spline transfer are ours; triples Beaver 1991; MUX CrypTFlow2).
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from sottovoce.mpc import field
from sottovoce.mpc.field import Bits
from sottovoce.mpc.field import Field as Share
from sottovoce.mpc.requests import (
    And,
    Lookup,
    MaskedRows,
    MaskRows,
    Mul,
    Mux,
    RegionLookup,
    Request,
    ScaleRows,
    SplineLookup,
    SumSquares,
    ToArithmetic,
    Wrap,
    WrapOutput,
)
from sottovoce.mpc.tables import RegionTable, SplineTable
from sottovoce.ring.primes import P_FIELD

IntArray = NDArray[Any]


class Arithmetic(ABC):
    """Secret-shared integer arithmetic; see the module's docstring for shapes, cost and leakage."""

    p = P_FIELD
    lead: int  # leading party axes of every share array: 0 (two-party) or 1 (model)

    def operation(self, name: str) -> AbstractContextManager[Any]:
        """Name what follows, for the ledger (two-party) and for error messages (model)."""
        return nullcontext()

    def require_range(self, x: Share, low: int, high: int) -> None:
        """Promise low <= x < high (signed, mod p). Shares hide x, so only the model checks (RangeError)."""
        return None

    # ---------------------------------------------------------------- interactive

    @abstractmethod
    def exchange(self, requests: Sequence[Request]) -> list[Any]:
        """Run all requests in one exchange; results in the same order (types: each request's docstring)."""

    @abstractmethod
    def lookup(self, lookups: Sequence[Lookup]) -> list[Any]:
        """Run all look-ups in two messages, client to server and back; results in the same order."""

    # ---------------------------------------------------------------- entering values (local)

    @abstractmethod
    def from_public(self, values: IntArray, modulus: int = P_FIELD) -> Share:
        """Share of a constant both parties know: the server's share is the value, the client's is 0.

        values: (*S) integers, negative ones allowed, reduced mod `modulus`.
        """

    @abstractmethod
    def from_client(self, values: IntArray | None, shape: tuple[int, ...], modulus: int = P_FIELD) -> Share:
        """Share of what only the client knows (the server's share is 0, and its `values` is None)."""

    @abstractmethod
    def from_server(self, values: IntArray | None, shape: tuple[int, ...], modulus: int = P_FIELD) -> Share:
        """Share of what only the server knows (the client's share is 0, and its `values` is None)."""

    # ---------------------------------------------------------------- party-dependent local steps

    @abstractmethod
    def take_bits(self, y: Share, low: int, high: int) -> Share:
        """From shares mod 2^k, k >= high: (y mod 2^high) / 2^low as shares mod 2^(high - low). Local.

        The client floors, the server takes the ceiling: error in (-1, 1) unit, mean about 0; exact for low =
        0.
        """

    def take_windows(self, y: Share, highs: Sequence[int], bits: int) -> Share:
        """y mod 2^h in `bits` bits for each h of `highs`, as shares mod 2^bits: (..., len(highs)). Local.

        The upper ones, as by `take_bits`; where there are fewer, y mod 2^h times 2^(bits - h).
        """

        def window(high: int) -> Share:
            if high >= bits:
                return self.take_bits(y, high - bits, high)
            widened: Share = self.take_bits(y, 0, high) << np.uint64(bits - high)
            return widened

        return np.stack([window(high) for high in highs], axis=-1)

    @abstractmethod
    def not_(self, a: Bits) -> Bits:
        """1 - a (the server flips its share)."""

    # ---------------------------------------------------------------- linear, local

    def shape(self, x: NDArray[Any]) -> tuple[int, ...]:
        """The logical shape S of a share array."""
        return x.shape[self.lead :]

    def reshape(self, x: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
        return x.reshape(x.shape[: self.lead] + tuple(shape))

    def add(self, x: Share, y: Share, modulus: int = P_FIELD) -> Share:
        return field.add(x, y, modulus)

    def sub(self, x: Share, y: Share, modulus: int = P_FIELD) -> Share:
        return field.sub(x, y, modulus)

    def neg(self, x: Share, modulus: int = P_FIELD) -> Share:
        return field.neg(x, modulus)

    def add_public(self, x: Share, c: IntArray | int, modulus: int = P_FIELD) -> Share:
        """x + c for a public c that broadcasts against S."""
        return self.add(x, self.from_public(np.broadcast_to(np.asarray(c), self.shape(x)), modulus), modulus)

    def add_server(self, x: Share, c: IntArray | None, modulus: int = P_FIELD) -> Share:
        """x + c for a constant only the server knows (None at the client), broadcasting against S."""
        values = None if c is None else np.broadcast_to(c, self.shape(x))
        return self.add(x, self.from_server(values, self.shape(x), modulus), modulus)

    def mul_public(self, x: Share, c: IntArray | int, modulus: int = P_FIELD) -> Share:
        """x · c for public integers c that broadcast against S (negative ones allowed)."""
        if isinstance(c, int):
            return field.mul(x, np.full(x.shape, c % modulus, np.uint64), modulus)
        residues = (np.asarray(c).astype(np.int64) % np.int64(modulus)).astype(np.uint64)
        return field.mul(x, np.broadcast_to(residues, x.shape), modulus)

    def sum(self, x: Share, axis: int = -1, modulus: int = P_FIELD) -> Share:
        """Sum over a trailing axis (negative number); fewer than 2^20 terms."""
        return field.total(x, axis, modulus)

    def xor(self, a: Bits, b: Bits) -> Bits:
        return a ^ b

    # ---------------------------------------------------------------- one request at a time

    def wrap(
        self, x: Share, outputs: Sequence[WrapOutput], signed: bool = True, modulus: int = P_FIELD
    ) -> list[Share]:
        """4.1 on its own: one exchange, n bits each way."""
        return cast(list[Share], self.exchange([Wrap(x, tuple(outputs), signed, modulus)])[0])

    def rescale(self, x: Share, bits: int, signed: bool = True) -> Share:
        """x / 2^bits, mod p to mod p: one exchange, n bits each way."""
        return self.wrap(x, [WrapOutput(bits)], signed)[0]

    def and_(self, a: Bits, b: Bits) -> Bits:
        return cast(Bits, self.exchange([And(a, b)])[0])

    def mux(self, bit: Bits, value: Share, modulus: int = P_FIELD) -> Share:
        return cast(Share, self.exchange([Mux(bit, value, modulus)])[0])

    def to_arithmetic(self, bit: Bits, modulus: int = P_FIELD) -> Share:
        return cast(Share, self.exchange([ToArithmetic(bit, modulus)])[0])

    def mul(self, x: Share, y: Share) -> Share:
        return cast(Share, self.exchange([Mul(x, y)])[0])

    def sum_squares(self, x: Share) -> Share:
        return cast(Share, self.exchange([SumSquares(x)])[0])

    def mask_rows(self, v: Share) -> MaskedRows:
        return cast(MaskedRows, self.exchange([MaskRows(v)])[0])

    def scale_rows(self, rows: MaskedRows, scalar: Share) -> Share:
        return cast(Share, self.exchange([ScaleRows(rows, scalar)])[0])

    def spline(self, y: Share, table: SplineTable) -> Share:
        return cast(Share, self.lookup([SplineLookup(y, table)])[0])

    def region_bits(self, y: Share, table: RegionTable) -> Bits:
        return cast(Bits, self.lookup([RegionLookup(y, table)])[0])
