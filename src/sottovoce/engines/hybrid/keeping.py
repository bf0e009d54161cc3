"""A session's cache on disk and back: what each party saves of it, and how both go on from there.

`ciphertext`: the server saves blocks of ciphertexts, which it cannot read; the client needs its secret key
and hears the slot table from the server. `masked`: both save their shares of keys and values. The masks of
the old connection are never used again: the restored tokens get slots, and masks, like new ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np

from sottovoce.engines.base import Piece, Pieces
from sottovoce.engines.decoder import Cache
from sottovoce.errors import CorruptFileError, UsageError
from sottovoce.kvcache import CiphertextCache, MaskedCache, NoCache
from sottovoce.kvcache.saved import adopt_blocks, changed_blocks, joined_rows, mark_saved, rows_name
from sottovoce.kvcache.store import Store
from sottovoce.net import Channel, Role
from sottovoce.ring.primes import P_FIELD

_MAX_TABLE = 1 << 22


class Keeper:
    """Saves and restores the caches of one party."""

    def __init__(self, channel: Channel, caches: Sequence[Cache]) -> None:
        self._channel, self._caches = channel, caches

    @property
    def keeps(self) -> bool:
        """Whether there is a cache to keep."""
        return not isinstance(self._caches[0], NoCache)

    def changed(self, first: int) -> dict[str, Piece]:
        """Since tokens [0, first) were saved."""
        if isinstance(self._caches[0], MaskedCache):
            caches = cast(Sequence[MaskedCache], self._caches)
            shares = [cache.shares(first) for cache in caches]
            rows = {name: np.stack([pair[i] for pair in shares]) for i, name in enumerate("kv")}
            return {rows_name(first): rows}
        if self._channel.role is Role.CLIENT:
            return {}
        return changed_blocks(self._stores(), self._ciphertext()[0].table_bytes())

    def saved(self) -> None:
        """What `changed` returned is safe."""
        if not isinstance(self._caches[0], MaskedCache):
            mark_saved(self._stores())

    def restore(self, pieces: Pieces, length: int) -> None:
        """Into empty caches. Cost: `masked` none; `ciphertext` one message, the slot table."""
        if not self.keeps:
            raise UsageError("a session without a cache has nothing to go on from")
        if isinstance(self._caches[0], MaskedCache):
            self._restore_shares(pieces, length)
        elif self._channel.role is Role.CLIENT:
            table = bytes(self._channel.recv_message(_MAX_TABLE))
            for cache in self._ciphertext():
                cache.adopt_table(table, length)
        else:
            self._restore_blocks(dict(pieces), pieces, length)

    def _restore_shares(self, pieces: Pieces, length: int) -> None:
        caches = cast(Sequence[MaskedCache], self._caches)
        shape = caches[0].shape
        empty = np.zeros((shape.layers, 0, shape.kv_heads, shape.head_dim), np.uint64)
        rows = joined_rows(pieces, length, {"k": empty, "v": empty})
        if any((part >= P_FIELD).any() for part in rows.values()):
            raise CorruptFileError("a saved session holds a number outside the field")
        for cache, k, v in zip(caches, rows["k"], rows["v"], strict=True):
            # Slots like those of public tokens, which ask nothing; opened with the next query.
            cache.source.append(cache.layer, length, queries=False)
            cache.remask(k, v)

    def _restore_blocks(self, latest: dict[str, Piece], pieces: Pieces, length: int) -> None:
        caches = self._ciphertext()
        table = latest.get("table", {}).get("table")
        if table is None or table.dtype != np.uint8:
            raise CorruptFileError("a saved session has no slot table")
        data = table.tobytes()
        for cache in caches:
            cache.adopt_table(data, length)
        adopt_blocks(pieces, caches[0].layout.blocks(caches[0].table.used), self._stores())
        self._channel.send(data)

    def _ciphertext(self) -> Sequence[CiphertextCache]:
        return cast(Sequence[CiphertextCache], self._caches)

    def _stores(self) -> list[tuple[Store, Store]]:
        return [cache.stores for cache in self._ciphertext()]
