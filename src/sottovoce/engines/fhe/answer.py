"""The answer to a step: encrypted logits, kept by the server until the next step, for a client that was away.

Collecting it twice gives the same bytes twice: what is in them was drawn once.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from sottovoce.engines.base import Piece, Pieces
from sottovoce.errors import CorruptFileError, IntegrityError, ProtocolError
from sottovoce.net import Channel

DIGEST_BYTES = 32
MAX_CIPHERTEXT = 1 << 20  # bytes: of one prime, at N = 2^16
# Found, ciphertexts, digest of the tokens' ciphertexts.
_HEADER = struct.Struct(f"<?H{DIGEST_BYTES}s")
_NAME = "answer"
_SIZES = 1 << 10  # bytes


def send_sizes(channel: Channel, sizes: Sequence[int]) -> None:
    """How a prefill's first tokens come together, chunk by chunk: what it begins with."""
    channel.send(struct.pack(f"<H{len(sizes)}H", len(sizes), *sizes))


def receive_sizes(channel: Channel, tokens: int) -> tuple[int, ...]:
    """The server's side. ProtocolError for chunks of nothing, or of more than `tokens`."""
    raw = channel.recv_message(_SIZES)
    words = struct.unpack(f"<{len(raw) // 2}H", raw[: len(raw) // 2 * 2])
    sizes = words[1:]
    if len(raw) % 2 or not words or len(sizes) != words[0] or 0 in sizes or sum(sizes) > tokens:
        raise ProtocolError(f"the {tokens} tokens of a prefill cannot come in these chunks")
    return sizes


def digest_of(frames: Iterable[bytes | memoryview]) -> bytes:
    """Names the ciphertexts of a step's tokens."""
    state = hashlib.sha256()
    for frame in frames:
        state.update(len(frame).to_bytes(8, "little"))
        state.update(frame)
    return state.digest()


@dataclass(frozen=True)
class Answer:
    """length: tokens of the session after the step. digest: of what the client sent for it. frames: the
    logits' ciphertexts, in the order in which they are sent."""

    length: int
    digest: bytes
    frames: tuple[bytes, ...]

    def to_piece(self) -> dict[str, Piece]:
        piece: Piece = {
            "length": np.array([self.length], np.int64),
            "digest": np.frombuffer(self.digest, np.uint8),
        }
        for i, frame in enumerate(self.frames):
            piece[f"{i:04d}"] = np.frombuffer(frame, np.uint8)
        return {_NAME: piece}

    @classmethod
    def from_pieces(cls, pieces: Pieces, length: int) -> Answer | None:
        """The one that a session of `length` tokens ended with; None if there is none."""
        for name, piece in reversed(pieces):
            if name != _NAME:
                continue
            if any(array.ndim != 1 for array in piece.values()) or not {"length", "digest"} <= set(piece):
                raise CorruptFileError("the saved session's answer is malformed")
            frames = [piece[key].tobytes() for key in sorted(piece) if key.isdecimal()]
            found = cls(int(piece["length"][0]), piece["digest"].tobytes(), tuple(frames))
            if len(found.digest) != DIGEST_BYTES:
                raise CorruptFileError("the saved session's answer is malformed")
            return found if found.length == length else None
        return None


def send_answer(channel: Channel, answer: Answer | None) -> None:
    """The server's side of `receive_answer`."""
    if answer is None:
        channel.send(_HEADER.pack(False, 0, bytes(DIGEST_BYTES)))
        return
    channel.send(_HEADER.pack(True, len(answer.frames), answer.digest))
    for frame in answer.frames:
        channel.send(frame)


def receive_answer(channel: Channel, digest: bytes | None, most: int) -> list[memoryview] | None:
    """At most `most` ciphertexts, not looked into yet; None if the server has none. The server learns that
    the client came back for them.

    IntegrityError if they answer other ciphertexts than `digest` names.
    """
    found, count, theirs = _HEADER.unpack(channel.recv(_HEADER.size))
    if not found:
        return None
    if not 1 <= count <= most:
        raise IntegrityError("the server kept an answer of an impossible size")
    frames = [channel.recv_message(MAX_CIPHERTEXT) for _ in range(count)]
    if digest is not None and digest != theirs:
        raise IntegrityError("the server kept the answer to other ciphertexts than this client sent")
    return frames
