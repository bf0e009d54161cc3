"""Where a chunk refreshes, what it costs, and into which chunks a private tail is cut.

Depth does not depend on a chunk's length, so one placement serves all of them, and keys for its rotations
serve every split.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sottovoce.engines.fhe.chunk import EMBED_LEVELS, ChunkProgram
from sottovoce.engines.fhe.chunk_plaintexts import fits, one_hot_ciphertexts
from sottovoce.engines.fhe.flow import Decision, Flow, PlannedFlow, RecordingFlow
from sottovoce.engines.fhe.functions import Degrees
from sottovoce.engines.fhe.placement import EMBED_LEVELS as STEP_LEVELS
from sottovoce.engines.fhe.placement import Cost, Placement, counted_functions, place_bootstraps
from sottovoce.engines.fhe.program import Program
from sottovoce.engines.fhe.shape import Shape
from sottovoce.engines.fhe.weights import counted
from sottovoce.errors import ParameterError
from sottovoce.packing.slots import CountingSlots, Slots

_ENDLESS = 1_000_000
_TYPICAL = 16  # tokens of the chunk for which refreshes are placed


@dataclass(frozen=True)
class Price:
    """What tokens cost: refreshes and seconds by the cost model."""

    bootstraps: int
    seconds: float

    def __add__(self, other: Price) -> Price:
        return Price(self.bootstraps + other.bootstraps, self.seconds + other.seconds)


class ChunkPlan:
    """Chunks of a model beside single steps. step: the placement of a step; public: tokens of a prefix with
    blocks of their own, for prices; where it has blocks and their number is not known, one block."""

    def __init__(
        self, shape: Shape, degrees: Degrees, step: Placement, top: int, cost: Cost, public: int = 0
    ) -> None:
        self.shape, self.degrees, self.step, self.top, self.cost = shape, degrees, step, top, cost
        self._public = public or (shape.heads.dim if shape.split else 0)
        count = min(_TYPICAL, shape.heads.t)
        ar = CountingSlots(shape.n, _ENDLESS)
        flow = RecordingFlow(ar)
        chunks = self._chunks(ar, shape, 0, flow, _ENDLESS)
        out = chunks.run([ar.fresh()] * one_hot_ciphertexts(shape, count), count)
        self.placement = place_bootstraps(flow.finish(ar.level(out[0])), top, cost)
        self._prices: dict[tuple[int, int], Price] = {}

    @property
    def entry(self) -> int:
        """The level of one-hot ciphertexts that serves chunks and steps."""
        return max(self.placement.entry + EMBED_LEVELS, self.step.entry + STEP_LEVELS)

    @property
    def value_level(self) -> int:
        """At which values are kept: where steps and chunks meet them with probabilities."""
        both = (self.step, self.placement)
        return max(d.level for p in both for (_, name), d in p.decisions.items() if name == "probabilities")

    def steps(self) -> dict[int, int]:
        """The rotations of chunks of any length, and the highest level at which each happens."""
        found: dict[int, int] = {}
        window, t = 1, self.shape.heads.t
        # Behind a full group, where there may be one.
        later = t * (self.shape.blocks(self._public).private > 1)
        while window <= t:
            for step, level in self.rotations(later + t - window, window).items():
                found[step] = max(found.get(step, 0), level)
            window *= 2
        return found

    def rotations(self, start: int, count: int) -> dict[int, int]:
        """The same of one chunk, logits included."""
        ar = CountingSlots(self.shape.n, self.top)
        self._run(ar, self.shape, start, count)
        return ar.steps

    def chunk(self, start: int, count: int) -> Price:
        """`count` tokens in one chunk behind `start` other private ones, without logits."""
        if (start, count) not in self._prices:
            self._prices[start, count] = self._price(start, count)
        return self._prices[start, count]

    def one(self) -> Price:
        """A token on its own."""
        return Price(self.step.total, self.step.seconds)

    def price(self, start: int, sizes: Sequence[int]) -> Price:
        """Of chunks one behind the other."""
        total = Price(0, 0.0)
        for size in sizes:
            total, start = total + self.chunk(start, size), start + size
        return total

    @property
    def least(self) -> int:
        """Tokens behind one public one from which a chunk is cheaper than steps; 0 if none is."""
        counts = range(1, self.shape.heads.t)
        paying = (n for n in counts if self.chunk(1, n).seconds < n * self.one().seconds)
        return next(paying, 0)

    def split(self, start: int, count: int) -> tuple[int, ...]:
        """The cheapest cut into chunks of `count` private tokens behind `start` others."""
        return self._best(start, count, {})[1]

    def _best(
        self, start: int, count: int, known: dict[int, tuple[float, tuple[int, ...]]]
    ) -> tuple[float, tuple[int, ...]]:
        if not count:
            return 0.0, ()
        if count not in known:
            ways = []
            room = self.shape.heads.t - start % self.shape.heads.t
            most = min(room, count)
            for size in {most, *(1 << i for i in range(most.bit_length()))}:
                seconds, rest = self._best(start + size, count - size, known)
                ways.append((seconds + self.chunk(start, size).seconds, (size, *rest)))
            known[count] = min(ways)
        return known[count]

    def _price(self, start: int, count: int) -> Price:
        """One layer is counted for all."""
        layers, embedding = self.shape.config.layers, list[float]()
        shape = replace(self.shape, config=replace(self.shape.config, layers=1))
        ar = CountingSlots(shape.n, self.top)

        def seconds() -> float:
            return sum(times * self.cost(name, level) for (name, level), times in ar.counts.items())

        self._run(ar, shape, start, count, lambda layer: embedding.append(seconds()), head=False)
        return Price(layers * ar.total("bootstrap"), embedding[0] + layers * (seconds() - embedding[0]))

    def _run(
        self,
        ar: CountingSlots,
        shape: Shape,
        start: int,
        count: int,
        progress: Callable[[int], None] | None = None,
        head: bool = True,
    ) -> None:
        decisions: Mapping[tuple[int, str], Decision] = self.placement.decisions
        if shape.config.layers == 1 < self.shape.config.layers:  # a middle one
            decisions = {(0, name): d for (layer, name), d in decisions.items() if layer == 1}
        chunks = self._chunks(ar, shape, start, PlannedFlow[Slots](decisions), self.value_level)
        fresh = [ar.fresh(level=self.entry)] * one_hot_ciphertexts(shape, count)
        chunks.run(fresh, count, head, progress)

    def _chunks(
        self, ar: CountingSlots, shape: Shape, start: int, flow: Flow[Slots], value_level: int
    ) -> ChunkProgram[Slots]:
        """As if `start` tokens came in a chunk before."""
        c = shape.config
        shape = replace(shape, tokens=max(shape.tokens, start + shape.heads.t + self._public))
        program = Program(ar, shape, counted(shape), counted_functions(shape, self.degrees), flow)
        if self._public:
            nothing = np.zeros((self._public, c.kv_heads, c.head_dim))
            program.append_public([nothing] * c.layers, [nothing] * c.layers)
        chunks = ChunkProgram(program, flow, value_level)
        if start:
            level = 2 if value_level < _ENDLESS else value_level
            for cache in program.caches:
                cache.keys = [ar.fresh(level=level)] * program.blocks.classes
                cache.values = [ar.fresh(level=value_level)] * -(-start // shape.heads.t)
            program.length += start
            chunks.resume([ar.fresh(level=level)] * c.layers)
        return chunks


def plan_chunks(
    shape: Shape, degrees: Degrees, step: Placement, top: int, cost: Cost, public: int = 0
) -> ChunkPlan | None:
    """None for models that take private tokens one by one: chunks do not fit them, or never pay."""
    if not fits(shape):
        return None
    try:
        plan = ChunkPlan(shape, degrees, step, top, cost, public)
    except ParameterError:  # segments of a chunk are deeper in places
        return None
    return plan if plan.least else None
