"""No cache: keys and values live for one forward pass. The baseline that recomputes everything for every
token."""

from __future__ import annotations

from sottovoce.kvcache.ciphertext import CiphertextCache
from sottovoce.kvcache.interface import Signed, Words
from sottovoce.packing import Side


class NoCache(CiphertextCache):
    """Every `append` is the whole private context: what was there before is gone, public tokens are put back.

    The products within one pass are the encrypted ones.
    """

    def __init__(
        self, side: Side, heads: int, kv_heads: int, head_dim: int, groups: int | None = None
    ) -> None:
        super().__init__(side, heads, kv_heads, head_dim, groups)
        self._public: list[tuple[int, Signed | None, Signed | None]] = []

    def append_public(self, count: int, k: Signed | None, v: Signed | None) -> None:
        super().append_public(count, k, v)
        self._public.append((count, k, v))

    def append(self, k: Words, v: Words) -> None:
        self._restart()
        for count, public_k, public_v in self._public:
            super().append_public(count, public_k, public_v)
        super().append(k, v)
