"""What a homomorphic step costs, so that plans can be compared before anything is encrypted."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CostModel:
    """Milliseconds of one core per operation on ciphertexts of the SIMD set (N = 8192, three 50-bit primes).

    hoisted: one more rotation of a ciphertext that is already decomposed. rotation: a rotation on its own.
    product: plaintext times ciphertext, accumulated, the plaintext coming from memory. sent, returned: a
    ciphertext encrypted and loaded, or masked, packed, decrypted and decoded; both include their bytes on a
    link of 500 Mbit/s. Measured on one AVX-512 IFMA core; only the ratios matter.
    """

    hoisted: float = 0.20
    rotation: float = 0.42
    product: float = 0.025
    sent: float = 2.9
    returned: float = 3.7

    def rotations(self, inputs: int, outputs: int, count: int, babies: int) -> float:
        """Cost of the rotations of a product with `count` diagonals in `babies` hoisted steps and the rest by
        Horner.
        """
        giants = -(-count // babies)
        return inputs * (babies - 1) * self.hoisted + outputs * (giants - 1) * self.rotation

    def best_babies(self, inputs: int, outputs: int, count: int, limit: int) -> int:
        """Return the number of baby steps, at most `limit`, with the cheapest rotations."""
        return min(
            range(1, min(count, limit) + 1), key=lambda babies: self.rotations(inputs, outputs, count, babies)
        )
