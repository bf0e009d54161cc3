"""How a model lies in n slots: padded widths, heads, and the five kinds of matrices."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from sottovoce.models.config import Config
from sottovoce.packing.slots import Heads, Interleaved, power_of_two


@dataclass(frozen=True)
class Shape:
    """The public layout of a model. n: slots in use; tokens: the longest context of a session.

    With tokens ≤ heads.t keys and values of a layer are one ciphertext each (`single`).
    """

    config: Config
    n: int
    tokens: int

    @property
    def width(self) -> int:
        return power_of_two(self.config.width)

    @property
    def ffn(self) -> int:
        return power_of_two(self.config.ffn_width)

    @property
    def vocabulary(self) -> int:
        """Logits, or one-hot entries, in one ciphertext."""
        return min(self.n, power_of_two(self.config.vocab_size))

    @property
    def vocabulary_blocks(self) -> int:
        return -(-self.config.vocab_size // self.vocabulary)

    @cached_property
    def heads(self) -> Heads:
        c = self.config
        return Heads(self.n, c.heads, c.kv_heads, c.head_dim)

    @property
    def single(self) -> bool:
        return self.tokens <= self.heads.t

    @property
    def groups(self) -> int:
        """Ciphertexts of keys in a layer, when the context is full."""
        return -(-self.tokens // self.heads.t)

    @property
    def embed(self) -> Interleaved:
        return Interleaved(self.n, self.vocabulary, self.width)

    @property
    def qkv(self) -> Interleaved:
        return Interleaved(self.n, self.width, self.heads.width)

    @property
    def out(self) -> Interleaved:
        return Interleaved(self.n, self.heads.width, self.width)

    @property
    def up(self) -> Interleaved:
        return Interleaved(self.n, self.width, self.ffn)

    @property
    def down(self) -> Interleaved:
        return Interleaved(self.n, self.ffn, self.width)

    @property
    def head(self) -> Interleaved:
        return Interleaved(self.n, self.width, self.vocabulary)

    def plaintexts(self) -> Iterator[tuple[str, int]]:
        """Names of a layer's matrices and how many plaintexts each takes; then embedding and head."""
        qkv = self.qkv.count
        yield "qk", qkv
        yield "v", qkv
        yield "o", self.out.count
        yield "gate_up" if self.config.gated else "up", self.up.count
        yield "down", self.down.count


def slots_for(config: Config, most: int) -> int:
    """n for a model: d² where it is smaller than `most` (then a matrix d × d is one plaintext and refreshes
    are cheap), but at least the vocabulary's and the MLP's width."""
    width = power_of_two(config.width)
    return min(most, max(width * width, power_of_two(config.ffn_width), power_of_two(config.vocab_size)))
