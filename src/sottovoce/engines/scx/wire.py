"""Arrays of floats on a channel. Sizes are known to both sides; what is not finite is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from sottovoce.engines.scx.arrays import Array, Arrays
from sottovoce.errors import IntegrityError
from sottovoce.net import Channel

SINGLE, DOUBLE = np.dtype("<f4"), np.dtype("<f8")
INDEX = np.dtype("<u4")
_PIECE = 1 << 25  # bytes of one frame of weights


def send(channel: Channel, arrays: Arrays, x: Array, kind: np.dtype[Any] = SINGLE) -> None:
    channel.send(arrays.get(x).astype(kind, copy=False))


def receive(channel: Channel, arrays: Arrays, shape: tuple[int, ...], kind: np.dtype[Any] = SINGLE) -> Array:
    """IntegrityError for values that are not finite."""
    return arrays.put(_checked(channel, shape, kind))


def _checked(channel: Channel, shape: tuple[int, ...], kind: np.dtype[Any]) -> npt.NDArray[Any]:
    count = int(np.prod(shape))
    x = np.frombuffer(channel.recv(count * kind.itemsize), kind).reshape(shape)
    # In float64 a sum of finite float32 values is finite; of float64 values it may overflow, as it should
    # not.
    if not np.isfinite(x.sum(dtype=np.float64)):
        raise IntegrityError("the other side sent numbers that are not finite; the session ends")
    return x


def send_tensor(channel: Channel, x: npt.NDArray[np.float32]) -> None:
    """A weight tensor, in pieces."""
    flat = np.ascontiguousarray(x, SINGLE).reshape(-1)
    step = _PIECE // SINGLE.itemsize
    for i in range(0, len(flat), step):
        channel.send(flat[i : i + step])


def receive_tensor(channel: Channel, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    flat = np.empty(int(np.prod(shape)), np.float32)
    step = _PIECE // SINGLE.itemsize
    for i in range(0, len(flat), step):
        flat[i : i + step] = _checked(channel, (min(step, len(flat) - i),), SINGLE)
    return flat.reshape(shape)


def send_places(channel: Channel, places: npt.NDArray[np.int64]) -> None:
    channel.send(places.astype(INDEX))


def receive_places(channel: Channel, count: int, rows: int) -> npt.NDArray[np.int64]:
    """Different row numbers below `rows`; IntegrityError for anything else."""
    places = np.frombuffer(channel.recv(count * INDEX.itemsize), INDEX).astype(np.int64)
    if places.max() >= rows or len(np.unique(places)) != count:
        raise IntegrityError("the client's key is no permutation; the session ends")
    return places
