"""Plaintexts and ciphertexts: arrays with their level, exact scale and period."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from sottovoce import _native
from sottovoce.ckks.parameters import Parameters
from sottovoce.ckks.secret import KEY_ID_BYTES
from sottovoce.errors import FrameError, IntegrityError, ParameterError
from sottovoce.rlwe.wire import Buffer, frame, pack_residues, residue_bytes, unframe, unpack_residues

Words = npt.NDArray[np.uint64]

# Size, level, slots, scale.
_META = struct.Struct("<BxHId")
SCALE_LIMIT = 2.0**400


# Bytes from which pages matter: arrays of 2 MiB pages are also read faster when rows lie side by side.
_LARGE = 1 << 20


def empty(*shape: int) -> Words:
    """An uninitialised array whose memory is used again once it is dropped: no fresh pages each time."""
    if 8 * math.prod(shape) < _LARGE:
        return np.empty(shape, np.uint64)
    return _native.recycled_words(shape)


@dataclass(frozen=True, eq=False)
class Plaintext:
    """A polynomial in X^r, r = N/M, times a scale.

    data: (L, M) NTT form of the polynomial in Y = X^r (every value stands for r neighbours at length N); L =
    level + 1, or level + 1 + α if `wide` (the residues modulo the special primes follow). slots: the period n
    of the vector, M ≥ 2n unless the plaintext is constant.
    """

    parameters: Parameters
    data: Words = field(repr=False)
    level: int
    scale: float
    slots: int
    wide: bool = False


@dataclass(frozen=True, eq=False)
class Ciphertext:
    """Components c_0, c_1 (and c_2 after a product) with Σ c_i·s^i = scale·m + e modulo Q_level.

    data: (S, level + 1, N) NTT form, S = 2 or 3; the last two axes are contiguous. slots: the period n of
    the message. key_id: eight bytes that name the secret key.
    """

    parameters: Parameters
    data: Words = field(repr=False)
    scale: float
    slots: int
    key_id: bytes

    @property
    def size(self) -> int:
        """The number of components, 2 or 3."""
        return int(self.data.shape[0])

    @property
    def level(self) -> int:
        """One less than the number of limbs; each rescaling takes one."""
        return int(self.data.shape[1]) - 1

    def with_slots(self, slots: int) -> Ciphertext:
        """The same ciphertext, its message read with another period."""
        if slots < 1 or slots & (slots - 1) or slots > self.parameters.slots:
            raise ParameterError(f"a period is a power of two up to {self.parameters.slots}, not {slots}")
        return replace(self, slots=slots)

    def with_scale(self, scale: float) -> Ciphertext:
        """The same ciphertext, its message divided by scale / self.scale: free."""
        return replace(self, scale=float(scale))

    def to_bytes(self) -> bytes:
        """Header, key id, size, level, period, scale, residues at the bit lengths of their primes."""
        meta = _META.pack(self.size, self.level, self.slots, self.scale)
        primes = self.parameters.primes[: self.level + 1]
        return frame("ciphertext", self.parameters, self.key_id + meta + pack_residues(self.data, primes))

    @classmethod
    def from_bytes(cls, parameters: Parameters, data: Buffer) -> Ciphertext:
        """FrameError, IntegrityError or a mismatch error for anything else."""
        payload, start = unframe("ciphertext", parameters, data), KEY_ID_BYTES + _META.size
        if payload.nbytes < start:
            raise FrameError("a ciphertext is truncated")
        size, level, slots, scale = _META.unpack(payload[KEY_ID_BYTES:start])
        check_header(parameters, level, slots, scale)
        if size not in (2, 3):
            raise IntegrityError("a ciphertext has two or three components")
        primes = parameters.primes[: level + 1]
        if payload.nbytes - start != size * residue_bytes(primes, parameters.degree):
            raise FrameError("the size of a ciphertext does not match its header")
        rows = unpack_residues(payload[start:], primes, (size, level + 1, parameters.degree))
        return cls(parameters, rows, scale, slots, bytes(payload[:KEY_ID_BYTES]))


def check_header(parameters: Parameters, level: int, slots: int, scale: float) -> None:
    """IntegrityError unless a stored ciphertext's level, period and scale are possible ones."""
    if level > parameters.top or not 1 <= slots <= parameters.slots or slots & (slots - 1):
        raise IntegrityError("a ciphertext has an impossible level or period")
    if not (math.isfinite(scale) and 1.0 <= scale <= SCALE_LIMIT):
        raise IntegrityError("a ciphertext has an impossible scale")


@dataclass(frozen=True, eq=False)
class Wide:
    """A ciphertext modulo Q_level·P whose phase is P·scale·m: what lazy sums are made of.

    data: (2, level + 1 + α, N) NTT form.
    """

    parameters: Parameters
    data: Words = field(repr=False)
    scale: float
    slots: int
    key_id: bytes

    @property
    def level(self) -> int:
        """The level of the ciphertext that `Evaluator.mod_down` makes of it (before any rescaling)."""
        return int(self.data.shape[1]) - 1 - self.parameters.alpha
