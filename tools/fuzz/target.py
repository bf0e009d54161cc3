"""What a target is, and what several of them need."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from sottovoce.errors import SottovoceError
from sottovoce.models.card import ModelCard
from sottovoce.models.model import Model
from sottovoce.proxy.problems import Problem

# How our code says no. Anything else that an input causes is a finding.
REFUSALS = (SottovoceError, Problem)

JSON_WORDS = (
    *(b"null", b"true", b"-1", b"1e999", b"[]", b"{}", b'""', b'"\\ud800"', b"NaN", b"[[[["),
    *(b'"private"', b'"messages"', b'"role"', b'"content"', b'"tool"'),
    *(b"99999999999999999999", b"\xff", b"\x00"),
)


@dataclass(frozen=True)
class Target:
    """run: one input. seeds: well-formed inputs to start from. words: what a mutation may put in.

    json: whether inputs are JSON: half of the mutations then change a value and leave the rest well-formed.
    made: seeds are made anew for every run instead of kept in the corpus: they hold keys, or a version.
    """

    run: Callable[[bytes], object]
    seeds: Callable[[], list[bytes]]
    words: tuple[bytes, ...] = ()
    json: bool = False
    made: bool = False


@cache
def model() -> Model:
    """The tests' tiny model."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
    from tiny_model import tiny_model

    return tiny_model()


def card() -> ModelCard:
    """Its card."""
    return model().card


@cache
def _directory() -> Path:
    return Path(
        tempfile.mkdtemp(prefix="sottovoce-fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
    )


def path(name: str) -> Path:
    """A file of this name, in memory where the system has such a place."""
    return _directory() / name


def file(name: str, data: bytes) -> Path:
    """A file with this content."""
    where = path(name)
    where.write_bytes(data)
    return where
