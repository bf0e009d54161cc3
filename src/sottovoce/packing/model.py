"""The product of a plan in NumPy, rotations and all: the reference that the encrypted product is tested
against.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sottovoce.packing.cover import EMPTY
from sottovoce.packing.diagonal import MatVecPlan, Words


def multiply_slots(plan: MatVecPlan, weights: npt.NDArray[np.integer], slots: Words, modulus: int) -> Words:
    """Return the slots (O, N) that the server would compute from input slots (I, N), mod `modulus`.

    Weights are signed integers below 2^19 in absolute value, so that products with 43-bit slots fit 64 bits.
    """
    half = plan.degree // 2
    p = np.int64(modulus)
    flat = np.append(weights.ravel().astype(np.int64), 0)
    result = np.zeros((plan.output_count, 2, half), dtype=np.int64)
    for o in range(plan.output_count):
        inner = np.zeros((plan.giants, 2, half), dtype=np.int64)
        for c in range(plan.input_count):
            ciphertext = slots[c].reshape(2, half).astype(np.int64)
            for k, index in enumerate(plan.diagonal_indices(o, c)):
                diagonal = flat[np.where(index == EMPTY, -1, index)].reshape(2, half)
                giant, baby = divmod(k, plan.babies)
                inner[giant] = (inner[giant] + diagonal * np.roll(ciphertext, -baby, axis=1)) % p
        total = inner[plan.giants - 1]
        for giant in range(plan.giants - 2, -1, -1):  # Horner: one rotation key for all giant steps
            total = (np.roll(total, -plan.babies, axis=1) + inner[giant]) % p
        result[o] = total
    return result.reshape(plan.output_count, plan.degree).astype(np.uint64)
