"""What generation under FHE would cost a model: the program is counted, refreshes are placed, and priced.

Seconds are the cost model's (`costs`), per primitive and level, with the primitives as this machine takes
them (`ckks.speed`). One server core: a second one takes a third to a half off.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sottovoce.ckks import CONJUGATE, ENGINE16, FULL16, Parameters
from sottovoce.ckks.speed import MODEL, Speed, refresh_maps
from sottovoce.ckks.transform import babies
from sottovoce.engines.base import EngineOptions
from sottovoce.engines.estimates import Estimate, Phase
from sottovoce.engines.explain import engine_line
from sottovoce.engines.fhe.chunk_plaintexts import chunk_sizes, one_hot_ciphertexts
from sottovoce.engines.fhe.chunk_plan import plan_chunks
from sottovoce.engines.fhe.costs import PLANNED_REFRESH, CostModel
from sottovoce.engines.fhe.flow import Segment
from sottovoce.engines.fhe.functions import degrees_for
from sottovoce.engines.fhe.placement import (
    EMBED_LEVELS,
    Placement,
    cost_of,
    place_bootstraps,
    record,
    rotation_levels,
)
from sottovoce.engines.fhe.shape import Shape, classes_for, session_shape, slots_for
from sottovoce.errors import UnsupportedModelError
from sottovoce.models.config import Config

if TYPE_CHECKING:
    from sottovoce.engines.public import PublicModel

# Bytes of the plaintexts of a refresh's maps, by slots.
_SMALL, _FULL = 4096, 32768
_MAP_BYTES = {_SMALL: 0.71e9, _FULL: 2.6e9}
_DEGREE = 1 << 16
_CHUNKED = 16  # tokens in a group for which chunks are worth planning


@dataclass(frozen=True)
class Plan:
    """A model placed in one parameter set."""

    shape: Shape
    parameters: Parameters
    placement: Placement
    segments: list[Segment]
    cost: CostModel
    key_bytes: int
    keys: int
    public: int = 0  # tokens with blocks of their own

    def layer(self) -> dict[str, Any]:
        """A middle layer: what each part of it takes."""
        layer = min(1, self.shape.config.layers - 1)
        rows = []
        for segment in self.segments:
            if segment.layer != layer:
                continue
            decision = self.placement.decisions[layer, segment.start]
            rows.append(
                {
                    "from": segment.start,
                    "refreshed": decision.bootstrap,
                    "level": decision.level,
                    "levels_used": segment.depth,
                    "seconds": round(cost_of(segment, decision.level, self.cost), 3),
                }
            )
        return {"bootstraps": self.placement.bootstraps(layer), "parts": rows}

    def to_json(self) -> dict[str, Any]:
        return {
            "parameters": {
                "N": self.parameters.degree,
                "slots": self.shape.n,
                "working_levels": self.parameters.working_top,
                "log_qp": round(self.parameters.log_qp),
                "security_bits": 128,
            },
            "layer": self.layer(),
            "bootstraps_per_token": self.placement.total,
            "bootstrap_seconds": round(self.cost.bootstrap_seconds, 2),
            "entry_level": self.placement.entry,
            "context": self.shape.tokens,
            "public_tokens_apart": self.public,
            "score_ciphertexts": self.shape.blocks(self.public).ciphertexts,
            "plaintexts_per_layer": dict(self.shape.plaintexts()),
            "switching_keys": self.keys,
        }


def plan_model(config: Config, tokens: int, speed: Speed = MODEL, public: int = 0) -> Plan:
    """Slots, parameters and refreshes for a context of `tokens`. UnsupportedModelError if no layout fits.

    speed: of the lattice work. public: tokens of a prefix; they get blocks of their own if not all tokens fit
    one group.
    """
    small = slots_for(config, _SMALL)
    fits = max(config.width, config.ffn_width) <= small and config.width**2 <= _SMALL
    parameters, n = (ENGINE16, small) if fits else (FULL16, _FULL)
    shape = Shape(config, n, tokens)
    if max(shape.width, shape.ffn) > n:
        raise UnsupportedModelError(f"layers of {max(shape.width, shape.ffn)} do not fit {n} slots")
    if fits and tokens <= session_shape(config, n).tokens:
        shape = session_shape(config, n)  # what a server would offer, whatever is asked for
    elif public and shape.groups > 1:
        private = -(-(tokens - public) // shape.heads.t)
        shape = replace(shape, split=classes_for(shape.heads, -(-public // shape.heads.t), private))
    elif shape.groups > shape.heads.dim:
        raise UnsupportedModelError(
            f"{tokens} tokens do not fit the {shape.heads.capacity} positions of one score ciphertext; "
            "ask for fewer"
        )
    degrees, top, apart = degrees_for(shape.tokens), parameters.working_top, public if shape.split else 0
    if apart and tokens - apart > shape.blocks(apart).private * shape.heads.t:
        raise UnsupportedModelError(f"{tokens - apart} private tokens do not fit behind {apart} public ones")
    cost = CostModel(speed.refresh(parameters, n), speed=speed)
    segments = record(shape, degrees, tokens - 1, apart)
    # Placed as a session places them, whatever the machine; then priced.
    placement = place_bootstraps(segments, top, CostModel(PLANNED_REFRESH))
    prices = (cost_of(each, placement.decisions[each.layer, each.start].level, cost) for each in segments)
    placement = replace(placement, seconds=sum(prices) + placement.total * cost.bootstrap_seconds)
    steps = rotation_levels(shape, degrees, placement, top, apart)
    for step, level in _refresh_steps(parameters, n).items():
        steps[step] = max(steps.get(step, 0), level)
    levels = [*steps.values(), parameters.top - parameters.spec.refresh[2], parameters.top]
    return Plan(
        shape, parameters, placement, segments, cost, sum(map(cost.key_bytes, levels)), len(levels), apart
    )


def _refresh_steps(parameters: Parameters, n: int) -> dict[int, int]:
    """Rotations of a refresh and their levels, from its maps; nothing is encoded."""
    found = {CONJUGATE: parameters.top - parameters.spec.refresh[2]}
    for level, each in refresh_maps(parameters, n):
        size = babies(each.diagonals)
        for shift in each.diagonals:
            for step in {shift % size, shift - shift % size} - {0}:
                found[step] = max(found.get(step, 0), level)
    while n < parameters.slots:
        found[n] = parameters.top
        n *= 2
    return found


def estimate(public: PublicModel, kv: str, course: Any, speed: Any) -> Estimate:
    """For `sottovoce estimate`. course: tokens of the session; speed: of the machine."""
    config = public.config
    tokens = course.public + course.private + course.new
    plan = plan_model(config, tokens, speed.wide, course.public)
    token = plan.placement.seconds
    shape, levels = plan.shape, plan.placement.entry + EMBED_LEVELS + 1
    up = shape.vocabulary_blocks * _DEGREE * levels * 41 // 8 + 41
    down = shape.vocabulary_blocks * 2 * _DEGREE * 49 // 8 + config.layers
    key_wire = int(plan.key_bytes * 49 / 64)
    cache = _cache_bytes(plan)
    weights = sum(count for _, count in shape.plaintexts()) * config.layers * shape.n * 2
    weights += (shape.embed.count + shape.head.count) * shape.vocabulary_blocks * shape.n * 2
    refresh = int(_MAP_BYTES[_SMALL if plan.parameters is ENGINE16 else _FULL])
    notes = (
        f"fhe: {plan.placement.total} bootstraps a token, {plan.placement.bootstraps(0)} a layer, "
        f"{plan.cost.bootstrap_seconds:.1f} s each; seconds are a model's, for one core",
        f"fhe: {plan.keys} evaluation keys travel once; the session cannot begin before they are there",
    )
    return Estimate(
        "fhe",
        "-",
        engine_line(EngineOptions(engine="fhe")),
        (
            Phase("setup", 1, key_wire, plan.keys, 1, 2 * plan.keys * 0.3 * speed.lattice),
            _prefill(plan, course.public, course.private, up, down),
            Phase(
                "decode",
                course.new - 1,
                (course.new - 1) * up,
                (course.new - 1) * down,
                course.new - 1,
                (course.new - 1) * token,
            ),
        ),
        key_bytes=key_wire,
        server_memory=weights + refresh,
        session_memory=plan.key_bytes + cache + 1_500_000_000,
        client_memory=400_000_000,
        exact=False,
        notes=notes,
        plan=plan.to_json(),
    )


def _prefill(plan: Plan, public: int, private: int, up: int, down: int) -> Phase:
    """The first private tokens in chunks where that is cheaper, the rest one by one. up, down: bytes of a
    token on its own."""
    shape, top = plan.shape, plan.parameters.working_top
    chunks, sizes = None, list[int]()
    start = 0 if shape.split else public
    if shape.heads.t >= _CHUNKED:
        degrees = degrees_for(shape.tokens)
        chunks = plan_chunks(shape, degrees, plan.placement, top, plan.cost, plan.public)
    if chunks is not None:
        sizes = chunk_sizes(private, start, shape.heads.t, chunks.least)
    rest = private - sum(sizes)
    seconds, sent = rest * plan.placement.seconds, rest * up
    if chunks is not None:
        seconds += chunks.price(start, sizes).seconds
        sent += sum(up // shape.vocabulary_blocks * one_hot_ciphertexts(shape, size) for size in sizes)
    return Phase("prefill", private, sent, down, 1, seconds)


def _cache_bytes(plan: Plan) -> int:
    """Keys at the bottom of the chain, values at the level where they meet the probabilities."""
    shape, layer = plan.shape, 0
    values = plan.placement.decisions[layer, "probabilities"].level + 1
    classes = shape.blocks().classes
    groups = shape.groups - (plan.public // shape.heads.t if shape.split else 0)
    return shape.config.layers * 2 * (2 * classes + groups * values) * 8 * _DEGREE
