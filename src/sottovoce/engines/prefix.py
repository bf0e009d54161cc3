"""Keys and values of a public prefix: computed in the clear by the server, then rounded to fixed point."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from sottovoce.models.fixed import ACTIVATION_BITS

if TYPE_CHECKING:
    from sottovoce.models import Model

Int64 = npt.NDArray[np.int64]


class LayerPrefix(NamedTuple):
    """One layer's rotated keys and values, (n, kv_heads, head_dim) integers at 2^-12, rotate-half order."""

    k: Int64
    v: Int64


def prefill_public(model: Model, tokens: Sequence[int]) -> list[LayerPrefix]:
    """Run the float reference over public tokens; one LayerPrefix per block. Reveals nothing: no secret
    enters.

    The first position of these models carries activations a hundred times larger than all others, which is
    why it is always public: in float they do no harm.
    """
    config = model.config
    cache = model.new_cache()
    if tokens:
        model.forward(np.asarray(tokens), cache)
    interleaved = config.rope is not None and config.rope.style == "interleaved"
    layers = []
    for i in range(config.layers):
        k = cache.k(i)
        if interleaved:  # the fixed-point model permutes rotary pairs to (j, j + head_dim / 2)
            k = np.concatenate([k[..., 0::2], k[..., 1::2]], axis=-1)
        layers.append(LayerPrefix(_fixed(k), _fixed(cache.v(i))))
    return layers


def _fixed(x: npt.NDArray[np.float32]) -> Int64:
    return np.rint(x.astype(np.float64) * (1 << ACTIVATION_BITS)).astype(np.int64)
