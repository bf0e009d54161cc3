"""How a model lies in n slots: padded widths, heads, and the five kinds of matrices."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from sottovoce.errors import UnsupportedModelError
from sottovoce.models.config import Config
from sottovoce.packing.slots import Blocks, Heads, Interleaved, power_of_two


@dataclass(frozen=True)
class Shape:
    """The public layout of a model. n: slots in use; tokens: the longest context of a session.

    split: residues into which blocks of scores are cut (`Blocks`), public tokens apart from private ones. 0:
    there are no blocks for public tokens; up to heads.t tokens, all share one group.
    """

    config: Config
    n: int
    tokens: int
    split: int = 0

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
    def shared(self) -> bool:
        """Public tokens stand in the one group of private ones."""
        return not self.split and self.groups == 1

    @property
    def groups(self) -> int:
        """Of t tokens, when the context is full."""
        return -(-self.tokens // self.heads.t)

    def blocks(self, public: int = 0) -> Blocks:
        """Blocks of the scores behind so many public tokens."""
        if not self.split:
            return Blocks(self.heads, power_of_two(self.groups))
        return Blocks(self.heads, self.split, -(-public // self.heads.t))

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


def session_shape(config: Config, n: int) -> Shape:
    """What a session offers in n slots: as many tokens as fit a ciphertext of scores. One group of keys is
    shared by all tokens; several are cut so that any number of tokens may be public."""
    heads = Shape(config, n, 1).heads
    tokens = min(heads.capacity, config.context_length)
    return Shape(config, n, tokens, heads.dim if tokens > heads.t else 0)


# Residues at least: a score stands in d_h/C blocks, and the fewer, the larger a refresh may take rows.
_CLASSES = 8


def classes_for(heads: Heads, public: int, private: int) -> int:
    """The fewest residues (`Blocks`) with room for so many groups of private tokens, and for the public ones
    in the same ciphertext of scores if both fit one; `_CLASSES` at least. UnsupportedModelError if the
    private ones do not fit."""
    if private > heads.dim:
        raise UnsupportedModelError(
            f"{private * heads.t} private tokens do not fit the {heads.capacity} positions of one score "
            "ciphertext; ask for fewer"
        )
    classes = max(power_of_two(private), min(_CLASSES, heads.dim))
    if public + private > heads.dim:
        return classes
    while Blocks(heads, classes, public).private < private or Blocks(heads, classes, public).ciphertexts > 1:
        classes *= 2
    return classes
