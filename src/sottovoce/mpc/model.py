"""Every primitive in a few lines of NumPy, both shares in one process: the definition the two-party run is
held to.

It performs the arithmetic of the real protocol to the last unit (the wrap bit is h0 OR h1, the client floors
and the server takes the ceiling, a table sees only the client's split and the server's exact start), hands
out freshly random shares, and checks what the protocol cannot: that every value is in its range. It offers no
privacy; the `clear` engine's fixed-point arithmetic and the tests run on it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sottovoce.errors import RangeError
from sottovoce.mpc import field
from sottovoce.mpc.arithmetic import Arithmetic, IntArray
from sottovoce.mpc.cost import Cost
from sottovoce.mpc.field import P_FIELD, Bits
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
)


class ModelArithmetic(Arithmetic):
    """Both parties' shares in arrays of shape (2, *S). `spent` adds up what the same calls would cost two
    parties.

    rng: makes the shares; the results depend on it only through the rounding of the last unit.
    check: raise RangeError where a value leaves its range (the message names the operation).
    """

    lead = 1

    def __init__(self, rng: np.random.Generator, check: bool = True) -> None:
        self.rng = rng
        self.check = check
        self.spent = Cost()
        self._names: list[str] = []
        self._steps: dict[type, Callable[[Any], Any]] = {
            Wrap: self._wrap,
            And: lambda r: self._share_bits(self._open_bits(r.a) & self._open_bits(r.b)),
            Mux: self._mux,
            ToArithmetic: lambda r: self.share(self._open_bits(r.bit).astype(np.uint64), r.modulus),
            Mul: self._mul,
            SumSquares: self._sum_squares,
            MaskRows: lambda r: MaskedRows(self.shape(r.v), self.reveal(r.v)),
            ScaleRows: self._scale_rows,
            SplineLookup: self._spline,
            RegionLookup: self._regions,
        }

    @contextmanager
    def operation(self, name: str) -> Iterator[None]:
        self._names.append(name)
        try:
            yield
        finally:
            self._names.pop()

    def require_range(self, x: Share, low: int, high: int) -> None:
        if self.check:
            value = field.centred(self.reveal(x), self.p)
            self._require((value >= low) & (value < high), f"a value outside [{low}, {high})")

    def exchange(self, requests: Sequence[Request]) -> list[Any]:
        size = sum(r.payload(1) for r in requests)
        self.spent += Cost(1, size, size)
        return [self._steps[type(r)](r) for r in requests]

    def lookup(self, lookups: Sequence[Lookup]) -> list[Any]:
        self.spent += Cost(2, sum(r.up(1) for r in lookups), sum(r.down(1) for r in lookups))
        return [self._steps[type(r)](r) for r in lookups]

    # ---------------------------------------------------------------- sharing

    def share(self, residues: Share, modulus: int = P_FIELD) -> Share:
        """Fresh shares (2, *S) of residues (*S)."""
        x0 = self.rng.integers(0, modulus, size=residues.shape, dtype=np.uint64)
        return np.stack([x0, field.sub(residues, x0, modulus)])

    def reveal(self, x: Share, modulus: int = P_FIELD) -> Share:
        """The residues that (2, *S) shares stand for."""
        return field.add(x[0], x[1], modulus)

    def encode(self, x: NDArray[Any], frac_bits: int) -> Share:
        """Fresh shares mod p of real numbers in fixed point."""
        return self.share(field.encode(x, frac_bits))

    def decode(self, x: Share, frac_bits: int) -> NDArray[np.float64]:
        """The real numbers behind shares mod p, fixed point with `frac_bits`."""
        return field.decode(self.reveal(x), frac_bits)

    def _share_bits(self, b: Bits) -> Bits:
        b0 = self.rng.integers(0, 2, size=b.shape, dtype=np.uint8)
        return np.stack([b0, b0 ^ b])

    def _open_bits(self, b: Bits) -> Bits:
        opened: Bits = b[0] ^ b[1]
        return opened

    def from_public(self, values: IntArray, modulus: int = P_FIELD) -> Share:
        residues = field.from_signed(values, modulus)
        return np.stack([np.zeros_like(residues), residues])

    def from_client(self, values: IntArray | None, shape: tuple[int, ...], modulus: int = P_FIELD) -> Share:
        return self.from_server(values, shape, modulus)[::-1]

    def from_server(self, values: IntArray | None, shape: tuple[int, ...], modulus: int = P_FIELD) -> Share:
        if values is None:
            raise ValueError("the model plays both parties and needs the value")
        return self.from_public(np.broadcast_to(values, shape), modulus)

    def take_bits(self, y: Share, low: int, high: int) -> Share:
        mask = np.uint64((1 << high) - 1)
        ceiling = np.array([0, (1 << low) - 1], dtype=np.uint64).reshape((2,) + (1,) * (y.ndim - 1))
        return (((y & mask) + ceiling) >> np.uint64(low)) & (mask >> np.uint64(low))

    def not_(self, a: Bits) -> Bits:
        return np.stack([a[0], a[1] ^ np.uint8(1)])

    # ---------------------------------------------------------------- the primitives

    def _wrap(self, r: Wrap) -> list[Share]:
        m, offset = r.modulus, r.signed_offset()
        x0, x1 = r.x[0], field.add(r.x[1], np.uint64(offset), m)
        bound = "abs(x) < modulus/4" if r.signed else "0 <= x < modulus/2"
        self._require(field.add(x0, x1, m) <= m // 2, f"a wrapped value breaks {bound}")
        half = np.uint64((m + 1) // 2)
        w = ((x0 >= half) | (x1 >= half)).astype(np.uint64)
        results = []
        for out in r.outputs:
            f, target, step = np.uint64(out.shift), out.modulus, 1 << out.shift
            correction = np.uint64(-((m + step // 2) // step) % target)  # -round(modulus / 2^f)
            y = ((x0 >> f) + ((x1 + np.uint64(step - 1)) >> f) + w * correction) % np.uint64(target)
            results.append(self.share(field.sub(y, np.uint64(offset // step % target), target), target))
        return results

    def _mux(self, r: Mux) -> Share:
        return self.share(self._open_bits(r.bit) * self.reveal(r.value, r.modulus), r.modulus)

    def _mul(self, r: Mul) -> Share:
        return self.share(self._product(self.reveal(r.x), self.reveal(r.y)))

    def _scale_rows(self, r: ScaleRows) -> Share:
        if r.rows.used:
            raise ValueError("masked rows used twice: the second opening would reveal a difference")
        r.rows.used = True
        return self.share(self._product(r.rows.state, self.reveal(r.scalar)[..., None]))

    def _sum_squares(self, r: SumSquares) -> Share:
        x = field.centred(self.reveal(r.x), self.p)
        total = (x.astype(np.float64) ** 2).sum(axis=-1)
        self._require(total < self.p / 2, "a sum of squares above p/2")
        # Below p/2 no square overflows, so the integers are exact.
        return self.share((x * x).sum(axis=-1).astype(np.uint64))

    def _product(self, x: Share, y: Share) -> Share:
        a, b = field.centred(x, self.p), field.centred(y, self.p)
        self._require(np.abs(a.astype(np.float64) * b) < self.p / 2, "a product above p/2")
        return field.mul(x, np.broadcast_to(y, x.shape), self.p)

    def _spline(self, r: SplineLookup) -> Share:
        table, m = r.table, r.table.modulus
        start, remainder = self._segment(r.y, table.segment_bits, table.remainder_bits, len(table.entries))
        c = int(table.constant)
        value = table.entries[start, 0] if table.constant else np.zeros_like(r.y[0])
        for i in range(table.products):
            value = field.add(value, field.mul(table.entries[start, c + i], table.basis[i, remainder], m), m)
        return self.share(value, m)

    def _regions(self, r: RegionLookup) -> Bits:
        table = r.table
        start, _ = self._segment(r.y, table.segment_bits, table.remainder_bits, len(table.entries))
        bits = table.entries[start][..., None] >> np.arange(table.width, dtype=np.uint8)
        return self._share_bits(bits & np.uint8(1))

    def _segment(self, y: Share, segment_bits: int, remainder_bits: int, length: int) -> tuple[Share, Share]:
        """Start of the client's segment as the server sees it, and the client's remainder."""
        if np.any(y[0] >= 1 << (segment_bits + remainder_bits)) or np.any(y[1] >= length):
            raise ValueError("look-up shares do not fit the table's ring")
        remainder = y[0] & np.uint64((1 << remainder_bits) - 1)
        return (y[0] - remainder + y[1]) & np.uint64(length - 1), remainder

    def _require(self, ok: NDArray[np.bool_], what: str) -> None:
        if self.check and not np.all(ok):
            where = "/".join(self._names) or "arithmetic"
            size = np.shape(ok)
            raise RangeError(f"{where}: {what} (shape {size}); widen the public range of this operation")
