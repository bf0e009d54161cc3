"""The part of a saved cache that both parties have: which layout, which token in which slot."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import replace

import numpy as np

from sottovoce.errors import CorruptFileError, ParameterError, VersionMismatchError
from sottovoce.kvcache.layout import CacheLayout
from sottovoce.kvcache.slots import SlotTable
from sottovoce.net import Role

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
