"""SiLU, x·sigmoid(x), and the gated product silu(gate)·up (protocols.md 7.1).

1-of-8 spline of degree 3 with segments of 2 on [-9, 7): good from -7 on, error below 4e-3. Left of about
-6.5 the result is 0 and right of about 6.5 it is x: the fuzzy units [-7, -6) and [6, 7) cost at most 0.015
(6·e^-6). Centred like this both sides err equally; on [-8, 8) the left one would reach 0.07.
"""

from functools import lru_cache

import numpy as np

from sottovoce.mpc import cost
from sottovoce.mpc.arithmetic import Arithmetic
from sottovoce.mpc.cost import Cost
from sottovoce.mpc.field import Field as Share
from sottovoce.mpc.functions.activation import IN_BITS, OUT_BITS, Activation, activate, activate_cost, build
from sottovoce.mpc.functions.fit import Real
from sottovoce.mpc.requests import Wrap, WrapOutput


def silu_reference(x: Real) -> Real:
    """x / (1 + e^-x), in float64."""
    return np.asarray(x / (1.0 + np.exp(-np.clip(x, -700, 700))), dtype=np.float64)


@lru_cache(maxsize=1)
def tables() -> Activation:
    """The public tables, about 2 MB, built on first use."""
    return build("silu", silu_reference, low=-9.0, segment_bits=3, unit=2.0, degree=3)


def silu(arithmetic: Arithmetic, x: Share, in_bits: int = IN_BITS) -> Share:
    """SiLU(x) at 2^-12 for x at 2^-in_bits (up to 27) in [-63, 64); any shape, 5 rounds, `silu_cost(n)`
    bytes, leaks nothing.

    Error at most 4e-3 in (-6, 6), 0.016 in the fuzzy units, and one unit of 2^-12 beyond.
    """
    return activate(arithmetic, x, tables(), in_bits)[0]


def silu_cost(n: int) -> Cost:
    return activate_cost(n, tables())


def gated_silu(
    arithmetic: Arithmetic, gate: Share, up: Share, gate_bits: int = IN_BITS, up_bits: int = IN_BITS
) -> Share:
    """silu(gate)·up at 2^-12, same shape, at 2^-gate_bits (up to 27) and 2^-up_bits; 7 rounds (the rescale of
    `up` rides with the first).

    Budget: -63 <= gate < 64; abs(up) < 2^(41 - up_bits); abs(silu(gate)·up) < 2^17 (2^41 at 2^-24).
    """
    with arithmetic.operation("gated_silu"):
        rescale_up = Wrap(up, (WrapOutput(up_bits - OUT_BITS),))
        z, [[narrow]] = activate(arithmetic, gate, tables(), gate_bits, [rescale_up])
        return arithmetic.rescale(arithmetic.mul(z, narrow), OUT_BITS)


def gated_silu_cost(n: int) -> Cost:
    product = cost.exchange(cost.residues(2 * n)) + cost.exchange(cost.bits(n))
    return activate_cost(n, tables(), ride=cost.bits(n)) + product
