"""Reading safetensors files: a JSON header with offsets, then raw little-endian arrays.

The header is untrusted: every size, offset, type and shape is checked against the length of the file before
a byte of data is touched. Format: https://github.com/huggingface/safetensors (8-byte header length, header,
data).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sottovoce.errors import CorruptFileError, UnsupportedModelError
from sottovoce.models.mapped import mapped
from sottovoce.models.weights import Array

_ITEM_SIZES = {"F32": 4, "F16": 2, "BF16": 2}
_KNOWN_DTYPES = ("BOOL", "U8", "I8", "I16", "U16", "I32", "U32", "I64", "U64", "F64", "F8_E4M3", "F8_E5M2")
_MAX_HEADER = 100_000_000  # the format's own limit
_MAX_DIMENSIONS = 8


@dataclass(frozen=True)
class _Entry:
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class SafetensorsFile:
    """Tensors by name, converted to float32 when they are read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._data = mapped(path)
        self._entries, self._start = _parse_header(self._data, path.name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def read(self, name: str) -> Array:
        entry = self._entries[name]
        if entry.dtype not in _ITEM_SIZES:
            raise UnsupportedModelError(
                f"{self.path.name}: tensor {name} has type {entry.dtype}; supported: {', '.join(_ITEM_SIZES)}"
            )
        raw = self._data[self._start + entry.begin : self._start + entry.end]
        return _to_float32(raw, entry.dtype).reshape(entry.shape)


def _to_float32(raw: np.ndarray, dtype: str) -> Array:
    if dtype == "F32":
        return np.frombuffer(raw, dtype="<f4").astype(np.float32)
    if dtype == "F16":
        return np.frombuffer(raw, dtype="<f2").astype(np.float32)
    # bfloat16 is the upper half of a float32.
    return (np.frombuffer(raw, dtype="<u2").astype(np.uint32) << 16).view(np.float32)


def _parse_header(data: np.ndarray, where: str) -> tuple[dict[str, _Entry], int]:
    if len(data) < 8:
        raise CorruptFileError(f"{where}: shorter than a safetensors header")
    length = int.from_bytes(data[:8].tobytes(), "little")
    if not 2 <= length <= min(_MAX_HEADER, len(data) - 8):
        raise CorruptFileError(f"{where}: header of {length} bytes in a file of {len(data)}")
    try:
        header = json.loads(data[8 : 8 + length].tobytes())
    except (ValueError, RecursionError) as error:
        raise CorruptFileError(f"{where}: the header is not JSON") from error
    if not isinstance(header, dict):
        raise CorruptFileError(f"{where}: the header is not a JSON object")
    header.pop("__metadata__", None)
    entries = {name: _entry(name, value, where) for name, value in header.items()}
    _check_layout(entries, len(data) - 8 - length, where)
    return entries, 8 + length


def _entry(name: str, value: Any, where: str) -> _Entry:
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise CorruptFileError(f"{where}: malformed header entry of tensor {name[:80]!r}")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in (*_ITEM_SIZES, *_KNOWN_DTYPES):
        raise CorruptFileError(f"{where}: tensor {name[:80]!r} has an unknown type")
    if not _naturals(shape) or len(shape) > _MAX_DIMENSIONS or not _naturals(offsets) or len(offsets) != 2:
        raise CorruptFileError(f"{where}: tensor {name[:80]!r} has a malformed shape or offset")
    begin, end = offsets
    if dtype in _ITEM_SIZES and end - begin != math.prod(shape) * _ITEM_SIZES[dtype]:
        raise CorruptFileError(
            f"{where}: tensor {name[:80]!r} has {end - begin} bytes, its shape {tuple(shape)} needs "
            f"{math.prod(shape) * _ITEM_SIZES[dtype]}"
        )
    return _Entry(dtype, tuple(shape), begin, end)


def _naturals(values: Any) -> bool:
    return isinstance(values, list) and all(
        isinstance(v, int) and not isinstance(v, bool) and 0 <= v < 1 << 48 for v in values
    )


def _check_layout(entries: dict[str, _Entry], size: int, where: str) -> None:
    """The tensors must tile the data exactly.

    No overlap, no gap, nothing left over (the format demands it).
    """
    position = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != position or entry.end < entry.begin:
            raise CorruptFileError(f"{where}: tensor {name[:80]!r} overlaps another one or leaves a gap")
        position = entry.end
    if position != size:
        raise CorruptFileError(f"{where}: {size} bytes of data, the header describes {position}")
