"""The product of a plan in NumPy, rotations and all: the reference that the encrypted product is tested
against.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sottovoce.packing.cover import EMPTY
from sottovoce.packing.diagonal import MatVecPlan, Words


def multiply_slots(plan: MatVecPlan, weights: npt.NDArray[np.integer], slots: Words, modulus: int) -> Words:
    """Return the slots (O, N) that the server would compute from the slots (I, N) that are sent, mod
    `modulus`.

    Weights are signed integers below 2^19 in absolute value, so that products with 43-bit slots fit 64 bits.
    """
    half, b = plan.degree // 2, plan.tokens
    p = np.int64(modulus)
    flat = np.append(weights.ravel().astype(np.int64), 0)
    inputs = slots.reshape(-1, 2, half).astype(np.int64)
    if plan.swapped:
        inputs = np.concatenate([inputs, inputs[:, ::-1]])
    result = np.zeros((plan.output_count, 2, half), dtype=np.int64)
    for o in range(plan.output_count):
        inner = np.zeros((plan.giants, 2, half), dtype=np.int64)
        for c, ciphertext in enumerate(inputs):
            for k, index in enumerate(plan.diagonal_indices(o, c)):
                places = flat[np.where(index == EMPTY, -1, index)]
                diagonal = np.repeat(places, b).reshape(2, half)
                giant, baby = divmod(k, plan.babies)
                rotated = np.roll(ciphertext, -plan.baby_steps[baby], axis=1)
                inner[giant] = (inner[giant] + diagonal * rotated) % p
        total = inner[plan.giants - 1]
        for giant in range(plan.giants - 2, -1, -1):  # Horner: one rotation key for all giant steps
            total = (np.roll(total, -plan.giant_step, axis=1) + inner[giant]) % p
        result[o] = total
    return result.reshape(plan.output_count, plan.degree).astype(np.uint64)
