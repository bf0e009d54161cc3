"""Keys by purpose, and the generator of those of one secret. `switching` says what they consist of."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from sottovoce.ckks.galois import CONJUGATE, galois_element
from sottovoce.ckks.parameters import Parameters
from sottovoce.ckks.secret import EPHEMERAL, KEY_ID_BYTES, SecretKey
from sottovoce.ckks.switching import SwitchingKey, uniform_rows
from sottovoce.errors import ForeignKeyError, FrameError, IntegrityError, MissingKeyError, ParameterError
from sottovoce.ring import sampling
from sottovoce.rlwe.randomness import errors
from sottovoce.rlwe.wire import Buffer, frame, pack_residues, residue_bytes, unframe, unpack_residues

Words = npt.NDArray[np.uint64]

_LEVEL = struct.Struct("<H")


@dataclass(frozen=True, eq=False)
class PublicKey:
    """An encryption of zero: data (2, level + 1, N) NTT form, b = −a·s + e and a from `seed`."""

    parameters: Parameters
    key_id: bytes
    seed: bytes = field(repr=False)
    data: Words = field(repr=False)

    @property
    def level(self) -> int:
        """The highest level at which it encrypts."""
        return int(self.data.shape[1]) - 1

    @classmethod
    def generate(cls, secret: SecretKey, level: int | None = None) -> PublicKey:
        """Fresh, for this secret. level: default top."""
        parameters = secret.parameters
        ring, seed = parameters.ring(level), sampling.fresh_seed()
        a = uniform_rows(seed, b"public key", ring.primes, ring.n)
        b = ring.ntt(errors(sampling.Stream(), ring.primes, ring.n, 1)[0])
        ring.sub(b, ring.mul(a, secret.ntt(ring.primes)), b)
        return cls(parameters, secret.key_id, seed, np.stack([b, a]))

    def to_bytes(self) -> bytes:
        """Header, key id, level, seed, b."""
        packed = pack_residues(self.data[0], self.parameters.primes[: self.level + 1])
        body = self.key_id + _LEVEL.pack(self.level) + self.seed + packed
        return frame("public key", self.parameters, body)

    @classmethod
    def from_bytes(cls, parameters: Parameters, data: Buffer) -> PublicKey:
        """FrameError, IntegrityError or a mismatch error for anything else."""
        payload = unframe("public key", parameters, data)
        at = KEY_ID_BYTES + _LEVEL.size
        start = at + sampling.SEED_BYTES
        if payload.nbytes < start:
            raise FrameError("a public key is truncated")
        (level,) = _LEVEL.unpack(payload[KEY_ID_BYTES:at])
        if level > parameters.top:
            raise IntegrityError("a public key has an impossible level")
        ring = parameters.ring(level)
        if payload.nbytes != start + residue_bytes(ring.primes, ring.n):
            raise FrameError("a public key has the wrong size for its parameters")
        seed = bytes(payload[at:start])
        b = unpack_residues(payload[start:], ring.primes, (ring.limbs, ring.n))
        a = uniform_rows(seed, b"public key", ring.primes, ring.n)
        return cls(parameters, bytes(payload[:KEY_ID_BYTES]), seed, np.stack([b, a]))


@dataclass(frozen=True, eq=False)
class RelinearizationKey:
    """The switching key from s² to s."""

    parameters: Parameters
    key_id: bytes
    key: SwitchingKey = field(repr=False)

    def to_bytes(self) -> bytes:
        """Header, key id, one switching key."""
        return frame("relinearization key", self.parameters, self.key_id + self.key.payload(0))

    @classmethod
    def from_bytes(cls, parameters: Parameters, data: Buffer) -> RelinearizationKey:
        """FrameError, IntegrityError or a mismatch error for anything else."""
        key_id, rest = _key_id(unframe("relinearization key", parameters, data))
        key, purpose, rest = SwitchingKey.from_payload(parameters, rest)
        if rest.nbytes or purpose != 0 or key.special != parameters.alpha:
            raise IntegrityError("a relinearization key is one switching key with all special primes")
        return cls(parameters, key_id, key)


@dataclass(frozen=True, eq=False)
class GaloisKeys:
    """Switching keys of rotations by step, CONJUGATE included; each at the level it was generated for.

    The key of X → X^k is one from s to s(X^(1/k)): the automorphism is applied once, to the result.
    """

    parameters: Parameters
    key_id: bytes
    keys: dict[int, SwitchingKey] = field(repr=False)

    @property
    def steps(self) -> tuple[int, ...]:
        """The rotations that have a key, ascending."""
        return tuple(sorted(self.keys))

    @property
    def nbytes(self) -> int:
        """Memory of all stored halves."""
        return sum(key.nbytes for key in self.keys.values())

    def get(self, step: int, level: int) -> SwitchingKey:
        """The key of a rotation. MissingKeyError if there is none for this step, or only for lower levels."""
        key = self.keys.get(step)
        name = "conjugation" if step == CONJUGATE else f"a rotation by {step}"
        if key is None:
            raise MissingKeyError(f"no key for {name} at level {level}: generate one for every step in use")
        if key.level < level:
            raise MissingKeyError(
                f"the key for {name} was generated for levels up to {key.level}, not for level {level}"
            )
        return key

    def merge(self, other: GaloisKeys) -> GaloisKeys:
        """Both sets of keys; where both have a step, the key of the higher level."""
        if other.parameters != self.parameters or other.key_id != self.key_id:
            raise ForeignKeyError("keys of different secrets cannot be used together")
        both = dict(self.keys)
        for step, key in other.keys.items():
            if step not in both or both[step].level < key.level:
                both[step] = key
        return GaloisKeys(self.parameters, self.key_id, both)

    def to_bytes(self) -> bytes:
        """Header, key id, one switching key after the other. Large sets travel key by key: `parts`."""
        body = b"".join(self.keys[step].payload(step) for step in self.steps)
        return frame("galois keys", self.parameters, self.key_id + body)

    def parts(self) -> list[GaloisKeys]:
        """One set per key, to be sent one by one and merged."""
        return [GaloisKeys(self.parameters, self.key_id, {step: self.keys[step]}) for step in self.steps]

    @classmethod
    def from_bytes(cls, parameters: Parameters, data: Buffer) -> GaloisKeys:
        """FrameError, IntegrityError or a mismatch error for anything else."""
        key_id, rest = _key_id(unframe("galois keys", parameters, data))
        keys: dict[int, SwitchingKey] = {}
        while rest.nbytes:
            key, step, rest = SwitchingKey.from_payload(parameters, rest)
            if not CONJUGATE <= step < parameters.slots or step in keys or key.special != parameters.alpha:
                raise IntegrityError("the steps of Galois keys must be in range and distinct")
            keys[step] = key
        return cls(parameters, key_id, keys)


@dataclass(frozen=True, eq=False)
class EncapsulationKeys:
    """To the ephemeral sparse secret of a bootstrap and back.

    down: from s to the ephemeral secret, at modulus q_0·p_0 only: 99 bits of the 121 at which 32 non-zero
    coefficients are secure. up: from the ephemeral secret to s, under s, at `level`.
    """

    parameters: Parameters
    key_id: bytes
    down: SwitchingKey = field(repr=False)
    up: SwitchingKey = field(repr=False)

    def __post_init__(self) -> None:
        if self.down.level != 0 or self.down.special != 1:
            raise ParameterError("the key to the ephemeral secret exists at modulus q_0·p_0 only")

    @property
    def nbytes(self) -> int:
        """Memory of the stored halves."""
        return self.down.nbytes + self.up.nbytes

    def to_bytes(self) -> bytes:
        """Header, key id, down, up."""
        body = self.down.payload(0) + self.up.payload(1)
        return frame("switching key", self.parameters, self.key_id + body)

    @classmethod
    def from_bytes(cls, parameters: Parameters, data: Buffer) -> EncapsulationKeys:
        """FrameError, IntegrityError or a mismatch error for anything else."""
        key_id, rest = _key_id(unframe("switching key", parameters, data))
        down, first, rest = SwitchingKey.from_payload(parameters, rest)
        up, second, rest = SwitchingKey.from_payload(parameters, rest)
        levels = (down.level, down.special, up.special)
        if rest.nbytes or (first, second) != (0, 1) or levels != (0, 1, parameters.alpha):
            raise IntegrityError("these are not the two keys of an encapsulation")
        return cls(parameters, key_id, down, up)


class KeyGenerator:
    """Makes every key that belongs to one secret. secret: an existing key, or None for a fresh one."""

    def __init__(self, parameters: Parameters, secret: SecretKey | None = None) -> None:
        if secret is not None and secret.parameters != parameters:
            raise ParameterError("the secret key belongs to other parameters")
        self.parameters = parameters
        self.secret_key = SecretKey.generate(parameters) if secret is None else secret

    def public_key(self, level: int | None = None) -> PublicKey:
        """A fresh public key, for encryption at levels up to `level` (default: top)."""
        return PublicKey.generate(self.secret_key, self._level(level))

    def relinearization_key(self, level: int | None = None) -> RelinearizationKey:
        """From s² to s, for products at levels up to `level` (default: top)."""
        level = self._level(level)
        s = self._secret(level)
        square = self.parameters.ring(level).mul(s, s)
        key = SwitchingKey.generate(self.secret_key, square, level)
        return RelinearizationKey(self.parameters, self.secret_key.key_id, key)

    def galois_key(self, step: int, level: int | None = None) -> SwitchingKey:
        """For one rotation in [1, N/2), or CONJUGATE."""
        n = self.parameters.degree
        if step != CONJUGATE and not 0 < step < n // 2:
            raise ParameterError(f"a rotation must be in [1, {n // 2}) or CONJUGATE (-1), not {step}")
        level = self._level(level)
        inverse = pow(galois_element(n, step), -1, 2 * n)
        return SwitchingKey.generate(self.secret_key, self._secret(level), level, element=inverse)

    def galois_keys(self, steps: Iterable[int] | Mapping[int, int], level: int | None = None) -> GaloisKeys:
        """Keys for these steps, all at `level` (default: top) or each at its own: {step: level}."""
        levels = dict(steps) if isinstance(steps, Mapping) else dict.fromkeys(steps, self._level(level))
        keys = {step: self.galois_key(step, at) for step, at in levels.items() if step != 0}
        return GaloisKeys(self.parameters, self.secret_key.key_id, keys)

    def encapsulation_keys(self, level: int | None = None) -> EncapsulationKeys:
        """A fresh ephemeral secret, forgotten as soon as its two keys are made."""
        parameters, level = self.parameters, self._level(level)
        ephemeral = SecretKey.generate(parameters, EPHEMERAL)
        down = SwitchingKey.generate(ephemeral, self._secret(0), 0, special=1)
        ring = parameters.ring(level)
        # Only as a message under s, which hides it at any modulus.
        message = ring.ntt(ring.reduce_signed(ephemeral.coefficients))
        up = SwitchingKey.generate(self.secret_key, message, level)
        return EncapsulationKeys(parameters, self.secret_key.key_id, down, up)

    def _level(self, level: int | None) -> int:
        return self.parameters.top if level is None else self.parameters.check_level(level)

    def _secret(self, level: int) -> Words:
        return self.secret_key.ntt(self.parameters.ring(level).primes)


def _key_id(payload: memoryview) -> tuple[bytes, memoryview]:
    if payload.nbytes < KEY_ID_BYTES:
        raise FrameError("a key is truncated")
    return bytes(payload[:KEY_ID_BYTES]), payload[KEY_ID_BYTES:]
