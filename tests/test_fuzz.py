"""A short, repeatable run of every target in tools/fuzz; the long ones are commands there."""

import sys
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("starlette")

FUZZ = Path(__file__).parent.parent / "tools" / "fuzz"
sys.path.insert(0, str(FUZZ))

from mutate import inputs  # noqa: E402
from tally import BEGIN, END, Count, Tally  # noqa: E402
from targets import REFUSALS, TARGETS  # noqa: E402


def corpus(name):
    return [path.read_bytes() for path in sorted((FUZZ / "corpus" / name).glob("*"))]


@pytest.mark.parametrize("name", TARGETS)
def test_nothing_but_refusals(name):
    target = TARGETS[name]
    found = [path.read_bytes() for path in sorted((FUZZ / "findings" / name).glob("*"))]
    seeds = corpus(name) or target.seeds()
    for data in (*found, *islice(inputs(seeds, target.words, 7, target.json), 300)):
        try:
            target.run(data)
        except REFUSALS:
            pass


def test_every_finding_has_its_target():
    assert {path.name for path in (FUZZ / "findings").iterdir()} <= set(TARGETS)


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus_is_well_formed(name):
    """A corpus that is refused at the door tests nothing behind it."""
    assert TARGETS[name].made or corpus(name)
    for data in corpus(name) or TARGETS[name].seeds():
        TARGETS[name].run(data)


@pytest.mark.parametrize("structured", [False, True])
def test_mutations_repeat(structured):
    seeds = [b'{"a": [1, "b", null]}'] * 2
    runs = ([*islice(inputs(seeds, (b"x",), seed, structured), 50)] for seed in (1, 1, 2))
    first, again, other = runs
    assert first == again != other and first[:2] == seeds


def test_counts_add_up(tmp_path):
    """Over several runs, each with the next seed; a finding makes a target begin anew."""
    path = tmp_path / "tally.json"
    (tmp_path / "README.md").write_text(f"before\n{BEGIN}old\n{END}\nafter\n")
    for status in (0, 1, 0, 0):
        run = SimpleNamespace(status=status, inputs=1000, refused=400, seconds=1.26, grown=3 << 20)
        Tally.load(path).add("frame", run).store(path)
    assert Tally.load(path).of("frame") == Count(2000, 800, 2.6, 4, 3)
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "| frame | 2,000 | 800 |" in text


def test_the_readme_has_the_counts_of_the_tally():
    text = (FUZZ / "README.md").read_text()
    assert text.partition(BEGIN)[2].partition(END)[0] == Tally.load(FUZZ / "tally.json").table()
