"""Recipe Z: results leave the server under a mask that is uniform over all of Z_Q, so that nothing about the
plaintext operand (the weights) leaks, whatever noise the client put into its ciphertexts.

1. Server: the ciphertext is brought to most-significant-bit form (times p^-1), a public-key encryption of
   zero is added (without it the client, who chose the uniform half, could solve for the weights), and Z
   uniform in Z_Q per coefficient goes onto the B half. A mask modulo p would leave the low bits, weights
   times error, in the open.
2. Both halves are rounded to a few bits (A: 92, B: 88) and sent: 184 KB per ciphertext of the SIMD set.
3. Client: y0 = round(p·(B' + A'·s)/Q). Server: y1 = −round(p·Z/Q). Then y0 + y1 is the plaintext modulo p,
   exactly, unless p·Z/Q lies within p·E/Q of a rounding boundary in some coefficient, E being all noise with
   the rounding of the halves: probability at most N·p·E|E|/Q per ciphertext, see `failure_bits`.
4. Both decode their coefficients to slots, which is linear.

Source: the masking is uniform one-time padding of the phase (no smudging argument is needed); hiding of A'
rests on RLWE with the fresh u and e1.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from sottovoce import _native
from sottovoce.bgv.ciphertext import Ciphertext
from sottovoce.bgv.encoder import Encoder
from sottovoce.errors import FrameError, ParameterError, RangeError
from sottovoce.ring import sampling, threads
from sottovoce.rlwe import Parameters, PublicKey, SecretKey
from sottovoce.rlwe.randomness import errors, ternary, uniform_rns
from sottovoce.rlwe.wire import Buffer

Words = npt.NDArray[np.uint64]

KAPPA_A, KAPPA_B = 92, 88
# The noise (lg of its standard deviation) up to which the failure bound below is promised.
NOISE_LIMIT = 62.0
_NOTHING = np.zeros((0, 0), np.uint8)


def masked_bytes(parameters: Parameters, count: int, kappa_a: int = KAPPA_A, kappa_b: int = KAPPA_B) -> int:
    """The size of `mask_and_pack` for `count` ciphertexts."""
    return count * (parameters.degree // 8) * (kappa_a + kappa_b)


def failure_bits(
    parameters: Parameters,
    noise: float,
    kappa_a: int = KAPPA_A,
    kappa_b: int = KAPPA_B,
    limbs: int | None = None,
) -> float:
    """lg of the probability that one ciphertext decodes wrongly in all its slots.

    N·p·E|E|/Q with E|E| = √(2/π)·σ_E, σ_E² = noise² + Q²·2^(-2κ_A)·(2N/3)/12 + Q²·2^(-2κ_B)/12.
    """
    modulus = math.log2(parameters.modulus(limbs))
    n = parameters.degree
    terms = (
        noise,
        modulus - kappa_a + 0.5 * math.log2(2 * n / 36),
        modulus - kappa_b - 0.5 * math.log2(12),
    )
    top = max(terms)
    sigma = top + 0.5 * math.log2(sum(4.0 ** (t - top) for t in terms))
    return math.log2(n * parameters.plaintext) + sigma + 0.5 * math.log2(2 / math.pi) - modulus


def mask_and_pack(ciphertext: Ciphertext, public_key: PublicKey) -> tuple[bytes, Words]:
    """Server: (B, 2, L, N) or one ciphertext -> the bytes to send and its shares (*batch, N).

    masked_bytes(parameters, B) bytes: all A halves, then all B halves. RangeError if the estimated noise is
    above the limit for which decoding is promised (the estimate is public). Leaks nothing.
    """
    if ciphertext.noise > NOISE_LIMIT:
        raise RangeError(
            f"noise of {ciphertext.noise:.1f} bits is above the {NOISE_LIMIT:.0f} that rounding allows"
        )
    parameters = ciphertext.parameters
    halves = rerandomised_halves(ciphertext, public_key)
    ring = parameters.ring()
    mask = uniform_rns(sampling.Stream(), parameters.primes, ring.n, len(halves[0]))
    ring.add(halves[1], mask, halves[1])
    packed = pack_halves(halves, parameters, KAPPA_A, KAPPA_B)
    share = np.empty((len(mask), parameters.degree), np.uint64)
    p = parameters.plaintext
    factor = parameters.modulus() % p
    _native.bgv_scale_to_plain(mask, list(parameters.primes), _NOTHING, 0, p, factor, share, threads())
    slots = Encoder(parameters).slots_of(share)
    return packed, slots.reshape(*ciphertext.batch, parameters.degree)


def unmask_and_decode(
    data: Buffer,
    secret_key: SecretKey,
    count: int,
    *,
    kappa_a: int = KAPPA_A,
    kappa_b: int = KAPPA_B,
) -> Words:
    """Client: the bytes of `mask_and_pack` for `count` ciphertexts -> its shares (count, N).

    FrameError on a wrong size; any bytes of the right size decode to something.
    """
    parameters = secret_key.parameters
    view = np.frombuffer(data, np.uint8)
    expected = masked_bytes(parameters, count, kappa_a, kappa_b)
    if view.nbytes != expected:
        raise FrameError(f"{count} masked ciphertexts take {expected} bytes, got {view.nbytes}")
    n, p = parameters.degree, parameters.plaintext
    split = count * n // 8 * kappa_a
    a_bytes, b_bytes = view[:split].reshape(count, -1), view[split:].reshape(count, -1)
    # A' times s modulo about 2^100, two primes: finer than the rounding of A' by eight bits, and one limb
    # cheaper than Q.
    limbs = min(2, parameters.limbs)
    ring, primes = parameters.ring(limbs), list(parameters.primes[:limbs])
    product = np.empty((count, limbs, n), np.uint64)
    _native.bgv_unpack_lift(a_bytes, kappa_a, primes, product, threads())
    ring.intt(ring.mul(ring.ntt(product), secret_key.limbs(limbs), product))
    share = np.empty((count, n), np.uint64)
    factor = -parameters.modulus() % p
    _native.bgv_scale_to_plain(product, primes, b_bytes, kappa_b, p, factor, share, threads())
    return Encoder(parameters).slots_of(share)


def rerandomised_halves(ciphertext: Ciphertext, public_key: PublicKey) -> tuple[Words, Words]:
    """(A, B), each (B, L, N) coefficients: most-significant-bit form plus an encryption of zero."""
    parameters = ciphertext.parameters
    if ciphertext.size != 2 or ciphertext.limbs != parameters.limbs or ciphertext.factor != 1:
        raise ParameterError(
            "results leave with two components, at the top level and with plaintext factor 1"
        )
    if public_key.parameters != parameters:
        raise ParameterError("the public key belongs to other parameters")
    ring, n = parameters.ring(), parameters.degree
    data = ring.mul_scalar(ciphertext.flat(), pow(parameters.plaintext, -1, parameters.modulus()))
    stream = sampling.Stream()
    u = ring.ntt(ternary(stream, ring.primes, n, len(data)))
    b = ring.mul_add(np.ascontiguousarray(data[:, 0]), u, public_key.data[0])
    a = ring.mul_add(np.ascontiguousarray(data[:, 1]), u, public_key.data[1])
    ring.intt(a)
    # e1 goes on in coefficient form; the B half needs no e0, its mask covers everything.
    ring.add(a, errors(stream, ring.primes, n, len(data)), a)
    return a, ring.intt(b)


def pack_halves(halves: tuple[Words, Words], parameters: Parameters, kappa_a: int, kappa_b: int) -> bytes:
    """Both halves rounded to kappa bits per coefficient: all A halves, then all B halves."""
    count, _, n = halves[0].shape
    out = np.empty(masked_bytes(parameters, count, kappa_a, kappa_b), np.uint8)
    split = count * n // 8 * kappa_a
    primes = list(parameters.primes)
    _native.bgv_round_pack(halves[0], primes, kappa_a, out[:split].reshape(count, -1), threads())
    _native.bgv_round_pack(halves[1], primes, kappa_b, out[split:].reshape(count, -1), threads())
    return out.tobytes()
