"""Seconds of operations at N = 2^16 by level: transforms, base conversions, key products and pointwise passes
are counted per prime, and priced as a model's core or this machine (`ckks.speed`) takes them.
"""

from __future__ import annotations

from dataclasses import dataclass

from sottovoce.ckks.speed import MODEL, Speed

# Seconds of a refresh when refreshes are placed: both sides of a session must place them alike.
PLANNED_REFRESH = 3.0


@dataclass(frozen=True)
class CostModel:
    """special: k special primes, as many chain primes to a digit. refresh: primes above the working levels.

    speed: seconds of the parts; both sides of a session plan with the model's, which is the default.
    bootstrap_seconds: of one refresh.
    """

    bootstrap_seconds: float
    special: int = 6
    speed: Speed = MODEL
    degree: int = 1 << 16

    def __call__(self, operation: str, level: int) -> float:
        limbs = level + 1
        if operation == "bootstrap":
            return self.bootstrap_seconds
        return self.degree / (1 << 16) * self._seconds(operation, limbs)

    def _seconds(self, operation: str, limbs: int) -> float:
        ntt, pointwise = self.speed.transform, self.speed.pointwise
        automorphism = 12 / 7 * pointwise
        if operation in ("rotate", "conjugate"):
            return self.speed.key_switch(limbs, self.special) + 2 * automorphism * limbs
        if operation == "hoisted":
            return 0.6 * self.speed.key_switch(limbs, self.special) + 2 * automorphism * limbs
        if operation == "relinearize":
            return self.speed.key_switch(limbs, self.special)
        if operation == "mul":
            return 4 * pointwise * limbs
        if operation == "mul_plain":  # encoded on the fly: a transform for each prime
            return (ntt + 2 * pointwise) * limbs
        if operation == "rescale":
            return 2 * (ntt + pointwise) * limbs
        raise KeyError(operation)

    def key_bytes(self, level: int) -> int:
        """Seeded half of one switching key usable up to `level`."""
        limbs = level + 1
        return -(-limbs // self.special) * (limbs + self.special) * 8 * self.degree
