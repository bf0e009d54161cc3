"""From float32 weights to the fixed-point form: fold, permute, round, and choose the public constants.

Scales, folds and row orders are those of `sottovoce.models.fixed`. Rounding is to nearest; a folded weight
that does not fit int16 at 2^-w is refused with its name, because clamping it would change the model
silently.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from sottovoce.errors import UnsupportedModelError
from sottovoce.models.calibrate import Calibration, cached_calibration
from sottovoce.models.config import Config
from sottovoce.models.fixed import (
    ACTIVATION_BITS,
    ROPE_BITS,
    SCORE_BITS,
    FixedBlock,
    FixedModel,
    FixedNorm,
    Int16,
    Int64,
)
from sottovoce.models.layers import rope_tables
from sottovoce.models.model import Model
from sottovoce.models.static_shift import SHIFT_MARGIN, check_static_shift
from sottovoce.models.weights import Array, BlockWeights, Weights, to_rotate_half

WEIGHT_BITS = 11
_LOG2E = math.log2(math.e)
_RANGE_MARGIN = 1.2  # of the distance from the shift to the lowest score
_MOST_RANGE_BITS = 9  # what the softmax protocol offers
_HALF_FIELD = 2.0**42  # bound of a sum of squares
_LARGEST = 32767
# A client may send a prefix as long as the context; attention over all of it at once would take gigabytes.
_PREFIX_AT_ONCE = 256
_MAX_SQUARE_BITS = 10


def quantize(
    model: Model, calibration: Calibration | None = None, weight_bits: int = WEIGHT_BITS
) -> FixedModel:
    """The fixed-point form of a model. Without `calibration` it is measured, or taken from the user's cache.

    Raises `UnsupportedModelError` if a folded matrix does not fit int16 at 2^-weight_bits, or if attention
    scores spread too far for the softmax of private engines.
    """
    measured = cached_calibration(model) if calibration is None else calibration
    check_static_shift(measured.score_error)
    config, weights = to_rotate_half(model.config, model.weights)
    score_shift = _score_shift(config, weights, weight_bits)
    round_ = _Rounder(weight_bits)
    norms = [_norm(config, *pair) for pair in measured.norms]
    blocks = []
    for layer, w in enumerate(weights.blocks):
        shift = (measured.score_top[layer].astype(np.float64) + SHIFT_MARGIN) * _LOG2E
        fixed = _block(
            config, w, round_.at(layer), score_shift, norms[2 * layer], norms[2 * layer + 1], shift
        )
        blocks.append(fixed)
    round_ = round_.at(None)
    head = round_.matrix("head", weights.output * weights.norm)
    head_bias = None if weights.norm_bias is None else round_.bias(weights.output @ weights.norm_bias)
    cos, sin = _rope(config)
    return FixedModel(
        config=config,
        weight_bits=weight_bits,
        score_shift=score_shift,
        score_range_bits=_score_range_bits(measured),
        embedding=round_.matrix("embedding", weights.embedding),
        positions=None if weights.positions is None else round_.bias(weights.positions),
        blocks=tuple(blocks),
        final_norm=norms[-1],
        head=head,
        head_bias=head_bias,
        rope_cos=cos,
        rope_sin=sin,
        digest=model.digest,
    )


def public_keys_values(model: Model, tokens: Sequence[int]) -> tuple[Int64, Int64]:
    """Keys (rotated) and values of a public prefix, computed in the clear: (layers, n, kv_heads, head_dim)
    at 2^-f.

    The dimensions of a key are in rotate-half order and values are scaled, as the rows of `FixedBlock.qkv`
    are.
    """
    cache = model.new_cache()
    for first in range(0, len(tokens), _PREFIX_AT_ONCE):
        model.hidden(tokens[first : first + _PREFIX_AT_ONCE], cache)
    config = model.config
    keys = np.stack([cache.k(layer) for layer in range(config.layers)])
    values = np.stack([cache.v(i) * 2.0 ** _value_shift(w) for i, w in enumerate(model.weights.blocks)])
    if config.rope is not None and config.rope.style == "interleaved":
        keys = np.concatenate([keys[..., 0::2], keys[..., 1::2]], axis=-1)
    scale = 2.0**ACTIVATION_BITS
    return np.rint(keys * scale).astype(np.int64), np.rint(values * scale).astype(np.int64)


class _Rounder:
    """Rounds arrays to the scales of the fixed-point form and names the culprit if one does not fit."""

    def __init__(self, weight_bits: int, layer: int | None = None) -> None:
        self._bits = weight_bits
        self._layer = layer

    def at(self, layer: int | None) -> _Rounder:
        return _Rounder(self._bits, layer)

    def matrix(self, name: str, values: Array) -> Int16:
        scaled = np.rint(values * np.float32(2.0**self._bits))
        largest = float(np.abs(scaled).max(initial=0.0))
        if largest > _LARGEST:
            where = name if self._layer is None else f"{name} of layer {self._layer}"
            raise UnsupportedModelError(
                f"weights of {where} reach {largest / 2**self._bits:.1f} with the norm's gain folded in; "
                f"supported: less than {2 ** (15 - self._bits)} at {self._bits} fractional bits"
            )
        rounded: Int16 = scaled.astype(np.int16)
        return rounded

    def bias(self, values: Array) -> Int64:
        return np.rint(values.astype(np.float64) * 2.0 ** (ACTIVATION_BITS + self._bits)).astype(np.int64)

    def fold(
        self, name: str, matrix: Array, bias: Array | None, gain: Array, norm_bias: Array | None
    ) -> tuple[Int16, Int64 | None]:
        """W(g⊙n + b) + c = (W·g) n + (W b + c): matrix and bias of a layer that follows a norm."""
        total = None if norm_bias is None else matrix @ norm_bias
        if bias is not None:
            total = bias if total is None else total + bias
        return self.matrix(name, matrix * gain), None if total is None else self.bias(total)


def _block(
    config: Config,
    w: BlockWeights,
    round_: _Rounder,
    score_shift: int,
    norm1: FixedNorm,
    norm2: FixedNorm,
    shift: np.ndarray,
) -> FixedBlock:
    w = _balanced(w)
    factor = np.float32(_query_factor(config) * 2.0**score_shift)
    qkv = np.concatenate([w.q * factor, w.k, w.v])
    biases = (w.q_bias, w.k_bias, w.v_bias)
    qkv_bias = None
    if all(b is not None for b in biases):
        q_bias, k_bias, v_bias = (b for b in biases if b is not None)
        qkv_bias = np.concatenate([q_bias * factor, k_bias, v_bias])
    gate_up, gate_up_bias = w.up, w.up_bias
    if w.gate is not None:
        gate_up = np.concatenate([w.gate, w.up])
        if w.gate_bias is not None and w.up_bias is not None:
            gate_up_bias = np.concatenate([w.gate_bias, w.up_bias])
    fixed_qkv, fixed_qkv_bias = round_.fold("the q, k, v matrices", qkv, qkv_bias, w.norm1, w.norm1_bias)
    fixed_up, fixed_up_bias = round_.fold(
        "the MLP's first matrices", gate_up, gate_up_bias, w.norm2, w.norm2_bias
    )
    return FixedBlock(
        norm1=norm1,
        qkv=fixed_qkv,
        qkv_bias=fixed_qkv_bias,
        o=round_.matrix("the attention's output matrix", w.o),
        o_bias=None if w.o_bias is None else round_.bias(w.o_bias),
        norm2=norm2,
        gate_up=fixed_up,
        gate_up_bias=fixed_up_bias,
        down=round_.matrix("the MLP's last matrix", w.down),
        down_bias=None if w.down_bias is None else round_.bias(w.down_bias),
        softmax_shift=np.rint(shift * 2.0**SCORE_BITS).astype(np.int64),
    )


def _balanced(w: BlockWeights) -> BlockWeights:
    """The same function with powers of two moved from o to v and from down to up.

    All matrices are rounded to the same step, but an error in v is multiplied by o and one in up by down. On
    SmolLM2 this halves the divergence that rounding causes.
    """
    v, up = np.float32(2.0 ** _value_shift(w)), np.float32(2.0 ** _up_shift(w))
    return dataclasses.replace(
        w,
        v=w.v * v,
        v_bias=None if w.v_bias is None else w.v_bias * v,
        o=w.o / v,
        up=w.up * up,
        up_bias=None if w.up_bias is None else w.up_bias * up,
        down=w.down / up,
    )


def _value_shift(w: BlockWeights) -> int:
    """lg of the factor on the value rows."""
    return _balance(w.v * w.norm1, w.o, 0.35)


def _up_shift(w: BlockWeights) -> int:
    """lg of the factor on the up rows; only a gated MLP is linear in them."""
    return 0 if w.gate is None else _balance(w.up * w.norm2, w.down, 0.8)


def _balance(first: Array, second: Array, between: float) -> int:
    """lg of the factor with which errors of both matrices weigh the same in the result.

    `between`, relative to the first matrix's output: how large the value is that the second one is
    multiplied with (fitted on SmolLM2 by KL). At most 4, and nothing that brings a weight near the end of
    int16.
    """
    ideal = 0.5 * math.log2(float(second.std()) / (float(first.std()) * between + 1e-30) + 1e-30)
    room = math.log2(8.0 / (float(np.abs(first).max()) + 1e-30))
    return max(0, math.floor(min(ideal + 0.5, room, 2.0)))


def _query_factor(config: Config) -> float:
    """Softmax of q·k/sqrt(head_dim) to base e is softmax of q·k times this to base 2."""
    return _LOG2E / math.sqrt(config.head_dim)


def _score_shift(config: Config, weights: Weights, weight_bits: int) -> int:
    """The power of two that stays outside the query rows.

    As large as keeps the factor below 2 and int16 in range.
    """
    factor = _query_factor(config)
    largest = max(float(np.abs(w.q * w.norm1).max()) for w in weights.blocks)
    shift = max(0, math.ceil(-math.log2(factor)))
    while shift and largest * factor * 2.0**shift * 2.0**weight_bits > _LARGEST:
        shift -= 1
    return shift


def _score_range_bits(measured: Calibration) -> int:
    """The ring that holds y = shift - score, from -64 to 2^bits - 64, with a margin.

    8 is enough for most models.
    """
    y = (measured.score_top + SHIFT_MARGIN - measured.score_low) * _LOG2E
    lowest = float(y.max())
    if lowest > 2**_MOST_RANGE_BITS - 66:
        raise UnsupportedModelError(
            f"attention scores of layer {int(y.max(axis=-1).argmax())} reach {lowest:.0f} powers of two "
            f"below their maximum; supported: {2**_MOST_RANGE_BITS - 66}"
        )
    return 8 if lowest * _RANGE_MARGIN <= 2**8 - 66 else _MOST_RANGE_BITS


def _norm(config: Config, low: float, high: float) -> FixedNorm:
    # The largest even-handed scale of the squares that leaves the sum inside half the field.
    room = math.floor(math.log2(_HALF_FIELD / (config.width * high)) / 2)
    return FixedNorm(config.norm, config.eps, low, high, max(0, min(_MAX_SQUARE_BITS, room)))


def _rope(config: Config) -> tuple[Int64 | None, Int64 | None]:
    if config.rope is None:
        return None, None
    cos, sin = rope_tables(config.rope, config.head_dim, np.arange(config.context_length))
    scale = 2.0**ROPE_BITS
    return np.rint(cos * scale).astype(np.int64), np.rint(sin * scale).astype(np.int64)
