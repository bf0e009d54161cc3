"""One-time items as they lie in a file: packed rows that can be read, and wiped, in part.

A batch file holds one record for each stream (a kind of item), its arrays one after the other, each value in
as many bits as the largest needs. Rows are grouped in *granules* so that a group begins at a byte: reading
and wiping touch whole granules only. Where everything lies is said by the pool's ledger, not by the file.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sottovoce.correlations.stock import Arrays
from sottovoce.errors import CorruptFileError, ParameterError
from sottovoce.net.codec import pack_bits, unpack_bits

GRANULE = 8
_ZEROS = bytes(1 << 20)


@dataclass(frozen=True)
class Record:
    """Items of one stream: arrays with a common leading axis, and constants that belong to all rows.

    The two parties' arrays may differ in number, type and shape, never in the number of rows or in `granule`:
    how many rows are handed out together (every count is a multiple of it). A record with rows of whole bytes
    may have any granule, others need 8.
    """

    arrays: Arrays
    constants: Arrays = ()
    granule: int = GRANULE
    offset: int = 0  # the number of its first row in the batch that was stored; set when taken

    def __post_init__(self) -> None:
        if not self.arrays or len({len(array) for array in self.arrays}) != 1:
            raise ParameterError("a record needs arrays with as many rows each")
        if self.granule < 1 or len(self) % self.granule:
            raise ParameterError(f"{len(self)} rows are no multiple of the granule {self.granule}")

    def __len__(self) -> int:
        return len(self.arrays[0])


@dataclass(frozen=True)
class Column:
    """Where an array lies: `at` bytes into the file, `unit` bytes for each granule, `width` bits a value."""

    dtype: str
    shape: tuple[int, ...]  # of one row; of the whole array for constants (unit = its size)
    width: int
    at: int
    unit: int


@dataclass(frozen=True)
class Layout:
    """Where a record lies. Rows are numbered in the stream: this one holds [first, first + count)."""

    first: int
    count: int
    granule: int
    columns: tuple[Column, ...]
    constants: tuple[Column, ...]

    @property
    def end(self) -> int:
        return self.first + self.count

    def to_json(self) -> list[Any]:
        def plain(columns: tuple[Column, ...]) -> list[list[Any]]:
            return [[c.dtype, list(c.shape), c.width, c.at, c.unit] for c in columns]

        return [self.first, self.count, self.granule, plain(self.columns), plain(self.constants)]

    @classmethod
    def from_json(cls, data: list[Any]) -> "Layout":
        def columns(rows: list[list[Any]]) -> tuple[Column, ...]:
            return tuple(Column(dtype, tuple(shape), w, at, unit) for dtype, shape, w, at, unit in rows)

        first, count, granule, arrays, constants = data
        return cls(first, count, granule, columns(arrays), columns(constants))


def write_records(
    file: int, records: Mapping[str, Record], firsts: Mapping[str, int]
) -> tuple[dict[str, Layout], int]:
    """Write a batch to an empty file; returns (layout of every stream, bytes written). Not synchronised."""
    layouts, at = {}, 0
    for name, record in records.items():
        columns, constants = [], []
        for array in record.arrays:
            column, data = _packed(array, record.granule, at)
            at += _write(file, data)
            columns.append(column)
        for array in record.constants:
            data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            constants.append(Column(array.dtype.str, array.shape, 8, at, data.size))
            at += _write(file, data)
        layouts[name] = Layout(
            firsts.get(name, 0), len(record), record.granule, tuple(columns), tuple(constants)
        )
    return layouts, at


def read_rows(file: int, layout: Layout, start: int, stop: int) -> Record:
    """Rows [start, stop) of a record, counted from its own beginning; whole granules."""
    arrays = tuple(_read_column(file, column, layout.granule, start, stop) for column in layout.columns)
    constants = tuple(
        _read(file, c.at, c.unit).view(np.dtype(c.dtype)).reshape(c.shape) for c in layout.constants
    )
    return Record(arrays, constants, layout.granule, start)


def wipe_rows(file: int, layout: Layout, start: int, stop: int) -> None:
    """Overwrite rows [start, stop) with zeros, the constants too once the last row has gone."""
    for column in layout.columns:
        begin = column.at + start // layout.granule * column.unit
        _zero(file, begin, (stop - start) // layout.granule * column.unit)
    if stop == layout.count:
        for column in layout.constants:
            _zero(file, column.at, column.unit)


def _packed(array: npt.NDArray[Any], granule: int, at: int) -> tuple[Column, npt.NDArray[np.uint8]]:
    """Unsigned integers as dense bits; everything else as the bytes of its rows."""
    dtype, row = array.dtype.str, array.shape[1:]
    values, width = int(np.prod(row, dtype=np.int64)) * array.itemsize, 8
    if array.dtype.kind == "u":
        values //= array.itemsize
        width = max(1, int(array.max()).bit_length()) if array.size else 1
        while granule * values * width % 8:
            width += 1
    if width == 8 * array.itemsize or array.dtype.kind != "u":
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    else:
        data = pack_bits(array, width)
    return Column(dtype, row, width, at, granule * values * width // 8), data


def _read_column(file: int, column: Column, granule: int, start: int, stop: int) -> npt.NDArray[Any]:
    units = (stop - start) // granule
    raw = _read(file, column.at + start // granule * column.unit, units * column.unit)
    dtype = np.dtype(column.dtype)
    if dtype.kind != "u" or column.width == 8 * dtype.itemsize:
        return raw.view(dtype).reshape(stop - start, *column.shape)
    values = (stop - start) * int(np.prod(column.shape, dtype=np.int64))
    return unpack_bits(raw, values, column.width).astype(dtype, copy=False).reshape(-1, *column.shape)


def _read(file: int, at: int, size: int) -> npt.NDArray[np.uint8]:
    out = np.empty(size, np.uint8)
    done = 0
    while done < size:
        n = os.preadv(file, [out[done:].data], at + done)
        if not n:
            raise CorruptFileError(
                "a file of the correlation pool is shorter than its ledger says; reset the pool with"
                " `sottovoce prepare SERVER --reset`"
            )
        done += n
    return out


def _write(file: int, data: npt.NDArray[np.uint8]) -> int:
    view = data.data
    while view:
        view = view[os.write(file, view) :]
    return data.size


def _zero(file: int, at: int, size: int) -> None:
    while size > 0:
        n = os.pwrite(file, _ZEROS[:size], at)
        at, size = at + n, size - n
