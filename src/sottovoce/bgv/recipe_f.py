"""Recipe F: slot-wise products of one-time masks leave under a flooded mask modulo p.

1. A fresh public-key encryption of zero is added, and a mask uniform modulo p per slot.
2. The error is flooded with an integer uniform in [−W, W), W = 2^50·B, B a power of two of at least six
   standard deviations of the honest noise, from public bounds. Flooding comes before the rounding; what
   follows is post-processing.
3. Both halves are rounded (A: 54 bits, B: 48) and sent: 104 KB per ciphertext of the SIMD set.

The view of the receiver is within N·2^-51 = 2^-38 (statistical distance) of one that does not depend on the
plaintext operand, per ciphertext. That is enough for operands that are used once, and it adds up: never use
it for weights, which take recipe Z. It gives nothing against a receiver whose own noise is not honest.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from sottovoce import _native
from sottovoce.bgv.ciphertext import Ciphertext
from sottovoce.bgv.encoder import Encoder
from sottovoce.bgv.recipe_z import masked_bytes, pack_halves, rerandomised_halves, unmask_and_decode
from sottovoce.errors import RangeError
from sottovoce.ring import sampling, threads
from sottovoce.rlwe import Parameters, PublicKey, SecretKey
from sottovoce.rlwe.wire import Buffer

Words = npt.NDArray[np.uint64]

KAPPA_A, KAPPA_B = 54, 48
FLOOD_BITS = 50


def flooded_bytes(parameters: Parameters, count: int) -> int:
    """The size of `flood_and_pack` for `count` ciphertexts."""
    return masked_bytes(parameters, count, KAPPA_A, KAPPA_B)


def flood_bits(parameters: Parameters, noise: float) -> int:
    """lg W for honest noise of this many bits. RangeError if the result would not stay exact."""
    bound = math.ceil(noise + math.log2(6))
    width = bound + FLOOD_BITS
    # What is left of the half unit must be nine standard deviations of the rounding of A' (error 1/√12 per
    # coefficient, times s), after the hard bounds of the flood, of the noise and of the rounding of B'.
    p = parameters.plaintext
    sigma = p * 2.0**-KAPPA_A * math.sqrt(parameters.degree / 18)
    hard = p * 2.0 ** (width + 0.001 - math.log2(parameters.modulus())) + p * 2.0 ** -(KAPPA_B + 1)
    if hard + 9 * sigma > 0.5 or width > 103:
        raise RangeError(f"noise of {noise:.1f} bits leaves no room for a flood {FLOOD_BITS} bits larger")
    return width


def flood_and_pack(ciphertext: Ciphertext, public_key: PublicKey) -> tuple[bytes, Words]:
    """A batch (B, 2, L, N) or one ciphertext -> the bytes to send and the sender's shares (*batch, N).

    `flooded_bytes(parameters, B)` bytes; the size of the flood depends on the public noise estimate only.
    """
    parameters = ciphertext.parameters
    width = flood_bits(parameters, ciphertext.noise)
    a, b = rerandomised_halves(ciphertext, public_key)
    ring, n, p = parameters.ring(), parameters.degree, parameters.plaintext
    primes, stream = list(parameters.primes), sampling.Stream()
    mask = stream.uniform(p, len(b), n)
    wide = np.empty_like(b)
    _native.bgv_lift(mask, p, 1, primes, wide, threads())
    ring.add(b, ring.mul_scalar(wide, pow(p, -1, parameters.modulus())), b)
    _native.bgv_wide_uniform(stream.words(len(b), 2, n), width + 1, primes, wide, threads())
    ring.add(b, wide, b)
    packed = pack_halves((a, b), parameters, KAPPA_A, KAPPA_B)
    share = np.where(mask == 0, mask, np.uint64(p) - mask)
    return packed, Encoder(parameters).slots_of(share).reshape(*ciphertext.batch, n)


def unpack(data: Buffer, secret_key: SecretKey, count: int) -> Words:
    """The bytes of `flood_and_pack` for `count` ciphertexts -> the receiver's shares (count, N)."""
    return unmask_and_decode(data, secret_key, count, kappa_a=KAPPA_A, kappa_b=KAPPA_B)
