"""The wrap bit (protocols.md 4.1): rescaling, and conversion between moduli, from one AND of two private
bits.

For 0 ≤ x < p/2 shared as x0 + x1 = x + w·p over the integers, w = h0 OR h1 with h_i = [x_i ≥ (p + 1)/2]: if
w = 0 both shares are at most x, hence below p/2; if w = 1 they cannot both be below p/2, because their sum
is at least p. So x/2^f = x0/2^f + x1/2^f − w·p/2^f needs only the complement (1 − h0)·(1 − h1) as shares of
a multiple of P = round(p/2^f): the product of a bit the client knows and a bit the server knows.
"""

from functools import lru_cache

import numpy as np

from sottovoce import _native
from sottovoce.mpc import field
from sottovoce.mpc.field import Bits, Field
from sottovoce.mpc.protocols.wire import Party, Piece, Steps
from sottovoce.mpc.requests import Wrap, WrapOutput


def wrap(party: Party, request: Wrap) -> Steps[list[Field]]:
    """x / 2^shift mod M for every output, from shares of x mod p.

    Cost: one exchange, 1 bit each way and element. Prepared: shares of β0·β1·P mod M for random private
    bits β. Error: one party floors, the other takes the ceiling: in (−1, 1) unit of the result, mean 0.
    Leakage: none; each party sends its bit under its own one-time β.
    """
    p, offset = request.modulus, request.signed_offset()
    x = request.x if party.is_client or not offset else field.add(request.x, np.uint64(offset), p)
    targets = [(multiple(p, out.shift), out.modulus) for out in request.outputs]
    prepared = party.source.wraps(x.size, targets)
    beta = prepared.bits.reshape(x.shape)

    low = (x < np.uint64((p + 1) // 2)).astype(np.uint8)
    mine = low ^ beta
    (theirs,) = yield [Piece(mine, 2)]

    # low0·low1 = low0·e1 + e0·low1 − e0·e1 + s0·s1·β0·β1, with e_i the opened bits and s_i = 1 − 2·e_i: the
    # first term is the client's, the next two are the server's. The server's also takes the constant and
    # the offset.
    known = low & theirs
    if not party.is_client:
        known = known + np.uint8(1) - (theirs & mine)
    flip = mine ^ theirs
    return [
        _share(party, x, request, out, known, flip, product)
        for out, product in zip(request.outputs, prepared.products, strict=True)
    ]


def multiple(p: int, shift: int) -> int:
    """P = round(p / 2^shift), what one wrap is worth after the shift."""
    return (p + (1 << shift >> 1)) >> shift


def _share(
    party: Party, x: Field, request: Wrap, out: WrapOutput, known: Bits, flip: Bits, product: Field
) -> Field:
    """The share of one output: the quotient, the constant that `known` selects, ± the prepared product."""
    constants = _constants(party.is_client, request.modulus, out.shift, out.modulus, request.signed_offset())
    result = np.empty(x.shape, np.uint64)
    _native.wrap_shares(
        x.ravel(),
        request.modulus,
        known.ravel(),
        flip.ravel(),
        product,
        constants,
        out.shift,
        not party.is_client,
        out.modulus,
        result.reshape(-1),
    )
    return result


@lru_cache(maxsize=256)
def _constants(is_client: bool, p: int, shift: int, modulus: int, offset: int) -> Field:
    """What known = 0, 1, 2 adds to the share (entry 3 is unused): multiples of P, the server's offset."""
    worth = multiple(p, shift)
    if is_client:
        return np.array([0, worth % modulus, 0, 0], np.uint64)
    return np.array([((k - 2) * worth - (offset >> shift)) % modulus for k in range(4)], np.uint64)
