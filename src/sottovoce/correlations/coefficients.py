"""Vectors of field elements in the coefficients of ring elements: encryption, products, masked return.

The scheme of products of two masks, `dense2` of the parameter table: N = 4096, Q of 84 bits, no plaintext
modulus. An element m of the field is encrypted as round(Q·m/p), so a product with a plaintext polynomial b
(centred residues) has phase Q·(m·b)/p plus the error times b, and decodes to m·b mod p *nearly*: with an
error of 500 units (σ), 2^-15 of a score at 2^-24 and 2^-17 of a mixed value at 2^-26, far below what either
is rounded to next. That is why 84 bits suffice where exact slots need 150.

Return by recipe Z: an encryption of zero is added, a mask uniform over all of Z_Q goes onto the B half, both
halves are rounded. Of the B half only those coefficients travel that hold a result. Source: protocols.md 2
and 6.2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from sottovoce import _native
from sottovoce.bgv import Ciphertext
from sottovoce.bgv.recipe_z import rerandomised_halves
from sottovoce.errors import FrameError
from sottovoce.ring import context, threads
from sottovoce.ring.primes import P_FIELD, SIMD_PRIMES
from sottovoce.ring.sampling import ERROR_SIGMA, SEED_BYTES, Stream, fresh_seed
from sottovoce.rlwe import KeyGenerator, Parameters, ParametersSpec, PublicKey, SecretKey
from sottovoce.rlwe.randomness import errors, uniform_into
from sottovoce.rlwe.wire import Buffer, as_bytes, pack_residues, residue_bytes, unpack_residues_into

Words = npt.NDArray[np.uint64]

# The two largest primes below 2^42 that are 1 modulo 2^15: far inside the 106 bits that N = 4096 allows.
COEFFICIENTS: Parameters = ParametersSpec(4096, (4398046150657, 4398044938241), 0).checked()

# Bits per coefficient of a returned ciphertext. The secret key multiplies errors of A', not those of B'.
KAPPA_A, KAPPA_B = 38, 34
# The holder of the key takes A'·s modulo one prime of 50 bits: far finer than rounding A' is.
_DECODING = SIMD_PRIMES[0]
_PURPOSE = b"coefficient ciphertexts"
_NOTHING = np.zeros((0, 0), np.uint8)

# Where results lie: from (R, L, N) coefficients to (L, n), n a multiple of 8.
Selection = Callable[[Words], Words]


@dataclass(frozen=True)
class CoefficientKey:
    """One party's key pair: encrypts its own masks, opens what the other party returns."""

    secret: SecretKey
    public: PublicKey
    decoding: Words = field(repr=False)  # (1, N): the secret modulo the decoding prime, NTT form

    @classmethod
    def generate(cls, parameters: Parameters = COEFFICIENTS) -> CoefficientKey:
        """Fresh, from the operating system's randomness."""
        keys = KeyGenerator(parameters)
        ring = context(parameters.degree, (_DECODING,))
        decoding = ring.ntt(ring.reduce_signed(keys.secret_key.coefficients))
        return cls(keys.secret_key, keys.public_key(), decoding)

    def encrypt(self, values: Words) -> bytes:
        """(R, N) residues mod p -> `encrypted_bytes(R)` bytes for `load`; 43 KB per ciphertext."""
        parameters = self.secret.parameters
        ring, primes, seed = parameters.ring(), list(parameters.primes), fresh_seed()
        b = np.empty((len(values), ring.limbs, ring.n), np.uint64)
        # Q·m/p rounded is (Q·m − (Q·m mod p, centred))/p, and Q·m vanishes modulo every prime of Q.
        _native.bgv_lift(values, P_FIELD, parameters.modulus() % P_FIELD, primes, b, threads())
        ring.mul_scalar(b, [-pow(P_FIELD, -1, q) for q in primes], b)
        ring.add(b, errors(Stream(), primes, ring.n, len(b)), b)
        ring.ntt(b)
        halves = _uniform_halves(parameters, seed, len(b))
        ring.sub(b, ring.mul(halves, self.secret.limbs(ring.limbs), halves), b)
        return seed + pack_residues(b, primes)

    def open(self, data: Buffer, count: int, select: Selection, size: int) -> Words:
        """What `give_back` of the other party sent -> this party's shares (size,)."""
        n, view = self.secret.parameters.degree, as_bytes(data)
        expected = returned_bytes(count, size)
        if view.nbytes != expected:
            raise FrameError(f"{count} returned ciphertexts take {expected} bytes, got {view.nbytes}")
        split = count * n // 8 * KAPPA_A
        both = np.frombuffer(view, np.uint8)
        ring, product = context(n, (_DECODING,)), np.empty((count, 1, n), np.uint64)
        _native.bgv_unpack_lift(both[:split].reshape(count, -1), KAPPA_A, [_DECODING], product, threads())
        ring.intt(ring.mul(ring.ntt(product), self.decoding, product))
        share: Words = np.empty((1, size), np.uint64)
        added = both[split:].reshape(1, -1)
        chosen = select(product)[None]
        _native.bgv_scale_to_plain(chosen, [_DECODING], added, KAPPA_B, P_FIELD, 1, share, threads())
        opened: Words = share[0]
        return opened


def load(data: Buffer, count: int, parameters: Parameters = COEFFICIENTS) -> Words:
    """The other party's `encrypt` of `count` rows: (count, 2, L, N) in NTT form.

    FrameError on a wrong size, IntegrityError on a residue that is not reduced.
    """
    view = as_bytes(data)
    if view.nbytes != encrypted_bytes(count, parameters):
        raise FrameError(
            f"{count} ciphertexts take {encrypted_bytes(count, parameters)} bytes, got {view.nbytes}"
        )
    pairs = np.empty((count, 2, parameters.limbs, parameters.degree), np.uint64)
    unpack_residues_into(view[SEED_BYTES:], parameters.primes, pairs)
    pairs[:, 1] = _uniform_halves(parameters, bytes(view[:SEED_BYTES]), count)
    return pairs


def plaintexts(values: Words, parameters: Parameters = COEFFICIENTS) -> Words:
    """(..., M) residues mod p, the coefficients of polynomials in X^(N/M) -> (..., L, M) for products."""
    size, primes = values.shape[-1], parameters.primes
    rows = np.ascontiguousarray(values).reshape(-1, size)
    out = np.empty((len(rows), len(primes), size), np.uint64)
    _native.bgv_lift(rows, P_FIELD, 1, list(primes), out, threads())
    return context(size, primes).ntt(out).reshape(*values.shape[:-1], len(primes), size)


def give_back(results: Words, owner: PublicKey, select: Selection) -> tuple[bytes, Words]:
    """Recipe Z: (R, 2, L, N) under the other party's key -> the bytes to send, this party's shares (n,).

    What the other party sees does not depend on the plaintexts: A' is re-randomised, B' one-time padded.
    """
    parameters = owner.parameters
    primes, stream = list(parameters.primes), Stream()
    a, b = rerandomised_halves(Ciphertext(parameters, results, 0.0), owner)
    chosen = select(b)[None]
    mask = np.empty_like(chosen)
    for row, q in zip(mask[0], primes, strict=True):
        uniform_into(stream, q, row)
    total = chosen + mask
    np.minimum(total, total - np.array(primes, np.uint64)[:, None], out=total)
    packed = []
    for half, kappa in ((a, KAPPA_A), (total, KAPPA_B)):
        out = np.empty((len(half), half.shape[-1] // 8 * kappa), np.uint8)
        _native.bgv_round_pack(half, primes, kappa, out, threads())
        packed.append(out.tobytes())
    share = np.empty((1, mask.shape[-1]), np.uint64)
    _native.bgv_scale_to_plain(mask, primes, _NOTHING, 0, P_FIELD, P_FIELD - 1, share, threads())
    return b"".join(packed), share[0]


def encrypted_bytes(count: int, parameters: Parameters = COEFFICIENTS) -> int:
    """The size of `encrypt` for `count` ciphertexts."""
    return SEED_BYTES + count * residue_bytes(parameters.primes, parameters.degree)


def returned_bytes(count: int, size: int, parameters: Parameters = COEFFICIENTS) -> int:
    """The size of `give_back` for `count` ciphertexts with `size` results in them."""
    return count * parameters.degree // 8 * KAPPA_A + size // 8 * KAPPA_B


def error_bits(terms: int, parameters: Parameters = COEFFICIENTS) -> float:
    """lg of the standard deviation of a result, in units: every coefficient is a sum of `terms` products.

    Errors of the encryption times residues, rounding of A' times the secret, rounding of B'.
    """
    p, n = float(P_FIELD), parameters.degree
    noise = ERROR_SIGMA * p * math.sqrt(terms / 12) * p / parameters.modulus()
    rounding_a = p * 2.0**-KAPPA_A * math.sqrt(n / 18)
    rounding_b = p * 2.0**-KAPPA_B / math.sqrt(12)
    return math.log2(math.hypot(noise, rounding_a, rounding_b))


def _uniform_halves(parameters: Parameters, seed: bytes, count: int) -> Words:
    """(count, L, N): one stream for each prime."""
    rows = np.empty((parameters.limbs, count, parameters.degree), np.uint64)
    for limb, q in enumerate(parameters.primes):
        uniform_into(Stream(seed, _PURPOSE, limb), q, rows[limb].reshape(-1))
    return np.ascontiguousarray(rows.swapaxes(0, 1))
