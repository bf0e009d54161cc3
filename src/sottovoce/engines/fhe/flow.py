"""Where a program may refresh values, and what is decided there.

A program passes named *points*. At each, a plan says whether the value is bootstrapped and to which level
it is dropped before it goes on; the planner finds that by running the program once on an arithmetic that
only counts, with levels without end, and cutting it at the points.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic

from sottovoce.packing.slots import CountingSlots, SlotArithmetic, Slots
from sottovoce.packing.slots.arithmetic import V


class Flow(ABC, Generic[V]):
    @abstractmethod
    def single(self, ar: SlotArithmetic[V], layer: int, name: str, x: V) -> V:
        """A point where one value is alive."""

    @abstractmethod
    def several(
        self, ar: SlotArithmetic[V], layer: int, name: str, values: Sequence[V], held: Sequence[V] = ()
    ) -> list[V]:
        """A point where several real values are alive; two share a bootstrap. Returns all of them doubled,
        one alone as it is; `held` ones, behind the others, are not dropped."""

    @abstractmethod
    def parts(self, ar: SlotArithmetic[V], layer: int, name: str, x: V) -> tuple[V, V]:
        """A point where one complex value becomes two real ones, doubled."""


@dataclass(frozen=True)
class Decision:
    """bootstrap: or not. level: where the value goes on. refreshes: ciphertexts, if so."""

    bootstrap: bool
    level: int
    refreshes: int = 1


class PlannedFlow(Flow[V]):
    """Executes decisions by (layer, point)."""

    def __init__(self, decisions: Mapping[tuple[int, str], Decision]) -> None:
        self._decisions = decisions

    def single(self, ar: SlotArithmetic[V], layer: int, name: str, x: V) -> V:
        decision = self._decisions[layer, name]
        return ar.drop(ar.bootstrap(x) if decision.bootstrap else x, decision.level)

    def several(
        self, ar: SlotArithmetic[V], layer: int, name: str, values: Sequence[V], held: Sequence[V] = ()
    ) -> list[V]:
        found, decision = [*values, *held], self._decisions[layer, name]
        if decision.bootstrap:
            found = _refreshed(ar, found)
        elif len(found) > 1:
            found = [ar.times(x, 2) for x in found]
        count = len(values)
        return [*(ar.drop(x, decision.level) for x in found[:count]), *found[count:]]

    def parts(self, ar: SlotArithmetic[V], layer: int, name: str, x: V) -> tuple[V, V]:
        decision = self._decisions[layer, name]
        x = ar.drop(ar.bootstrap(x) if decision.bootstrap else x, decision.level)
        return ar.real_imaginary(x)


@dataclass
class Segment:
    """What happens from one point to the next. start: the point it begins with; depth: levels it takes.

    counts: (operation, levels spent so far) -> how often. refreshes: ciphertexts of a bootstrap at its start.
    required: it must. residual: the value is the residual stream, to which the half block that begins here is
    added at its end.
    """

    layer: int
    start: str
    refreshes: int = 1
    depth: int = 0
    counts: Counter[tuple[str, int]] = field(default_factory=Counter)
    required: bool = False
    residual: bool = False


class RecordingFlow(Flow[Slots]):
    """Cuts a run on `CountingSlots` into segments; nothing is refreshed."""

    RESIDUAL = ("attention", "mlp", "last", "head")
    REQUIRED = ("scores",)

    def __init__(self, ar: CountingSlots) -> None:
        self._ar = ar
        self.segments: list[Segment] = []
        self._level = 0

    def single(self, ar: SlotArithmetic[Slots], layer: int, name: str, x: Slots) -> Slots:
        self._cut(layer, name, x.level)
        return x

    def several(
        self,
        ar: SlotArithmetic[Slots],
        layer: int,
        name: str,
        values: Sequence[Slots],
        held: Sequence[Slots] = (),
    ) -> list[Slots]:
        found = [*values, *held]
        low = min(x.level for x in found)
        self._cut(layer, name, low, -(-len(found) // 2))
        found = [ar.drop(x, low) for x in found]
        # Splitting happens after the refresh, at the top; a segment's first operation stands for it.
        for x in found[: len(found) - len(found) % 2 : 2]:
            ar.conjugate(x)
        return found

    def parts(self, ar: SlotArithmetic[Slots], layer: int, name: str, x: Slots) -> tuple[Slots, Slots]:
        self._cut(layer, name, x.level)
        return ar.real_imaginary(x)

    def finish(self, level: int) -> list[Segment]:
        self._close(level)
        return self.segments

    def _cut(self, layer: int, name: str, level: int, refreshes: int = 1) -> None:
        self._close(level)
        required, residual = name in self.REQUIRED, name in self.RESIDUAL
        self.segments.append(Segment(layer, name, refreshes, required=required, residual=residual))
        self._level = level

    def _close(self, level: int) -> None:
        if self.segments:
            last = self.segments[-1]
            last.depth = self._level - level
            for (name, at), count in self._ar.counts.items():
                last.counts[name, self._level - at] += count
        self._ar.counts.clear()


def _refreshed(ar: SlotArithmetic[V], values: Sequence[V]) -> list[V]:
    """Two by two as real and imaginary part, doubled; one alone is not."""
    if len(values) == 1:
        return [ar.bootstrap(values[0])]
    found: list[V] = []
    for i in range(0, len(values) - 1, 2):
        found += ar.real_imaginary(ar.bootstrap(ar.add(values[i], ar.times_i(values[i + 1]))))
    if len(values) % 2:
        found.append(ar.times(ar.bootstrap(values[-1]), 2))
    return found
