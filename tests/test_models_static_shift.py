"""One constant per head for the softmax: what it costs is measured as the protocol computes it."""

import numpy as np
import pytest

import models_common as common
from sottovoce.errors import UnsupportedModelError
from sottovoce.models import quantize
from sottovoce.models.calibrate import calibrate
from sottovoce.models.static_shift import (
    MOST_ERROR,
    _differences,
    check_static_shift,
    shift_errors,
)
from sottovoce.mpc.functions.softmax import softmax
from sottovoce.mpc.model import ModelArithmetic


@pytest.mark.parametrize("name", common.TINY)
def test_models_that_are_served_pass(name: str) -> None:
    model = common.tiny(name)
    found = calibrate(model)
    assert found.score_error.shape == (model.config.layers, model.config.heads)
    assert found.score_error.max() < 0.01
    check_static_shift(found.score_error)


def test_stories_pass_as_well() -> None:
    errors = calibrate(common.stories()).score_error
    assert 0.003 < errors.mean() < 0.01 < errors.mean(axis=-1).max() < MOST_ERROR


@pytest.mark.parametrize("away", [-25.0, 25.0])
def test_a_shift_that_does_not_fit_is_found_and_the_model_refused(away: float) -> None:
    """Too low, everything is saturated; too high, nothing is left of 28 bits."""
    model = common.tiny("llama")
    good = calibrate(model)
    tokens = [[7 * i % model.config.vocab_size for i in range(40)]]
    errors = shift_errors(model, tokens, good.score_top + np.float32(away))
    assert errors.mean(axis=-1).min() > MOST_ERROR
    bad = type(good)(good.norms, good.score_top, good.score_low, errors)
    with pytest.raises(UnsupportedModelError, match="spread too far"):
        quantize(model, bad)
    with pytest.raises(UnsupportedModelError):
        check_static_shift(np.full((1, 1), np.nan))


@pytest.mark.parametrize("spread", [2.0, 9.0, 16.0])
def test_the_measure_is_what_the_protocol_does(spread: float) -> None:
    rng = np.random.default_rng(int(spread))
    nats = rng.normal(size=(3, 24, 24)) * spread / 2
    shift = np.array([0.0, 3.0, 2 * spread])
    rows = np.arange(24)
    live = rows[None, :] <= rows[:, None]
    model = ModelArithmetic(rng)
    constants = np.rint((shift[:, None] + np.zeros(24)) / np.log(2) * 2.0**24).astype(np.int64)
    p = model.decode(softmax(model, model.encode(nats / np.log(2), 24), constants, live[None]), 14)
    masked = np.where(live, nats, -np.inf)
    exact = np.exp(masked - masked.max(axis=-1, keepdims=True))
    exact /= exact.sum(axis=-1, keepdims=True)
    measured = (np.abs(p - exact).sum(axis=-1) / 2)[:, 1:]
    predicted = _differences(nats, shift)
    # A row of which a few units of 2^-28 are left is rounded by chance.
    np.testing.assert_allclose(predicted[2], measured[2], atol=0.2)
    assert abs(predicted[2].mean() - measured[2].mean()) < 0.02
    # Which of the scores above a shift are saturated depends on the shares; the measure takes them all.
    assert np.all(measured.mean(axis=-1) < 1.2 * predicted.mean(axis=-1) + 0.005)
