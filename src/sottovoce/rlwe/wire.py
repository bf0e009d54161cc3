"""Serialised keys and ciphertexts: one header, dense residues, every check before any use.

Header (32 bytes): magic "SVRL", format version (u8), kind (u8), reserved (u16, zero), parameter digest (8
bytes), payload length (u64), checksum of the payload (8 bytes of BLAKE2b; against accidents, the channel
authenticates). Residues are packed at the bit length of their prime, limb by limb.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from sottovoce import _native
from sottovoce.errors import FrameError, IntegrityError, ParameterMismatchError, VersionMismatchError
from sottovoce.ring import threads

MAGIC = b"SVRL"
FORMAT_VERSION = 1
_HEADER = struct.Struct("<4sBBH8sQ8s")
HEADER_BYTES = _HEADER.size

Buffer = bytes | bytearray | memoryview | npt.NDArray[np.uint8]
Words = npt.NDArray[np.uint64]

KINDS = {
    "secret key": 1,
    "public key": 2,
    "relinearization key": 3,
    "galois keys": 4,
    "ciphertext": 5,
    "switching key": 6,
    "fresh ciphertext": 7,
}


class Identified(Protocol):
    """A parameter set, of any scheme."""

    @property
    def digest(self) -> bytes:
        """Eight bytes that identify the set."""


def frame(kind: str, parameters: Identified, payload: bytes) -> bytes:
    """Header and payload."""
    header = _HEADER.pack(
        MAGIC, FORMAT_VERSION, KINDS[kind], 0, parameters.digest, len(payload), _checksum(payload)
    )
    return header + payload


def unframe(kind: str, parameters: Identified, data: Buffer) -> memoryview:
    """The payload of a serialised object of this kind and parameter set.

    Raises FrameError (not such an object, truncated, oversized), VersionMismatchError,
    ParameterMismatchError, or IntegrityError (checksum).
    """
    view = as_bytes(data)
    if view.nbytes < HEADER_BYTES:
        raise FrameError(f"a serialised {kind} is at least {HEADER_BYTES} bytes long, got {view.nbytes}")
    magic, version, number, reserved, digest, length, checksum = _HEADER.unpack(view[:HEADER_BYTES])
    payload = view[HEADER_BYTES:]
    if magic != MAGIC or reserved != 0:
        raise FrameError(f"these bytes are not a serialised {kind}")
    if version != FORMAT_VERSION:
        raise VersionMismatchError(
            f"format version {version} of a {kind}; this version reads {FORMAT_VERSION}"
        )
    if number != KINDS[kind]:
        raise FrameError(f"expected a serialised {kind}, got an object of kind {number}")
    if length != payload.nbytes:
        raise FrameError(f"a {kind} announces {length} bytes and has {payload.nbytes}")
    if digest != parameters.digest:
        raise ParameterMismatchError(
            f"this {kind} was made for other parameters: both parties must use one set"
        )
    if checksum != _checksum(payload):
        raise IntegrityError(f"the checksum of a {kind} does not match its content")
    return payload


def as_bytes(data: Buffer) -> memoryview:
    """A view of any buffer, byte by byte."""
    return np.frombuffer(data, np.uint8).data


def _checksum(payload: bytes | memoryview) -> bytes:
    return hashlib.blake2b(payload, digest_size=8).digest()


def residue_bytes(primes: Sequence[int], n: int) -> int:
    """Packed bytes of one polynomial (L, N)."""
    return sum(n // 8 * q.bit_length() for q in primes)


def pack_residues(x: Words, primes: Sequence[int]) -> bytes:
    """(..., L, N) -> bytes, polynomial by polynomial and limb by limb."""
    limbs, n = x.shape[-2:]
    rows = np.ascontiguousarray(x).reshape(-1, limbs, n)
    out = np.empty((len(rows), residue_bytes(primes, n)), np.uint8)
    _native.bgv_pack_residues(rows, list(primes), out, threads())
    return out.tobytes()


def unpack_residues(data: Buffer, primes: Sequence[int], shape: tuple[int, ...]) -> Words:
    """Bytes -> (..., L, N), as `unpack_residues_into`."""
    out = np.empty(shape, np.uint64)
    unpack_residues_into(data, primes, out.reshape(-1, 1, *shape[-2:]))
    return out


def unpack_residues_into(data: Buffer, primes: Sequence[int], out: Words) -> None:
    """Bytes -> component 0 of out (R, C, L, N).

    FrameError on a wrong size, IntegrityError on a residue that is not reduced (out is then undefined).
    """
    size, view = residue_bytes(primes, out.shape[-1]), np.frombuffer(data, np.uint8)
    if view.nbytes != len(out) * size:
        raise FrameError(f"expected {len(out) * size} bytes of residues, got {view.nbytes}")
    if not _native.bgv_unpack_residues(view.reshape(len(out), size), list(primes), out, threads()):
        raise IntegrityError("a residue is not smaller than its prime")
