"""Keys: a ternary secret, the public key, and the keys that switch a ciphertext from one secret to another.

All keys are in NTT form and in "unit error" form: the phase b + a·s of a public key is an error e, not p·e. A
scheme that multiplies errors by p (BGV) multiplies what it takes from them. The uniform half of every key is
the expansion of a seed and travels as 32 bytes.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from sottovoce.errors import FrameError, IntegrityError, ParameterError
from sottovoce.ring import context, sampling
from sottovoce.rlwe.galois import galois_element
from sottovoce.rlwe.parameters import Parameters
from sottovoce.rlwe.randomness import errors, expand_into
from sottovoce.rlwe.wire import Buffer, frame, pack_residues, residue_bytes, unframe, unpack_residues_into

Words = npt.NDArray[np.uint64]


@dataclass(frozen=True, eq=False)
class SecretKey:
    """s, uniform in {−1, 0, 1}^N. Whoever holds it decrypts everything; it never leaves the data party.

    coefficients: (N,) int8. ntt: (L+1, N), its transform modulo every key prime.
    """

    parameters: Parameters
    coefficients: npt.NDArray[np.int8] = field(repr=False)
    ntt: Words = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.coefficients.shape != (self.parameters.degree,) or self.coefficients.dtype != np.int8:
            raise ParameterError("a secret key has one int8 per coefficient")
        ring = self.parameters.key_ring
        object.__setattr__(self, "ntt", ring.ntt(ring.reduce_signed(self.coefficients)))

    @classmethod
    def generate(cls, parameters: Parameters) -> SecretKey:
        """A fresh key from the operating system's randomness."""
        return cls(parameters, sampling.Stream().ternary(parameters.degree).astype(np.int8))

    def limbs(self, count: int) -> Words:
        """(count, N): the transform modulo the first `count` ciphertext primes."""
        return self.ntt[:count]

    def to_bytes(self) -> bytes:
        """For the owner's disk (file mode 0600), never for the wire: two bits per coefficient."""
        two_bits = (self.coefficients + 1).astype(np.uint8).reshape(-1, 4)
        packed = (two_bits << np.array([0, 2, 4, 6], np.uint8)).sum(axis=1, dtype=np.uint8)
        return frame("secret key", self.parameters, packed.tobytes())

    @classmethod
    def from_bytes(cls, parameters: Parameters, data: Buffer) -> SecretKey:
        """Raises FrameError, IntegrityError or a mismatch error; see `wire.unframe`."""
        payload = unframe("secret key", parameters, data)
        if payload.nbytes != parameters.degree // 4:
            raise FrameError(f"a secret key has {parameters.degree // 4} bytes, got {payload.nbytes}")
        packed = np.frombuffer(payload, np.uint8)
        values = (packed[:, None] >> np.array([0, 2, 4, 6], np.uint8)) & np.uint8(3)
        if (values == 3).any():
            raise IntegrityError("a coefficient of a secret key is not ternary")
        return cls(parameters, values.reshape(-1).astype(np.int8) - np.int8(1))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SecretKey) or other.parameters != self.parameters:
            return NotImplemented if not isinstance(other, SecretKey) else False
        return hmac.compare_digest(self.coefficients.tobytes(), other.coefficients.tobytes())

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True, eq=False)
class PublicKey:
    """An encryption of zero under s: data (2, L, N) NTT form, b = −a·s + e and a, expanded from `seed`."""

    parameters: Parameters
    seed: bytes = field(repr=False)
    data: Words = field(repr=False)

    @classmethod
    def generate(cls, secret: SecretKey) -> PublicKey:
        parameters = secret.parameters
        ring, seed = parameters.ring(), sampling.fresh_seed()
        a = sampling.expand(seed, b"public key", parameters.primes, parameters.degree)
        b = ring.ntt(ring.reduce_signed(sampling.Stream().error(parameters.degree)))
        ring.sub(b, ring.mul(a, secret.limbs(ring.limbs)), b)
        return cls(parameters, seed, np.stack([b, a]))

    def to_bytes(self) -> bytes:
        """Header, seed, b: 154 KB for the SIMD set."""
        packed = pack_residues(self.data[0], self.parameters.primes)
        return frame("public key", self.parameters, self.seed + packed)

    @classmethod
    def from_bytes(cls, parameters: Parameters, data: Buffer) -> PublicKey:
        payload = unframe("public key", parameters, data)
        seed, rest = _split_seed(payload, residue_bytes(parameters.primes, parameters.degree), "public key")
        pair = parameters.ring().zeros(2)
        unpack_residues_into(rest, parameters.primes, pair[None])
        expand_into(seed, b"public key", parameters.primes, pair[1])
        return cls(parameters, seed, pair)


@dataclass(frozen=True, eq=False)
class SwitchingKey:
    """Turns a multiple of s' into a ciphertext under s: data (D, 2, L+1, N), NTT form modulo Q·P, D = L.

    Digit d has b_d + a_d·s = e_d + P·p^-1·s' in limb d, e_d in the others: the product with the digits of c
    modulo each prime, divided by P and multiplied by p, is a ciphertext of c·s' with its plaintext unchanged.
    """

    parameters: Parameters
    seed: bytes = field(repr=False)
    data: Words = field(repr=False)

    @classmethod
    def generate(cls, secret: SecretKey, target: Words, purpose: bytes) -> SwitchingKey:
        """target: s', (L+1, N) NTT form. purpose: label of the seed's expansion."""
        parameters = secret.parameters
        if not parameters.special:
            raise ParameterError("a parameter set without a special prime has no switching keys")
        ring, seed, digits = parameters.key_ring, sampling.fresh_seed(), parameters.limbs
        data = _uniform_halves(parameters, seed, purpose)
        b = ring.ntt(errors(sampling.Stream(), ring.primes, ring.n, digits))
        ring.sub(b, ring.mul(np.ascontiguousarray(data[:, 1]), secret.ntt), b)
        for d, q in enumerate(parameters.primes):
            weight = parameters.special * pow(parameters.plaintext, -1, q) % q
            limb = context(parameters.degree, (q,))
            row = np.ascontiguousarray(b[d, d : d + 1])
            b[d, d : d + 1] = limb.add(row, limb.mul_scalar(np.ascontiguousarray(target[d : d + 1]), weight))
        data[:, 0] = b
        return cls(parameters, seed, data)

    def payload(self) -> bytes:
        """Seed and the b halves."""
        return self.seed + pack_residues(self.data[:, 0], self.parameters.key_primes)

    @classmethod
    def payload_bytes(cls, parameters: Parameters) -> int:
        """Size of `payload`: 614 KB for the SIMD set."""
        return sampling.SEED_BYTES + parameters.limbs * residue_bytes(
            parameters.key_primes, parameters.degree
        )

    @classmethod
    def from_payload(cls, parameters: Parameters, payload: memoryview, purpose: bytes) -> SwitchingKey:
        body = cls.payload_bytes(parameters) - sampling.SEED_BYTES
        seed, rest = _split_seed(payload, body, "switching key")
        data = _uniform_halves(parameters, seed, purpose)
        unpack_residues_into(rest, parameters.key_primes, data)
        return cls(parameters, seed, data)


@dataclass(frozen=True, eq=False)
class RelinearizationKey:
    """The switching key from s² to s."""

    parameters: Parameters
    key: SwitchingKey = field(repr=False)

    def to_bytes(self) -> bytes:
        return frame("relinearization key", self.parameters, self.key.payload())

    @classmethod
    def from_bytes(cls, parameters: Parameters, data: Buffer) -> RelinearizationKey:
        payload = unframe("relinearization key", parameters, data)
        return cls(parameters, SwitchingKey.from_payload(parameters, payload, b"relinearization"))


@dataclass(frozen=True, eq=False)
class GaloisKeys:
    """Switching keys of rotations, by step: `keys[k]` rotates by k columns, `keys[ROW_SWAP]` swaps rows.

    They are held with the inverse automorphism applied, so that a hoisted rotation multiplies its digits in
    place and permutes only the result; on the wire they are as generated.
    """

    parameters: Parameters
    keys: dict[int, SwitchingKey] = field(repr=False)

    @property
    def steps(self) -> tuple[int, ...]:
        """The rotations that have a key, ascending."""
        return tuple(sorted(self.keys))

    def aligned(self, step: int) -> Words:
        """(D, 2, L+1, N). ParameterError if there is no key for this step."""
        if step not in self.keys:
            raise ParameterError(f"no Galois key for rotation {step}: generate keys for every step in use")
        return self.keys[step].data

    def to_bytes(self) -> bytes:
        """Header, count, steps (i32 each), then one switching key per step."""
        steps = np.array([len(self.steps), *self.steps], "<i4").tobytes()
        n = self.parameters.degree
        plain = (_turned(self.keys[k], galois_element(n, k)) for k in self.steps)
        return frame("galois keys", self.parameters, steps + b"".join(key.payload() for key in plain))

    @classmethod
    def from_bytes(cls, parameters: Parameters, data: Buffer) -> GaloisKeys:
        payload = unframe("galois keys", parameters, data)
        if payload.nbytes < 4:
            raise FrameError("Galois keys are truncated")
        count = int(np.frombuffer(payload[:4], "<i4")[0])
        size = SwitchingKey.payload_bytes(parameters)
        if count < 0 or payload.nbytes != 4 + count * (4 + size):
            raise FrameError("the size of Galois keys does not match the number of their steps")
        steps = [int(k) for k in np.frombuffer(payload[4 : 4 + 4 * count], "<i4")]
        if steps != sorted(set(steps)) or any(not -1 <= k < parameters.degree // 2 for k in steps):
            raise IntegrityError("the steps of Galois keys must be ascending and in range")
        at = 4 + 4 * count
        keys = {}
        for step in steps:
            key = SwitchingKey.from_payload(parameters, payload[at : at + size], galois_purpose(step))
            keys[step] = _turned(key, _inverse_element(parameters.degree, step))
            at += size
        return cls(parameters, keys)


class KeyGenerator:
    """Makes every key that belongs to one secret.

    secret: an existing key, or None for a fresh one.
    """

    def __init__(self, parameters: Parameters, secret: SecretKey | None = None) -> None:
        if secret is not None and secret.parameters != parameters:
            raise ParameterError("the secret key belongs to other parameters")
        self.parameters = parameters
        self.secret_key = SecretKey.generate(parameters) if secret is None else secret

    def public_key(self) -> PublicKey:
        """A fresh public key."""
        return PublicKey.generate(self.secret_key)

    def relinearization_key(self) -> RelinearizationKey:
        """From s² to s."""
        ring, s = self.parameters.key_ring, self.secret_key.ntt
        key = SwitchingKey.generate(self.secret_key, ring.mul(s, s), b"relinearization")
        return RelinearizationKey(self.parameters, key)

    def galois_keys(self, steps: list[int] | tuple[int, ...] | range) -> GaloisKeys:
        """Keys for rotations by these steps (taken modulo N/2) and, for ROW_SWAP = -1, the swap of the rows.

        Negative rotations must be given modulo N/2, since -1 is the row swap. 1.6 MB in memory and 614 KB on
        the wire per step of the SIMD set.
        """
        n, ring = self.parameters.degree, self.parameters.key_ring
        keys = {}
        for step in steps:
            if not -1 <= step < n // 2:
                raise ParameterError(f"a rotation must be in [0, {n // 2}) or ROW_SWAP (-1), not {step}")
            if step == 0 or step in keys:
                continue
            turned = ring.automorphism_ntt(self.secret_key.ntt, galois_element(n, step))
            key = SwitchingKey.generate(self.secret_key, turned, galois_purpose(step))
            keys[step] = _turned(key, _inverse_element(n, step))
        return GaloisKeys(self.parameters, keys)


def galois_purpose(step: int) -> bytes:
    """The label under which a Galois key's seed is expanded."""
    return b"galois %d" % step


def _inverse_element(n: int, step: int) -> int:
    return pow(galois_element(n, step), -1, 2 * n)


def _turned(key: SwitchingKey, element: int) -> SwitchingKey:
    data = key.parameters.key_ring.automorphism_ntt(key.data, element)
    return SwitchingKey(key.parameters, key.seed, data)


def _uniform_halves(parameters: Parameters, seed: bytes, purpose: bytes) -> Words:
    primes, n = parameters.key_primes, parameters.degree
    data = np.empty((parameters.limbs, 2, len(primes), n), np.uint64)
    for d in range(parameters.limbs):
        expand_into(seed, purpose, primes, data[d, 1], d)
    return data


def _split_seed(payload: memoryview, body: int, what: str) -> tuple[bytes, memoryview]:
    if payload.nbytes != sampling.SEED_BYTES + body:
        raise FrameError(f"a {what} has {sampling.SEED_BYTES + body} bytes, got {payload.nbytes}")
    return bytes(payload[: sampling.SEED_BYTES]), payload[sampling.SEED_BYTES :]
