"""A curious client against the server's weights: what do the ciphertexts that a layer returns say of W?

The client sends honest ciphertexts to a linear layer (`sottovoce.mpc.linear`) and keeps all it knows: its
secret key, its errors, its evaluation keys. With them it can compute, for any guess of W, exactly what the
server computes before it masks. So it compares, on both halves of what comes back:

- *uniform half*: without the encryption of zero, A' is that of the right guess, up to rounding;
- *noise*: under a mask modulo p without a flood, the bits of the phase between the multiples of Q/p are the
  noise of the right guess.

`compare` gives a score in standard deviations for every guess; a guess that is not supported scores like
noise. `solve` needs no guess: where a single product comes back with its uniform half untouched, W is A'/A.
`Return.RECIPE_Z` is what the engine does; the others are the controls.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum

import numpy as np
import numpy.typing as npt

from sottovoce import _native
from sottovoce.bgv import (
    SIMD,
    Ciphertext,
    Decryptor,
    Encoder,
    Encryptor,
    Evaluator,
    KeyGenerator,
    Parameters,
    load_many,
    mask_and_pack,
    masked_bytes,
)
from sottovoce.bgv.recipe_z import KAPPA_A, KAPPA_B, pack_halves, rerandomised_halves
from sottovoce.mpc.encoded import EncodedMatrix
from sottovoce.mpc.linear import multiply
from sottovoce.ring import sampling
from sottovoce.rlwe import PublicKey
from sottovoce.rlwe.randomness import uniform_rns

Words = npt.NDArray[np.uint64]
Int16 = npt.NDArray[np.int16]

_FINEST = 103  # bits, the most that can be packed


class Return(Enum):
    """How the server sends results back."""

    RECIPE_Z = "recipe Z, as the engine does"
    NO_ENCRYPTION_OF_ZERO = "control: masked over all of Z_Q, not re-randomised"
    MASK_MODULO_P = "control: re-randomised, masked modulo p, no flood, not rounded"

    @property
    def bits(self) -> tuple[int, int]:
        """Bits per coefficient of A' and B'. Rounding would hide the noise of small layers by itself."""
        return (_FINEST, _FINEST) if self is Return.MASK_MODULO_P else (KAPPA_A, KAPPA_B)


def give_back(results: Ciphertext, public_key: PublicKey, how: Return) -> bytes:
    """What the client receives for a batch of results."""
    if how is Return.RECIPE_Z:
        return mask_and_pack(results, public_key)[0]
    parameters = results.parameters
    ring, primes = parameters.ring(), list(parameters.primes)
    if how is Return.NO_ENCRYPTION_OF_ZERO:
        a, b = _plain_halves(results)
        ring.add(b, uniform_rns(sampling.Stream(), primes, ring.n, len(b)), b)
    else:
        a, b = rerandomised_halves(results, public_key)
        p = parameters.plaintext
        wide = np.empty_like(b)
        _native.bgv_lift(sampling.Stream().uniform(p, len(b), ring.n), p, 1, primes, wide)
        ring.add(b, ring.mul_scalar(wide, pow(p, -1, parameters.modulus())), b)
    return pack_halves((a, b), parameters, *how.bits)


@dataclass(frozen=True)
class Scores:
    """For every guess of W how well it explains an answer, in standard deviations of chance."""

    uniform_half: tuple[float, ...]
    noise: tuple[float, ...]


class CuriousClient:
    """The data side of a session with one linear layer, which remembers everything."""

    def __init__(self, d_out: int, d_in: int, parameters: Parameters = SIMD) -> None:
        self.parameters = parameters
        keys = KeyGenerator(parameters)
        self.secret, self.public_key = keys.secret_key, keys.public_key()
        self._plan = EncodedMatrix.encode(np.zeros((d_out, d_in), np.int16), keep=False).plan
        steps = sorted(self._plan.steps())
        self.evaluator = Evaluator(parameters, galois_keys=keys.galois_keys(steps))
        self._decryptor = Decryptor(parameters, self.secret)

    def ask(self, x: Words) -> Ciphertext:
        """The ciphertexts of one vector (d_in,), as the server gets them: (1, I)."""
        slots = self._plan.lay_out(x[None])[0]
        sent = Encryptor(self.parameters, self.secret).encrypt_many(slots)
        loaded = load_many(self.parameters, sent, len(slots))
        return replace(loaded, data=loaded.data[None])

    def compute(self, weights: Int16, inputs: Ciphertext) -> Ciphertext:
        """The layer's results before they are masked, (O,): the server's computation, or a guess at it."""
        product = multiply(self.evaluator, EncodedMatrix.encode(weights, keep=False), inputs)
        return replace(product, data=product.data[:, 0])

    def compare(self, answer: bytes, how: Return, inputs: Ciphertext, guesses: Sequence[Int16]) -> Scores:
        """Score every guess of W against an answer to `inputs`."""
        parameters, modulus = self.parameters, self.parameters.modulus()
        candidates = [self.compute(guess, inputs) for guess in guesses]
        a, phase = self._opened(answer, len(candidates[0]), *how.bits)
        halves, noises = [], []
        for candidate in candidates:
            expected = _integers(_plain_halves(candidate)[0], parameters)
            difference = np.array([float(v) for v in _centred(a - expected, modulus).ravel()]) / modulus
            # Uniform if the guess is wrong: mean square 1/12.
            halves.append((1 / 12 - float(np.mean(difference**2))) / math.sqrt(1 / 180 / difference.size))
            low = _centred(phase * parameters.plaintext, modulus)
            mine = _centred(self._phase(candidate), modulus)
            noises.append(_correlation(low, mine) * math.sqrt(low.size))
        return Scores(tuple(halves), tuple(noises))

    def _phase(self, ciphertext: Ciphertext) -> npt.NDArray[np.object_]:
        """m + p·e of every coefficient."""
        return _integers(self._decryptor._phase(ciphertext), self.parameters)

    def _opened(
        self, answer: bytes, count: int, bits_a: int, bits_b: int
    ) -> tuple[npt.NDArray[np.object_], npt.NDArray[np.object_]]:
        """A' and B' + A'·s as integers modulo Q, (count, N)."""
        parameters = self.parameters
        n, primes, ring = parameters.degree, list(parameters.primes), parameters.ring()
        raw, split = np.frombuffer(answer, np.uint8), count * n // 8 * bits_a
        assert raw.size == masked_bytes(parameters, count, bits_a, bits_b)
        a, b = np.empty((2, count, len(primes), n), np.uint64)
        _native.bgv_unpack_lift(raw[:split].reshape(count, -1), bits_a, primes, a)
        _native.bgv_unpack_lift(raw[split:].reshape(count, -1), bits_b, primes, b)
        product = ring.intt(ring.mul(ring.ntt(a.copy()), self.secret.limbs(ring.limbs)))
        return _integers(a, parameters), _integers(ring.add(product, b), parameters)


def solve(received: Words, sent: Words, parameters: Parameters) -> Words:
    """W (L, N), coefficients modulo every prime, from A' = W·A (NTT form): the client knows A."""
    ring = parameters.ring()
    inverse = np.array(
        [[pow(int(v), -1, q) for v in row] for row, q in zip(sent, ring.primes, strict=True)], np.uint64
    )
    return ring.intt(ring.mul(received, inverse))


def solved_part(how: Return, weights: Words, parameters: Parameters = SIMD) -> float:
    """Which part of W (N,) slots, multiplied into one fresh ciphertext, `solve` finds from its uniform
    half."""
    found, wanted = _solved(how, weights, parameters)
    return float((found == wanted).all(axis=0).mean())


def solved_error(how: Return, weights: Words, bound: int, parameters: Parameters = SIMD) -> float:
    """Relative error |W' - W|/|W| of what `solve` makes of W (N,), weights below `bound` modulo p.

    What comes out too large to be a weight the attacker takes for 0: who learns nothing has an error of 1.
    """
    p, n = parameters.plaintext, parameters.degree
    found = _centred(_integers(_solved(how, weights, parameters)[0][None], parameters), parameters.modulus())
    slots = Encoder(parameters).slots_of((found % p).astype(np.uint64).reshape(1, n))[0]
    values, truth = (np.where(x > p // 2, x - float(p), x).astype(np.float64) for x in (slots, weights))
    guess = np.where(np.abs(values) < bound, values, 0.0)
    return float(np.linalg.norm(guess - truth) / np.linalg.norm(truth))


def _solved(how: Return, weights: Words, parameters: Parameters) -> tuple[Words, Words]:
    """W as the attack finds it and as it is, coefficients modulo every prime, (L, N).

    The half is taken before rounding: the safeguard that is tried is the encryption of zero alone.
    """
    keys = KeyGenerator(parameters)
    encoder = Encoder(parameters)
    plain = encoder.encode(weights[None])
    fresh = Encryptor(parameters, keys.secret_key).encrypt(encoder.encode(np.zeros_like(weights)[None]))
    product = Evaluator(parameters).mul_plain(fresh, plain)
    if how is Return.NO_ENCRYPTION_OF_ZERO:
        half = _plain_halves(product)[0]
    else:
        half = rerandomised_halves(product, keys.public_key())[0]
    ring, p = parameters.ring(), parameters.plaintext
    found = solve(ring.mul_scalar(ring.ntt(half), p)[0], fresh.data[0, 1], parameters)
    wanted = np.empty((1, ring.limbs, ring.n), np.uint64)
    _native.bgv_lift(plain.coefficients, p, 1, list(parameters.primes), wanted)
    return found, wanted[0]


def _plain_halves(results: Ciphertext) -> tuple[Words, Words]:
    """(A, B) in coefficient and most-significant-bit form, with nothing added."""
    parameters = results.parameters
    ring = parameters.ring()
    data = ring.mul_scalar(results.flat(), pow(parameters.plaintext, -1, parameters.modulus()))
    a, b = (np.ascontiguousarray(data[:, part]) for part in (1, 0))
    return ring.intt(a), ring.intt(b)


def _integers(x: Words, parameters: Parameters) -> npt.NDArray[np.object_]:
    """(B, L, N) residues -> (B, N) integers modulo Q."""
    modulus = parameters.modulus()
    total = np.zeros((len(x), x.shape[-1]), dtype=object)
    for limb, q in enumerate(parameters.primes):
        rest = modulus // q
        total += x[:, limb].astype(object) * (rest * pow(rest, -1, q) % modulus)
    return total % modulus


def _centred(x: npt.NDArray[np.object_], modulus: int) -> npt.NDArray[np.object_]:
    reduced = x % modulus
    centred: npt.NDArray[np.object_] = np.where(reduced > modulus // 2, reduced - modulus, reduced)
    return centred


def _correlation(x: npt.NDArray[np.object_], y: npt.NDArray[np.object_]) -> float:
    a, b = (np.array([float(v) for v in values.ravel()]) for values in (x, y))
    return float(np.corrcoef(a, b)[0, 1])
