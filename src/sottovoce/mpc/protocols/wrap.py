"""The wrap bit (protocols.md 4.1): rescaling, and conversion between moduli, from one AND of two private
bits.

For 0 ≤ x < p/2 shared as x0 + x1 = x + w·p over the integers, w = h0 OR h1 with h_i = [x_i ≥ (p + 1)/2]: if
w = 0 both shares are at most x, hence below p/2; if w = 1 they cannot both be below p/2, because their sum
is at least p. So x/2^f = x0/2^f + x1/2^f − w·p/2^f needs only the complement (1 − h0)·(1 − h1) as shares of
a multiple of P = round(p/2^f): the product of a bit the client knows and a bit the server knows.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from sottovoce import _native
from sottovoce.mpc.field import Field
from sottovoce.mpc.protocols.wire import Party, Steps, intact
from sottovoce.mpc.requests import Wrap, WrapOutput, offset_of
from sottovoce.net import packed_size


def wrap(party: Party, request: Wrap) -> Steps[list[Field]]:
    """x / 2^shift mod M for every output, from shares of x mod p.

    Cost: one exchange, 1 bit each way and element. Prepared: shares of β0·β1·P mod M for random private
    bits β. Error: one party floors, the other takes the ceiling: in (−1, 1) unit of the result, mean 0.
    Leakage: none; each party sends its bit under its own one-time β.
    """
    plan = _plan(request.outputs, request.signed, request.modulus, party.is_client)
    x, p = np.ascontiguousarray(request.x), request.modulus
    n = x.size
    beta, products = party.source.wraps(n, plan.targets)
    shifted, mine = np.empty(x.shape, np.uint64), np.empty(n, np.uint8)
    packed = np.empty(packed_size(n, 1), np.uint8)
    _native.wrap_open(x, p, plan.offset, beta, shifted, mine, packed)
    theirs = yield packed

    # low0·low1 = low0·e1 + e0·low1 − e0·e1 + s0·s1·β0·β1, with low_i = 1 − h_i, e_i the opened bits and
    # s_i = 1 − 2·e_i: the first term is the client's, the next two are the server's, which also takes the
    # constant and the offset.
    results = []
    for out, constants, product in zip(request.outputs, plan.constants, products, strict=True):
        result = np.empty(x.shape, np.uint64)
        intact(
            _native.wrap_share(
                shifted, p, mine, theirs, product, constants, out.shift, party.is_client, out.modulus, result
            )
        )
        results.append(result)
    return results


class _Plan(NamedTuple):
    """What follows from a wrap's outputs: the offset that this party adds, the products' targets (P, M), and
    what known = 0, 1, 2 adds to each output's share (entry 3 is unused)."""

    offset: int
    targets: tuple[tuple[int, int], ...]
    constants: list[Field]


@lru_cache(maxsize=256)
def _plan(outputs: tuple[WrapOutput, ...], signed: bool, p: int, is_client: bool) -> _Plan:
    offset = offset_of(outputs, signed, p)
    targets = tuple((multiple(p, out.shift), out.modulus) for out in outputs)
    constants = [_constants(is_client, p, out.shift, out.modulus, offset) for out in outputs]
    return _Plan(0 if is_client else offset, targets, constants)


def multiple(p: int, shift: int) -> int:
    """P = round(p / 2^shift), what one wrap is worth after the shift."""
    return (p + (1 << shift >> 1)) >> shift


def _constants(is_client: bool, p: int, shift: int, modulus: int, offset: int) -> Field:
    """What known = 0, 1, 2 adds to the share (entry 3 is unused): multiples of P, the server's offset."""
    worth = multiple(p, shift)
    if is_client:
        return np.array([0, worth % modulus, 0, 0], np.uint64)
    return np.array([((k - 2) * worth - (offset >> shift)) % modulus for k in range(4)], np.uint64)
