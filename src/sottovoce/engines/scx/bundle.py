"""The tensors that the user side holds; it gets them from the server, once a session.

`paper` needs what it computes itself (embedding, first and last block around the attention, final norm and
head) and what noise is multiplied with. `hardened` needs everything, for the same reason. A model owner who
does not want to give these away runs the user side as a worker that the users trust.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sottovoce.engines.scx import wire
from sottovoce.engines.scx.arrays import Arrays
from sottovoce.engines.scx.ops import LAYER_TENSORS, Layer
from sottovoce.engines.scx.profile import Profile
from sottovoce.models.config import Config
from sottovoce.models.weights import Weights, expected_shapes
from sottovoce.net import Channel

_FIRST = ("norm1", "norm1_bias", "q", "k", "v", "o", "o_bias")  # biases of q, k, v are added by the server
_LAST = ("o", "norm2", "norm2_bias", "gate", "gate_bias", "up", "up_bias", "down", "down_bias")
_OUTER = ("embedding", "positions", "norm", "norm_bias", "head")


def shapes(
    config: Config, profile: Profile, layers: Sequence[int] | None = None
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the user's tensors, known to both sides."""
    expected = expected_shapes(config)
    if profile.name == "hardened":
        return expected
    wanted = {name: expected[name] for name in _OUTER if name in expected}
    for layer in range(config.layers):
        names = [
            *(_FIRST if layer < profile.first_blocks else ()),
            *(_LAST if layer == config.layers - 1 else ()),
        ]
        for name in dict.fromkeys(names):
            full = f"blocks.{layer}.{name}"
            if full in expected:
                wanted[full] = expected[full]
    return wanted


def send(channel: Channel, weights: Weights, names: dict[str, tuple[int, ...]]) -> None:
    """Cost: one message a tensor (more for large ones)."""
    tensors = dict(weights.named())
    for name in names:
        wire.send_tensor(channel, tensors[name])


def receive(channel: Channel, names: dict[str, tuple[int, ...]]) -> dict[str, npt.NDArray[np.float32]]:
    return {name: wire.receive_tensor(channel, shape) for name, shape in names.items()}


class UserWeights:
    """The user's tensors in an array library."""

    def __init__(self, tensors: dict[str, npt.NDArray[np.float32]], arrays: Arrays) -> None:
        self.embedding = tensors["embedding"]  # looked up in NumPy: a few rows at a time
        self.positions = tensors.get("positions")
        put: dict[str, Any] = {
            name: None if (x := tensors.get(name)) is None else arrays.put(x)
            for name in ("norm", "norm_bias", "head")
        }
        self.norm, self.norm_bias = put["norm"], put["norm_bias"]
        self.head = arrays.put(self.embedding) if put["head"] is None else put["head"]
        self._tensors, self._arrays = tensors, arrays

    def layer(self, number: int, dtype: type = np.float32) -> Layer:
        found = {name: self._tensors.get(f"blocks.{number}.{name}") for name in LAYER_TENSORS}
        return Layer(
            **{
                k: None if x is None else self._arrays.put(x.astype(dtype, copy=False))
                for k, x in found.items()
            }
        )

    def embed(self, tokens: Sequence[int], start: int) -> npt.NDArray[np.float32]:
        """(T, width) for tokens that begin at position `start`."""
        x = self.embedding[np.asarray(tokens, np.int64)]
        if self.positions is not None:
            x = x + self.positions[start : start + len(tokens)]
        return np.ascontiguousarray(x, np.float32)
