"""Whether one constant per head can stand for the maximum of every row of attention scores.

Private engines compute 2^(s - c)/Σ 2^(s - c) with a c of the head, not of the row: no comparison, but a row
whose scores lie far below c keeps few of 28 fractional bits, and scores above c count as ln 4 above it (up to
ln 4 by chance only, further up always). What that does to a model is measured on the calibration text: half
the sum of differences between the exact probabilities and these. SmolLM2-135M: 5e-4 on average, 0.004 in the
worst layer; stories260K, whose scores spread over 80 nats, 0.006 and 0.02. A model of which a layer differs
by more than `MOST_ERROR` is refused.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sottovoce.errors import UnsupportedModelError
from sottovoce.models.model import Model
from sottovoce.models.weights import Array

SHIFT_MARGIN = 3.0  # nats above the calibrated maximum
MOST_ERROR = 0.1
_UNIT = 2.0**-28  # last place of an exponential
_SATURATED = 4.0  # what stands for everything above


def shift_errors(model: Model, texts: Sequence[Sequence[int]], top: Array) -> Array:
    """Mean difference of probabilities, 0 to 1, (layers, heads). top: (layers, heads) in nats, as calibrated;
    the shift is SHIFT_MARGIN above. One forward pass over the texts."""
    layers = model.config.layers
    found: list[list[Array]] = [[] for _ in range(layers)]

    def hook(name: str, layer: int, value: Array) -> Array:
        if name == "scores":
            found[layer].append(_differences(value, top[layer] + SHIFT_MARGIN))
        return value

    for tokens in texts:
        model.hidden(list(tokens), hook=hook)
    return np.stack([np.concatenate(rows, axis=-1).mean(axis=-1) for rows in found]).astype(np.float32)


def check_static_shift(errors: Array) -> None:
    """UnsupportedModelError if a layer's attention would differ too much."""
    by_layer = errors.mean(axis=-1)
    worst = int(by_layer.argmax())
    if not by_layer[worst] <= MOST_ERROR:
        raise UnsupportedModelError(
            f"attention scores of layer {worst} spread too far for a fixed shift per head: on the calibration"
            f" text {100 * by_layer[worst]:.0f} % of its weights would go to other tokens (at most"
            f" {100 * MOST_ERROR:.0f} % is supported); this model cannot be served by a private engine"
        )


def _differences(scores: Array, shift: Array) -> Array:
    """scores: (heads, new, total), in nats -> (heads, new); rows of one score are left out."""
    _, new, total = scores.shape
    future = np.arange(total)[None, :] > np.arange(total - new, total)[:, None]
    masked = np.where(future, -np.inf, scores.astype(np.float64))
    exact = np.exp(masked - masked.max(axis=-1, keepdims=True))
    exact /= exact.sum(axis=-1, keepdims=True)
    above = masked - shift[:, None, None].astype(np.float64)
    weights = np.where(above > 0, _SATURATED, np.exp(np.minimum(above, 0)))
    rounded = np.floor(weights / _UNIT) * _UNIT
    shifted = rounded / (rounded.sum(axis=-1, keepdims=True) + _UNIT)
    return np.asarray(np.abs(exact - shifted).sum(axis=-1)[:, 1 if new == total else 0 :] / 2)
