"""Reading GGUF files: key-value metadata, then quantised tensors at aligned offsets.

The header is parsed here because it is untrusted: every count, length and offset is checked against the
file before it is used. The `gguf` package turns quantised blocks into float32. Format: ggml/docs/gguf.md
(versions 2 and 3).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sottovoce.errors import CorruptFileError, UnsupportedModelError
from sottovoce.models.mapped import mapped
from sottovoce.models.weights import Array

_MAX_STRING = 1 << 24
_MAX_ENTRIES = 1 << 16
_SCALARS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class _Tensor:
    kind: int
    shape: tuple[int, ...]  # slowest dimension first, as NumPy counts
    offset: int
    size: int


class _Cursor:
    """Sequential reading of the header with a bound check at every step."""

    def __init__(self, data: np.ndarray, where: str) -> None:
        self.data: memoryview = data.data
        self.where, self.at = where, 0

    def take(self, count: int) -> memoryview:
        if count > len(self.data) - self.at:
            raise CorruptFileError(f"{self.where}: the file ends inside its header")
        self.at += count
        return self.data[self.at - count : self.at]

    def scalar(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def count(self, limit: int, what: str) -> int:
        value = int(self.scalar("<Q"))
        if value > limit:
            raise CorruptFileError(f"{self.where}: {what} of {value} exceeds {limit}")
        return value

    def string(self) -> str:
        raw = self.take(self.count(_MAX_STRING, "a string length"))
        try:
            return str(raw, "utf-8")
        except UnicodeDecodeError as error:
            raise CorruptFileError(f"{self.where}: a string in the header is not UTF-8") from error

    def value(self, kind: int, nested: bool = False) -> Any:
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind])
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY or nested:
            raise CorruptFileError(f"{self.where}: unknown metadata type {kind}")
        inner = int(self.scalar("<I"))
        # Every element takes at least a byte, so the file's size bounds the count.
        length = self.count(len(self.data), "an array length")
        if inner in _SCALARS:
            form = _SCALARS[inner]
            return np.frombuffer(self.take(length * struct.calcsize(form)), dtype=form).tolist()
        return [self.value(inner, nested=True) for _ in range(length)]


class GgufFile:
    """`metadata` by key; tensors by name, dequantised to float32 when they are read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._data = mapped(path)
        cursor = _Cursor(self._data, path.name)
        if bytes(cursor.take(4)) != b"GGUF":
            raise CorruptFileError(f"{path.name}: not a GGUF file (wrong magic)")
        version = cursor.scalar("<I")
        if version not in (2, 3):
            raise UnsupportedModelError(f"{path.name}: GGUF version {version}; supported: 2, 3")
        tensors = cursor.count(_MAX_ENTRIES, "a tensor count")
        entries = cursor.count(_MAX_ENTRIES, "a metadata count")
        self.metadata: dict[str, Any] = {}
        for _ in range(entries):
            key = cursor.string()
            self.metadata[key] = cursor.value(int(cursor.scalar("<I")))
        self._tensors = _tensor_table(cursor, tensors)
        alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 1 <= alignment <= 1 << 16:
            raise CorruptFileError(f"{path.name}: alignment {alignment!r}")
        self._start = -(-cursor.at // alignment) * alignment
        _check_layout(self._tensors, len(self._data) - self._start, alignment, path.name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def read(self, name: str) -> Array:
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        tensor = self._tensors[name]
        kind = GGMLQuantizationType(tensor.kind)
        begin = self._start + tensor.offset
        raw = np.asarray(self._data[begin : begin + tensor.size])
        if kind == GGMLQuantizationType.F32:
            return raw.view("<f4").astype(np.float32).reshape(tensor.shape)
        try:
            values = dequantize(raw.reshape(math.prod(tensor.shape[:-1]), -1), kind)
        except NotImplementedError as error:
            raise UnsupportedModelError(
                f"{self.path.name}: tensor {name} is quantised as {kind.name}, which cannot be read"
            ) from error
        return np.ascontiguousarray(values, dtype=np.float32).reshape(tensor.shape)


def _tensor_table(cursor: _Cursor, count: int) -> dict[str, _Tensor]:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    tensors: dict[str, _Tensor] = {}
    for _ in range(count):
        name = cursor.string()
        dimensions = int(cursor.scalar("<I"))
        if not 1 <= dimensions <= 4 or name in tensors:
            raise CorruptFileError(f"{cursor.where}: tensor {name[:80]!r} is malformed or appears twice")
        shape = tuple(cursor.count(1 << 40, "a dimension") for _ in range(dimensions))
        kind, offset = int(cursor.scalar("<I")), cursor.count(1 << 48, "an offset")
        try:
            block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        except (ValueError, KeyError) as error:
            raise UnsupportedModelError(
                f"{cursor.where}: tensor {name[:80]!r} has unknown quantisation {kind}"
            ) from error
        if 0 in shape or shape[0] % block:
            raise CorruptFileError(f"{cursor.where}: tensor {name[:80]!r} has shape {shape[::-1]}")
        tensors[name] = _Tensor(kind, shape[::-1], offset, math.prod(shape) // block * block_bytes)
    return tensors


def _check_layout(tensors: dict[str, _Tensor], size: int, alignment: int, where: str) -> None:
    position = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].offset):
        if tensor.offset % alignment or tensor.offset < position:
            raise CorruptFileError(f"{where}: tensor {name[:80]!r} is misaligned or overlaps another one")
        position = tensor.offset + tensor.size
        if position > size:
            raise CorruptFileError(
                f"{where}: tensor {name[:80]!r} ends {position - size} bytes behind the file"
            )
