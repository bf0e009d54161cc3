"""Softmax with a static shift: exponentials over their range, rows far below and above the shift, causal
masks."""

import numpy as np
import pytest

from sottovoce.errors import RangeError
from sottovoce.mpc.functions.softmax import (
    E_BITS,
    IN_BITS,
    OUT_BITS,
    exponentials,
    exponentials_cost,
    softmax,
    softmax_cost,
    softmax_reference,
)
from sottovoce.mpc.model import ModelArithmetic


def run(
    scores: np.ndarray, shift: np.ndarray, live: np.ndarray | None = None, in_bits: int = IN_BITS
) -> np.ndarray:
    model = ModelArithmetic(np.random.default_rng(1))
    private = np.rint(shift * 2.0**in_bits).astype(np.int64)
    p = softmax(model, model.encode(scores, in_bits), private, live, in_bits)
    count = scores.size if live is None else int(np.broadcast_to(live, scores.shape).sum())
    rows = int(np.prod(scores.shape[:-1]))
    assert model.spent == softmax_cost(rows, scores.shape[-1], count)
    return model.decode(p, OUT_BITS)


@pytest.mark.parametrize(("in_bits", "range_bits"), [(24, 8), (27, 8), (25, 9)])
def test_exponentials_over_the_whole_range(in_bits: int, range_bits: int) -> None:
    top = 2**range_bits - 66
    y = np.concatenate([np.linspace(-61.9, top - 0.1, 300_000), np.repeat(np.arange(-61, top - 1), 100)])
    model = ModelArithmetic(np.random.default_rng(2))
    e = model.decode(exponentials(model, model.encode(y, in_bits), in_bits, range_bits), E_BITS)
    assert model.spent == exponentials_cost(len(y), range_bits) and model.spent.rounds == 5
    exact = 2.0**-y
    middle = (y >= 0) & (y < 56)
    # Last places of the index (2^-12·ln 2), the factor (2^-14 to 2^-10), the entry (2^-27) and the result.
    assert np.all(np.abs(e - exact)[middle] < 1.3e-3 * exact[middle] + 2.0**-26 * (1 + exact[middle]))
    assert np.all(e[y > 56.1] <= 2.0**-E_BITS)
    # Above the shift the largest weight must not vanish: between exact and saturated, never less than 1.
    assert np.all(e[y < 0] >= 1 - 2e-3) and np.all(e[y < -2.1] >= 4 - 1e-6) and e.max() <= 4 + 1e-6


@pytest.mark.parametrize(
    ("columns", "tolerance"), [(1, 1e-3), (2, 1e-3), (29, 2e-3), (92, 3e-3), (700, 1.2e-2)]
)
@pytest.mark.parametrize("below", [0.5, 4.3, 8.0, 14.0])
def test_rows_below_the_shift(columns: int, tolerance: float, below: float) -> None:
    """Row maxima `below` the shift; total variation, most of it rounding to 2^-14."""
    scores = np.random.default_rng(3).normal(-6, 6, (4, 9, columns))
    scores -= scores.max(axis=-1, keepdims=True)
    p = run(scores, np.full(9, below))
    assert np.abs(p - softmax_reference(scores)).sum(axis=-1).max() < tolerance


def test_row_far_below_the_shift_degrades_gracefully() -> None:
    """25 bits below (1 row in 1,000 is 26 bits below, 18 nats): eight units are left of the largest
    weight."""
    scores = np.random.default_rng(4).normal(-8, 4, (2, 3, 50))
    scores -= scores.max(axis=-1, keepdims=True)
    p = run(scores, np.full(3, 25.0))
    assert np.all(p.argmax(-1) == scores.argmax(-1)) and np.abs(p.sum(-1) - 1).max() < 0.15
    assert not run(np.full((1, 1, 8), -100.0), np.zeros(1)).any()  # all weights 0: no division by zero


def test_score_far_above_the_shift_keeps_the_largest_weight() -> None:
    scores = np.full((1, 1, 64), -40.0)
    scores[..., 17] = 9.0
    p = run(scores, np.zeros(1))
    assert p[0, 0, 17] > 0.999


def test_causal_mask_with_rows_of_different_length() -> None:
    scores = np.random.default_rng(5).normal(0, 3, (8, 3, 20))
    live = (np.arange(20) <= np.arange(12, 20)[:, None])[:, None, :]
    shift = scores.max((0, 2)) + 4
    p = run(scores, shift, live)
    assert not p[np.broadcast_to(~live, p.shape)].any()
    assert np.abs(p - softmax_reference(scores, live)).max() < 1e-3


def test_score_out_of_range_is_refused_and_named() -> None:
    for score in (-200.0, 63.0):
        with pytest.raises(RangeError, match="softmax"):
            run(np.array([[[0.0, score]]]), np.zeros(1))


def test_sharp_rows_sum_to_one() -> None:
    scores = np.random.default_rng(6).normal(0, 12, (30, 9, 64))
    assert np.abs(run(scores, scores.max(axis=-1) + 4.3).sum(-1) - 1).max() < 4e-3


@pytest.mark.parametrize("columns", [255, 256, 1023, 1024, 1025, 4095])
def test_every_number_of_columns_has_its_windows(columns: int) -> None:
    """From 1,024 columns on, a window whose reciprocal is below 1 must exist although no row reaches it."""
    rng = np.random.default_rng(7)
    scores = rng.normal(0.0, 3.0, (2, columns))
    p = run(scores, scores.max(axis=-1))
    assert np.abs(p - softmax_reference(scores)).max() < 2e-3
