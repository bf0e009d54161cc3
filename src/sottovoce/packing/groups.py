"""How the tokens of one forward pass are put together in ciphertexts.

The cheapest number b of tokens in a ciphertext depends on how many there are: plaintexts for b > 1 are
encoded in use, once for all ciphertexts of the pass. Both parties compute the same from public sizes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from sottovoce.packing.cost import CostModel
from sottovoce.packing.diagonal import MatVecPlan
from sottovoce.packing.search import plan_matvec

SIZES = (1, 2, 4, 8, 16)  # tokens in a ciphertext; 32 never paid for a real shape

_AT_ONCE = 256  # tokens that are grouped together at most, so that the search stays short
_FEW = 1 << 22  # entries of a matrix that is never taken for one with the vocabulary on one side
_WIDE = 12  # times as many outputs as inputs, or the other way round: a feed-forward layer has fewer


@dataclass(frozen=True)
class Group:
    """`count` times `plan.tokens` tokens, the last of which may be missing."""

    plan: MatVecPlan
    count: int

    @property
    def tokens(self) -> int:
        return self.count * self.plan.tokens

    @property
    def sent_count(self) -> int:
        return self.count * self.plan.sent_count

    @property
    def output_count(self) -> int:
        return self.count * self.plan.output_count

    def milliseconds(self, cost: CostModel) -> float:
        once = cost.encoded * self.plan.plaintext_count if self.plan.tokens > 1 else 0.0
        return self.count * self.plan.milliseconds(cost) + once


@lru_cache(maxsize=1024)
def group_tokens(
    d_out: int, d_in: int, tokens: int, degree: int = 8192, sizes: tuple[int, ...] = SIZES
) -> tuple[Group, ...]:
    """Return the cheapest groups for `tokens` vectors; together they hold at least so many.

    sizes: the numbers of tokens in a ciphertext to choose from, ascending from 1. Matrices with the
    vocabulary on one side go token by token: their ciphertexts are full anyway.
    """
    if tokens > _AT_ONCE:
        full, rest = divmod(tokens, _AT_ONCE)
        groups = group_tokens(d_out, d_in, _AT_ONCE, degree, sizes) * full
        return groups + (group_tokens(d_out, d_in, rest, degree, sizes) if rest else ())
    usable = tuple(size for size in sizes if size in _sizes(d_out, d_in, degree))
    return _cheapest(d_out, d_in, tokens, degree, usable, CostModel())[1]


def all_plans(d_out: int, d_in: int, degree: int = 8192) -> list[MatVecPlan]:
    """The plans that `group_tokens` chooses from."""
    return [plan_matvec(d_out, d_in, degree, tokens=size) for size in _sizes(d_out, d_in, degree)]


def _sizes(d_out: int, d_in: int, degree: int) -> tuple[int, ...]:
    vocabulary = d_out * d_in > _FEW and max(d_out, d_in) > _WIDE * min(d_out, d_in)
    return tuple(size for size in SIZES if size == 1 or (not vocabulary and degree // size >= 64))


@lru_cache(maxsize=4096)
def _cheapest(
    d_out: int, d_in: int, tokens: int, degree: int, sizes: tuple[int, ...], cost: CostModel
) -> tuple[float, tuple[Group, ...]]:
    """(milliseconds, groups): one size for as many tokens as it divides, or for all, and the rest as cheap
    as it can be."""
    if tokens <= 0:
        return 0.0, ()
    found: list[tuple[float, tuple[Group, ...]]] = []
    for size in sizes:
        plan = plan_matvec(d_out, d_in, degree, tokens=size)
        for count in {tokens // size, -(-tokens // size)} - {0}:
            group = Group(plan, count)
            more, rest = _cheapest(
                d_out, d_in, tokens - group.tokens, degree, sizes[: sizes.index(size)], cost
            )
            if tokens <= group.tokens or rest:
                found.append((group.milliseconds(cost) + more, (group, *rest)))
    return min(found, key=lambda one: one[0]) if found else (float("inf"), ())
