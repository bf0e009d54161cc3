"""Seconds of operations at N = 2^16 by level: a model with measured constants, or this machine's own.

The model counts number-theoretic transforms, base conversions, key products and pointwise passes per prime,
on one core with AVX-512 IFMA. `calibrated` scales it to a machine by timing a few operations there.
"""

from __future__ import annotations

from dataclasses import dataclass

_US = 1e-6


@dataclass(frozen=True)
class CostModel:
    """special: k special primes, as many chain primes to a digit. refresh: primes above the working levels.

    factor: this machine over the model. bootstrap_seconds: of one refresh.
    """

    bootstrap_seconds: float
    special: int = 6
    factor: float = 1.0
    degree: int = 1 << 16

    def __call__(self, operation: str, level: int) -> float:
        limbs = level + 1
        scale = self.factor * self.degree / (1 << 16)
        if operation == "bootstrap":
            return self.bootstrap_seconds
        return scale * _US * self._microseconds(operation, limbs)

    def _microseconds(self, operation: str, limbs: int) -> float:
        ntt, pointwise, automorphism = 90.0, 35.0, 60.0
        if operation in ("rotate", "conjugate"):
            return self._key_switch(limbs) + 2 * automorphism * limbs
        if operation == "hoisted":
            return 0.6 * self._key_switch(limbs) + 2 * automorphism * limbs
        if operation == "relinearize":
            return self._key_switch(limbs)
        if operation == "mul":
            return 4 * pointwise * limbs
        if operation == "mul_plain":  # encoded on the fly: a transform for each prime
            return (ntt + 2 * pointwise) * limbs
        if operation == "rescale":
            return 2 * (ntt + pointwise) * limbs
        raise KeyError(operation)

    def _key_switch(self, limbs: int) -> float:
        k = self.special
        digits = -(-limbs // k)
        transforms = (digits + 2) * (limbs + k) * 90.0
        conversion = (k * digits * (limbs + k) + 2 * k * limbs) * 65536 / 9500.0
        inner = digits * (limbs + k) * 63.0
        return transforms + conversion + inner

    def key_bytes(self, level: int) -> int:
        """Seeded half of one switching key usable up to `level`."""
        limbs = level + 1
        return -(-limbs // self.special) * (limbs + self.special) * 8 * self.degree
