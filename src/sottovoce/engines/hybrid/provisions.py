"""What a session of the hybrid engine takes from its pool: correlations, matrix products, attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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
# Inputs and outputs of the matrices that are prepared together, and for how many tokens at least: a batch
# costs almost the same for one as for hundreds.
_MATRIX_BATCH = 50_000
_MATRIX_TOKENS = 64


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

    def make(self, available: Available, upto: int) -> dict[str, Record]:
        """A few matrices at a time."""
        present = {key: available(name) for name, key in self._streams.items()}
        lacking = [key for key, rows in present.items() if rows < upto]
        if self.progress is not None and lacking:
            self.progress(len(present) - len(lacking), len(present), "preparing matrices")
        chosen: list[MatrixKey] = []
        size = 0
        for key in lacking:
            size += sum(self._stock.shapes[key])
            if chosen and (size > _MATRIX_BATCH or present[key] != present[chosen[0]]):
                break
            chosen.append(key)
        if not chosen:
            return {}
        tokens = min(self._maker.parameters.block, max(upto - present[chosen[0]], _MATRIX_TOKENS))
        names = {key: name for name, key in self._streams.items()}
        return {names[key]: items.to_record() for key, items in self._maker.make(tokens, chosen)}


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
        if not self._source.is_fresh:
            return most
        return most if any(available(_attention(size)) for size in self._fitting(most)) else 0

    def make(self, available: Available, upto: int) -> dict[str, Record]:
        """A block for a conversation of so many tokens; none in the middle of one."""
        sizes = self._fitting(upto)
        if not self._source.is_fresh or any(available(_attention(size)) for size in sizes):
            return {}
        if self.progress is not None:
            self.progress(0, 1, "preparing attention")
        return {_attention(sizes[0]): self._source.first_block(sizes[0]).to_record()}

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

    def step(self, tokens: int, first: int, progress: Report | None = None) -> bool:
        """Make and store one batch of what the pool lacks for `tokens` tokens behind `first` others; False
        if it lacks nothing. PoolFullError if the batch does not fit."""
        for part in self._parts:
            part.progress = progress
        return self.source.step(tokens, first, progress)
