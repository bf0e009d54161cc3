"""What the masked caches of a session take from its pool: one segment after the other, as they fill up.

A stream `attention ROOM+Q` for each kind of segment: it takes up to ROOM tokens of a conversation that has
come so far, and Q more. Segments belong to no conversation; what a session that ended early did not take
serves the next. What is left of one that was taken goes with its session.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from sottovoce.correlations.attention_segments import Segment, SegmentInMaking, layers_at_once
from sottovoce.correlations.pooled import Available, Report
from sottovoce.correlations.records import Record
from sottovoce.kvcache import MaskedCache, adopt_segment

# Tokens of first segments: prompt and answer, and the public prefix, whose slots are in it as well.
FIRST = (48, 160)
_PREFIX = 32
_STEP_BYTES = 30_000_000  # each way: about a second
_MOST_ROOM = 1 << 14

Kind = tuple[int, int]  # room, queries


class AttentionProvisions:
    """Segments of attention material for the masked caches of one session, all layers."""

    def __init__(self, caches: Sequence[MaskedCache]) -> None:
        self.progress: Report | None = None
        self._caches, self._source = list(caches), caches[0].source
        self._few, self._many = (self._source.shape.block_size(tokens) for tokens in FIRST)
        self._making: tuple[Kind, SegmentInMaking] | None = None

    def wants(self, available: Available, tokens: int) -> dict[str, int]:
        """A segment, when the one in use has not enough queries left."""
        if self._source.ready >= tokens and not self._source.is_fresh:
            return {}
        kinds = [kind for kind in self._kinds() if kind[1] >= tokens and available(_stream(kind))]
        chosen = self._first(kinds) if self._source.is_fresh else self._next(kinds, self._live)
        return {} if chosen is None else {_stream(chosen): 1}

    def receive(self, taken: Mapping[str, list[Record]]) -> None:
        for kind in self._kinds():
            for record in taken.get(_stream(kind), ()):
                adopt_segment(self._caches, Segment.from_record(record))

    def ready(self, available: Available, most: int) -> int:
        """Tokens that what is in use and what is in the pool last for."""
        return min(most, self._reach(available, most)[0])

    def make(self, available: Available, upto: int) -> dict[str, Record] | None:
        """Some layers of the segment that is missing first; of one that was begun before, if there is one."""
        if self._making is None:
            _, kind = self._reach(available, upto)
            if kind is None:
                return None
            self._making = kind, self._source.segment(*kind)
        kind, segment = self._making
        shape = self._source.shape
        if self.progress is not None:
            self.progress(segment.done, shape.layers, "preparing attention")
        finished = segment.step(layers_at_once(shape, *kind, _STEP_BYTES))
        if finished is None:
            return {}
        self._making = None
        return {_stream(kind): finished.to_record()}

    @property
    def _live(self) -> int:
        return len(self._caches[0])

    def _reach(self, available: Available, upto: int) -> tuple[int, Kind | None]:
        """For how many more tokens segments last (counted until `upto` is reached), what is missing then."""
        left = Counter({kind: available(_stream(kind)) for kind in self._kinds()})
        tokens, live = self._source.ready, self._live
        if self._source.is_fresh:
            first = self._first([kind for kind in left if left[kind]])
            wanted = (0, self._few if upto + _PREFIX <= self._few else self._many)
            if first is None or first < wanted:
                return 0 if first is None else min(upto, first[1] - _PREFIX), wanted
            left[first] -= 1
            tokens, live = first[1] - _PREFIX, _PREFIX
        while tokens < upto:
            kind = self._next([kind for kind in left if left[kind]], live + tokens)
            if kind is None:
                return tokens, self._fitting(live + tokens)
            left[kind] -= 1
            tokens += kind[1]
        return tokens, None

    def _kinds(self) -> list[Kind]:
        """All that the pool may hold."""
        firsts = [(0, self._few), (0, self._many)]
        return firsts + [self._fitting(room) for room in range(1, _MOST_ROOM, self._few)]

    def _fitting(self, tokens: int) -> Kind:
        """The kind to make for a conversation that has come so far. Few queries, though more together cost
        fewer bytes each: a segment is read between two tokens, 1 to 4 MB a query."""
        return -(-tokens // self._few) * self._few, self._few

    def _first(self, kinds: Sequence[Kind]) -> Kind | None:
        """What a conversation begins with: the longest segment without room for earlier tokens."""
        return max((kind for kind in kinds if kind[0] == 0), default=None)

    def _next(self, kinds: Sequence[Kind], tokens: int) -> Kind | None:
        """What a conversation of so many tokens goes on with: the least room that is enough."""
        return min((kind for kind in kinds if kind[0] >= tokens), default=None)


def _stream(kind: Kind) -> str:
    return f"attention {kind[0]}+{kind[1]}"
