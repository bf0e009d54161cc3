"""Which block of a score ciphertext belongs to which tokens: public ones beside private ones.

A score ciphertext has d_h blocks of tH slots, each the scores of one group of t tokens. Blocks are cut into
`classes` residues C (a power of two): the scores of a private group stand in all blocks of one residue, d_h/C
times, because a fold over blocks that keeps residues apart needs no mask. Public groups take the blocks of
the residues that are left, one each, then further ciphertexts. C = 1 is private alone: its scores repeat with
period tH.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from sottovoce.packing.slots.arithmetic import Plain, Vector, every
from sottovoce.packing.slots.heads import Heads

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Blocks:
    """classes: C, from 1 to d_h. public: groups of public tokens, 0 for none."""

    heads: Heads
    classes: int
    public: int = 0

    @property
    def private(self) -> int:
        """Groups of private tokens that fit: the residues which public groups leave, at least one."""
        return max(1, self.classes - -(-self.public * self.classes // self.heads.dim))

    @property
    def copies(self) -> int:
        """How often the score of a private token stands in its ciphertext."""
        return self.heads.dim // self.classes

    @property
    def ciphertexts(self) -> int:
        """Of scores, when all public groups are there."""
        beyond = max(0, self.public - int(np.count_nonzero(self._free)))
        return 1 + -(-beyond // self.heads.dim)

    @cached_property
    def _free(self) -> npt.NDArray[np.bool_]:
        return np.arange(self.heads.dim) % self.classes >= self.private

    def groups(self, ciphertext: int) -> Integers:
        """(d_h,): the public group in each block of a ciphertext; -1 where there is none."""
        inside = np.flatnonzero(self._free)
        blocks, start = inside, 0
        if ciphertext:
            blocks = np.arange(self.heads.dim)
            start = len(inside) + (ciphertext - 1) * self.heads.dim
        found = np.full(self.heads.dim, -1)
        count = min(max(self.public - start, 0), len(blocks))
        found[blocks[:count]] = start + np.arange(count)
        return found

    def slots(self, blocks: npt.NDArray[np.bool_], value: float = 1.0) -> Vector:
        """`value` in the slots of the chosen blocks, (d_h,)."""
        return np.repeat(np.where(blocks, value, 0.0), self.heads.block)

    def residue(self, group: int, value: float = 1.0) -> Plain:
        """All blocks of a private group."""
        return lambda: self.slots(np.arange(self.heads.dim) % self.classes == group, value)

    def weights(self, scale: float | Vector) -> Plain:
        """For sums over the blocks of each residue: a private token counts once, however often it stands
        there. Clears all but the feature slots. scale: (H,) or one for all heads."""

        def make() -> Vector:
            private = np.arange(self.heads.dim) % self.classes < self.private
            once = 1.0 if self.classes == 1 else 1.0 / self.copies
            weight = self.heads.by_head(scale) * every(self.heads.n, self.heads.t)
            return np.asarray(weight * np.repeat(np.where(private, once, 1.0), self.heads.block))

        return make

    def positions(self, private: int, public: int) -> list[npt.NDArray[np.bool_]]:
        """For each ciphertext, (n,): whether the slot is the score of a token, with so many in the cache."""
        heads, found = self.heads, []
        row = np.arange(heads.n) % heads.t
        for z in range(self.ciphertexts):
            group = np.repeat(self.groups(z), heads.block)
            live = (group >= 0) & (group * heads.t + row < public)
            if z == 0:
                residue = np.repeat(np.arange(heads.dim) % self.classes, heads.block)
                live |= (residue < self.private) & (residue * heads.t + row < private)
            found.append(live)
        return found
