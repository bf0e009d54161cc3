"""Filling a pool: both parties make the same items, store their halves, and count what both have stored."""

import hashlib
import json
from collections.abc import Mapping

import numpy as np

from sottovoce.correlations.pool import Pool
from sottovoce.correlations.records import GRANULE, Record
from sottovoce.correlations.stock import Arrays
from sottovoce.correlations.stocked import Kind, StockedSource
from sottovoce.errors import ParameterError, PoolFullError, ProtocolError, StorageError
from sottovoce.net import Channel
from sottovoce.ot import FoldedPads

_OK, _FULL = b"\x00", b"\x01"
_DIGEST = 32


def stream_of(key: Kind) -> str:
    """The pool's name of a kind of item, the same at both parties."""
    return json.dumps(key, separators=(",", ":"))


def make_records(source: StockedSource, demand: Mapping[Kind, int]) -> dict[str, Record]:
    """At least so many items of each kind, made now. Cost: as the source makes them, the OT indices in one
    exchange."""
    rounded = {key: -(-n // GRANULE) * GRANULE for key, n in demand.items() if n > 0}
    source.reserve(rounded)
    return {stream_of(key): to_record(source.make(key, n)) for key, n in rounded.items()}


def to_record(items: Arrays | FoldedPads) -> Record:
    """Items as they are stored; a few that fill no granule are thrown away."""
    n = len(items) if isinstance(items, FoldedPads) else len(items[0])
    n -= n % GRANULE
    if isinstance(items, FoldedPads):
        # Finished transfers of one batch. Their Δ serves no other: it is never extended from the disk, and
        # is wiped with the last row.
        constants = (items.delta, items.hash_key, np.array([items.first], np.uint64))
        return Record((items.rows[:n],), constants)
    return Record(tuple(array[:n] for array in items))


def from_record(key: Kind, record: Record) -> Arrays | FoldedPads:
    """The inverse of `to_record`, for rows from anywhere in the batch."""
    if not record.constants:
        return record.arrays
    _, _, m_bits, words = key
    delta, hash_key, first = record.constants
    return FoldedPads(record.arrays[0], delta, hash_key, int(first[0]) + record.offset, m_bits, words)


def store(channel: Channel, pool: Pool, records: Mapping[str, Record]) -> None:
    """Store a batch at both parties, or at none. Cost: one exchange of 33 bytes.

    PoolFullError if it exceeds the limit of either pool, or a disk is full. If a party is killed in between,
    the other one drops the batch when they meet again.
    """
    if not records:
        raise ParameterError("an empty batch was to be stored")
    shape = {name: (len(record), record.granule) for name, record in records.items()}
    digest = hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).digest()
    full: str | None = None
    try:
        staged = pool.stage(records)
    except StorageError as error:
        staged, full = None, str(error)
    answer = bytes(channel.exchange((_FULL if staged is None else _OK) + digest, 1 + _DIGEST))
    if staged is None or answer[:1] != _OK:
        if staged is not None:
            pool.discard(staged)
        if full is not None:
            raise PoolFullError(full)
        whose = "this machine" if staged is None else "the other side"
        raise PoolFullError(
            f"the correlation pool of {whose} is full ({pool.size / 1e6:.0f} MB here, limit"
            f" {pool.limit / 1e6:.0f} MB); use prepared tokens first, prepare fewer, or raise --pool-limit"
        )
    if answer[1:] != digest:
        pool.discard(staged)
        raise ProtocolError("the two parties prepared different items; install the same release on both")
    pool.commit(staged)
