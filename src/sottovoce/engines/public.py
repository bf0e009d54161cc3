"""What both parties know of a fixed-point model: shapes, scales and the constants of its norms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sottovoce.errors import CorruptFileError
from sottovoce.models.config import Config
from sottovoce.models.fixed import ACTIVATION_BITS, ROPE_BITS, FixedModel, FixedNorm

Int64 = npt.NDArray[np.int64]
_ENTRIES = {"config", "weight_bits", "score_shift", "score_range_bits", "norms"}


@dataclass(frozen=True)
class PublicModel:
    """The graph without weights. `norms` in the order of execution: two per block, then the final one."""

    config: Config
    weight_bits: int
    score_shift: int
    score_range_bits: int
    norms: tuple[FixedNorm, ...]

    @property
    def residual_bits(self) -> int:
        """Fractional bits of the residual stream and of every matrix product."""
        return ACTIVATION_BITS + self.weight_bits

    @property
    def score_bits(self) -> int:
        """Fractional bits of a raw product q·k, in base-2 units."""
        return 2 * ACTIVATION_BITS + self.score_shift

    @classmethod
    def of(cls, model: FixedModel) -> PublicModel:
        return cls.from_json({"config": model.config.to_json(), **model.public_constants()})

    def to_json(self) -> dict[str, Any]:
        return {
            "config": self.config.to_json(),
            "weight_bits": self.weight_bits,
            "score_shift": self.score_shift,
            "score_range_bits": self.score_range_bits,
            "norms": [norm.to_json() for norm in self.norms],
        }

    @classmethod
    def from_json(cls, data: Any) -> PublicModel:
        """From the server's handshake; everything is checked, because a client computes with it."""
        if not isinstance(data, dict) or set(data) != _ENTRIES:
            raise CorruptFileError(
                "model description: unexpected or missing entries; the server is not compatible"
            )
        config = Config.from_json(data["config"])
        weight_bits, score_shift = data["weight_bits"], data["score_shift"]
        if type(weight_bits) is not int or not 8 <= weight_bits <= 12:
            raise CorruptFileError(
                f"model description: weight_bits = {weight_bits!r} is not between 8 and 12"
            )
        if type(score_shift) is not int or not 0 <= score_shift <= 8:
            raise CorruptFileError(f"model description: score_shift = {score_shift!r} is not between 0 and 8")
        range_bits = data["score_range_bits"]
        if type(range_bits) is not int or not 8 <= range_bits <= 9:
            raise CorruptFileError(f"model description: score_range_bits = {range_bits!r} is not 8 or 9")
        norms = data["norms"]
        if not isinstance(norms, list) or len(norms) != 2 * config.layers + 1:
            raise CorruptFileError("model description: wrong number of norms")
        return cls(config, weight_bits, score_shift, range_bits, tuple(_norm(n, config) for n in norms))

    def rope_tables(self, positions: Int64) -> tuple[Int64, Int64]:
        """cos and sin at 2^-ROPE_BITS for the given positions: two arrays (len(positions), head_dim // 2)."""
        rope = self.config.rope
        assert rope is not None
        half = self.config.head_dim // 2
        inverse = rope.theta ** (-np.arange(half) / half)
        angle = positions[:, None] * inverse
        scale = float(1 << ROPE_BITS)
        return np.rint(np.cos(angle) * scale).astype(np.int64), np.rint(np.sin(angle) * scale).astype(
            np.int64
        )


def _norm(entry: Any, config: Config) -> FixedNorm:
    if not isinstance(entry, Mapping) or set(entry) != {"kind", "eps", "low", "high", "square_bits"}:
        raise CorruptFileError("model description: malformed norm")
    kind, eps, low, high = entry["kind"], entry["eps"], entry["low"], entry["high"]
    if kind != config.norm:
        raise CorruptFileError(f"model description: norm kind {kind!r} in a model with {config.norm!r}")
    for name, value in (("eps", eps), ("low", low), ("high", high)):
        if not isinstance(value, float) or not 0.0 < value < 1e12:
            raise CorruptFileError(f"model description: norm {name} = {value!r} is out of range")
    square_bits = entry["square_bits"]
    if type(square_bits) is not int or not 0 <= square_bits <= 20 or low > high:
        raise CorruptFileError("model description: norm range is malformed")
    return FixedNorm(kind=kind, eps=eps, low=low, high=high, square_bits=square_bits)
