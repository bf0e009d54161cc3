"""A short, repeatable run of every target in tools/fuzz; the long ones are commands there."""

import sys
from itertools import islice
from pathlib import Path

import pytest

pytest.importorskip("starlette")

FUZZ = Path(__file__).parent.parent / "tools" / "fuzz"
sys.path.insert(0, str(FUZZ))

from mutate import inputs  # noqa: E402
from targets import REFUSALS, TARGETS  # noqa: E402


def corpus(name):
    return [path.read_bytes() for path in sorted((FUZZ / "corpus" / name).glob("*"))]


@pytest.mark.parametrize("name", TARGETS)
def test_nothing_but_refusals(name):
    target = TARGETS[name]
    for data in islice(inputs(corpus(name) or target.seeds(), target.words, seed=7), 400):
        try:
            target.run(data)
        except REFUSALS:
            pass


@pytest.mark.parametrize("name", [name for name in TARGETS if corpus(name)])
def test_the_corpus_is_well_formed(name):
    """A corpus that is refused at the door tests nothing behind it."""
    for data in corpus(name):
        TARGETS[name].run(data)


def test_mutations_repeat():
    first, again, other = ([*islice(inputs([b"abcdefgh"] * 2, (b"x",), seed), 50)] for seed in (1, 1, 2))
    assert first == again != other and first[:2] == [b"abcdefgh"] * 2
