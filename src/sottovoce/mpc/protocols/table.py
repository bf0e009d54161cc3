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

from sottovoce import _native
from sottovoce.errors import ParameterError, RangeError
from sottovoce.mpc import field
from sottovoce.mpc.field import Bits, Field, P
from sottovoce.mpc.protocols.wire import Bytes, Party, intact
from sottovoce.mpc.requests import Lookup, RegionLookup, SplineLookup
from sottovoce.mpc.tables import SplineTable
from sottovoce.net import packed_size, unpack_bits


class _Choice(NamedTuple):
    """The client's position in one batch of transfers."""

    remainder: Field  # (n,) φ
    random: Field  # (n,) the random OT's index
    pads: Field  # (n, words)


class SplineClient:
    """The client's side of F(y) = Σ_l entries[a, l]·basis[l, φ]: message out, message in, share of the
    result.
    """

    def __init__(self, party: Party, request: SplineLookup) -> None:
        table = self._table = request.table
        self._shape, n = request.y.shape, request.y.size
        chosen, masked = spline_request_sizes(n, table)
        self.message = np.empty(chosen + masked, np.uint8)
        words = _words(table.terms, table.modulus)
        self._choice = _choose(
            party, request.y, table.segment_bits, table.remainder_bits, words, self.message[:chosen]
        )
        factors, self._cross = party.source.cross_products(n, table.products)
        remainder = self._choice.remainder
        _native.basis_open(
            table.basis, remainder, np.ascontiguousarray(factors), table.modulus, self.message[chosen:]
        )

    @property
    def reply_size(self) -> int:
        table = self._table
        return packed_size(
            len(self._choice.random) * (table.terms << table.segment_bits), field.width(table.modulus)
        )

    def finish(self, reply: Bytes) -> Field:
        table, modulus = self._table, self._table.modulus
        entries = open_entries(reply, self._choice, table.segment_bits, table.terms, field.width(modulus))
        result: Field = np.empty(self._shape, np.uint64)
        remainder = self._choice.remainder
        intact(
            _native.spline_share(
                entries, table.basis, remainder, self._cross, modulus, table.constant, result
            )
        )
        return result


class SplineServer:
    """The server's side: it answers the client's message with all masked entries."""

    def __init__(self, party: Party, request: SplineLookup) -> None:
        table = self._table = request.table
        self._y, n = np.ascontiguousarray(request.y), request.y.size
        self._pads = party.source.send_ots(n, table.segment_bits, _words(table.terms, table.modulus))
        masks, self._cross = party.source.cross_products(n, table.products)
        if table.constant:
            masks = np.concatenate([party.stream.uniform(table.modulus, n, 1), masks], axis=1)
        self._masks = np.ascontiguousarray(masks)  # (n, terms)

    @property
    def request_size(self) -> int:
        return sum(spline_request_sizes(self._y.size, self._table))

    def answer(self, message: Bytes) -> tuple[Bytes, Field]:
        """The reply, and this party's share of the result."""
        table, modulus, n = self._table, self._table.modulus, self._y.size
        chosen, _ = spline_request_sizes(n, table)
        result: Field = np.empty(self._y.shape, np.uint64)
        intact(
            _native.spline_masked_share(
                message[chosen:], self._masks, self._cross, modulus, table.constant, result
            )
        )
        out = np.empty(packed_size(n * (table.terms << table.segment_bits), field.width(modulus)), np.uint8)
        _native.mask_tables(
            table.rolled,
            self._y.reshape(-1),
            unpack_bits(message[:chosen], n, table.segment_bits),
            self._masks,
            modulus,
            self._pads,
            field.width(modulus),
            out,
        )
        return out, result


class RegionClient:
    """The client's side of a look-up of XOR-shared bits."""

    def __init__(self, party: Party, request: RegionLookup) -> None:
        table = self._table = request.table
        self._shape = request.y.shape
        self.message = np.empty(packed_size(request.y.size, table.segment_bits), np.uint8)
        self._choice = _choose(party, request.y, table.segment_bits, table.remainder_bits, 1, self.message)

    @property
    def reply_size(self) -> int:
        return packed_size(len(self._choice.random) << self._table.segment_bits, self._table.width)

    def finish(self, reply: Bytes) -> Bits:
        table = self._table
        mine = open_entries(reply, self._choice, table.segment_bits, 1, table.width)
        return _split(mine[:, 0].astype(np.uint8), table.width, self._shape)


class RegionServer:
    """The server's side: its own output bits are random, the table is masked by them."""

    def __init__(self, party: Party, request: RegionLookup) -> None:
        self._table = request.table
        self._y = np.ascontiguousarray(request.y)
        self._pads = party.source.send_ots(request.y.size, self._table.segment_bits, 1)[:, :, 0]
        self._own = party.stream.bytes(request.y.size) & np.uint8((1 << self._table.width) - 1)

    @property
    def request_size(self) -> int:
        return packed_size(self._y.size, self._table.segment_bits)

    def answer(self, message: Bytes) -> tuple[Bytes, Bits]:
        table = self._table
        out = np.empty(packed_size(self._y.size << table.segment_bits, table.width), np.uint8)
        _native.mask_regions(
            table.rolled.reshape(-1),
            self._y.reshape(-1),
            table.phase_bits,
            unpack_bits(message, self._y.size, table.segment_bits),
            self._own,
            self._pads,
            table.width,
            out,
        )
        return out, _split(self._own, table.width, self._y.shape)


def spline_request_sizes(n: int, table: SplineTable) -> tuple[int, int]:
    """Bytes of the client's choices, and of its masked powers behind them."""
    return packed_size(n, table.segment_bits), packed_size(n * table.products, field.width(table.modulus))


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


def open_entries(reply: Bytes, choice: _Choice, segment_bits: int, columns: int, width: int) -> Field:
    """The client's entry of every table: (n, columns)."""
    out = np.empty((len(choice.random), columns), np.uint64)
    _native.open_entries(reply, choice.random, 1 << segment_bits, choice.pads, width, out)
    return out


def _choose(
    party: Party, y: Field, segment_bits: int, remainder_bits: int, words: int, message: Bytes
) -> _Choice:
    """Segment minus the random index, into `message`."""
    y = np.ascontiguousarray(y)
    index, pads = party.source.receive_ots(y.size, segment_bits, words)
    remainder = np.empty(y.size, np.uint64)
    if not _native.choose(y, segment_bits, remainder_bits, index, remainder, message):
        raise RangeError(f"a look-up takes shares below 2^{segment_bits + remainder_bits}")
    return _Choice(remainder, index, pads)


def _words(terms: int, modulus: int) -> int:
    """64-bit pad words of one entry."""
    return -(-terms * field.width(modulus) // 64)


def _split(packed: Bits, width: int, shape: tuple[int, ...]) -> Bits:
    """Bit b of each byte as a last axis: (*shape, width)."""
    bits = np.unpackbits(packed[:, None], axis=1, count=width, bitorder="little")
    return bits.reshape(*shape, width)
