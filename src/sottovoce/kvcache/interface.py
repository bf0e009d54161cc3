"""What every strategy of the key-value cache offers: one instance per layer, session and party, used in
lockstep."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]
Signed = npt.NDArray[np.int64]


class KVCache(ABC):
    """Keys and values of one layer, and the two products of attention with them.

    All arrays are this party's shares mod p. k, v at 2^-12, q at 2^-12, p at 2^-14; products are exact
    integers mod p, not rescaled. `n` is the number of live tokens, in the order in which they were
    appended.
    """

    @abstractmethod
    def __len__(self) -> int:
        """n: live tokens."""

    @abstractmethod
    def append_public(self, count: int, k: Signed | None, v: Signed | None) -> None:
        """Append tokens whose keys and values only the server knows: (count, kv_heads, d) integers, None at
        the client.

        No message. The client learns nothing about them.
        """

    @abstractmethod
    def append(self, k: Words, v: Words) -> None:
        """Append t tokens: k, v (t, kv_heads, d)."""

    @abstractmethod
    def scores(self, q: Words) -> Words:
        """q: (t, heads, d) of the last t tokens -> (t, heads, n), q·k; zero where a token must not look
        ahead.

        Row i sees the first n - t + i + 1 tokens; pairs beyond are never computed.
        """

    @abstractmethod
    def mix(self, p: Words) -> Words:
        """p: (t, heads, n) of the last t tokens, as `scores` returns them -> (t, heads, d), the sum of p·v.

        What stands in p beyond a row's last visible token is ignored.
        """

    @abstractmethod
    def truncate(self, length: int) -> None:
        """Forget all tokens from number `length` on. No message."""

    @abstractmethod
    def refresh(self) -> None:
        """Make the stored form as good as new: drop forgotten tokens, remove accumulated noise."""

    @abstractmethod
    def save(self) -> bytes:
        """This party's state, to be stored with its keys and given back to `load` of both parties
        together."""

    @abstractmethod
    def load(self, data: bytes) -> None:
        """Replace the state by a saved one. CorruptFileError or a refusal if the bytes do not fit this
        cache."""


def visible(total: int, queries: int) -> list[int]:
    """How many of `total` live tokens each of the last `queries` tokens sees, itself included."""
    return [total - queries + i + 1 for i in range(queries)]
