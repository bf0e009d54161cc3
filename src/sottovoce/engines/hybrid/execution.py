"""One session of the hybrid engine: the part that both parties run in lockstep.

Tokens enter as one-hot vectors of the client, logits leave to the client; in between everything is a share
or a ciphertext under the client's key.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from sottovoce.bgv import SIMD
from sottovoce.correlations import CorrelationSource
from sottovoce.engines.base import Pieces, Progress
from sottovoce.engines.decoder import Decoder, Linears
from sottovoce.engines.hybrid.keeping import Keeper
from sottovoce.engines.public import PublicModel
from sottovoce.kvcache import make_caches, prepare_caches
from sottovoce.models.fixed import ACTIVATION_BITS
from sottovoce.mpc import field
from sottovoce.mpc.requests import Share
from sottovoce.mpc.two_party import TwoPartyArithmetic
from sottovoce.net import Channel, Role
from sottovoce.packing import Side
from sottovoce.ring.primes import P_FIELD

Int64 = npt.NDArray[np.int64]
# Keys and values of a public prefix, (layers, n, kv_heads, head_dim) each: the server's.
Prefix = tuple[Int64, Int64]

# Tokens that travel through the layers together in a prefill; more save rounds and, online, time and bytes
# of matrix products; fewer save memory.
CHUNK = 64


class ModelLinears(Linears, Protocol):
    """All matrices of a model: `HomomorphicLinears`, or `PreparedLinears`."""

    def prepare(self, tokens: int, *, progress: Progress | None = None) -> None:
        """Make the products of `tokens` more tokens ahead."""
        ...

    def guard_bits(self, tokens: int) -> int:
        """By how many bits the one-hot vectors of the next tokens are scaled beyond 2^12."""
        ...

    def embedding(self, one_hot: Share) -> Share:
        """(T, vocab), the client's -> (T, width)."""
        ...

    def head(self, h: Share) -> Int64 | None:
        """(T, width) -> the logits (T, vocab) at the client, None at the server."""
        ...


class Execution:
    """State of a session at one party: cache, position, one-time material.

    shifts: the server's private softmax shifts per block, None at the client. kv: 'ciphertext' and 'masked'
    keep the cache, 'none' throws it away and recomputes every token from the start (a baseline for
    benchmarks).
    """

    def __init__(
        self,
        channel: Channel,
        public: PublicModel,
        side: Side,
        source: CorrelationSource,
        linears: ModelLinears,
        shifts: Sequence[Int64] | None,
        positions: Int64 | None,
        kv: str,
    ) -> None:
        self.channel = channel
        self.public = public
        self.linears = linears
        self.ar = TwoPartyArithmetic(channel, source)
        self.shifts = shifts
        self.positions = positions
        self.kv = kv
        self.chunk = CHUNK
        self.side = side
        self.source = source
        self.length = 0
        self._spent_on = 0  # tokens since the correlations were last topped up
        self._public = 0
        self._history: list[int | None] = []  # `none` only: tokens at the client, as many None at the server
        c = public.config
        self.caches = make_caches(kv, side, c.layers, c.heads, c.kv_heads, c.head_dim)
        self.keeper = Keeper(channel, self.caches)
        self.decoder = Decoder(public, self.ar, linears, self.caches, shifts, channel.ledger.operation)

    def append_public(self, n: int, prefix: Prefix | None) -> None:
        """n public tokens at the beginning; their keys and values are the server's (None at the client)."""
        with self.channel.ledger.operation("correlations"):
            self.source.expect(0, 0)
        for i, cache in enumerate(self.caches):
            cache.append_public(n, *((None, None) if prefix is None else (prefix[0][i], prefix[1][i])))
        self.length = n
        self._public = n

    def forward(
        self, tokens: Sequence[int | None], progress: Progress | None = None, rows: int = 1
    ) -> Int64 | None:
        """Append private tokens (None each at the server).

        Logits (rows, vocab) at 2^-23 of the last `rows` of them; None at the server.
        """
        chunk_size = self.chunk
        if self.kv == "none":
            self._history += tokens
            tokens, self.length = self._history, self._public
            chunk_size = len(tokens)  # keys and values live for one pass
        if self._spent_on:
            # What the last tokens consumed, made again in a few large batches instead of many small ones.
            with self.channel.ledger.operation("correlations"):
                self.source.refill(self._spent_on)
        self._spent_on = len(tokens)
        layers = self.public.config.layers
        total, done = layers * len(tokens), 0
        last: list[Share] = []
        for first in range(0, len(tokens), chunk_size):
            chunk = tokens[first : first + chunk_size]
            with self.channel.ledger.operation("correlations"):
                self.source.expect(len(chunk), self.length)
            x = self._embed(chunk)
            for i in range(layers):
                x = self.decoder.block(i, x, self.length)
                done += len(chunk)
                if progress is not None:
                    progress(done, total, "layers")
            self.length += len(chunk)
            last = [*last, x] if rows > len(chunk) else [x]
        h = self.decoder.final_norm(np.concatenate(last)[-rows:])
        with self.channel.ledger.operation("head"):
            return self.linears.head(h)

    def prepare(self, tokens: int, progress: Progress | None = None) -> None:
        """Make the products of `tokens` more tokens ahead, before any of them is known: with matrices, and of
        the cache's masks."""
        self.linears.prepare(tokens, progress=progress)
        prepare_caches(self.caches, tokens)

    def truncate(self, length: int) -> None:
        """Forget tokens from `length` on; their places in the cache stay dead."""
        if self.kv == "none":
            del self._history[max(0, length - self._public) :]
        else:
            for cache in self.caches:
                cache.truncate(length)
        self.length = length

    def restore(self, pieces: Pieces, length: int) -> None:
        """Go on from saved caches with their first `length` tokens, before any other."""
        with self.channel.ledger.operation("restore"):
            self.source.expect(0, 0)
            self.keeper.restore(pieces, length)
        self.length = length

    def _embed(self, tokens: Sequence[int | None]) -> Share:
        """One-hot vectors scaled by 2^12, times the embedding matrix: (T, width) at 2^-23."""
        with self.channel.ledger.operation("embedding"):
            guard = self.linears.guard_bits(len(tokens))
            one_hot = np.zeros((len(tokens), self.public.config.vocab_size), dtype=np.uint64)
            for row, token in zip(one_hot, tokens, strict=True):
                if token is not None:
                    row[token] = 1 << (ACTIVATION_BITS + guard)
            x = self.linears.embedding(one_hot)
            if guard:
                x = self.ar.rescale(x, guard)
        if self.positions is not None and self.channel.role is Role.SERVER:
            rows = self.positions[self.length : self.length + len(tokens)]
            x = field.add(x, field.from_signed(rows, P_FIELD), P_FIELD)
        return x


PARAMETERS = SIMD
