"""Mutations of inputs, repeatable from a seed: what fuzzing without coverage feedback does."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

_INTERESTING = (
    b"\x00",
    b"\xff",
    b"\x7f\xff\xff\xff",
    b"\xff\xff\xff\xff",
    b"\x00\x00\x00\x80",
    b"\xff" * 8,
    b"\x01",
)


def inputs(corpus: Sequence[bytes], words: Sequence[bytes], seed: int) -> Iterator[bytes]:
    """The corpus itself, then mutations of it without end."""
    yield from corpus
    rng = random.Random(seed)
    seeds = [*corpus, b""]
    while True:
        data = bytearray(rng.choice(seeds))
        for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
            _mutate(data, rng, seeds, words)
        yield bytes(data)


def _mutate(data: bytearray, rng: random.Random, seeds: Sequence[bytes], words: Sequence[bytes]) -> None:
    """One change in place. Most fall near the beginning, where formats have their headers."""
    where = _place(data, rng)
    match rng.randrange(8):
        case 0 if data:
            data[where % len(data)] ^= 1 << rng.randrange(8)
        case 1 if data:
            data[where % len(data)] = rng.randrange(256)
        case 2:
            data[where:where] = rng.randbytes(rng.choice((1, 2, 4, 8, 40)))
        case 3 if data:
            del data[where : where + rng.choice((1, 2, 4, 16, 1 << 12))]
        case 4:
            piece = rng.choice(_INTERESTING)
            data[where : where + len(piece)] = piece
        case 5 if data:
            part = data[where : where + rng.randrange(1, 64)]
            data[where:where] = part * rng.choice((1, 2, 50))
        case 6:
            other = rng.choice(seeds)
            data[where:] = other[_place(other, rng) :]
        case _:
            piece = rng.choice(words) if words else rng.choice(_INTERESTING)
            data[where:where] = piece


def _place(data: bytes | bytearray, rng: random.Random) -> int:
    size = len(data)
    return rng.randrange(min(size, 128) + 1) if rng.random() < 0.5 else rng.randrange(size + 1)
