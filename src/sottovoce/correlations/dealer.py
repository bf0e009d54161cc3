"""A third process that deals both parties their halves of every correlation. Opt-in, and never silent.

    SECURITY: the dealer knows both halves of everything it deals. Alone it sees no message between the two
    parties and learns nothing but counts. Together with either party it learns what the other one hides: all
    tokens, or all weights. Use it only where the dealer is run by somebody who colludes with neither.

Each party connects to the dealer and names its role and a token of 32 random bytes that the client drew for
this session and sent to the server. The dealer joins two connections of one token, gives each a seed, and
then answers requests, which both parties make alike: see `dealing.py` for who is sent what. A request costs a
frame of about 40 bytes from each party; the answer only what cannot be expanded from a seed (for SmolLM2-135M
at context 128: 5 MB a token to the server, 2 MB to the client).
"""

import hashlib
import json
import os
import struct
from typing import Any

from sottovoce.correlations.dealing import (
    Hand,
    check,
    completed,
    explicit_part,
    explicit_size,
    random_part,
    recipient,
)
from sottovoce.correlations.producer import stream_of
from sottovoce.correlations.stock import Arrays
from sottovoce.correlations.stocked import Kind, StockedSource
from sottovoce.errors import IntegrityError, ParameterError, ProtocolError
from sottovoce.net import Channel, Role
from sottovoce.ot import FoldedPads
from sottovoce.ring.sampling import SEED_BYTES, fresh_seed

TOKEN_BYTES = 32
MAX_REQUEST = 1 << 14
_HELLO = struct.Struct(f"<4sBB{TOKEN_BYTES}s")
_MAGIC, _VERSION = b"SVDL", 1
_COUNT = struct.Struct("<I")


class DealerSource(StockedSource):
    """A party's end: the interface of `PairSource`, its items from a dealer.

    channel: to the other party, on which items are spent. dealer: to the dealer; this party is its client.
    token: the session's, the same at both parties.
    """

    def __init__(self, channel: Channel, dealer: Channel, token: bytes) -> None:
        super().__init__(channel.role)
        self._channel, self._dealer = channel, dealer
        dealer.send(_HELLO.pack(_MAGIC, _VERSION, channel.role, token))
        self._hand = Hand(channel.role, bytes(dealer.recv(SEED_BYTES)), _hash_key(token))

    def bind(self, channel: Channel) -> None:
        """Items are spent with the party that has the other halves."""
        if channel is not self._channel:
            raise ProtocolError("correlations dealt for one channel were to be spent on another")

    def make(self, key: Kind, n: int) -> Arrays | FoldedPads:
        """Exactly n items. Cost: a request to the dealer; an answer, if this party is the `recipient`."""
        check(key, n)
        ledger = self._channel.ledger
        with ledger.operation("correlations"), ledger.operation(key[0]):
            request = stream_of(key).encode()
            self._dealer.send(_COUNT.pack(n) + request)
            own = random_part(self._hand, key, n)
            if recipient(key) is not self.role:
                return own
            assert not isinstance(own, FoldedPads)
            size = explicit_size(key, n)
            ledger.count("dealer_bytes", size)
            return completed(key, own, self._dealer.recv(size))

    def refill(self, tokens: int = 1) -> None:
        """Ask for a token's share of what was consumed since the last refill."""
        for key, n in self._forecast(tokens).items():
            self._fill(key, n)

    def close(self) -> None:
        """Tell the dealer that the session is over."""
        self._dealer.close()


def new_token(channel: Channel) -> bytes:
    """The token of a session: drawn by the client, told to the server. Cost: one message."""
    if channel.role is Role.SERVER:
        return bytes(channel.recv(TOKEN_BYTES))
    token = os.urandom(TOKEN_BYTES)
    channel.send(token)
    return token


def read_hello(channel: Channel) -> tuple[Role, bytes]:
    """The dealer's first step with a new connection: (the party's role, its session's token)."""
    magic, version, role, token = _HELLO.unpack(channel.recv(_HELLO.size))
    if magic != _MAGIC or version != _VERSION or role not in tuple(Role):
        raise IntegrityError("a connection to the dealer begins with the wrong bytes")
    return Role(role), token


def deal(client: Channel, server: Channel, token: bytes) -> None:
    """The dealer's work for one session: until a party leaves (PeerGoneError), or they disagree."""
    hands = [Hand(role, fresh_seed(), _hash_key(token)) for role in Role]
    channels = (client, server)
    for hand, channel in zip(hands, channels, strict=True):
        channel.send(hand.seed)
    while True:
        raw = bytes(client.recv_message(MAX_REQUEST))
        if bytes(server.recv_message(MAX_REQUEST)) != raw:
            raise ProtocolError("the two parties asked the dealer for different items")
        key, n = _parse(raw)
        parts = [random_part(hand, key, n) for hand in hands]
        channels[recipient(key)].send(explicit_part(key, parts[0], parts[1]))


def _parse(raw: bytes) -> tuple[Kind, int]:
    try:
        (n,) = _COUNT.unpack_from(raw)
        kind, *arguments = json.loads(raw[_COUNT.size :])
        key: Kind = (kind, *(_argument(kind, i, x) for i, x in enumerate(arguments)))
        if len(key) != {"wraps": 2, "ots": 4, "ands": 1, "triples": 1, "squares": 1}.get(kind, 2):
            raise ValueError
        check(key, n)
    except (ValueError, TypeError, KeyError, IndexError, RecursionError, struct.error, ParameterError):
        raise IntegrityError("a party asked the dealer for something that does not exist") from None
    return key, n


def _argument(kind: str, place: int, value: Any) -> Any:
    if kind == "wraps":
        return tuple((_integer(v), _modulus(m)) for v, m in value)
    if kind == "ots" and place == 0:
        return Role(value)
    return _modulus(value) if kind in ("bit_values", "b2a") else _integer(value)


def _integer(value: Any) -> int:
    if type(value) is not int or abs(value) > 1 << 64:
        raise ValueError
    return value


def _modulus(value: Any) -> int:
    if not 3 <= _integer(value) <= 1 << 64 or (value > 1 << 63 and value != 1 << 64):
        raise ValueError
    return int(value)


def _hash_key(token: bytes) -> bytes:
    return hashlib.blake2b(token, person=b"sottovoce deal", digest_size=16).digest()
