"""Where keys, values, queries and probabilities lie in the slots of an encrypted cache.

A *block* holds T tokens. Its slots are (query head h, token m, dimension j): index (h T + m) J + j, with
H T J <= N. The head dimension d is cut into G groups of J = d / G, each in a ciphertext of its own, so that
all heads of T tokens fit one ciphertext of scores. Keys and values are repeated for every query head that
uses them (grouped-query attention needs no further case).

A score is the sum over j of slotwise products, mixing is a sum over m; both sums happen in the shares after
decryption, so no ciphertext is ever folded by rotation. More groups mean more tokens in a block: fewer
ciphertexts of scores and probabilities, more of queries and of appended keys.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sottovoce.errors import ParameterError
from sottovoce.mpc.field import total

Words = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class CacheLayout:
    """heads H, kv_heads, head_dim d of the model; degree N; groups G."""

    heads: int
    kv_heads: int
    head_dim: int
    degree: int = 8192
    groups: int = 2

    def __post_init__(self) -> None:
        if self.heads < 1 or self.kv_heads < 1 or self.heads % self.kv_heads:
            raise ParameterError(f"cache: {self.heads} query heads do not share {self.kv_heads} keys")
        if self.groups < 1 or self.head_dim % self.groups:
            raise ParameterError(f"cache: a head of {self.head_dim} has no {self.groups} equal groups")
        if self.block_tokens < 1:
            raise ParameterError(
                f"cache: one token of {self.heads} x {self.group_dim} exceeds {self.degree} slots"
            )

    @property
    def group_dim(self) -> int:
        """J, dimensions of a head in one ciphertext."""
        return self.head_dim // self.groups

    @property
    def block_tokens(self) -> int:
        """T, tokens in one block."""
        return self.degree // (self.heads * self.group_dim)

    def blocks(self, tokens: int) -> int:
        """Blocks that hold this many token slots."""
        return -(-tokens // self.block_tokens)

    def keys(self, k: Words, slots: npt.NDArray[np.int64]) -> Words:
        """k (t, kv_heads, d) of the tokens at `slots` (t,) of one block -> (G, N), zero elsewhere. Values
        too."""
        out = self._empty()
        repeated = np.repeat(k, self.heads // self.kv_heads, axis=1)
        out[:, :, slots, :] = self._grouped(repeated).transpose(2, 1, 0, 3)
        return self._padded(out)

    def gather(self, blocks: Words, slots: npt.NDArray[np.int64]) -> Words:
        """The inverse of `keys`: blocks (B, G, N) and token slots (t,) across them -> (t, kv_heads, d)."""
        cells = self._unpadded(blocks)[:, :, :: self.heads // self.kv_heads]  # (B, G, kv_heads, T, J)
        tokens = cells.transpose(0, 3, 2, 1, 4).reshape(-1, self.kv_heads, self.head_dim)
        chosen: Words = tokens[slots]
        return chosen

    def query(self, q: Words) -> Words:
        """q (H, d) -> (G, N), the same for every token of a block."""
        out = self._empty()
        out[:] = self._grouped(q[None])[0].transpose(1, 0, 2)[:, :, None, :]
        return self._padded(out)

    def probabilities(self, p: Words) -> Words:
        """p (H, T) of one block -> (N,), the same for every dimension. It serves every group."""
        out = np.empty((self.heads, self.block_tokens, self.group_dim), dtype=np.uint64)
        out[:] = p[:, :, None]
        padded: Words = self._padded(out[None])[0]
        return padded

    def scores(self, products: Words, modulus: int) -> Words:
        """Slots (..., N) of one block's products, summed over groups -> (..., H, T): sums over dimensions."""
        return total(self._unpadded(products), -1, modulus)

    def mixed(self, products: Words, modulus: int) -> Words:
        """Slots (..., G, N) of products of values and probabilities -> (..., H, d): sums over tokens."""
        sums = total(self._unpadded(products), -2, modulus)  # (..., G, H, J)
        return np.moveaxis(sums, -3, -2).reshape(*sums.shape[:-3], self.heads, self.head_dim)

    def _grouped(self, x: Words) -> Words:
        """(t, H, d) -> (t, H, G, J)."""
        return x.reshape(len(x), self.heads, self.groups, self.group_dim)

    def _empty(self) -> Words:
        return np.zeros((self.groups, self.heads, self.block_tokens, self.group_dim), dtype=np.uint64)

    def _padded(self, x: Words) -> Words:
        out = np.zeros((len(x), self.degree), dtype=np.uint64)
        out[:, : x[0].size] = x.reshape(len(x), -1)
        return out

    def _unpadded(self, slots: Words) -> Words:
        """(..., N) -> (..., H, T, J)."""
        shape = (self.heads, self.block_tokens, self.group_dim)
        used = slots[..., : self.heads * self.block_tokens * self.group_dim]
        return used.reshape(*slots.shape[:-1], *shape)


def best_groups(heads: int, head_dim: int, degree: int, tokens: int) -> int:
    """The number of groups with the fewest ciphertexts per token at a context of `tokens`."""
    choices = [g for g in range(1, head_dim + 1) if head_dim % g == 0 and heads * (head_dim // g) <= degree]
    if not choices:
        raise ParameterError(f"cache: one dimension of {heads} heads exceeds {degree} slots")
    return min(choices, key=lambda groups: token_ciphertexts(heads, head_dim, degree, groups, tokens))


def token_ciphertexts(heads: int, head_dim: int, degree: int, groups: int, tokens: int) -> int:
    """Ciphertexts that a token sends and gets back; both kinds are about equally large.

    Up: G of its query, 2 G of its key and value, one of probabilities for each block. Down: one of scores
    for each block and G of mixed values.
    """
    per_block = degree // (heads * (head_dim // groups))
    return 4 * groups + 2 * -(-tokens // per_block)
