"""The automorphisms X → X^k and the slots they permute.

The N slots are two rows of N/2. Slot (row r, column c), index r·N/2 + c, is the value at ψ^((-1)^r · 3^c): so
X → X^(3^k) rotates both rows by k to the left (new[c] = old[(c + k) mod N/2]) and X → X^-1 swaps the rows.
This is also the order of Microsoft SEAL, against which it is tested.
"""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt

from sottovoce.ring import bit_reversal

GENERATOR = 3
# The "rotation" that swaps the rows; no rotation by columns has this number.
ROW_SWAP = -1


def galois_element(n: int, step: int) -> int:
    """The exponent k of X → X^k that rotates the rows of degree n by `step` ≥ 0, or swaps them (ROW_SWAP)."""
    if step == ROW_SWAP:
        return 2 * n - 1
    return pow(GENERATOR, step % (n // 2), 2 * n)


@functools.lru_cache(maxsize=64)
def slot_positions(n: int) -> npt.NDArray[np.int64]:
    """Where the slots lie in NTT form: (n,) positions, slot s at positions[s]. Read-only."""
    exponents = np.empty(n, np.int64)
    power = 1
    for column in range(n // 2):
        exponents[column], exponents[n // 2 + column] = power, 2 * n - power
        power = power * GENERATOR % (2 * n)
    positions = bit_reversal(n)[(exponents - 1) // 2].astype(np.int64)
    positions.flags.writeable = False
    return positions


@functools.lru_cache(maxsize=64)
def position_slots(n: int) -> npt.NDArray[np.int64]:
    """The inverse of `slot_positions`: (n,), the slot that lies at each position of NTT form. Read-only."""
    slots = np.argsort(slot_positions(n))
    slots.flags.writeable = False
    return slots
