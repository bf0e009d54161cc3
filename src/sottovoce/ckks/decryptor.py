"""Decryption, for the owner of the key.

A decrypted value contains the error of its ciphertext, and the error together with the ciphertext gives
linear equations for the secret key (Li and Micciancio, "On the Security of Homomorphic Encryption on
Approximate Numbers", Eurocrypt 2021). Never give decrypted values to anyone who knows the ciphertext; if one
must be published, add noise with `flood` first.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from sottovoce.ckks.ciphertext import Ciphertext, Plaintext
from sottovoce.ckks.encoder import Complex, Encoder
from sottovoce.ckks.parameters import Parameters
from sottovoce.ckks.secret import SecretKey
from sottovoce.errors import ForeignKeyError, ParameterError
from sottovoce.ring import sampling


class Decryptor:
    """Decrypts what belongs to one secret key."""

    def __init__(self, parameters: Parameters, secret: SecretKey) -> None:
        if secret.parameters != parameters:
            raise ParameterError("the secret key belongs to other parameters")
        self.parameters, self.secret = parameters, secret
        self.encoder = Encoder(parameters)

    def decrypt(self, ciphertext: Ciphertext) -> Plaintext:
        """The phase Σ c_i·s^i. ForeignKeyError for a ciphertext of another key."""
        if ciphertext.key_id != self.secret.key_id:
            raise ForeignKeyError("the ciphertext was made with another key, or in another session")
        # Four primes hold every message that a double can (`Encoder.decode_coefficients`).
        level = min(ciphertext.level, 3)
        ring = self.parameters.ring(level)
        s = self.secret.ntt(ring.primes)
        phase = ciphertext.data[-1, : level + 1].copy()
        for component in reversed(range(ciphertext.size - 1)):
            ring.mul(phase, s, phase)
            ring.add(phase, ciphertext.data[component, : level + 1], phase)
        return Plaintext(self.parameters, phase, level, ciphertext.scale, ciphertext.slots)

    def decrypt_slots(self, ciphertext: Ciphertext, slots: int | None = None) -> Complex:
        """(n,) complex: the slots of the ciphertext's period, or of a given one."""
        return self.encoder.decode(self.decrypt(ciphertext), slots)


def flood(values: Complex, bound: float, bits: int = 30) -> Complex:
    """Values with Gaussian noise of standard deviation bound·2^bits on both parts, before they are published.

    bound: of the error that decryption leaves in a slot. Costs `bits` bits of precision; makes what a value
    tells about the error at most 2^-bits of a standard deviation. 30 bits serve for a few published values,
    not for a service that decrypts on demand.
    """
    if not 0 <= bits <= 60 or not bound > 0 or not math.isfinite(bound):
        raise ParameterError("flooding takes a positive bound and 0 to 60 bits")
    words = sampling.Stream().words(4, values.size)
    # Box and Muller, with uniforms of 53 bits in (0, 1].
    uniform = ((words >> np.uint64(11)).astype(np.float64) + 1.0) * 2.0**-53
    radius, angle = np.sqrt(-2 * np.log(uniform[:2])), 2 * np.pi * uniform[2:]
    noise: npt.NDArray[np.float64] = radius * np.cos(angle) * bound * 2.0**bits
    flooded: Complex = values + (noise[0] + 1j * noise[1]).reshape(values.shape)
    return flooded
