"""What a homomorphic step costs, so that plans can be compared before anything is encrypted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sottovoce.packing.rotations import SHORT, sources


@dataclass(frozen=True)
class CostModel:
    """Milliseconds of one core per operation on ciphertexts of the SIMD set (N = 8192, three 50-bit primes).

    hoisted: one more rotation of a ciphertext that is already decomposed. rotation: a rotation on its own.
    product: plaintext times ciphertext, accumulated, the plaintext coming from memory. encoded: a plaintext
    made of weights that are used at once. sent, returned: a ciphertext encrypted and loaded, or masked,
    packed, decrypted and decoded; both include their bytes on a link of 500 Mbit/s. Measured on one AVX-512
    IFMA core; only the ratios matter.
    """

    hoisted: float = 0.20
    rotation: float = 0.42
    product: float = 0.025
    encoded: float = 0.085
    sent: float = 2.9
    returned: float = 3.7

    def rotations(self, inputs: int, outputs: int, count: int, babies: int, tokens: int = 1) -> float:
        """Cost of the rotations of a product with `count` diagonals in `babies` hoisted steps and the rest by
        Horner; each a multiple of `tokens`, which may take more decompositions.
        """
        giants = -(-count // babies)
        chains = len(sources(range(0, tokens * babies, tokens))) - 1 if tokens * babies > SHORT else 0
        more = max(chains, 0) * (self.rotation - self.hoisted)
        return inputs * ((babies - 1) * self.hoisted + more) + outputs * (giants - 1) * self.rotation

    def best_babies(
        self, inputs: int, outputs: int, count: int, choices: Sequence[int], tokens: int = 1
    ) -> int:
        """Return the number of baby steps, of `choices`, with the cheapest rotations."""
        return min(
            (babies for babies in choices if babies <= count),
            key=lambda babies: self.rotations(inputs, outputs, count, babies, tokens),
        )
