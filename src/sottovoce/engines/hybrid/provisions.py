"""What a session of the hybrid engine takes from its pool: correlations, matrix products, attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sottovoce.correlations.hints import MatrixKey
from sottovoce.correlations.matrix import MatrixItems
from sottovoce.correlations.pool import Pool
from sottovoce.correlations.pooled import Available, PooledSource, Profile, Report
from sottovoce.correlations.records import Record
from sottovoce.correlations.stocked import StockedSource
from sottovoce.engines.decoder import Cache
from sottovoce.engines.hybrid.attention_provisions import AttentionProvisions
from sottovoce.engines.hybrid.prepared import PreparedLinears
from sottovoce.kvcache import MaskedCache
from sottovoce.net import Channel

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

    def make(self, available: Available, upto: int) -> dict[str, Record] | None:
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
            return None
        tokens = min(self._maker.parameters.block, max(upto - present[chosen[0]], _MATRIX_TOKENS))
        names = {key: name for name, key in self._streams.items()}
        return {names[key]: items.to_record() for key, items in self._maker.make(tokens, chosen)}


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
        masked = [cache for cache in caches if isinstance(cache, MaskedCache)]
        if masked:
            part = AttentionProvisions(masked)
            self._parts.append(part)
            self.source.customers.append(part)

    def step(self, tokens: int, first: int, progress: Report | None = None) -> bool:
        """Make and store one batch of what the pool lacks for `tokens` tokens behind `first` others; False
        if it lacks nothing. PoolFullError if the batch does not fit."""
        for part in self._parts:
            part.progress = progress
        return self.source.step(tokens, first, progress)
