"""Sampling and stop strings at the client."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sottovoce.errors import UsageError
from sottovoce.parties.sampling import Sampler, SamplingOptions
from sottovoce.parties.stops import StopFilter

LOGITS = np.log(np.array([0.1, 0.4, 0.2, 0.3]))


def test_greedy_takes_the_first_maximum():
    assert Sampler(SamplingOptions()).choose(np.array([1.0, 3.0, 3.0])) == 1


def test_distribution_matches_softmax():
    tokens, weights = Sampler(SamplingOptions(temperature=1.0)).distribution(LOGITS)
    assert list(tokens) == [1, 3, 2, 0]
    assert np.allclose(weights, [0.4, 0.3, 0.2, 0.1])


def test_temperature_sharpens():
    _, weights = Sampler(SamplingOptions(temperature=0.5)).distribution(LOGITS)
    assert np.allclose(weights, np.array([16, 9, 4, 1]) / 30)


def test_top_k_and_top_p():
    assert list(Sampler(SamplingOptions(temperature=1, top_k=2)).distribution(LOGITS)[0]) == [1, 3]
    assert list(Sampler(SamplingOptions(temperature=1, top_p=0.65)).distribution(LOGITS)[0]) == [1, 3]
    assert list(Sampler(SamplingOptions(temperature=1, top_p=1e-9)).distribution(LOGITS)[0]) == [1]


def test_frequencies():
    sampler = Sampler(SamplingOptions(temperature=1.0, seed=7))
    counts = np.bincount([sampler.choose(LOGITS) for _ in range(4000)], minlength=4) / 4000
    assert np.abs(counts - [0.1, 0.4, 0.2, 0.3]).max() < 0.03


def test_seed_repeats_and_default_does_not():
    def draw(seed):
        sampler = Sampler(SamplingOptions(temperature=1.0, seed=seed))
        return [sampler.choose(LOGITS) for _ in range(64)]

    assert draw(1) == draw(1) != draw(2)
    assert draw(None) != draw(None)


def test_extreme_logits_do_not_overflow():
    sampler = Sampler(SamplingOptions(temperature=0.01))
    assert sampler.choose(np.array([-1e4, 1e4, 0.0])) == 1


@pytest.mark.parametrize(
    "bad", [{"temperature": -1}, {"temperature": float("nan")}, {"top_p": 0}, {"top_p": 1.1}, {"top_k": -1}]
)
def test_bad_options(bad):
    with pytest.raises(UsageError):
        SamplingOptions(**bad)


@given(
    st.text("abc", max_size=30),
    st.lists(st.text("abc", min_size=1, max_size=3), max_size=3),
    st.lists(st.integers(0, 30), max_size=8),
)
def test_stop_filter_equals_cutting_the_whole_text(text, stops, cuts):
    """However the text is cut into pieces, what is shown is the text up to the first stop string."""
    stream, shown = StopFilter(stops), ""
    edges = sorted({0, len(text), *(min(c, len(text)) for c in cuts)})
    for a, b in zip(edges, edges[1:], strict=False):
        shown += stream.push(text[a:b])
    shown += stream.finish()
    ends = [at for stop in stops if (at := text.find(stop)) >= 0]
    assert shown == (text[: min(ends)] if ends else text)
    assert stream.stopped == bool(ends)
