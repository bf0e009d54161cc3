"""Mutations of inputs, repeatable from a seed: what fuzzing without coverage feedback does."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from typing import Any

_INTERESTING = (
    b"\x00",
    b"\xff",
    b"\x7f\xff\xff\xff",
    b"\xff\xff\xff\xff",
    b"\x00\x00\x00\x80",
    b"\xff" * 8,
    b"\x01",
)
_VALUES = (
    *(None, True, False, 0, -1, 1, 2, 1 << 31, 1 << 63, -(1 << 63), 10**400, 0.5, -0.0, 1e308, float("inf")),
    *(float("nan"), "", "a", "\x00", "\ud800", "0" * 300, [], {}, [[]], [None], {"": 0}, [1, 2, 3]),
)


def inputs(
    corpus: Sequence[bytes], words: Sequence[bytes], seed: int, structured: bool = False
) -> Iterator[bytes]:
    """The corpus itself, then mutations of it without end. structured: half of them stay JSON."""
    yield from corpus
    rng = random.Random(seed)
    seeds = [*corpus, b""]
    trees = [json.loads(data) for data in corpus] if structured else []
    while True:
        if trees and rng.random() < 0.5:
            yield json.dumps(_changed(rng.choice(trees), rng, trees)).encode()
            continue
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


def _changed(tree: Any, rng: random.Random, trees: Sequence[Any]) -> Any:
    """The tree with one value, somewhere in it, replaced, removed, doubled or turned into another one."""
    if not isinstance(tree, dict | list) or not tree or rng.random() < 0.15:
        return _other(tree, rng, trees)
    copy = tree.copy()
    key = rng.choice(list(copy)) if isinstance(copy, dict) else rng.randrange(len(copy))
    match rng.randrange(12):
        case 0:
            del copy[key]
        case 1 if isinstance(copy, list):
            copy[key:key] = [copy[key]] * rng.choice((1, 2, 70))
        case 1:
            copy[rng.choice(("", "x", key + " "))] = copy[key]
        case _:
            copy[key] = _changed(copy[key], rng, trees)
    return copy


def _other(value: Any, rng: random.Random, trees: Sequence[Any]) -> Any:
    match rng.randrange(4):
        case 0 if isinstance(value, str):
            at = rng.randrange(len(value) + 1)
            return value[:at] + rng.choice(("\x00", "ü", "\\", "{{", "(a+)+", value)) + value[at + 1 :]
        case 0 if isinstance(value, int | float):
            return rng.choice((-value, value + 1, value - 1, value * 2, value * 2.5, value * (1 << 40)))
        case 1 if isinstance(other := rng.choice(trees), dict) and other:
            return rng.choice(list(other.values()))
        case _:
            return rng.choice(_VALUES)
