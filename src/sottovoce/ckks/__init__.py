"""CKKS: approximate arithmetic on vectors of complex numbers under encryption; the `fhe` engine's scheme.

Shapes: slots are complex128 or float64 (n,), n ≤ N/2 a power of two, and stand for a vector of N/2 slots of
period n. Slot j is the value at ζ^(5^j), ζ = exp(iπ/N). Polynomials are ``np.uint64`` (L, N) in NTT form. A
ciphertext at *level* l has the limbs of primes q_0..q_l; every ciphertext and plaintext carries its exact
scale (a float): phase = scale · message + error. Nothing rescales or drops levels unless it says so.

    BOOT16, ENGINE16, FULL16, LEVELED13, LEVELED14, LEVELED15: Parameters (128 bits); SMALL: tests, unchecked
    ParametersSpec(degree, primes, special, scale, secret, security).checked() -> Parameters
      .degree .slots .levels .top .primes .special .alpha .scale .ring(level) .wide_ring(level) .digits(level)
    chain(degree, bits) -> primes, one per entry of bits, alternating around 2^bits, all ≡ 1 mod 2N

    KeyGenerator(parameters, secret=None)
      .secret_key .public_key() .relinearization_key(level=top)
      .galois_keys({step: level} | steps, level=top); CONJUGATE = -1 is a step too
      .encapsulation_keys() -> EncapsulationKeys: .down (at q_0·p_0 only), .up
    every key: .to_bytes(), .from_bytes(parameters, data), .key_id

    Encoder(parameters)
      .encode(values, level=top, scale=parameters.scale, wide=False) -> Plaintext
      .decode(plaintext, slots=None) -> complex128 (n,)
    Encryptor(parameters, SecretKey | PublicKey).encrypt(plaintext) -> Ciphertext
      .encrypt_bytes(plaintext) -> bytes, half as long, for load_fresh(parameters, data) -> Ciphertext
    Decryptor(parameters, SecretKey).decrypt(ct) -> Plaintext; .decrypt_slots(ct) -> complex128 (n,)

    Evaluator(parameters, relinearization_key=None, galois_keys=None)
      add sub negate add_plain sub_plain add_scalar                   scales must agree; the lower level holds
      mul_plain mul_scalar mul_integer mul_by_i mul square relinearize rescale drop_to match
      rotate rotate_hoisted conjugate
      mul_plain_sum combine trivial mod_raise
      lazily, modulo Q·P: rotate_wide rotate_wide_hoisted widen mul_plain_wide add_wide turn_wide
      mod_down
"""

from sottovoce.ckks.ciphertext import Ciphertext, Plaintext, Wide
from sottovoce.ckks.decryptor import Decryptor, flood
from sottovoce.ckks.encoder import Encoder
from sottovoce.ckks.encryptor import Encryptor, fresh_bytes, load_fresh
from sottovoce.ckks.evaluator import Evaluator
from sottovoce.ckks.galois import CONJUGATE, galois_element
from sottovoce.ckks.keys import (
    EncapsulationKeys,
    GaloisKeys,
    KeyGenerator,
    PublicKey,
    RelinearizationKey,
)
from sottovoce.ckks.parameters import (
    BOOT16,
    ENGINE16,
    FULL16,
    LEVELED13,
    LEVELED14,
    LEVELED15,
    SMALL,
    Parameters,
    ParametersSpec,
    chain,
)
from sottovoce.ckks.secret import SecretKey
from sottovoce.ckks.switching import SwitchingKey

__all__ = [
    "BOOT16",
    "CONJUGATE",
    "Ciphertext",
    "Decryptor",
    "ENGINE16",
    "EncapsulationKeys",
    "Encoder",
    "Encryptor",
    "Evaluator",
    "FULL16",
    "GaloisKeys",
    "KeyGenerator",
    "LEVELED13",
    "LEVELED14",
    "LEVELED15",
    "Parameters",
    "ParametersSpec",
    "Plaintext",
    "PublicKey",
    "RelinearizationKey",
    "SMALL",
    "SecretKey",
    "SwitchingKey",
    "Wide",
    "chain",
    "flood",
    "fresh_bytes",
    "galois_element",
    "load_fresh",
]
