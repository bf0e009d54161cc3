"""How the two halves of a pool find each other again, and who is refused.

    client                                        server
    hello   pool's name, nonce, wish         -->
                                             <--  answer, nonce, proof that it knows the pool's key
    proof, state of its ledger               -->  checks
                                             <--  state of its ledger
            both compute the same agreement, write it down as pending,
    tag     over all of the above           <-->  tag
            and make it their epoch

Every opening has a new epoch, named by both nonces. A copy of a pool, restored from a backup or used by a
second machine, still has the epoch of its last opening, the peer has a newer one: refused. Within an epoch
takes are counted, and two parties that stopped at any two points of a session are at most `IN_FLIGHT` takes
apart; they continue from the larger mark of every stream, so what either of them ever took is gone for both.
A batch that only one of them has (it was killed while it was being stored) is dropped.

What nothing on a disk can detect is that *both* halves are put back at once. See docs/design/pool.md.
"""

import hashlib
import hmac
import os
import struct
from dataclasses import replace
from enum import IntEnum
from typing import Protocol

from sottovoce.correlations.marks import EPOCH_BYTES, ID_BYTES, State
from sottovoce.correlations.pool import Pool
from sottovoce.errors import IntegrityError, ProtocolError, RefusedError
from sottovoce.net import Channel, Role

KEY_BYTES = 32
# Only for telling an honest crash from an old copy: what was taken is gone for both in any case.
IN_FLIGHT = 4
MAX_STATE = 1 << 20  # bytes: the ledger of 10,000 streams and batches
_ATTEMPTS = 3
_NONCE = 32
_TAG = 32
_HELLO = struct.Struct(f"<B{ID_BYTES}s{_NONCE}s{KEY_BYTES}s")
_ANSWER = struct.Struct(f"<B{_NONCE}s{_TAG}s")


class Wish(IntEnum):
    """What the client wants."""

    NONE = 0
    OPEN = 1
    CREATE = 2  # the hello carries the new pool's key
    DELETE = 3  # forget this pool; the client's half is gone or of no use


class Answer(IntEnum):
    """What the server says before any proof."""

    NONE = 0  # no pool in this session
    OPEN = 1
    UNKNOWN = 2  # it has no half of that pool (any more)


class Lender(Protocol):
    """Where the server finds its halves: see `shelf.py`."""

    def find(self, id: bytes) -> Pool | None:
        """The pool of that name, opened; None if there is none. RefusedError if it is in use."""
        ...

    def create(self, id: bytes, secret: bytes) -> Pool:
        """A new pool. RefusedError if there is no room for one."""
        ...


def join(channel: Channel, pool: Pool | None, wish: Wish = Wish.OPEN) -> Answer:
    """The client's side: OPEN if the session has this pool from now on.

    After UNKNOWN, and after a DELETE that was not answered with NONE, it must be called once more, with a new
    pool or None. Cost: two messages without a pool, else 4 and an exchange. Raises RefusedError if the halves
    do not fit.
    """
    nonce = os.urandom(_NONCE)
    id, key = (bytes(ID_BYTES), bytes(KEY_BYTES)) if pool is None else (pool.id, pool.secret)
    wish = Wish.NONE if pool is None else wish
    channel.send(_HELLO.pack(wish, id, nonce, key if wish is Wish.CREATE else bytes(KEY_BYTES)))
    code, theirs, proof = _ANSWER.unpack(channel.recv(_ANSWER.size))
    if code not in tuple(Answer):
        raise IntegrityError("the server's answer about the correlation pool is malformed")
    if pool is None or Answer(code) is not Answer.OPEN:
        return Answer(code)
    nonces = nonce + theirs
    if not hmac.compare_digest(proof, _mac(key, Role.SERVER, id + nonces)):
        raise RefusedError(
            "the server does not know the key of this correlation pool; it is not the one that prepared it."
            " `sottovoce prepare SERVER --reset` starts a new pool"
        )
    mine = pool.state()
    channel.send(_mac(key, Role.CLIENT, id + nonces) + mine.to_bytes())
    other = State.from_bytes(channel.recv_message(MAX_STATE))
    if wish is not Wish.DELETE:
        _continue(channel, pool, mine, other, nonces)
    return Answer.OPEN


def admit(channel: Channel, lender: Lender | None) -> Pool | None:
    """The server's side: the client's pool, opened and agreed on, or None.

    The client may ask again after hearing that its pool is unknown, or deleted.
    """
    for _ in range(_ATTEMPTS):
        wish, pool = _admit(channel, lender)
        if pool is not None or wish is Wish.NONE or lender is None:
            return pool
    raise ProtocolError("the client asked for one correlation pool after the other")


def _admit(channel: Channel, lender: Lender | None) -> tuple[Wish, Pool | None]:
    code, id, theirs, key = _HELLO.unpack(channel.recv(_HELLO.size))
    if code not in tuple(Wish):
        raise IntegrityError("the client's request for a correlation pool is malformed")
    wish, nonce = Wish(code), os.urandom(_NONCE)
    pool = None
    if lender is not None and wish is not Wish.NONE:
        pool = lender.create(id, key) if wish is Wish.CREATE else lender.find(id)
    if pool is None:
        answer = Answer.NONE if lender is None or wish is Wish.NONE else Answer.UNKNOWN
        channel.send(_ANSWER.pack(answer, nonce, bytes(_TAG)))
        return wish, None
    try:
        nonces = theirs + nonce
        channel.send(_ANSWER.pack(Answer.OPEN, nonce, _mac(pool.secret, Role.SERVER, id + nonces)))
        raw = channel.recv_message(MAX_STATE)
        if not hmac.compare_digest(bytes(raw[:_TAG]), _mac(pool.secret, Role.CLIENT, id + nonces)):
            raise RefusedError("the client does not know the key of this correlation pool")
        other, mine = State.from_bytes(raw[_TAG:]), pool.state()
        channel.send(mine.to_bytes())
        if wish is Wish.DELETE:
            pool.destroy()
            return wish, None
        _continue(channel, pool, mine, other, nonces)
        return wish, pool
    except BaseException:
        pool.close()
        raise


def reconcile(mine: State, other: State) -> State:
    """What both parties continue from: the same result at both, but for the order of the batches.

    Its epoch is the last one that both have heard of. RefusedError if the two do not belong together.
    """
    epoch = _last_common(mine, other)
    apart = mine.takes - other.takes
    if epoch is None or abs(apart) > IN_FLIGHT:
        older = mine.generation < other.generation or (mine.generation == other.generation and apart < 0)
        raise RefusedError(
            f"the two halves of the correlation pool do not fit: {'ours' if older else 'the other one'} is"
            " older than the last use, so it was restored from a backup, or a copy of it was used elsewhere."
            " Nothing in it may be used again: `sottovoce prepare SERVER --reset` (at the client) deletes"
            " both halves and starts anew, --no-pool goes on without"
        )
    none = (0, 0)
    streams = {}
    for name in sorted({*mine.streams, *other.streams}):
        pairs = zip(mine.streams.get(name, none), other.streams.get(name, none), strict=True)
        taken, made = (max(pair) for pair in pairs)
        streams[name] = (taken, made)
    kept = set(other.batches)
    return State(
        max(mine.generation, other.generation),
        epoch,
        None,
        max(mine.takes, other.takes),
        streams,
        tuple(id for id in mine.batches if id in kept),
    )


def _last_common(mine: State, other: State) -> bytes | None:
    """The epoch from which both continue: one may have seen an opening completed that the other only agreed
    to."""
    if mine.epoch in (other.epoch, other.pending):
        return mine.epoch
    return other.epoch if other.epoch == mine.pending else None


def _continue(channel: Channel, pool: Pool, mine: State, other: State, nonces: bytes) -> None:
    """Agree, write it down, hear that the other party has, and only then make it the epoch."""
    agreed = reconcile(mine, other)
    if len(agreed.to_bytes()) > MAX_STATE:
        # Names that a party makes up, a few more at every opening, would fill the other one's disk.
        raise IntegrityError("the two halves of the correlation pool name more streams than there can be")
    generation = agreed.generation + 1
    epoch = hashlib.blake2b(
        pool.id + nonces + generation.to_bytes(8, "little"),
        person=b"sottovoce epoch",
        digest_size=EPOCH_BYTES,
    ).digest()
    pool.agree(replace(agreed, pending=epoch))
    said = epoch + hashlib.sha256(agreed.to_bytes()).digest()
    tag = _mac(pool.secret, channel.role, said)
    theirs = bytes(channel.exchange(tag, _TAG))
    if not hmac.compare_digest(theirs, _mac(pool.secret, channel.role.other, said)):
        raise ProtocolError("the two parties understood the state of the correlation pool differently")
    pool.begin(epoch, generation)


def _mac(key: bytes, role: Role, message: bytes) -> bytes:
    return hmac.digest(key, b"sottovoce pool" + bytes([role]) + message, "sha256")
