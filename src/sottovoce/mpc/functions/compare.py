"""Exact comparison with zero: the carry of two shares by 4-bit digits.

x is moved to Z_2^k, where its sign is the top bit: top(y0) ⊕ top(y1) ⊕ carry(low parts). Per digit one
1-of-16 look-up gives generate [c + s >= 16] and propagate [c + s = 15] (c the client's digit, s the
server's); a tree of ANDs joins neighbours: g = g_high ⊕ p_high·g_low, p = p_high·p_low. Source: the
millionaires' protocol of CrypTFlow2 (Rathee et al. 2020), on carries. Nothing here is fuzzy; the activations
do not need that and use region bits instead.
"""

from functools import lru_cache

import numpy as np

from sottovoce.mpc import cost
from sottovoce.mpc.arithmetic import Arithmetic
from sottovoce.mpc.cost import Cost
from sottovoce.mpc.field import Bits
from sottovoce.mpc.field import Field as Share
from sottovoce.mpc.requests import WrapOutput
from sottovoce.mpc.tables import RegionTable

_DIGIT = 4


@lru_cache(maxsize=1)
def _digit_table() -> RegionTable:
    """Of c + s, not reduced: bit 0 generate, bit 1 propagate."""
    total = np.arange(2 << _DIGIT)
    generate, propagate = total >= 1 << _DIGIT, total == (1 << _DIGIT) - 1
    return RegionTable(_DIGIT, 0, 2, (generate + 2 * propagate).astype(np.uint8))


def is_negative(arithmetic: Arithmetic, x: Share, bits: int = 42) -> Bits:
    """[x < 0] as XOR-shared bits, for x mod p with -2^(bits-1) <= x < 2^(bits-1) and abs(x) < p/4; any shape.

    3 + ceil(lg(ceil((bits - 1) / 4))) rounds, `is_negative_cost(n, bits)` bytes, leaks nothing.
    """
    with arithmetic.operation("is_negative"):
        arithmetic.require_range(x, -(1 << (bits - 1)), 1 << (bits - 1))
        (y,) = arithmetic.wrap(x, [WrapOutput(0, 1 << bits)])
        return top_bit(arithmetic, y, bits)


def top_bit(arithmetic: Arithmetic, y: Share, bits: int) -> Bits:
    """Bit (bits - 1) of y, shared mod 2^bits: one look-up and a tree of ANDs."""
    own = (y >> np.uint64(bits - 1)).astype(np.uint8)
    if bits == 1:
        return own
    return arithmetic.xor(own, carry(arithmetic, y & np.uint64((1 << (bits - 1)) - 1), bits - 1))


def carry(arithmetic: Arithmetic, low: Share, bits: int) -> Bits:
    """[l0 + l1 >= 2^bits], for the parties' own integers l0 and l1 below 2^bits; bits >= 1, any shape.

    2 + ceil(lg(ceil(bits / 4))) rounds, `carry_cost(n, bits)` bytes, leaks nothing.
    """
    digits = -(-bits // _DIGIT)
    # Aligned to the top, so that the lowest digit is the one that may be short.
    aligned = low << np.uint64(digits * _DIGIT - bits)
    places = np.arange(digits, dtype=np.uint64) * np.uint64(_DIGIT)
    split = (aligned[..., None] >> places) & np.uint64((1 << _DIGIT) - 1)
    both = arithmetic.region_bits(split, _digit_table())
    return _carry(arithmetic, both[..., 0], both[..., 1])


def _carry(arithmetic: Arithmetic, generate: Bits, propagate: Bits) -> Bits:
    """Carry out of the highest digit (the last of the last axis). A level joins pairs, an odd lowest one
    waits."""
    while (n := generate.shape[-1]) > 1:
        odd = n % 2
        high, low = slice(odd + 1, None, 2), slice(odd, None, 2)
        left = np.concatenate([propagate[..., high], propagate[..., high]], axis=-1)
        right = np.concatenate([generate[..., low], propagate[..., low]], axis=-1)
        joined = arithmetic.and_(left, right)
        pairs = n // 2
        g = arithmetic.xor(generate[..., high], joined[..., :pairs])
        generate = np.concatenate([generate[..., :odd], g], axis=-1)
        propagate = np.concatenate([propagate[..., :odd], joined[..., pairs:]], axis=-1)
    return generate[..., 0]


def is_negative_cost(n: int, bits: int = 42) -> Cost:
    """Online cost for n elements."""
    return cost.exchange(cost.bits(n)) + (carry_cost(n, bits - 1) if bits > 1 else Cost())


def carry_cost(n: int, bits: int) -> Cost:
    """Online cost for n pairs."""
    digits = -(-bits // _DIGIT)
    total = cost.lookup((n * digits, _digit_table()))
    while digits > 1:
        total += cost.exchange(cost.ands(2 * n * (digits // 2)))
        digits -= digits // 2
    return total
