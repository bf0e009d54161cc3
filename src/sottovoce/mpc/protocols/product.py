"""Products of shared field elements (protocols.md 4.4, 4.5 and the norm's sum of squares, 7.4).

Leakage of all: none; every opened value is masked by a one-time uniform field element.
"""

from dataclasses import dataclass

import numpy as np

from sottovoce import _native
from sottovoce.errors import ProtocolError
from sottovoce.mpc.field import Field, P, width
from sottovoce.mpc.protocols.wire import Bytes, Party, Steps, intact
from sottovoce.mpc.requests import MaskedRows, MaskRows, Mul, ScaleRows, SumSquares
from sottovoce.net import packed_size


def mul(party: Party, request: Mul) -> Steps[Field]:
    """x·y mod p from a triple c = a·b: open d = x − a and e = y − b, then x·y = c + d·b + e·a + d·e.

    Cost: one exchange, 2 residues each way and element.
    """
    x, y = np.ascontiguousarray(request.x), np.ascontiguousarray(request.y)
    a, b, c = party.source.triples(x.size)
    mine, packed = np.empty(2 * x.size, np.uint64), _packed(2 * x.size)
    _native.mul_open(x, y, a, b, P, mine, packed)
    theirs = yield packed
    result: Field = np.empty(x.shape, np.uint64)
    # The client's share takes the public product d·e.
    intact(_native.mul_share(mine, theirs, a, b, c, P, party.is_client, result))
    return result


def sum_squares(party: Party, request: SumSquares) -> Steps[Field]:
    """Σ x² over the last axis: open x̂ = x − r, then Σx̂² + 2Σx̂·r + Σr².

    Each party's r_i is its own random vector, so Σr² = Σr0² + Σr1² + 2Σr0·r1 needs one prepared inner
    product. Cost: one exchange, 1 residue each way and input.
    """
    x = np.ascontiguousarray(request.x)
    rows, length = x.shape[:-1], x.shape[-1]
    r, products = party.source.cross_products(int(np.prod(rows, dtype=np.int64)), length)
    r = np.ascontiguousarray(r)
    mine, packed = np.empty(x.size, np.uint64), _packed(x.size)
    _native.residues_open(x, r, P, mine, packed)
    theirs = yield packed
    result: Field = np.empty(rows, np.uint64)
    # Both take 2x̂·r + r² for their own r, the client also the public x̂².
    intact(_native.squares_share(mine, theirs, r, products, P, party.is_client, result))
    return result


@dataclass(frozen=True)
class _RowState:
    """What a masked tensor keeps for its one scaling: the public v − r and this party's shares of r, t and
    r·t.
    """

    opened: Field
    vectors: Field
    scalars: Field
    products: Field


def mask_rows(party: Party, request: MaskRows) -> Steps[MaskedRows]:
    """Open v − r for rows v of the last axis; the prepared scalar t and r·t wait for `scale_rows`.

    Cost: one exchange, 1 residue each way and element.
    """
    v = np.ascontiguousarray(request.v)
    rows, length = v.shape[:-1], v.shape[-1]
    prepared = party.source.scalars(int(np.prod(rows, dtype=np.int64)), length)
    vectors, products = np.ascontiguousarray(prepared.vectors), np.ascontiguousarray(prepared.products)
    mine, packed = np.empty(v.size, np.uint64), _packed(v.size)
    _native.residues_open(v, vectors, P, mine, packed)
    theirs = yield packed
    opened = np.empty(v.size, np.uint64)
    intact(_native.residues_opened(mine, theirs, P, opened))
    return MaskedRows(v.shape, _RowState(opened, vectors, prepared.scalars, products))


def scale_rows(party: Party, request: ScaleRows) -> Steps[Field]:
    """v·s with one scalar per row: open ŝ = s − t, then v·s = (v − r)·s + r·ŝ + r·t.

    Cost: one exchange, 1 residue each way and *row*. ProtocolError if the rows were scaled before: a second
    scalar under the same t would open the difference of the two.
    """
    rows = request.rows
    if rows.used:
        raise ProtocolError("masked rows were to be scaled twice; mask them again for another scalar")
    rows.used = True
    state: _RowState = rows.state
    scalars = np.ascontiguousarray(request.scalar)
    mine, packed = np.empty(scalars.size, np.uint64), _packed(scalars.size)
    _native.residues_open(scalars, state.scalars, P, mine, packed)
    theirs = yield packed
    result: Field = np.empty(rows.shape, np.uint64)
    intact(_native.scale_share(state.opened, state.vectors, state.products, scalars, mine, theirs, P, result))
    return result


def _packed(count: int) -> Bytes:
    """Room for so many residues mod p."""
    return np.empty(packed_size(count, width(P)), np.uint8)
