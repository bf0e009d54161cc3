"""Which token lies in which slot: both parties keep the same table, without exchanging it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from sottovoce.errors import ParameterError

Indices = npt.NDArray[np.int64]


@dataclass
class SlotTable:
    """Token slots in the order of their use; a slot is written once and stays dead after truncation.

    used: slots handed out so far. live: (n,) slots of the live tokens, ascending.
    """

    used: int = 0
    live: Indices = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    def __len__(self) -> int:
        return self.live.size

    @property
    def dead(self) -> int:
        """Slots that hold forgotten tokens."""
        return self.used - self.live.size

    def append(self, count: int) -> Indices:
        """Hand out slots for `count` tokens."""
        new = np.arange(self.used, self.used + count)
        self.used += count
        self.live = np.concatenate([self.live, new])
        return new

    def truncate(self, length: int) -> None:
        """Keep the first `length` tokens."""
        if not 0 <= length <= self.live.size:
            raise ParameterError(f"cache: cannot truncate {self.live.size} tokens to {length}")
        self.live = self.live[:length]

    def blocks(self, count: int, block_tokens: int) -> list[tuple[int, Indices, Indices]]:
        """For the first `count` live tokens: (block, token numbers, places in the block), blocks
        ascending."""
        slots = self.live[:count]
        which = slots // block_tokens
        return [
            (int(block), np.flatnonzero(which == block), slots[which == block] % block_tokens)
            for block in np.unique(which)
        ]
