"""Products of shared field elements (protocols.md 4.4, 4.5 and the norm's sum of squares, 7.4).

Leakage of all: none; every opened value is masked by a one-time uniform field element.
"""

from dataclasses import dataclass

import numpy as np

from sottovoce.errors import ProtocolError
from sottovoce.mpc import field
from sottovoce.mpc.field import Field, P
from sottovoce.mpc.protocols.wire import Party, Piece, Steps
from sottovoce.mpc.requests import MaskedRows, MaskRows, Mul, ScaleRows, SumSquares


def mul(party: Party, request: Mul) -> Steps[Field]:
    """x·y mod p from a triple c = a·b: open d = x − a and e = y − b, then x·y = c + d·b + e·a + d·e.

    Cost: one exchange, 2 residues each way and element.
    """
    shape = request.x.shape
    a, b, c = (item.reshape(shape) for item in party.source.triples(request.x.size))
    mine = np.stack([field.sub(request.x, a, P), field.sub(request.y, b, P)])
    (theirs,) = yield [Piece(mine, P)]
    d, e = field.add(mine, theirs, P)
    if party.is_client:
        b = field.add(b, e, P)  # the client's d·(b + e) brings in the public product d·e
    cross = field.add(field.mul(d, b, P), field.mul(e, a, P), P)
    return field.add(cross, c, P)


def sum_squares(party: Party, request: SumSquares) -> Steps[Field]:
    """Σ x² over the last axis: open x̂ = x − r, then Σx̂² + 2Σx̂·r + Σr².

    Each party's r_i is its own random vector, so Σr² = Σr0² + Σr1² + 2Σr0·r1 needs one prepared inner
    product. Cost: one exchange, 1 residue each way and input.
    """
    x = request.x
    rows, length = x.shape[:-1], x.shape[-1]
    factors, products = party.source.cross_products(int(np.prod(rows, dtype=np.int64)), length)
    r = factors.reshape(x.shape)
    mine = field.sub(x, r, P)
    (theirs,) = yield [Piece(mine, P)]
    opened = field.add(mine, theirs, P)
    # Client: (2·x̂ + r)·r + x̂²= (x̂ + r)². Server: the same without the public x̂².
    total = _sum_of_products(opened, r, P)
    twice = field.add(total, total, P)
    squares = _sum_of_products(r, r, P)
    own = field.add(field.add(twice, squares, P), _double(products.reshape(rows)), P)
    return field.add(own, _sum_of_products(opened, opened, P), P) if party.is_client else own


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
    v = request.v
    rows, length = v.shape[:-1], v.shape[-1]
    prepared = party.source.scalars(int(np.prod(rows, dtype=np.int64)), length)
    vectors = prepared.vectors.reshape(v.shape)
    mine = field.sub(v, vectors, P)
    (theirs,) = yield [Piece(mine, P)]
    opened = field.add(mine, theirs, P)
    state = _RowState(opened, vectors, prepared.scalars.reshape(rows), prepared.products.reshape(v.shape))
    return MaskedRows(v.shape, state)


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
    mine = field.sub(request.scalar, state.scalars, P)
    (theirs,) = yield [Piece(mine, P)]
    opened = field.add(mine, theirs, P)
    cross = field.add(
        field.mul(state.opened, request.scalar[..., None], P),
        field.mul(state.vectors, opened[..., None], P),
        P,
    )
    return field.add(cross, state.products, P)


def _sum_of_products(x: Field, y: Field, modulus: int) -> Field:
    return field.total(field.mul(x, y, modulus), -1, modulus)


def _double(x: Field) -> Field:
    return field.add(x, x, P)
