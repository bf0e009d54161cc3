"""Base oblivious transfers: random 1-of-2 OTs of 16-byte keys over Ed25519, by public-key operations.

Protocol (Chou and Orlandi, "The simplest protocol for oblivious transfer", 2015): the sender publishes A =
a·G. For a choice c the receiver answers B = b·G + c·A and keeps H(b·A). The sender computes both H(a·B) and
H(a·(B − A)), of which the receiver can know one only (computational Diffie–Hellman, H a random oracle).
Security here: semi-honest. H binds the session, the direction, the number of the transfer and all points.
"""

import hashlib
import os

import nacl.bindings as sodium
import nacl.exceptions
import numpy as np
import numpy.typing as npt

from sottovoce.errors import IntegrityError

U8 = npt.NDArray[np.uint8]

POINT_BYTES = 32
KEY_BYTES = 16


class BaseSender:
    """Ends with two keys for every transfer. `public` is the one message it sends (32 bytes)."""

    def __init__(self) -> None:
        self._scalar = _random_scalar()
        self.public = sodium.crypto_scalarmult_ed25519_base_noclamp(self._scalar)

    def keys(self, session: bytes, answers: bytes | memoryview) -> U8:
        """(count, 2, 16): both keys of every transfer, from the receiver's points (32 bytes each).

        session: what both parties derived from the session and the direction; it separates the hashes.
        Raises IntegrityError for bytes that are not points of the prime-order group.
        """
        result = np.empty((len(answers) // POINT_BYTES, 2, KEY_BYTES), np.uint8)
        for i in range(len(result)):
            point = _checked(bytes(answers[POINT_BYTES * i : POINT_BYTES * (i + 1)]))
            other = sodium.crypto_core_ed25519_sub(point, self.public)
            for choice, shared in enumerate((point, other)):
                secret = _multiply(self._scalar, shared)
                result[i, choice] = _hash(session, i, self.public, point, secret)
        return result


class BaseReceiver:
    """Ends with the chosen key of every transfer. choices: (count,) 0/1."""

    def __init__(self, session: bytes, public: bytes, choices: U8) -> None:
        public = _checked(public)
        answers = []
        self.keys: U8 = np.empty((len(choices), KEY_BYTES), np.uint8)  # (count, 16)
        for i, choice in enumerate(choices):
            scalar = _random_scalar()
            zero = sodium.crypto_scalarmult_ed25519_base_noclamp(scalar)
            point = _select(zero, sodium.crypto_core_ed25519_add(zero, public), int(choice))
            self.keys[i] = _hash(session, i, public, point, _multiply(scalar, public))
            answers.append(point)
        self.answers = b"".join(answers)  # the one message it sends


def _random_scalar() -> bytes:
    return bytes(sodium.crypto_core_ed25519_scalar_reduce(os.urandom(64)))


def _checked(point: bytes) -> bytes:
    if not sodium.crypto_core_ed25519_is_valid_point(point):
        raise IntegrityError("base oblivious transfer: the other party sent bytes that are no group element")
    return point


def _multiply(scalar: bytes, point: bytes) -> bytes:
    try:
        return bytes(sodium.crypto_scalarmult_ed25519_noclamp(scalar, point))
    except nacl.exceptions.RuntimeError as error:
        raise IntegrityError("base oblivious transfer: a group element of small order") from error


def _select(zero: bytes, one: bytes, choice: int) -> bytes:
    """`one` if choice else `zero`, without a branch on it."""
    a, b = np.frombuffer(zero, np.uint8), np.frombuffer(one, np.uint8)
    return (a ^ ((a ^ b) & np.uint8(-choice & 0xFF))).tobytes()


def _hash(session: bytes, number: int, public: bytes, answer: bytes, secret: bytes) -> U8:
    digest = hashlib.blake2b(digest_size=KEY_BYTES, person=b"sottovoce baseOT")
    digest.update(session + number.to_bytes(4, "little") + public + answer + secret)
    return np.frombuffer(digest.digest(), np.uint8)
