"""What a session of the hybrid engine takes from its pool: correlations, and prepared matrix products."""

from __future__ import annotations

from collections.abc import Mapping

from sottovoce.correlations.hints import MatrixKey
from sottovoce.correlations.matrix import MatrixItems
from sottovoce.correlations.pool import Pool
from sottovoce.correlations.pooled import PooledSource, Profile, Report
from sottovoce.correlations.records import Record
from sottovoce.correlations.stocked import StockedSource
from sottovoce.engines.hybrid.prepared import PreparedLinears
from sottovoce.net import Channel


class MatrixProvisions:
    """Prepared products of all matrices: one stream a matrix, one row a token."""

    def __init__(self, linears: PreparedLinears) -> None:
        self.progress: Report | None = None
        self._maker, self._stock = linears.maker, linears.stock
        self.batch = linears.maker.parameters.block
        self.streams: dict[str, MatrixKey] = {
            f"matrix {name} {layer}": (name, layer) for name, layer in linears.stock.shapes
        }

    def wants(self, tokens: int) -> dict[str, int]:
        lacks = {name: tokens - self._stock.available(key) for name, key in self.streams.items()}
        return {name: n for name, n in lacks.items() if n > 0}

    def receive(self, taken: Mapping[str, list[Record]]) -> None:
        for name, key in self.streams.items():
            for record in taken.get(name, ()):
                self._stock.put(key, MatrixItems.from_record(record, self._stock.role))

    def make(self, tokens: int) -> dict[str, Record]:
        names = {key: name for name, key in self.streams.items()}
        made = self._maker.make(tokens, list(names), self.progress)
        return {names[key]: items.to_record() for key, items in made}


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
        self._matrices = MatrixProvisions(linears)
        self.source = PooledSource(channel, live, pool, profile, [self._matrices])

    def fill(self, tokens: int, progress: Report | None = None) -> None:
        """Make and store what the pool lacks for `tokens` tokens. UsageError if it does not fit."""
        self._matrices.progress = progress
        self.source.fill(tokens, progress)

    def ready(self, most: int) -> int:
        return self.source.ready(most)
