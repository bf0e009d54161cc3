"""A source that spends what a pool holds and makes the rest on the spot."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

from sottovoce.correlations.pool import Pool
from sottovoce.correlations.producer import from_record, make_records, store, stream_of
from sottovoce.correlations.records import Record
from sottovoce.correlations.stock import Arrays, Stock
from sottovoce.correlations.stocked import Kind, StockedSource
from sottovoce.net import Channel
from sottovoce.ot import FoldedPads


class Customer(Protocol):
    """Something else that spends what the pool holds, and is served together with the source."""

    def wants(self, available: Available, tokens: int) -> dict[str, int]:
        """Rows of streams that the next `tokens` tokens need and that this one does not have yet."""
        ...

    def receive(self, taken: Mapping[str, list[Record]]) -> None:
        """What the pool gave, streams of others among it."""
        ...

    def ready(self, available: Available, most: int) -> int:
        """Tokens for which the pool has all that this one wants, counted to `most`."""
        ...

    def make(self, available: Available, upto: int) -> dict[str, Record] | None:
        """About a second of work on what the pool lacks for `upto` tokens: a batch to store, empty if it is
        not finished; None if nothing lacks."""
        ...


# (tokens, tokens before them) -> what a forward pass over them takes; the same at both parties.
Profile = Callable[[int, int], Mapping[Kind, int]]

Report = Callable[[int, int, str], None]
Available = Callable[[str], int]  # stream -> rows

# Tokens whose material is made and stored together: several, because a batch has a fixed cost in messages;
# few, because it lies in memory until it is stored (30 MB a token), and is lost if the program is stopped.
BATCH = 8
# Items of each kind beyond those of whole tokens: a session that ends loses less than a granule of each.
_SPARE = 64


class PooledSource(StockedSource):
    """Takes from `pool` what a forward pass is expected to need, all at once, before it begins.

    live: makes what the pool does not have. What was taken for one pass and not used serves the next; at the
    end of the session it is lost. customers: served from the pool as well.
    """

    def __init__(
        self,
        channel: Channel,
        live: StockedSource,
        pool: Pool,
        profile: Profile,
        customers: Sequence[Customer] = (),
    ) -> None:
        super().__init__(live.role)
        self.pool = pool
        self.profile = profile
        self.made_on_the_spot: Counter[str] = Counter()
        self._channel = channel
        self._live = live
        self.customers = list(customers)

    def bind(self, channel: Channel) -> None:
        self._live.bind(channel)

    def close(self) -> None:
        """Release the pool. What was taken from it and not used is lost."""
        self.pool.close()
        self._live.close()

    def make(self, key: Kind, n: int) -> Arrays | FoldedPads:
        """Not foreseen, or not in the pool."""
        self.made_on_the_spot[key[0]] += n
        return self._live.make(key, n)

    def expect(self, tokens: int, length: int) -> None:
        """Cost: one transaction of the pool; for what it lacks, as `PairSource.refill`."""
        demand = self._demanded(tokens, length)
        self._draw(self._missing(demand), tokens)
        lacking = self._missing(demand)
        if lacking:
            self._live.reserve(lacking)
            for key, n in lacking.items():
                if key[0] not in ("ands", "ots"):
                    self._stocks.setdefault(key, Stock()).put(self.make(key, n))

    def step(self, upto: int, first: int = 0, progress: Report | None = None) -> bool:
        """Make and store one batch of what the pool lacks for `upto` tokens behind `first` others.

        False if it lacks nothing. PoolFullError if the batch does not fit; what was stored before stays.
        progress(done, total, what). Cost: as making it, and `store`.
        """
        for customer in self.customers:
            records = customer.make(self.pool.available, upto)
            if records is not None:
                if records:
                    store(self._channel, self.pool, records)
                return True
        done = self.ready(upto, first)
        if progress is not None:
            progress(done, upto, "preparing tokens")
        if done < upto:
            lacking = self._lacking(min(upto, done + BATCH), first)
            store(self._channel, self.pool, make_records(self._live, lacking))
        return done < upto

    def fill(self, upto: int, first: int = 0, progress: Report | None = None) -> None:
        """All steps."""
        while self.step(upto, first, progress):
            pass

    def ready(self, most: int, first: int = 0) -> int:
        """For how many tokens behind `first` others the pool holds everything, counted to `most`."""
        for customer in self.customers:
            most = customer.ready(self.pool.available, most)
        left = {name: self.pool.available(name) for name in self.pool.streams()}
        for i in range(most):
            for key, n in self._demanded(1, first + i).items():
                for name, share in list(_split(key, n, left)):
                    left[name] -= share
                    n -= share
                if n > 0:
                    return i
        return most

    def _lacking(self, upto: int, first: int) -> dict[Kind, int]:
        demand: Counter[Kind] = Counter()
        for i in range(upto):
            demand.update(self._demanded(1, first + i))
        for key in demand:
            demand[key] += _SPARE if key[0] != "scalars" else 0
        return {key: n - self.pool.available(stream_of(key)) for key, n in demand.items()}

    @staticmethod
    def _rounded(length: int) -> int:
        """Lengths of scalars' vectors: few, so that every conversation can use what was made for another."""
        return next((n for n in (127, 255, 511) if n >= length), -(-(length + 1) // 128) * 128 - 1)

    def _demanded(self, tokens: int, length: int) -> Counter[Kind]:
        demand: Counter[Kind] = Counter()
        for (kind, *arguments), n in self.profile(tokens, length).items():
            demand[self.kind(kind, *arguments)] += n
        return demand

    def _missing(self, demand: Mapping[Kind, int]) -> dict[Kind, int]:
        """What the stocks lack of a demand."""
        stocks = self._stocks
        lacks = {key: n - (len(stocks[key]) if key in stocks else 0) for key, n in demand.items()}
        return {key: n for key, n in lacks.items() if n > 0}

    def _draw(self, wanted: Mapping[Kind, int], tokens: int) -> None:
        """Move rows from the pool to the stocks and to the customers, as far as it has them."""
        pool = self.pool
        left = {name: pool.available(name) for name in pool.streams()}
        shares: dict[str, list[tuple[Kind, int]]] = {}
        for key, n in wanted.items():
            for name, share in list(_split(key, n, left)):
                left[name] -= share
                shares.setdefault(name, []).append((key, share))
        rows = {name: sum(n for _, n in parts) for name, parts in shares.items()}
        for customer in self.customers:
            rows.update(customer.wants(pool.available, tokens))
        taken = pool.take(rows)
        for customer in self.customers:
            customer.receive(taken)
        for name, parts in shares.items():
            for key, items in _dealt(taken[name], parts):
                self._stocks.setdefault(key, Stock()).put(items)


def _split(key: Kind, n: int, left: Mapping[str, int]) -> Iterator[tuple[str, int]]:
    """The streams that n items of a kind come from, the most fitting first, and how many each gives.

    A scalar's vector serves shorter ones too.
    """
    names = [stream_of(key)]
    if key[0] == "scalars":
        kinds = (json.loads(name) for name in left if name.startswith('["scalars"'))
        names = [stream_of(("scalars", n)) for n in sorted(length for _, length in kinds if length >= key[1])]
    for name in names:
        if n > 0 and left.get(name, 0) > 0:
            share = min(n, left[name])
            yield name, share
            n -= share


def _dealt(
    records: list[Record], shares: list[tuple[Kind, int]]
) -> Iterator[tuple[Kind, Arrays | FoldedPads]]:
    """The rows taken from one stream, by the kinds they were taken for; what was rounded up to the last."""
    if shares[0][0][0] != "scalars":
        for record in records:
            yield shares[0][0], from_record(shares[0][0], record)
        return
    heap = Stock()
    for record in records:
        heap.put(record.arrays)
    for i, (key, n) in enumerate(shares):
        vectors, scalars, products = heap.take(len(heap) if i + 1 == len(shares) else n)
        yield key, (vectors[:, : key[1]], scalars, products[:, : key[1]])
