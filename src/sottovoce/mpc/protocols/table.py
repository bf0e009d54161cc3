"""Look-ups of a function of y = y0 + y1 by the client's segment number (protocols.md 4.6, 4.7 and exp's 7.2).

The server knows the start of every segment exactly, so it prepares one entry per segment; the client
obtains the one of its own share by a 1-of-2^m transfer from random OT made ahead: it sends its segment
minus the random index, the server sends the table rotated by that under the OT's pads. All segments are
computed for all elements, whatever the values. Leakage: none; the client's corrections are masked by the
random index and by one-time α, the entries the client opens by one-time ρ, the others by pads it does not
have.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sottovoce import _native
from sottovoce.errors import ParameterError, RangeError
from sottovoce.mpc import field
from sottovoce.mpc.field import Bits, Field, P
from sottovoce.mpc.protocols.wire import Expected, Opened, Party, Piece
from sottovoce.mpc.requests import Lookup, RegionLookup, SplineLookup
from sottovoce.net import packed_size

Bytes = NDArray[np.uint8]


class _Choice(NamedTuple):
    """The client's position in one batch of transfers."""

    remainder: Field  # (n,) φ
    random: Field  # (n,) the random OT's index
    pads: Field  # (n, words)
    difference: Field  # (n,) segment − random


class SplineClient:
    """The client's side of F(y) = Σ_l entries[a, l]·basis[l, φ]: message out, message in, share of the
    result.
    """

    def __init__(self, party: Party, request: SplineLookup) -> None:
        table = self._table = request.table
        self._shape, n = request.y.shape, request.y.size
        self._choice = _choose(
            party, request.y, table.segment_bits, table.remainder_bits, _words(table.terms, table.modulus)
        )
        self._cross = party.source.cross_products(n, table.products)
        self._basis = table.basis[:, self._choice.remainder]

    def message(self) -> list[Piece]:
        masked = field.sub(self._basis, self._cross.factors.T, self._table.modulus)
        return [
            Piece(self._choice.difference, 1 << self._table.segment_bits),
            Piece(masked, self._table.modulus),
        ]

    @property
    def reply_size(self) -> int:
        table = self._table
        return packed_size(
            len(self._choice.random) * (table.terms << table.segment_bits), field.width(table.modulus)
        )

    def finish(self, reply: memoryview) -> Field:
        table, modulus = self._table, self._table.modulus
        mine = open_entries(reply, self._choice, table.segment_bits, table.terms, field.width(modulus))
        entries = field.checked(mine, modulus)
        factors = entries[:, 1:] if table.constant else entries
        inner = field.total(field.mul(factors, self._basis.T, modulus), -1, modulus)
        result = field.add(inner, self._cross.products, modulus)
        return (field.add(result, entries[:, 0], modulus) if table.constant else result).reshape(self._shape)


class SplineServer:
    """The server's side: it answers the client's message with all masked entries."""

    def __init__(self, party: Party, request: SplineLookup) -> None:
        table = self._table = request.table
        self._y, n = request.y, request.y.size
        self._pads = party.source.send_ots(n, table.segment_bits, _words(table.terms, table.modulus))
        self._cross = party.source.cross_products(n, table.products)
        self._constant = party.stream.uniform(table.modulus, n, 1) if table.constant else None

    def expects(self) -> list[Expected]:
        n, table = self._y.size, self._table
        return [Expected((n,), 1 << table.segment_bits), Expected((table.products, n), table.modulus)]

    def answer(self, message: Opened) -> tuple[Bytes, Field]:
        """The reply, and this party's share of the result."""
        difference, corrections = message
        table, modulus, rho = self._table, self._table.modulus, self._cross.factors
        masks = rho if self._constant is None else np.concatenate([self._constant, rho], axis=1)
        masks = np.ascontiguousarray(masks)
        out = np.empty(
            packed_size(self._y.size * (table.terms << table.segment_bits), field.width(modulus)), np.uint8
        )
        _native.mask_tables(
            table.entries,
            self._y.ravel(),
            1 << table.remainder_bits,
            difference,
            masks,
            modulus,
            self._pads,
            field.width(modulus),
            out,
        )
        inner = field.total(field.mul(corrections.T, rho, modulus), -1, modulus)
        result = field.add(inner, self._cross.products, modulus)
        if self._constant is not None:
            result = field.add(result, self._constant[:, 0], modulus)
        return out, result.reshape(self._y.shape)


class RegionClient:
    """The client's side of a look-up of XOR-shared bits."""

    def __init__(self, party: Party, request: RegionLookup) -> None:
        self._table, self._shape = request.table, request.y.shape
        self._choice = _choose(party, request.y, self._table.segment_bits, self._table.remainder_bits, 1)

    def message(self) -> list[Piece]:
        return [Piece(self._choice.difference, 1 << self._table.segment_bits)]

    @property
    def reply_size(self) -> int:
        return packed_size(len(self._choice.random) << self._table.segment_bits, self._table.width)

    def finish(self, reply: memoryview) -> Bits:
        table = self._table
        mine = open_entries(reply, self._choice, table.segment_bits, 1, table.width)
        return _split(mine[:, 0].astype(np.uint8), table.width, self._shape)


class RegionServer:
    """The server's side: its own output bits are random, the table is masked by them."""

    def __init__(self, party: Party, request: RegionLookup) -> None:
        table = self._table = request.table
        self._y = request.y
        self._pads = party.source.send_ots(request.y.size, table.segment_bits, 1)[:, :, 0]
        self._own = party.stream.bytes(request.y.size) & np.uint8((1 << table.width) - 1)

    def expects(self) -> list[Expected]:
        return [Expected((self._y.size,), 1 << self._table.segment_bits)]

    def answer(self, message: Opened) -> tuple[Bytes, Bits]:
        (difference,) = message
        table = self._table
        out = np.empty(packed_size(self._y.size << table.segment_bits, table.width), np.uint8)
        _native.mask_regions(
            table.entries,
            self._y.ravel(),
            1 << table.remainder_bits,
            difference,
            self._own,
            self._pads,
            table.width,
            out,
        )
        return out, _split(self._own, table.width, self._y.shape)


def check(lookup: Lookup) -> None:
    """ParameterError for a table whose correlations no source makes: inner products exist mod p only."""
    if isinstance(lookup, SplineLookup) and lookup.table.modulus != P:
        raise ParameterError(f"a spline table is looked up mod {P}, not mod {lookup.table.modulus}")


def client(party: Party, lookup: Lookup) -> SplineClient | RegionClient:
    """The client's side of any look-up."""
    check(lookup)
    return SplineClient(party, lookup) if isinstance(lookup, SplineLookup) else RegionClient(party, lookup)


def server(party: Party, lookup: Lookup) -> SplineServer | RegionServer:
    """The server's side of any look-up."""
    check(lookup)
    return SplineServer(party, lookup) if isinstance(lookup, SplineLookup) else RegionServer(party, lookup)


def open_entries(reply: memoryview, choice: _Choice, segment_bits: int, columns: int, width: int) -> Field:
    """The client's entry of every table: (n, columns)."""
    out = np.empty((len(choice.random), columns), np.uint64)
    _native.open_entries(
        np.frombuffer(reply, np.uint8), choice.random, 1 << segment_bits, choice.pads, width, out
    )
    return out


def _choose(party: Party, y: Field, segment_bits: int, remainder_bits: int, words: int) -> _Choice:
    flat = y.ravel()
    segment = flat >> np.uint64(remainder_bits)
    if flat.size and int(segment.max()) >> segment_bits:
        raise RangeError(f"a look-up takes shares below 2^{segment_bits + remainder_bits}")
    index, pads = party.source.receive_ots(flat.size, segment_bits, words)
    remainder = flat & np.uint64((1 << remainder_bits) - 1)
    return _Choice(remainder, index, pads, field.sub(segment, index, 1 << segment_bits))


def _words(terms: int, modulus: int) -> int:
    """64-bit pad words of one entry."""
    return -(-terms * field.width(modulus) // 64)


def _split(packed: Bits, width: int, shape: tuple[int, ...]) -> Bits:
    """Bit b of each byte as a last axis: (*shape, width)."""
    bits = np.unpackbits(packed[:, None], axis=1, count=width, bitorder="little")
    return bits.reshape(*shape, width)
