"""Where a program may refresh values, and what is decided there.

A program passes named *points*. At each, a plan says whether the value is bootstrapped and to which level
it is dropped before it goes on; the planner finds that by running the program once on an arithmetic that
only counts, with levels without end, and cutting it at the points.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic

from sottovoce.packing.slots import CountingSlots, SlotArithmetic, Slots
from sottovoce.packing.slots.arithmetic import V


class Flow(ABC, Generic[V]):
    @abstractmethod
    def single(self, ar: SlotArithmetic[V], layer: int, name: str, x: V) -> V:
        """A point where one value is alive."""

    @abstractmethod
    def pair(self, ar: SlotArithmetic[V], layer: int, name: str, a: V, b: V) -> tuple[V, V]:
        """A point where two real values are alive; they share a bootstrap. Returns both doubled."""

    @abstractmethod
    def parts(self, ar: SlotArithmetic[V], layer: int, name: str, x: V) -> tuple[V, V]:
        """A point where one complex value becomes two real ones, doubled."""


@dataclass(frozen=True)
class Decision:
    """bootstrap: or not. level: where the value goes on."""

    bootstrap: bool
    level: int


class PlannedFlow(Flow[V]):
    """Executes decisions by (layer, point)."""

    def __init__(self, decisions: Mapping[tuple[int, str], Decision]) -> None:
        self._decisions = decisions

    def single(self, ar: SlotArithmetic[V], layer: int, name: str, x: V) -> V:
        decision = self._decisions[layer, name]
        return ar.drop(ar.bootstrap(x) if decision.bootstrap else x, decision.level)

    def pair(self, ar: SlotArithmetic[V], layer: int, name: str, a: V, b: V) -> tuple[V, V]:
        decision = self._decisions[layer, name]
        if decision.bootstrap:
            both = ar.bootstrap(ar.add(a, ar.times_i(b)))
            a, b = ar.real_imaginary(both)
            return ar.drop(a, decision.level), b
        return ar.drop(ar.times(a, 2), decision.level), ar.times(b, 2)

    def parts(self, ar: SlotArithmetic[V], layer: int, name: str, x: V) -> tuple[V, V]:
        decision = self._decisions[layer, name]
        x = ar.drop(ar.bootstrap(x) if decision.bootstrap else x, decision.level)
        return ar.real_imaginary(x)


@dataclass
class Segment:
    """What happens from one point to the next. start: the point it begins with; depth: levels it takes.

    counts: (operation, levels spent so far) -> how often. refreshable: whether the point may bootstrap.
    required: it must. residual: the value is the residual stream, to which the half block that begins here
    is added at its end.
    """

    layer: int
    start: str
    depth: int = 0
    counts: Counter[tuple[str, int]] = field(default_factory=Counter)
    required: bool = False
    residual: bool = False


class RecordingFlow(Flow[Slots]):
    """Cuts a run on `CountingSlots` into segments; nothing is refreshed."""

    RESIDUAL = ("attention", "mlp", "head")
    REQUIRED = ("scores",)

    def __init__(self, ar: CountingSlots) -> None:
        self._ar = ar
        self.segments: list[Segment] = []
        self._level = 0

    def single(self, ar: SlotArithmetic[Slots], layer: int, name: str, x: Slots) -> Slots:
        self._cut(layer, name, x.level)
        return x

    def pair(
        self, ar: SlotArithmetic[Slots], layer: int, name: str, a: Slots, b: Slots
    ) -> tuple[Slots, Slots]:
        low = min(a.level, b.level)
        self._cut(layer, name, low)
        # Splitting happens after the refresh, at the top; a segment's first operation stands for it.
        return ar.real_imaginary(ar.drop(a, low))

    def parts(self, ar: SlotArithmetic[Slots], layer: int, name: str, x: Slots) -> tuple[Slots, Slots]:
        self._cut(layer, name, x.level)
        return ar.real_imaginary(x)

    def finish(self, level: int) -> list[Segment]:
        self._close(level)
        return self.segments

    def _cut(self, layer: int, name: str, level: int) -> None:
        self._close(level)
        self.segments.append(
            Segment(layer, name, required=name in self.REQUIRED, residual=name in self.RESIDUAL)
        )
        self._level = level

    def _close(self, level: int) -> None:
        if self.segments:
            last = self.segments[-1]
            last.depth = self._level - level
            for (name, at), count in self._ar.counts.items():
                last.counts[name, self._level - at] += count
        self._ar.counts.clear()
