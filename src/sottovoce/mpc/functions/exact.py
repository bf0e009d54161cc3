"""Exact rounding: what comes out is a function of what goes in, not of how it is shared.

A rescale rounds up or down by chance, and each party knows half of that chance, the low bits of its own share
(`protocols.wrap`). Where a client sees many results of the same input, that correlates what it knows with
what it does not; see `sottovoce.attacks.rounding`. Here the low bits are compared instead. x mod 2^s is moved
to Z_2^s; its shares l0 and l1 add up to it, or to it plus 2^s, and that carry, found as in `compare`, makes

    floor(x / 2^s) = (x - l0 - l1) / 2^s + carry,

with a division that is exact, hence a multiplication by 2^-s mod p. To nearest: half a unit is added before.
"""

from collections.abc import Sequence

import numpy as np

from sottovoce.mpc import cost
from sottovoce.mpc.arithmetic import Arithmetic
from sottovoce.mpc.cost import Cost
from sottovoce.mpc.field import Field as Share
from sottovoce.mpc.functions.compare import carry, carry_cost
from sottovoce.mpc.requests import WrapOutput


def exact_rescales(arithmetic: Arithmetic, x: Share, shifts: Sequence[int]) -> list[Share]:
    """round(x / 2^s) mod p for each s of `shifts`, halves up; x mod p, abs(x) < p/4, any shape.

    4 + ceil(lg(ceil(max(shifts) / 4))) rounds, `exact_cost(n, shifts)` bytes, leaks nothing. A shift of 0 is
    free.
    """
    positive = [s for s in shifts if s > 0]
    if not positive:
        return [x for _ in shifts]
    with arithmetic.operation("exact"):
        top = max(positive)
        (ring,) = arithmetic.wrap(x, [WrapOutput(0, 1 << top)])
        lows = [_plus_half(arithmetic, ring, s, 1 << top) & np.uint64((1 << s) - 1) for s in positive]
        aligned = np.stack([low << np.uint64(top - s) for low, s in zip(lows, positive, strict=True)], -1)
        carries = arithmetic.to_arithmetic(carry(arithmetic, aligned, top))
        rounded = {}
        for i, (low, s) in enumerate(zip(lows, positive, strict=True)):
            whole = arithmetic.sub(_plus_half(arithmetic, x, s, arithmetic.p), low)
            quotient = arithmetic.mul_public(whole, pow(2, -s, arithmetic.p))
            rounded[s] = arithmetic.add(quotient, carries[..., i])
        return [rounded[s] if s > 0 else x for s in shifts]


def exact_rescale(arithmetic: Arithmetic, x: Share, bits: int) -> Share:
    """round(x / 2^bits), halves up; as `exact_rescales`."""
    return exact_rescales(arithmetic, x, [bits])[0]


def exact_cost(n: int, shifts: Sequence[int]) -> Cost:
    """Online cost for n elements."""
    positive = [s for s in shifts if s > 0]
    if not positive:
        return Cost()
    total = n * len(positive)
    return cost.exchange(cost.bits(n)) + carry_cost(total, max(positive)) + cost.exchange(cost.bits(total))


def _plus_half(arithmetic: Arithmetic, x: Share, shift: int, modulus: int) -> Share:
    return arithmetic.add_public(x, 1 << (shift - 1), modulus)
