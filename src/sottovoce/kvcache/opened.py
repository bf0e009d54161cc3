"""Opened keys and values of live tokens beside this party's masks, laid out as operands of products."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sottovoce.mpc.field import add
from sottovoce.ring.primes import P_FIELD

Words = npt.NDArray[np.uint64]

_GROWTH = 64


class OpenedTokens:
    """A stack of tokens: appended at the end, cut off at the end.

    keys: (kv_heads, 2·head_dim, capacity), column j is [k̂_j; b_j]. values: (kv_heads, 2·capacity, head_dim),
    rows 2j and 2j + 1 are v̂_j and d_j. At the party that adds the public terms q̂·k̂ and p̂·v̂ the masks stand
    with k̂ and v̂ added. 4·head_dim·kv_heads words a token.
    """

    def __init__(self, kv_heads: int, head_dim: int, adds_public: bool) -> None:
        self._adds_public = adds_public
        self._count = 0
        self._keys: Words = np.zeros((kv_heads, 2 * head_dim, 0), np.uint64)
        self._values: Words = np.zeros((kv_heads, 0, head_dim), np.uint64)

    def __len__(self) -> int:
        return self._count

    def append(self, k: Words, v: Words, key_masks: Words, value_masks: Words) -> None:
        """k̂, v̂ and the shares of b, d: (t, kv_heads, head_dim) each."""
        first, last = self._count, self._count + len(k)
        self._grow(last)
        self._count = last
        if self._adds_public:
            key_masks, value_masks = add(key_masks, k, P_FIELD), add(value_masks, v, P_FIELD)
        self._keys[:, :, first:last] = np.concatenate([k, key_masks], axis=2).transpose(1, 2, 0)
        both = np.stack([v, value_masks], axis=1).reshape(-1, *v.shape[1:])
        self._values[:, 2 * first : 2 * last] = both.swapaxes(0, 1)

    def truncate(self, length: int) -> None:
        """Keep the first `length` tokens, if there are more."""
        self._count = min(self._count, length)

    def key_columns(self, count: int) -> Words:
        """(kv_heads, 2·head_dim, count): of the first tokens."""
        assert count <= self._count, "keys are opened before they are looked at"
        return self._keys[:, :, :count]

    def value_rows(self, count: int) -> Words:
        """(kv_heads, 2·count, head_dim): of the first tokens."""
        assert count <= self._count, "values are opened before they are looked at"
        return self._values[:, : 2 * count]

    def opened(self) -> tuple[Words, Words]:
        """k̂ and v̂: (n, kv_heads, head_dim) each."""
        dim = self._values.shape[2]
        keys = self._keys[:, :dim, : self._count].transpose(2, 0, 1)
        return keys, self._values[:, : 2 * self._count : 2].swapaxes(0, 1)

    def shares(self, first: int = 0) -> tuple[Words, Words]:
        """This party's shares of the keys and values themselves, from token `first` on: (t, kv_heads,
        head_dim) each."""
        # A mask's share, with k̂ at one of the parties, is just that.
        dim = self._values.shape[2]
        keys = self._keys[:, dim:, first : self._count].transpose(2, 0, 1)
        return keys, self._values[:, 2 * first + 1 : 2 * self._count : 2].swapaxes(0, 1)

    def _grow(self, tokens: int) -> None:
        heads, width, capacity = self._keys.shape
        if tokens > capacity:
            more = max(_GROWTH, capacity // 2, tokens - capacity)
            self._keys = np.concatenate([self._keys, np.zeros((heads, width, more), np.uint64)], axis=2)
            rows = np.zeros((heads, 2 * more, width // 2), np.uint64)
            self._values = np.concatenate([self._values, rows], axis=1)
