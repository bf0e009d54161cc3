"""One party's side of secret-shared arithmetic: every request becomes a protocol with the other party.

Both parties call the same methods in the same order, each with its own shares; sizes are public, so every
message has one possible length and another is refused. Security: semi-honest. Everything sent is uniformly
random given everything the receiver knows, because a one-time correlation (`correlations`) masks it; no
correlation is used twice. Sources: protocols.md 4; Beaver 1991 for products; CrypTFlow2 (Rathee et al.
2020) for the shape of the boolean part.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from sottovoce import _native
from sottovoce.correlations import CorrelationSource
from sottovoce.errors import ProtocolError
from sottovoce.mpc import field
from sottovoce.mpc.arithmetic import Arithmetic, IntArray
from sottovoce.mpc.field import Bits
from sottovoce.mpc.field import Field as Share
from sottovoce.mpc.protocols import boolean, product, table, wire, wrap
from sottovoce.mpc.protocols.wire import Bytes
from sottovoce.mpc.requests import (
    And,
    Lookup,
    MaskRows,
    Mul,
    Mux,
    Request,
    ScaleRows,
    SumSquares,
    ToArithmetic,
    Wrap,
)
from sottovoce.net import Channel
from sottovoce.ring.primes import P_FIELD
from sottovoce.ring.sampling import Stream

_PROTOCOLS: dict[type, Any] = {
    Wrap: wrap.wrap,
    And: boolean.and_bits,
    Mux: boolean.mux,
    ToArithmetic: boolean.to_arithmetic,
    Mul: product.mul,
    SumSquares: product.sum_squares,
    MaskRows: product.mask_rows,
    ScaleRows: product.scale_rows,
}


class TwoPartyArithmetic(Arithmetic):
    """`Arithmetic` between two parties over a channel; share arrays are this party's shares.

    channel: to the other party; its ledger sees every byte. source: one-time material, in lockstep with the
    other party's. Not thread-safe: one thread owns it, as it owns the channel.
    """

    lead = 0

    def __init__(self, channel: Channel, source: CorrelationSource) -> None:
        if source.role != channel.role:
            raise ProtocolError("the source of correlations and the channel belong to different parties")
        source.bind(channel)
        self._party = wire.Party(channel.role, channel, source, Stream(purpose=b"mpc"))

    @property
    def channel(self) -> Channel:
        return self._party.channel

    @property
    def source(self) -> CorrelationSource:
        return self._party.source

    def operation(self, name: str) -> AbstractContextManager[Any]:
        return self._party.channel.ledger.operation(name)

    def exchange(self, requests: Sequence[Request]) -> list[Any]:
        """Run all requests in one exchange. Cost: one round, the requests' payloads each way."""
        if not requests:
            return []
        party = self._party
        running = [_PROTOCOLS[type(request)](party, request) for request in requests]
        opened = [next(steps) for steps in running]
        message = _joined(opened)
        received = _bytes(party.channel.exchange(message, message.size))
        results, at = [], 0
        for steps, own in zip(running, opened, strict=True):
            results.append(_finish(steps, received[at : (at := at + own.size)]))
        return results

    def lookup(self, lookups: Sequence[Lookup]) -> list[Any]:
        """Run all look-ups. Cost: a message from the client, a message from the server; two rounds."""
        if not lookups:
            return []
        return self._ask(lookups) if self._party.is_client else self._answer(lookups)

    def _ask(self, lookups: Sequence[Lookup]) -> list[Any]:
        clients = [table.client(self._party, lookup) for lookup in lookups]
        channel = self._party.channel
        channel.send(_joined([client.message for client in clients]))
        reply, at = _bytes(channel.recv(sum(client.reply_size for client in clients))), 0
        return [client.finish(reply[at : (at := at + client.reply_size)]) for client in clients]

    def _answer(self, lookups: Sequence[Lookup]) -> list[Any]:
        servers = [table.server(self._party, lookup) for lookup in lookups]
        channel = self._party.channel
        received, at = _bytes(channel.recv(sum(server.request_size for server in servers))), 0
        replies, results = [], []
        for server in servers:
            reply, result = server.answer(received[at : (at := at + server.request_size)])
            replies.append(reply)
            results.append(result)
        channel.send(_joined(replies))
        return results

    def from_public(self, values: IntArray, modulus: int = P_FIELD) -> Share:
        return self._from_own(None if self._party.is_client else values, np.shape(values), modulus)

    def from_client(self, values: IntArray | None, shape: tuple[int, ...], modulus: int = P_FIELD) -> Share:
        return self._from_own(values if self._party.is_client else None, shape, modulus)

    def from_server(self, values: IntArray | None, shape: tuple[int, ...], modulus: int = P_FIELD) -> Share:
        return self._from_own(None if self._party.is_client else values, shape, modulus)

    def take_bits(self, y: Share, low: int, high: int) -> Share:
        out: Share = np.empty(y.shape, np.uint64)
        _native.take_bits(np.ascontiguousarray(y), low, high, not self._party.is_client, out)
        return out

    def take_windows(self, y: Share, highs: Sequence[int], bits: int) -> Share:
        out: Share = np.empty((*y.shape, len(highs)), np.uint64)
        tops = np.array(highs, np.uint64)
        _native.take_windows(np.ascontiguousarray(y), tops, bits, not self._party.is_client, out)
        return out

    def not_(self, a: Bits) -> Bits:
        return a.copy() if self._party.is_client else a ^ np.uint8(1)

    def _from_own(self, values: IntArray | None, shape: tuple[int, ...], modulus: int) -> Share:
        if values is None:
            return np.zeros(shape, np.uint64)
        return field.from_signed(values, modulus).reshape(shape)


def _joined(parts: Sequence[Bytes]) -> Bytes:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _bytes(received: memoryview) -> Bytes:
    return np.frombuffer(received, np.uint8)


def _finish(steps: Any, received: Bytes) -> Any:
    try:
        steps.send(received)
    except StopIteration as done:
        return done.value
    raise ProtocolError("a protocol opened twice in one exchange")
