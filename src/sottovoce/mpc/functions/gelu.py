"""GELU in its tanh form (protocols.md 7.1): 1-of-16 spline of degree 3 with segments of 1 on [-8, 8).

The spline is good from -7 on and needed from about -5 on; outside 0 and x are exact to 2^-12, so the fuzzy
thresholds cost nothing. Error below 6e-4. Segments of 2 would save half of the table and err by 7e-3.
"""

from functools import lru_cache

import numpy as np

from sottovoce.mpc.arithmetic import Arithmetic
from sottovoce.mpc.cost import Cost
from sottovoce.mpc.field import Field as Share
from sottovoce.mpc.functions.activation import IN_BITS, Activation, activate, activate_cost, build
from sottovoce.mpc.functions.fit import Real


def gelu_reference(x: Real) -> Real:
    """x/2·(1 + tanh(√(2/π)·(x + 0.044715·x³))), in float64."""
    return np.asarray(0.5 * x * (1.0 + np.tanh(np.sqrt(2.0 / np.pi) * (x + 0.044715 * x**3))))


@lru_cache(maxsize=1)
def tables() -> Activation:
    """The public tables, about 2 MB, built on first use."""
    return build("gelu", gelu_reference, low=-8.0, segment_bits=4, unit=1.0, degree=3)


def gelu(arithmetic: Arithmetic, x: Share, in_bits: int = IN_BITS) -> Share:
    """GELU(x) at 2^-12 for x at 2^-in_bits (up to 27) in [-63, 64); any shape, 5 rounds, `gelu_cost(n)`
    bytes, leaks nothing."""
    return activate(arithmetic, x, tables(), in_bits)[0]


def gelu_cost(n: int) -> Cost:
    return activate_cost(n, tables())
