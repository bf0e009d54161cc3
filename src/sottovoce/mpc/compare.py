"""Exact comparison of shared numbers by 4-bit digits (protocols.md 4.1 for the ring, 7 for its uses).

The sign of x is the top bit of its shares' sum mod 2^k: top bits XOR the carry that the lower bits send up.
The carry of one digit is a look-up by the client's digit (the server knows its own, so it offers all 16
answers): it *generates* a carry if the digits add up to 16 or more, and *propagates* one if they add up to
15. A tree of ANDs joins the digits. Rounds: 2 for the look-up, ceil(lg digits) for the tree. Leakage: none.
"""

from functools import lru_cache

import numpy as np

from sottovoce.mpc import cost
from sottovoce.mpc.arithmetic import Arithmetic
from sottovoce.mpc.cost import Cost
from sottovoce.mpc.field import P_FIELD, Bits
from sottovoce.mpc.field import Field as Share
from sottovoce.mpc.requests import WrapOutput
from sottovoce.mpc.tables import RegionTable

_DIGIT = 4
_WIDEST = (P_FIELD // 4).bit_length() + 1  # abs(x) < p/4 fits this many bits with its sign


def carry(arithmetic: Arithmetic, y: Share, bits: int) -> Bits:
    """[y0 mod 2^bits + y1 mod 2^bits >= 2^bits] for shares y of any larger ring. Shape (*S), `carry_cost`."""
    digits = _digits(bits)
    # Zeros below the lowest bit fill the last digit and never carry.
    low = (y & np.uint64((1 << bits) - 1)) << np.uint64(digits * _DIGIT - bits)
    parts = [(low >> np.uint64(_DIGIT * i)) & np.uint64(15) for i in range(digits)]
    found = arithmetic.region_bits(np.stack(parts, axis=-1), _digit_sums())
    generate, propagate = found[..., 0], found[..., 1]
    while generate.shape[-1] > 1:
        generate, propagate = _join(arithmetic, generate, propagate)
    return generate[..., 0]


def is_negative(arithmetic: Arithmetic, x: Share, bits: int = _WIDEST) -> Bits:
    """[x < 0] for shares mod p of -2^(bits - 1) <= x < 2^(bits - 1), exact. Rounds: one more than `carry`."""
    arithmetic.require_range(x, -(1 << (bits - 1)), 1 << (bits - 1))
    (y,) = arithmetic.wrap(x, [WrapOutput(0, 1 << bits)])
    top = ((y >> np.uint64(bits - 1)) & np.uint64(1)).astype(np.uint8)
    return arithmetic.xor(top, carry(arithmetic, y, bits - 1))


def less_than(arithmetic: Arithmetic, x: Share, y: Share, bits: int = _WIDEST) -> Bits:
    """[x < y]; the difference must fit `bits` with its sign."""
    return is_negative(arithmetic, arithmetic.sub(x, y), bits)


def maximum(arithmetic: Arithmetic, x: Share, bits: int = _WIDEST) -> Share:
    """Largest entry of the last axis by a tournament of ceil(lg n) levels; differences must fit `bits`."""
    while x.shape[-1] > 1:
        pairs = x.shape[-1] // 2
        left, right = x[..., :pairs], x[..., pairs : 2 * pairs]
        gain = arithmetic.sub(right, left)
        smaller = arithmetic.not_(is_negative(arithmetic, gain, bits))
        best = arithmetic.add(left, arithmetic.mux(smaller, gain))
        x = np.concatenate([best, x[..., 2 * pairs :]], axis=-1)
    return x[..., 0]


def carry_cost(n: int, bits: int) -> Cost:
    """Online cost of `carry` on n elements: 6 bytes a digit, 2 bits an AND each way."""
    width = _digits(bits)
    total = cost.lookup((n * width, _digit_sums()))
    while width > 1:
        total += cost.exchange(cost.ands(n * (2 * (width // 2) - 1)))
        width -= width // 2
    return total


def is_negative_cost(n: int, bits: int = _WIDEST) -> Cost:
    return cost.exchange(cost.bits(n)) + carry_cost(n, bits - 1)


def maximum_cost(rows: int, columns: int, bits: int = _WIDEST) -> Cost:
    """Online cost of `maximum` on rows of `columns` entries."""
    total = Cost()
    while columns > 1:
        n = rows * (columns // 2)
        total += is_negative_cost(n, bits) + cost.exchange(cost.muxes(n))
        columns -= columns // 2
    return total


def _digits(bits: int) -> int:
    return -(-bits // _DIGIT)


@lru_cache(maxsize=1)
def _digit_sums() -> RegionTable:
    """Bit 0: the digits add up to 16 or more. Bit 1: to exactly 15."""
    sums = np.arange(2 << _DIGIT)
    return RegionTable(_DIGIT, 0, 2, ((sums >> _DIGIT) + 2 * (sums == 15)).astype(np.uint8))


def _join(arithmetic: Arithmetic, generate: Bits, propagate: Bits) -> tuple[Bits, Bits]:
    """Neighbouring digits into one, lowest digit first; an odd one at the top stays.

    Nothing is ever propagated into the lowest group, so its propagate bit is not computed.
    """
    width = generate.shape[-1]
    paired, odd = width - width % 2, slice(width - width % 2, width)
    high, low = slice(1, paired, 2), slice(0, paired, 2)
    left = np.concatenate([propagate[..., high], propagate[..., 3:paired:2]], axis=-1)
    right = np.concatenate([generate[..., low], propagate[..., 2:paired:2]], axis=-1)
    both = arithmetic.and_(left, right)
    pairs = width // 2
    joined = arithmetic.xor(generate[..., high], both[..., :pairs])
    generated = np.concatenate([joined, generate[..., odd]], axis=-1)
    unused = propagate[..., :1]
    propagated = np.concatenate([unused, both[..., pairs:], propagate[..., odd]], axis=-1)
    return generated, propagated
