"""How a client comes back to a session that both parties have saved.

The handshake names the session; after it, before the engine's setup:

    client                                   server
    return   nonce                      -->  knows it, or not
                                        <--  nonce, proof that it knows the session's key
    proof, stamps of its tokens         -->  checks
                                        <--  as often as need be: how far a step is that has to end first
                                        <--  how many tokens both have, a new epoch

Every token gets a *stamp* when it is appended: the epoch of the connection and a number that only grows.
Equal stamps are the same token in the same state at both parties, so the tokens with which both lists of
stamps begin are what the session goes on from; whatever one party saved beyond them (it was killed a moment
later than the other, or earlier) is left out, and the client appends those tokens again.

The name is a random number and not secret. The key is: whoever has it is the session's client. Both are
derived from the client's own for each server, so that a session offered to another server gives nothing away.
"""

import hmac
import os
import secrets
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ..errors import IntegrityError, RefusedError
from ..net import Channel, Role

ID_BYTES = 16
KEY_BYTES = 32
_NONCE = 32
_TAG = 32
_ANSWER = struct.Struct(f"<?{_NONCE}s{_TAG}s")
_AGREED = struct.Struct("<QQ")
_KEEP = struct.Struct(f"<{ID_BYTES}s{KEY_BYTES}s")
_KEPT = struct.Struct("<?Q")
_COUNT_BITS = 24  # of a stamp; the rest is the epoch
_BUSY = (1 << 64) - 1  # no epoch: what stands beside it is how far a step is


@dataclass(frozen=True)
class Ticket:
    """What names a session to both parties, and proves whose it is."""

    id: bytes
    key: bytes = field(repr=False)

    @classmethod
    def new(cls) -> "Ticket":
        return cls(secrets.token_bytes(ID_BYTES), secrets.token_bytes(KEY_BYTES))

    def at(self, server: str) -> "Ticket":
        """What one server gets of the client's ticket: of no use at another, which gets its own.

        server: what it is recognised by, its certificate. Derived with HMAC-SHA-512.
        """
        derived = hmac.digest(self.key, b"sottovoce ticket" + self.id + server.encode(), "sha512")
        return Ticket(derived[:ID_BYTES], derived[-KEY_BYTES:])


def new_epoch() -> int:
    """Of a connection; 40 random bits, so that no two of a session are the same."""
    return secrets.randbits(64 - _COUNT_BITS)


class Stamps:
    """The stamps of a session's tokens, the same at both parties while they execute the same commands."""

    def __init__(self, epoch: int, stamps: Iterable[int] = ()) -> None:
        self._next = epoch << _COUNT_BITS
        self._stamps = [int(stamp) for stamp in stamps]

    def __len__(self) -> int:
        return len(self._stamps)

    def resize(self, length: int) -> None:
        """After a step: new tokens get stamps, forgotten ones lose theirs."""
        del self._stamps[length:]
        while len(self._stamps) < length:
            self._stamps.append(self._next)
            self._next += 1

    def to_bytes(self) -> bytes:
        """8 bytes a token."""
        return np.array(self._stamps, "<u8").tobytes()


def parse_stamps(raw: bytes | memoryview) -> npt.NDArray[np.uint64]:
    """IntegrityError for a torn list."""
    if len(raw) % 8:
        raise IntegrityError("a list of stamps is torn; the session cannot be resumed")
    return np.frombuffer(bytes(raw), "<u8").astype(np.uint64)


def common(a: npt.NDArray[np.uint64], b: npt.NDArray[np.uint64]) -> int:
    """Length of the common beginning."""
    n = min(a.size, b.size)
    different = np.flatnonzero(a[:n] != b[:n])
    return int(different[0]) if different.size else n


@dataclass(frozen=True)
class Agreed:
    """What both go on from. tokens: 0 if the server has no such session (any more)."""

    known: bool
    tokens: int
    epoch: int


def come_back(
    channel: Channel,
    ticket: Ticket,
    stamps: bytes = b"",
    waiting: Callable[[int, int], None] = lambda done, total: None,
) -> Agreed:
    """The client's side. Cost: 4 messages, 2 if the server does not know the session.

    waiting: called about once a second while the server is still at a step that it does alone.
    """
    nonce = os.urandom(_NONCE)
    channel.send(nonce)
    known, theirs, proof = _ANSWER.unpack(channel.recv(_ANSWER.size))
    if not known:
        return Agreed(False, 0, 0)
    nonces = ticket.id + nonce + theirs
    if not hmac.compare_digest(proof, _mac(ticket, Role.SERVER, nonces)):
        raise RefusedError(
            "the server does not know the key of this session; it is not the one that saved it"
        )
    channel.send(_mac(ticket, Role.CLIENT, nonces) + stamps)
    tokens, epoch = _AGREED.unpack(channel.recv(_AGREED.size))
    while epoch == _BUSY:
        waiting(tokens >> 32, tokens & 0xFFFFFFFF)
        tokens, epoch = _AGREED.unpack(channel.recv(_AGREED.size))
    if tokens > len(stamps) // 8 or epoch >> (64 - _COUNT_BITS):
        raise IntegrityError("the server agreed to more tokens of a session than there are")
    return Agreed(True, tokens, epoch)


def unknown(channel: Channel) -> None:
    """The server's side, if it has no such session."""
    channel.recv(_NONCE)
    channel.send(_ANSWER.pack(False, bytes(_NONCE), bytes(_TAG)))


def recognise(channel: Channel, ticket: Ticket, limit: int) -> npt.NDArray[np.uint64]:
    """The server's side: prove to know the session, and see that the client does; at most `limit` stamps."""
    nonce, own = bytes(channel.recv(_NONCE)), os.urandom(_NONCE)
    nonces = ticket.id + nonce + own
    channel.send(_ANSWER.pack(True, own, _mac(ticket, Role.SERVER, nonces)))
    raw = channel.recv_message(_TAG + 8 * limit)
    if not hmac.compare_digest(bytes(raw[:_TAG]), _mac(ticket, Role.CLIENT, nonces)):
        raise RefusedError("the client does not know the key of this session")
    return parse_stamps(raw[_TAG:])


def tell_busy(channel: Channel, done: int, total: int) -> None:
    """The server's side: a step goes on that has to end first."""
    channel.send(_AGREED.pack(done << 32 | total, _BUSY))


def agree(channel: Channel, tokens: int) -> int:
    """Tell the client what both have; the epoch of the tokens to come."""
    epoch = new_epoch()
    channel.send(_AGREED.pack(tokens, epoch))
    return epoch


def ask_to_keep(channel: Channel, ticket: Ticket) -> int | None:
    """The client's side of KEEP: the epoch of all tokens, or None if the server keeps no sessions."""
    channel.send(_KEEP.pack(ticket.id, ticket.key))
    kept, epoch = _KEPT.unpack(channel.recv(_KEPT.size))
    if epoch >> (64 - _COUNT_BITS):
        raise IntegrityError("the server's answer about keeping the session is malformed")
    return int(epoch) if kept else None


def read_keep(channel: Channel) -> Ticket:
    """The server's side: which session."""
    return Ticket(*_KEEP.unpack(channel.recv(_KEEP.size)))


def answer_keep(channel: Channel, epoch: int | None) -> None:
    """The server's side: from now on, or None for no."""
    channel.send(_KEPT.pack(epoch is not None, epoch or 0))


def _mac(ticket: Ticket, role: Role, message: bytes) -> bytes:
    return hmac.digest(ticket.key, b"sottovoce session" + bytes([role]) + message, "sha256")
