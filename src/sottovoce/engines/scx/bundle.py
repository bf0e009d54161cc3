"""The tensors that the user side holds; it gets them from the server, once a process.

The server names them by a hash of what they are, before a session begins. A process keeps those of its last
session: sessions at once share them, and the next one starts without them being sent again.

`paper` needs what it computes itself (embedding, first and last block around the attention, final norm and
head) and what noise is multiplied with. `hardened` needs everything, for the same reason. A model owner who
does not want to give these away runs the user side as a worker that the users trust.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sottovoce.engines.scx import wire
from sottovoce.engines.scx.arrays import Arrays
from sottovoce.engines.scx.ops import LAYER_TENSORS, Layer
from sottovoce.engines.scx.profile import Profile
from sottovoce.errors import IntegrityError
from sottovoce.models.config import Config
from sottovoce.models.weights import Weights, expected_shapes
from sottovoce.net import Channel

_FIRST = ("norm1", "norm1_bias", "q", "k", "v", "o", "o_bias")  # biases of q, k, v are added by the server
_LAST = ("o", "norm2", "norm2_bias", "gate", "gate_bias", "up", "up_bias", "down", "down_bias")
_WANTED, _KEPT = b"\x00", b"\x01"
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


def digest(tensors: Mapping[str, npt.NDArray[np.float32]], names: Mapping[str, tuple[int, ...]]) -> str:
    """SHA-256 of the tensors, little-endian, with their names and shapes; 64 hexadecimal digits."""
    state = hashlib.sha256()
    for name, shape in names.items():
        state.update(f"{name} {shape}\n".encode())
        state.update(np.ascontiguousarray(tensors[name], wire.SINGLE).data)
    return state.hexdigest()


def send(channel: Channel, weights: Weights, names: Mapping[str, tuple[int, ...]]) -> None:
    """Cost: one byte up; one message a tensor (more for large ones) if the client has not got them."""
    answer = bytes(channel.recv(1))
    if answer not in (_WANTED, _KEPT):
        raise IntegrityError("the client did not say whether it wants the weights; the session ends")
    if answer == _WANTED:
        tensors = dict(weights.named())
        for name in names:
            wire.send_tensor(channel, tensors[name])


def receive(
    channel: Channel, names: Mapping[str, tuple[int, ...]], expected: str, arrays: Arrays
) -> UserWeights:
    """The tensors whose digest is `expected`: those of the last session of this process, or new ones.
    IntegrityError if others come."""
    key = (expected, arrays.xp.__name__, str(arrays.device))
    with _lock:
        kept = _last.get(key)
    channel.send(_WANTED if kept is None else _KEPT)
    if kept is not None:
        return kept
    tensors = {name: wire.receive_tensor(channel, shape) for name, shape in names.items()}
    if digest(tensors, names) != expected:
        raise IntegrityError("the weights that came are not those that the server announced")
    fresh = UserWeights(tensors, arrays)
    with _lock:
        _last.clear()
        _last[key] = fresh
    return fresh


class UserWeights:
    """The user's tensors in an array library. Shared by sessions, so nothing writes to them."""

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

    def layer(self, number: int, dtype: type = np.float32, only: Sequence[str] = LAYER_TENSORS) -> Layer:
        """A block, or some of its tensors: another type than float32 copies them."""
        found = {name: self._tensors.get(f"blocks.{number}.{name}") for name in only}
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


_lock = threading.Lock()
_last: dict[tuple[str, str, str], UserWeights] = {}  # of the session that was set up last
