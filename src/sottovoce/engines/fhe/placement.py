"""Where to bootstrap: the cheapest way through (point, level of the value, level of the residual stream).

Every segment of a program costs what its operations cost at the levels it runs at; at a point a value may
be refreshed and may be dropped, so that what follows is cheaper. All layers are alike, so one attention and
one MLP are solved for every pair of residual levels, and joined along the layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sottovoce.engines.fhe.flow import Decision, PlannedFlow, RecordingFlow, Segment
from sottovoce.engines.fhe.functions import BlockFunctions, Degrees, Functions, Predictor, Spread, norm_gain
from sottovoce.engines.fhe.program import Program
from sottovoce.engines.fhe.shape import Shape
from sottovoce.engines.fhe.weights import counted
from sottovoce.errors import ParameterError
from sottovoce.packing.slots import Chebyshev, CountingSlots, Slots

# seconds(operation, level); the operation "bootstrap" at the top level.
Cost = Callable[[str, int], float]
_ENDLESS = 1_000_000
# What the embedding takes of a one-hot vector.
EMBED_LEVELS = 2


@dataclass(frozen=True)
class Placement:
    """decisions by (layer, point); entry: the level at which the embedding must stand; bottom: the level of
    the logits."""

    decisions: dict[tuple[int, str], Decision]
    entry: int
    bottom: int
    seconds: float

    def bootstraps(self, layer: int) -> int:
        return sum(d.bootstrap * d.refreshes for (at, _), d in self.decisions.items() if at == layer)

    @property
    def total(self) -> int:
        return sum(d.bootstrap * d.refreshes for d in self.decisions.values())


def record(shape: Shape, degrees: Degrees, length: int, public: int = 0) -> list[Segment]:
    """The segments of one step behind `length` tokens, of which `public` have blocks of their own."""
    ar = CountingSlots(shape.n, _ENDLESS)
    flow = RecordingFlow(ar)
    program = Program(ar, shape, counted(shape), counted_functions(shape, degrees), flow)
    _fill(program, ar, length, public)
    out = program.step([ar.fresh()] * shape.vocabulary_blocks)
    return flow.finish(ar.level(out[0]))


def _fill(program: Program[Slots], ar: CountingSlots, length: int, public: int) -> None:
    """As if `length` tokens were cached."""
    c, layers, private = program.shape.config, range(program.shape.config.layers), length - public
    if public:
        nothing = np.zeros((public, c.kv_heads, c.head_dim))
        program.append_public([nothing for _ in layers], [nothing for _ in layers])
    for cache in program.caches:
        cache.keys = [ar.fresh() for _ in range(program.blocks.classes if private else 0)]
        cache.values = [ar.fresh() for _ in range(-(-private // program.shape.heads.t))]
    program.length = length


def rotation_levels(
    shape: Shape, degrees: Degrees, placement: Placement, top: int, public: int = 0
) -> dict[int, int]:
    """The rotations of a step and the highest level at which each happens: what keys are made for. public:
    tokens with blocks of their own."""
    return _counted_step(shape, degrees, placement, top, public)[0].steps


def cache_levels(
    shape: Shape, degrees: Degrees, placement: Placement, top: int, public: int = 0
) -> tuple[int, int]:
    """At which levels the first layer's keys and values stand in the cache."""
    _, program = _counted_step(shape, degrees, placement, top, public)
    cache = program.caches[0]
    return min(x.level for x in cache.keys), min(x.level for x in cache.values)


def _counted_step(
    shape: Shape, degrees: Degrees, placement: Placement, top: int, public: int
) -> tuple[CountingSlots, Program[Slots]]:
    """A step at the position with the most rotations."""
    ar = CountingSlots(shape.n, top)
    t, groups = shape.heads.t, 1 if shape.split else shape.groups
    shape = replace(shape, tokens=groups * t + public)
    program = Program(
        ar, shape, counted(shape), counted_functions(shape, degrees), PlannedFlow[Slots](placement.decisions)
    )
    _fill(program, ar, shape.tokens - 1, public)
    program.step([ar.fresh(level=placement.entry + EMBED_LEVELS)] * shape.vocabulary_blocks)
    return ar, program


def counted_functions(shape: Shape, degrees: Degrees) -> Functions:
    """Polynomials of the right degrees, nothing else."""

    def flat(degree: int, radius: float = 1.0) -> Chebyshev:
        return Chebyshev(-radius, radius, (0.0,) * (degree + 1))

    nothing = Predictor(*(np.zeros(0),) * 4)
    norm = flat(degrees.norm, 1 / norm_gain(shape.config))
    even = Spread(*np.zeros((2, degrees.rounds, shape.config.heads)))
    block = BlockFunctions(norm, norm, flat(degrees.activation), nothing, even)
    return Functions(
        (block,) * shape.config.layers,
        norm,
        flat(degrees.exponential),
        (flat(degrees.coarse),) * degrees.rounds,
        flat(degrees.accurate),
        (1.0,) * (degrees.rounds + 1),
        degrees.squarings,
        1.0,
        degrees.polish,
    )


def cost_of(segment: Segment, level: int, cost: Cost) -> float:
    """Seconds of a segment entered at `level`."""
    return sum(count * cost(name, max(level - at, 0)) for (name, at), count in segment.counts.items())


def place_bootstraps(segments: Sequence[Segment], top: int, cost: Cost) -> Placement:
    """The cheapest placement. ParameterError if a segment is deeper than `top`: then the ring's levels do
    not reach from one point to the next."""
    deepest = max(segments, key=lambda s: s.depth)
    if deepest.depth > top:
        raise ParameterError(
            f"{deepest.depth} levels are needed behind {deepest.start!r}, a refresh leaves {top}; "
            "use parameters with more levels or polynomials of lower degree"
        )
    halves = _halves(segments)
    ways = {start: _Way(0.0, ()) for start in range(top + 1)}
    best: dict[int, tuple[_Way, int]] = {level: (way, level) for level, way in ways.items()}
    cached: dict[tuple[str, ...], list[dict[int, _Way]]] = {}
    for half in halves:
        key = tuple(s.start for s in half)
        if key not in cached:
            table = [[cost_of(s, level, cost) for level in range(top + 1)] for s in half]
            refreshing = cost("bootstrap", top)
            cached[key] = [_solve(half, table, residual, top, refreshing) for residual in range(top + 1)]
        following: dict[int, tuple[_Way, int]] = {}
        for residual, (way, entry) in best.items():
            for end, more in cached[key][residual].items():
                total = way.seconds + more.seconds
                if end not in following or total < following[end][0].seconds:
                    following[end] = _Way(total, (*way.decisions, *more.decisions)), entry
        best = following
    if not best:
        raise ParameterError("no placement of bootstraps fits the levels")
    bottom, (way, entry) = min(best.items(), key=lambda item: item[1][0].seconds)
    names = [(s.layer, s.start) for s in segments]
    return Placement(dict(zip(names, way.decisions, strict=True)), entry, bottom, way.seconds)


@dataclass(frozen=True)
class _Way:
    seconds: float
    decisions: tuple[Decision, ...]


def _halves(segments: Sequence[Segment]) -> list[list[Segment]]:
    """Cut where the residual stream stands alone."""
    out: list[list[Segment]] = []
    for segment in segments:
        if segment.residual:
            out.append([])
        out[-1].append(segment)
    return out


def _solve(
    half: Sequence[Segment], table: Sequence[Sequence[float]], residual: int, top: int, refreshing: float
) -> dict[int, _Way]:
    """From the residual stream at a level to its level after the half block: the cheapest ways."""
    ways: dict[tuple[int, int], _Way] = {(residual, residual): _Way(0.0, ())}
    for position, segment in enumerate(half):
        following: dict[tuple[int, int], _Way] = {}
        prices = table[position]
        for (level, kept), way in ways.items():
            for refresh in (False, True):
                if segment.required and not refresh:
                    continue
                start = top if refresh else level
                # A refreshed residual stream goes on refreshed, at the level it is dropped to.
                for entered in range(segment.depth, start + 1):
                    seconds = way.seconds + prices[entered]
                    seconds += refreshing * segment.refreshes if refresh else 0.0
                    after = entered - segment.depth
                    rest = entered if segment.residual else kept
                    key = (after, rest)
                    if key not in following or seconds < following[key].seconds:
                        decision = Decision(refresh, entered, segment.refreshes)
                        following[key] = _Way(seconds, (*way.decisions, decision))
        ways = following
    out: dict[int, _Way] = {}
    for (level, kept), way in ways.items():
        # The head's logits are no residual stream; their level is the way's end.
        end = level if half[0].start == "head" else min(level, kept)
        if end not in out or way.seconds < out[end].seconds:
            out[end] = way
    return {level: way for level, way in out.items() if math.isfinite(way.seconds)}
