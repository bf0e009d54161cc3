"""The wrap bit (protocols.md 4.1): rescaling, and conversion between moduli, from one AND of two private
bits.

For 0 ≤ x < p/2 shared as x0 + x1 = x + w·p over the integers, w = h0 OR h1 with h_i = [x_i ≥ (p + 1)/2]: if
w = 0 both shares are at most x, hence below p/2; if w = 1 they cannot both be below p/2, because their sum
is at least p. So x/2^f = x0/2^f + x1/2^f − w·p/2^f needs only the complement (1 − h0)·(1 − h1) as shares of
a multiple of P = round(p/2^f): the product of a bit the client knows and a bit the server knows.
"""

import numpy as np

from sottovoce.mpc import field
from sottovoce.mpc.field import Bits, Field
from sottovoce.mpc.protocols.wire import Party, Piece, Steps
from sottovoce.mpc.requests import Wrap


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
    results = []
    for out, (worth, modulus), product in zip(request.outputs, targets, prepared.products, strict=True):
        if party.is_client:
            own, constants = x >> np.uint64(out.shift), [0, worth]
        else:
            own = (x + np.uint64((1 << out.shift) - 1)) >> np.uint64(out.shift)
            constants = [k * worth - worth - (offset >> out.shift) for k in (-1, 0, 1)]
        if (p >> out.shift) + 1 > modulus:
            own = own % np.uint64(modulus)
        part = field.add(own, _choose(known, constants, modulus), modulus)
        signed = field.negate_where(flip, product.reshape(x.shape), modulus)
        results.append(field.add(part, signed, modulus))
    return results


def multiple(p: int, shift: int) -> int:
    """P = round(p / 2^shift), what one wrap is worth after the shift."""
    return (p + (1 << shift >> 1)) >> shift


def _choose(index: Bits, constants: list[int], modulus: int) -> Field:
    """constants[index] mod M; the few constants lie in one cache line."""
    return np.array([c % modulus for c in constants], np.uint64)[index]
