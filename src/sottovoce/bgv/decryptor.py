"""Decryption, and the true noise for tests and budgets."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from sottovoce import _native
from sottovoce.bgv.ciphertext import Ciphertext, Plaintext
from sottovoce.bgv.encoder import Encoder
from sottovoce.errors import ParameterError
from sottovoce.ring import threads
from sottovoce.rlwe import Parameters, SecretKey

Words = npt.NDArray[np.uint64]

_NOTHING = np.zeros((0, 0), np.uint8)


class Decryptor:
    """Decrypts ciphertexts of two or three components at any level."""

    def __init__(self, parameters: Parameters, secret: SecretKey) -> None:
        if secret.parameters != parameters:
            raise ParameterError("the secret key belongs to other parameters")
        self.parameters, self._secret = parameters, secret
        self.encoder = Encoder(parameters)

    def decrypt(self, ciphertext: Ciphertext) -> Plaintext:
        """Exact while the noise stays below `budget`; garbage beyond (nothing detects it)."""
        parameters, limbs = self.parameters, ciphertext.limbs
        p, ring = parameters.plaintext, parameters.ring(limbs)
        phase = self._phase(ciphertext)
        ring.mul_scalar(phase, pow(p, -1, parameters.modulus(limbs)), phase)
        out = np.empty((len(phase), parameters.degree), np.uint64)
        factor = -parameters.modulus(limbs) * pow(ciphertext.factor, -1, p) % p
        _native.bgv_scale_to_plain(phase, list(ring.primes), _NOTHING, 0, p, factor, out, threads())
        return Plaintext(parameters, out.reshape(*ciphertext.batch, parameters.degree))

    def decrypt_slots(self, ciphertext: Ciphertext) -> Words:
        """(*batch, N) uint64 slots."""
        return self.encoder.slots_of(self.decrypt(ciphertext).coefficients)

    def noise(self, ciphertext: Ciphertext) -> float:
        """lg of the root mean square of e in the phase factor·m + p·e, measured. Slow; for tests."""
        phase = self._phase(ciphertext)
        primes, modulus = (
            self.parameters.primes[: ciphertext.limbs],
            self.parameters.modulus(ciphertext.limbs),
        )
        total = np.zeros((len(phase), self.parameters.degree), object)
        for limb, q in enumerate(primes):
            rest = modulus // q
            total += phase[:, limb].astype(object) * (rest * pow(rest, -1, q))
        centred = (total + modulus // 2) % modulus - modulus // 2
        errors = (centred // self.parameters.plaintext).astype(float)
        return 0.5 * math.log2(float(np.mean(errors**2)) + 2.0**-40)

    def budget(self, limbs: int | None = None) -> float:
        """lg of the largest e that still decrypts."""
        return math.log2(self.parameters.modulus(limbs)) - 1 - math.log2(self.parameters.plaintext)

    def _phase(self, ciphertext: Ciphertext) -> Words:
        """(B, L, N): Σ_i c_i·s^i in coefficient form, by Horner's rule."""
        ring = self.parameters.ring(ciphertext.limbs)
        secret, data = self._secret.limbs(ciphertext.limbs), ciphertext.flat()
        phase = np.ascontiguousarray(data[:, -1])
        for part in range(ciphertext.size - 2, -1, -1):
            phase = ring.add(ring.mul(phase, secret), np.ascontiguousarray(data[:, part]))
        return ring.intt(phase)
