"""Saved caches: the slot table that both parties have, rows of tokens, blocks of ciphertexts.

While a session goes on, its state is saved in *pieces*, named arrays. `tokens.N` holds rows of the tokens
from N on and cuts off what earlier pieces said about these; `block.N` holds a block of ciphertexts of all
layers and replaces the one that was saved before.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from sottovoce.errors import CorruptFileError, ParameterError, VersionMismatchError
from sottovoce.kvcache.layout import CacheLayout
from sottovoce.kvcache.slots import SlotTable
from sottovoce.kvcache.store import Store
from sottovoce.net import Role

Array = npt.NDArray[Any]
Piece = Mapping[str, Array]

_TOKENS, _BLOCK = "tokens.", "block."


def rows_name(first: int) -> str:
    """The name of rows from token `first` on."""
    return f"{_TOKENS}{first}"


def joined_rows(
    pieces: Sequence[tuple[str, Piece]], length: int, like: Mapping[str, Array]
) -> dict[str, Array]:
    """The rows of the first `length` tokens, from pieces in the order in which they were saved.

    like: for each array its type and shape with no token, (layers, 0, …). CorruptFileError if tokens are
    missing or of another kind.
    """
    parts: list[tuple[int, int, Piece]] = []  # first token, last + 1, rows
    end = 0
    for name, piece in pieces:
        if not name.startswith(_TOKENS):
            continue
        number = name.removeprefix(_TOKENS)
        first = int(number) if number.isdecimal() else end + 1
        if first > end or set(piece) != set(like) or any(not _fits(piece[k], like[k]) for k in like):
            raise CorruptFileError("a saved session holds rows of another kind, or not all of them")
        counts = {piece[k].shape[1] for k in like}
        if len(counts) != 1:
            raise CorruptFileError("a saved session holds rows of another kind, or not all of them")
        parts = [(a, min(b, first), rows) for a, b, rows in parts if a < first]
        end = first + counts.pop()
        parts.append((first, end, piece))
    if length > end:
        raise CorruptFileError("a saved session does not have all the tokens that it announces")
    return {
        k: np.concatenate([empty, *(rows[k][:, : b - a] for a, b, rows in parts)], axis=1)[:, :length]
        for k, empty in like.items()
    }


def _fits(rows: Array, empty: Array) -> bool:
    same = rows.ndim == empty.ndim and rows.shape[0] == empty.shape[0] and rows.shape[2:] == empty.shape[2:]
    return same and rows.dtype == empty.dtype


def changed_blocks(stores: Sequence[tuple[Store, Store]], table: bytes) -> dict[str, dict[str, Array]]:
    """Pieces for the blocks that were added to since the last `mark_saved`; (keys, values) of every layer."""
    pieces: dict[str, dict[str, Array]] = {"table": {"table": np.frombuffer(table, np.uint8)}}
    for block in sorted(stores[0][0].changed) if stores else ():
        pieces[f"{_BLOCK}{block}"] = {
            "data": np.stack([np.stack([store.data[block] for store in pair]) for pair in stores]),
            "noise": np.array([[store.noise[block] for store in pair] for pair in stores]),
        }
    return pieces


def mark_saved(stores: Sequence[tuple[Store, Store]]) -> None:
    """What `changed_blocks` returned is safe."""
    for pair in stores:
        for store in pair:
            store.changed.clear()


def adopt_blocks(
    pieces: Sequence[tuple[str, Piece]], blocks: int, stores: Sequence[tuple[Store, Store]]
) -> None:
    """Fill empty stores with the first `blocks` saved blocks. CorruptFileError if they are not all there."""
    latest = dict(pieces)
    found = [latest.get(f"{_BLOCK}{block}") for block in range(blocks)]
    for piece in found:
        if piece is None or set(piece) != {"data", "noise"} or piece["noise"].shape != (len(stores), 2):
            raise CorruptFileError("a saved session does not have all the blocks that it announces")
        if piece["data"].shape[:2] != (len(stores), 2) or not np.isfinite(piece["noise"]).all():
            raise CorruptFileError("a saved session holds blocks of another kind")
    for layer, pair in enumerate(stores):
        for half, store in enumerate(pair):
            data = [piece["data"][layer, half] for piece in found if piece is not None]
            if any(part.shape != store._shape(1)[1:] for part in data):
                raise CorruptFileError("a saved session holds blocks of another kind")
            bits = [float(piece["noise"][layer, half]) for piece in found if piece is not None]
            store.adopt(np.stack(data) if data else store.data, bits)


# Magic, version, role, heads, key-value heads, head dimension, groups, slots used, live tokens; then 8
# bytes of BLAKE2b over the slots of the live tokens (u32 each) and all of the header before it.
_HEADER = struct.Struct("<4sBBHHHIII8s")
_MAGIC, _VERSION = b"SVKV", 1


def pack_table(layout: CacheLayout, table: SlotTable, role: Role) -> bytes:
    """Header and slot table."""
    live = table.live.astype("<u4").tobytes()
    shape = (layout.heads, layout.kv_heads, layout.head_dim, layout.groups)
    fields = (_MAGIC, _VERSION, int(role), *shape, table.used, len(table))
    return _HEADER.pack(*fields, _checksum(fields, live)) + live


def unpack_table(
    data: bytes, layout: CacheLayout, adaptive: bool, role: Role
) -> tuple[CacheLayout, SlotTable, bytes]:
    """Layout, slot table and the bytes after them. CorruptFileError, or VersionMismatchError for another
    format.

    layout: what the model needs; its groups may differ from the saved ones if `adaptive`.
    """
    if len(data) < _HEADER.size:
        raise CorruptFileError("a saved cache is truncated")
    *fields, checksum = _HEADER.unpack_from(data)
    magic, version, saved_role, heads, kv_heads, head_dim, groups, used, count = fields
    rest = data[_HEADER.size :]
    if magic != _MAGIC:
        raise CorruptFileError("these bytes are not a saved cache")
    if version != _VERSION:
        raise VersionMismatchError(f"a cache saved in format {version}; this version reads {_VERSION}")
    if len(rest) < 4 * count:
        raise CorruptFileError("a saved cache is truncated")
    if checksum != _checksum(tuple(fields), rest[: 4 * count]):
        raise CorruptFileError("the checksum of a saved cache does not match its content")
    if saved_role != int(role):
        raise CorruptFileError("this cache was saved by the other party")
    if (heads, kv_heads, head_dim) != (layout.heads, layout.kv_heads, layout.head_dim):
        raise CorruptFileError("this cache was saved for another model")
    if not adaptive and groups != layout.groups:
        raise CorruptFileError("this cache was saved in another layout")
    try:
        layout = replace(layout, groups=groups)
    except ParameterError as error:
        raise CorruptFileError("a saved cache has an impossible layout") from error
    live = np.frombuffer(rest[: 4 * count], "<u4").astype(np.int64)
    if count and (int(live[-1]) >= used or (np.diff(live) <= 0).any()):
        raise CorruptFileError("a saved cache has impossible token slots")
    return layout, SlotTable(used, live), rest[4 * count :]


def _checksum(fields: tuple[object, ...], live: bytes) -> bytes:
    head = _HEADER.pack(*fields, bytes(8))
    return hashlib.blake2b(head + live, digest_size=8).digest()
