"""The automorphisms X → X^k and the slots they move.

Slot j is the value at ζ^(5^j), ζ = exp(iπ/N): X → X^(5^k) rotates the slots by k to the left, new[j] =
old[(j + k) mod N/2], and X → X^-1 conjugates them.
"""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt

GENERATOR = 5
# The "rotation" that conjugates every slot; no rotation has this number.
CONJUGATE = -1


def galois_element(degree: int, step: int) -> int:
    """The exponent k of X → X^k that rotates by `step` ≥ 0 to the left, or conjugates (CONJUGATE)."""
    if step == CONJUGATE:
        return 2 * degree - 1
    return pow(GENERATOR, step % (degree // 2), 2 * degree)


@functools.lru_cache(maxsize=64)
def slot_order(slots: int) -> npt.NDArray[np.int64]:
    """Which output of a Fourier transform of length n is slot j: (n,), (5^j − 1)/4 mod n. Read-only.

    The roots ζ^(5^j) of n slots are of order 4n, and 5^j ≡ 1 mod 4.
    """
    order = np.empty(slots, np.int64)
    power = 1
    for j in range(slots):
        order[j] = (power - 1) // 4 % slots
        power = power * GENERATOR % (4 * slots)
    order.flags.writeable = False
    return order
