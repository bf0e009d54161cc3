"""Profile `hardened`: the server multiplies matrices with vectors under one-time masks, and does nothing
else.

A vector is scaled by a power of two to a Euclidean norm of at most 1 and rounded to a grid of 2^-28; only the
user knows the power. A mask of rounded normal values with a deviation of 2^49 grid steps is added. Both are
integers below 2^53, so the sum is exact in float64 and has no low bits that could tell a mask by its porous
support. What the server sees of any two vectors differs by a Kullback-Leibler divergence of at most
(2·2^28)²/(2·2^98) = 2^-41, whatever else it knows of them (docs/design/scx.md).

The user takes away the mask's image, which it made beforehand with the weights. Attention never leaves it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from sottovoce.engines.scx import wire
from sottovoce.engines.scx.arrays import Array, Arrays, namespace
from sottovoce.engines.scx.bundle import UserWeights
from sottovoce.engines.scx.cache import KeyValues
from sottovoce.engines.scx.cloud import Observe, nobody
from sottovoce.engines.scx.graph import MATRICES, Graph, multiply, widths
from sottovoce.engines.scx.keys import normal
from sottovoce.engines.scx.noise import NoiseStock
from sottovoce.engines.scx.ops import LAYER_TENSORS, Layer
from sottovoce.models.config import Config
from sottovoce.net import Channel
from sottovoce.ring.sampling import Stream

GRID_BITS = 28  # of a vector's norm, in grid steps
MASK_BITS = 49  # of a mask's deviation
KL_PER_PRODUCT = 2.0 ** (2 * (GRID_BITS - MASK_BITS) + 1)
_BIASES = tuple(name for name in LAYER_TENSORS if name.endswith("bias"))


class MaskedCloud:
    """One session at the server: no state but a length. Every product: one round, 8 bytes a number."""

    def __init__(
        self, config: Config, layers: list[Layer], arrays: Arrays, observe: Observe = nobody
    ) -> None:
        self.config, self.arrays, self._layers, self._observe = config, arrays, layers, observe
        self.length = 0

    def open(self, channel: Channel) -> None:
        self._channel = channel

    def prefill(self, tokens: int) -> None:
        self.extend(tokens)

    def extend(self, tokens: int) -> None:
        for i, layer in enumerate(self._layers):
            for name, (inputs, _) in widths(self.config).items():
                with self._channel.ledger.operation(name):
                    x = wire.receive(self._channel, self.arrays, (tokens, inputs), wire.DOUBLE)
                    self._observe(name, i, x)
                    wire.send(self._channel, self.arrays, multiply(layer, name, x), wire.DOUBLE)
        self.length += tokens

    def truncate(self, length: int) -> None:
        self.length = length

    def save(self) -> dict[str, npt.NDArray[Any]]:
        return {"marks": np.array([self.length], np.int64)}

    def load(self, state: dict[str, npt.NDArray[Any]]) -> None:
        self.length = int(state["marks"][0])

    @property
    def caches(self) -> list[KeyValues]:
        """None: they never leave the user."""
        return []


class MaskedUser:
    """One session at the user side, with all weights, keys and values."""

    def __init__(
        self, config: Config, weights: UserWeights, arrays: Arrays, mask_bits: int = MASK_BITS
    ) -> None:
        """mask_bits: fewer only for the attack lab's control."""
        self.config, self.arrays = config, arrays
        self._graph = Graph(config, weights, arrays)
        self._stream = Stream()
        self.weights = weights
        self._mask_bits = mask_bits
        self._stocks = {
            (i, name): NoiseStock(
                arrays, partial(self._draw, inputs), partial(self._image, i, name), np.float64
            )
            for i in range(config.layers)
            for name, (inputs, _) in widths(config).items()
        }

    def open(self, channel: Channel) -> None:
        self._channel = channel

    def prepare(self, tokens: int) -> None:
        """Masks and images for so many tokens: a product of all matrices with a batch."""
        for stock in self._stocks.values():
            stock.make(tokens)

    @property
    def ready(self) -> int:
        return min(stock.ready for stock in self._stocks.values())

    @property
    def length(self) -> int:
        return self._graph.length

    def prefill(self, tokens: Sequence[int]) -> Array:
        return self.extend(tokens, True)

    def extend(self, tokens: Sequence[int], last_only: bool) -> Array:
        """Logits of more tokens. Cost: 4 rounds a block, 8 bytes for each input and output of a matrix."""
        return self._graph.forward(tokens, self._apply, last_only)

    def truncate(self, length: int) -> None:
        self._graph.truncate(length)

    def forget(self) -> None:
        """Lose keys and values of all tokens so far: nobody else has any."""
        for cache in self.caches:
            cache.truncate(0)

    def save(self) -> dict[str, npt.NDArray[Any]]:
        """Masks in stock are not kept: none can come back to be used again."""
        return {"marks": np.array([self.length], np.int64)}

    def load(self, state: dict[str, npt.NDArray[Any]]) -> None:
        self._graph.length = int(state["marks"][0])

    @property
    def caches(self) -> list[KeyValues]:
        """Keys and values that grow by a row with each token."""
        return self._graph.caches

    def _apply(self, layer: int, name: str, x: Array) -> Array:
        xp, count = namespace(x), int(x.shape[0])
        with self._channel.ledger.operation(name):
            mask, image = self._stocks[layer, name].take(count)
            integers, unit = on_grid(xp.astype(x, xp.float64))
            wire.send(self._channel, self.arrays, integers + mask, wire.DOUBLE)
            shape = (count, widths(self.config)[name][1])
            y = (wire.receive(self._channel, self.arrays, shape, wire.DOUBLE) - image) * unit
        y, bias = xp.astype(y, x.dtype), self._bias(layer, name)
        return y if bias is None else y + bias

    def _bias(self, layer: int, name: str) -> Array:
        own = self._graph.layers[layer]
        if name == "qkv":
            parts = [own.q_bias, own.k_bias, own.v_bias]
        elif name == "mlp_in":
            parts = [own.gate_bias, own.up_bias]
        else:
            parts = [own.o_bias if name == "o" else own.down_bias]
        present = [part for part in parts if part is not None]
        return namespace(present[0]).concat(present) if present else None

    def _draw(self, inputs: int, rows: int) -> npt.NDArray[np.float64]:
        return np.rint(normal(self._stream, rows, inputs) * 2.0**self._mask_bits)

    def _image(self, layer: int, name: str, mask: Array) -> Array:
        return multiply(self.weights.layer(layer, np.float64, MATRICES[name]), name, mask)


def on_grid(x: Array) -> tuple[Array, Array]:
    """Rows x (T, d) as integers of norm ≤ 2^28, but for rounding, and what one step is worth in each, (T,
    1)."""
    xp = namespace(x)
    length = xp.sqrt(xp.sum(x * x, axis=-1, keepdims=True))
    # Rows of zeros, and of next to nothing, stay what they are.
    unit = 2.0 ** (xp.ceil(xp.log2(xp.where(length > 1e-30, length, xp.ones_like(length)))) - GRID_BITS)
    return xp.round(x / unit), unit


def without_biases(layer: Layer) -> Layer:
    """The matrices alone: the user adds the biases, which no mask should be multiplied with."""
    return dataclasses.replace(layer, **{name: None for name in _BIASES})
