"""What a session of the hybrid engine takes from its pool: correlations, matrix products, attention."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from sottovoce.correlations.attention import AttentionSource
from sottovoce.correlations.attention_blocks import Block
from sottovoce.correlations.hints import MatrixKey
from sottovoce.correlations.matrix import MatrixItems
from sottovoce.correlations.pool import Pool
from sottovoce.correlations.pooled import Available, PooledSource, Profile, Report
from sottovoce.correlations.records import Record
from sottovoce.correlations.stocked import StockedSource
from sottovoce.engines.decoder import Cache
from sottovoce.engines.hybrid.prepared import PreparedLinears
from sottovoce.kvcache import MaskedCache
from sottovoce.net import Channel

# Tokens of first blocks of attention material: prompt and answer, and the public prefix, whose slots are in
# the block as well. A conversation that is longer goes on online; one that is shorter wastes the rest,
# because masks are bound to the slots of one conversation.
FIRST_BLOCKS = (48, 160)
_PREFIX = 32


class MatrixProvisions:
    """Prepared products of all matrices: one stream a matrix, one row a token."""

    def __init__(self, linears: PreparedLinears) -> None:
        self.progress: Report | None = None
        self._maker, self._stock = linears.maker, linears.stock
        self._streams: dict[str, MatrixKey] = {
            f"matrix {name} {layer}": (name, layer) for name, layer in linears.stock.shapes
        }

    def wants(self, available: Available, tokens: int) -> dict[str, int]:
        lacks = {name: tokens - self._stock.available(key) for name, key in self._streams.items()}
        return {name: n for name, n in lacks.items() if n > 0}

    def receive(self, taken: Mapping[str, list[Record]]) -> None:
        for name, key in self._streams.items():
            for record in taken.get(name, ()):
                self._stock.put(key, MatrixItems.from_record(record, self._stock.role))

    def ready(self, available: Available, most: int) -> int:
        return min(most, *(available(name) for name in self._streams))

    def make(self, available: Available, upto: int) -> Iterator[dict[str, Record]]:
        names = {key: name for name, key in self._streams.items()}
        batch = self._maker.parameters.block
        for first in range(self.ready(available, upto), upto, batch):
            made = self._maker.make(min(batch, upto - first), list(names), self.progress)
            yield {names[key]: items.to_record() for key, items in made}


class AttentionProvisions:
    """First blocks of the masked cache's material: one row each, one for each conversation in a session of
    its own."""

    def __init__(self, source: AttentionSource) -> None:
        self.progress: Report | None = None
        self._source = source
        self._sizes = sorted({source.shape.block_size(tokens) for tokens in FIRST_BLOCKS})

    def wants(self, available: Available, tokens: int) -> dict[str, int]:
        if not self._source.is_fresh:
            return {}
        present = [size for size in self._sizes if available(_attention(size))]
        return {_attention(present[-1]): 1} if present else {}

    def receive(self, taken: Mapping[str, list[Record]]) -> None:
        for size in self._sizes:
            for record in taken.get(_attention(size), ()):
                self._source.adopt(Block.from_record(record))

    def ready(self, available: Available, most: int) -> int:
        return most if any(available(_attention(size)) for size in self._fitting(most)) else 0

    def make(self, available: Available, upto: int) -> Iterator[dict[str, Record]]:
        sizes = self._fitting(upto)
        total = -(-upto // sizes[0])
        for done in range(sum(available(_attention(size)) for size in sizes), total):
            if self.progress is not None:
                self.progress(done, total, "preparing attention")
            yield {_attention(sizes[0]): self._source.first_block(sizes[0]).to_record()}

    def _fitting(self, tokens: int) -> list[int]:
        """Sizes that hold a conversation of so many tokens; the largest in any case."""
        return [size for size in self._sizes if size >= tokens + _PREFIX] or self._sizes[-1:]


def _attention(size: int) -> str:
    return f"attention {size}"


class Provisions:
    """Everything of a session that its pool can hold, filled and spent together."""

    def __init__(
        self,
        channel: Channel,
        live: StockedSource,
        pool: Pool,
        profile: Profile,
        linears: PreparedLinears,
    ) -> None:
        self._parts: list[MatrixProvisions | AttentionProvisions] = [MatrixProvisions(linears)]
        self.source = PooledSource(channel, live, pool, profile, self._parts)

    def attach(self, caches: Sequence[Cache]) -> None:
        """Provide for the caches as well, if they are masked."""
        first = caches[0]
        if isinstance(first, MaskedCache):
            part = AttentionProvisions(first.source)
            self._parts.append(part)
            self.source.customers.append(part)

    def fill(self, tokens: int, progress: Report | None = None) -> None:
        """Make and store what the pool lacks for `tokens` tokens. UsageError if it does not fit."""
        for part in self._parts:
            part.progress = progress
        self.source.fill(tokens, progress)

    def ready(self, most: int) -> int:
        return self.source.ready(most)
