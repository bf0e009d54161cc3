"""`ckks-key-recovery`: a decrypted value of CKKS still has the ciphertext's error in it, and with it the key.

Whoever has a ciphertext (c0, c1) and the exact value that it decrypts to has c0 + c1·s, and solves for s (Li
and Micciancio, Eurocrypt 2021). The server of `fhe` gets ciphertexts and never a decrypted value: logits are
decrypted and sampled from at the client. So against the engine's own flow the attacker gets the most that a
server could have, the *message*, exactly, and solves as if it were the decryption. Controls share decrypted
values.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sottovoce.attacks.base import Control, Outcome, Setting
from sottovoce.ckks import LEVELED13, Ciphertext, Decryptor, Encoder, Encryptor, KeyGenerator, flood
from sottovoce.ckks.encryptor import full

Complex = npt.NDArray[np.complex128]
_FLOODED_BITS = 30
_ERROR = 2.0**-20  # more than the error of a fresh ciphertext in a slot


class CkksKeyRecovery:
    name, target, profiles, samples = "ckks-key-recovery", "fhe", ("default",), 100
    says = "the secret key from a ciphertext and what is known of its value"

    def run(self, setting: Setting) -> Outcome:
        known: list[float] = []
        shared: list[float] = []
        flooded: list[float] = []
        parameters = LEVELED13
        for trial in range(setting.samples):
            setting.progress(trial, setting.samples, "keys")
            secret = KeyGenerator(parameters).secret_key
            rng = np.random.default_rng(trial)  # the message; the key is the system's
            message = rng.uniform(-1, 1, parameters.slots).astype(np.complex128)
            sent = Encryptor(parameters, secret).encrypt(Encoder(parameters).encode(message))
            decrypted = Decryptor(parameters, secret).decrypt_slots(sent)
            for rates, values in (
                (known, message),
                (shared, decrypted),
                (flooded, flood(decrypted, _ERROR, _FLOODED_BITS)),
            ):
                rates.append(float((solve(sent, values) == secret.coefficients).all()))
        controls = (Control("decrypted values shared as they are", float(np.mean(shared))),)
        details = {"after_flooding": float(np.mean(flooded)), "degree": parameters.degree}
        return Outcome(float(np.mean(known)), controls, setting.samples, details)


def solve(ciphertext: Ciphertext, values: Complex) -> npt.NDArray[np.int64]:
    """(N,) the key, were these values exactly what the ciphertext decrypts to; centred modulo the first
    prime."""
    parameters = ciphertext.parameters
    plain = Encoder(parameters).encode(values, level=0, scale=ciphertext.scale)
    ring, q = parameters.ring(0), parameters.primes[0]
    inverse = np.array([[pow(int(v), -1, q) if v else 0 for v in ciphertext.data[1, 0]]], np.uint64)
    right = ring.sub(full(plain).copy(), np.ascontiguousarray(ciphertext.data[0, :1]))
    key = ring.intt(ring.mul(right, inverse))[0].astype(np.int64)
    return np.asarray(np.where(key > q // 2, key - q, key), np.int64)
