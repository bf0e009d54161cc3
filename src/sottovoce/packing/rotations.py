"""Rotations by many steps from few keys.

A product rotates its input by the multiples of some stride. Keys exist for the short rotations 1 .. 32 (and
for a few long ones, powers of two); a longer rotation is made from one that is made anyway, by one key. So a
key set serves every stride, and a rotation goes through at most five keys, whose noise adds up.
"""

from __future__ import annotations

from collections.abc import Iterable

SHORT = 32  # keys 1 .. 32 of 614 KB each; more would gain 2 % on the head, nothing elsewhere
LONG = (64, 128, 256)


def has_key(step: int) -> bool:
    """Whether a rotation by `step` takes one key of the set."""
    return 0 < step <= SHORT or step in LONG


def origin(step: int) -> int:
    """The rotation that `step` > 0 is made from by one key, a shorter one: 0 if it has a key itself.

    A long step without a key is a multiple of 32 and a short one; a multiple of 32 is a sum of powers of two.
    """
    if has_key(step):
        return 0
    return step - (step % SHORT or step & -step)


def sources(steps: Iterable[int]) -> dict[int, list[int]]:
    """The steps by their origins, ascending: each origin is decomposed once for all that are made from it.

    A step is made before it is an origin, if the multiples of 32 below every step are among the steps.
    """
    made: dict[int, list[int]] = {}
    for step in sorted(set(steps) - {0}):
        made.setdefault(origin(step), []).append(step)
    return dict(sorted(made.items()))


def keys(steps: Iterable[int]) -> set[int]:
    """The keys that `steps` take."""
    return {step - source for source, group in sources(steps).items() for step in group}
