"""Profile `hardened`: the server multiplies matrices with vectors under one-time masks, and does nothing
else.

A vector of at most `bound` (Euclidean norm) is rounded to a grid of bound·2^-28; a mask of rounded normal
values with a deviation of 2^49 grid steps (2^21·bound) is added. Both are integers below 2^53, so the sum is
exact in float64 and has no low bits that could tell a mask by its porous support. A longer vector is halved
until it fits; only the user knows how often. What the server sees of two vectors differs by a
Kullback-Leibler divergence of at most (2·bound)²/(2·(2^21·bound)²) = 2^-41, whatever it knows of them (see
docs/design/scx.md).

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
from sottovoce.engines.scx.cloud import Observe, nobody
from sottovoce.engines.scx.graph import MATRICES, Graph, multiply, widths
from sottovoce.engines.scx.keys import normal
from sottovoce.engines.scx.noise import NoiseStock
from sottovoce.engines.scx.ops import LAYER_TENSORS, Layer
from sottovoce.models.config import Config
from sottovoce.net import Channel
from sottovoce.ring.sampling import Stream

GRID_BITS = 28  # bound / grid
MASK_BITS = 49  # deviation of a mask / grid
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


class MaskedUser:
    """One session at the user side, with all weights, keys and values."""

    def __init__(
        self, config: Config, weights: UserWeights, bounds: npt.NDArray[np.float32], arrays: Arrays
    ) -> None:
        """bounds: (layers, 4) for the inputs of each matrix. They cost precision if wrong, never privacy."""
        self.config, self.arrays = config, arrays
        self._graph = Graph(config, weights, arrays)
        self._stream = Stream()
        self._bounds = np.asarray(bounds, np.float64)
        self._weights = weights
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

    def save(self) -> dict[str, npt.NDArray[Any]]:
        """Keys and values. Masks in stock are not kept: none can come back to be used again."""
        return self._graph.save()

    def load(self, state: dict[str, npt.NDArray[Any]]) -> None:
        self._graph.load(state)

    def _apply(self, layer: int, name: str, x: Array) -> Array:
        xp, number = namespace(x), MATRICES.index(name)
        count = int(x.shape[0])
        with self._channel.ledger.operation(name):
            mask, image = self._stocks[layer, name].take(count)
            integers, unit = on_grid(xp.astype(x, xp.float64), float(self._bounds[layer, number]))
            grid = float(self._bounds[layer, number]) * 2.0**-GRID_BITS
            wire.send(self._channel, self.arrays, integers + mask, wire.DOUBLE)
            y = wire.receive(self._channel, self.arrays, (count, widths(self.config)[name][1]), wire.DOUBLE)
            y = (y - image) * (grid * unit)
        bias = self._bias(layer, name)
        y = xp.astype(y, x.dtype)
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
        return np.rint(normal(self._stream, rows, inputs) * 2.0**MASK_BITS)

    def _image(self, layer: int, name: str, mask: Array) -> Array:
        return multiply(without_biases(self._weights.layer(layer, np.float64)), name, mask)


def on_grid(x: Array, bound: float) -> tuple[Array, Array]:
    """Rows x (T, d) as integers of norm ≤ 2^28 (plus rounding), and the power of two (T, 1) that makes up for
    rows longer than `bound`."""
    xp = namespace(x)
    length = xp.sqrt(xp.sum(x * x, axis=-1, keepdims=True)) / bound
    unit = 2.0 ** xp.ceil(xp.log2(xp.where(length > 1.0, length, xp.ones_like(length))))
    return xp.round(x / unit * (2.0**GRID_BITS / bound)), unit


def without_biases(layer: Layer) -> Layer:
    """The matrices alone: the user adds the biases, which no mask should be multiplied with."""
    return dataclasses.replace(layer, **{name: None for name in _BIASES})


def input_bounds(
    config: Config, weights: UserWeights, tokens: Sequence[int], arrays: Arrays
) -> npt.NDArray[np.float32]:
    """(layers, 4): twice the largest norm of each matrix's input along a public text."""
    found = np.zeros((config.layers, len(MATRICES)), np.float64)
    layers = [weights.layer(i) for i in range(config.layers)]

    def apply(layer: int, name: str, x: Array) -> Array:
        norms = np.linalg.norm(arrays.get(x).astype(np.float64), axis=-1)
        found[layer, MATRICES.index(name)] = 2.0 * max(float(norms.max()), 1e-6)
        return multiply(layers[layer], name, x)

    Graph(config, weights, arrays).forward(tokens, apply, True)
    return found.astype(np.float32)
