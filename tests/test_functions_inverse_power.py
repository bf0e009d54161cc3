"""1/x and 1/√x at every window edge."""

import numpy as np
import pytest

from sottovoce.errors import RangeError
from sottovoce.mpc.functions.inverse_power import (
    InversePower,
    covering,
    evaluate,
    evaluate_cost,
    relative_error,
)
from sottovoce.mpc.model import ModelArithmetic


def relative(function: InversePower, x: np.ndarray, seed: int = 1) -> np.ndarray:
    model = ModelArithmetic(np.random.default_rng(seed))
    y, _ = evaluate(model, model.share(x.astype(np.uint64)), function)
    assert model.spent == evaluate_cost(len(x), function)
    exact = function.scale * x.astype(float) ** -function.exponent
    return model.decode(y, 0) / exact - 1


def edges(low: int, high: int) -> np.ndarray:
    """Every power of two (so every power of four, the windows' edges) and its neighbours, 50 sharings
    each."""
    powers = [2**k + d for k in range(42) for d in (-1, 0, 1)]
    return np.repeat(np.array([x for x in powers if low <= x < high], dtype=np.int64), 50)


# Exponents and widths of windows, so that exponent times width is an integer.
KINDS = [(1.0, 2), (1.0, 3), (1.0, 4), (0.5, 2), (0.5, 4)]


@pytest.mark.parametrize(("exponent", "width"), KINDS)
@pytest.mark.parametrize("parity", [0, 1])
def test_relative_error_in_every_window_and_at_its_edges(exponent: float, width: int, parity: int) -> None:
    low, high = 1 << (4 + parity), 1 << (28 + parity)
    function = covering(exponent, 2.0 ** (13 + exponent * (28 + parity)), low, high, width)
    assert function.windows == -(-24 // width)
    rng = np.random.default_rng(2)
    x = np.concatenate(
        [edges(low, high), np.exp2(rng.uniform(4 + parity, 28 + parity, 40_000)).astype(np.int64)]
    )
    error = relative(function, np.clip(x, low, high - 1))
    # The spline, the last unit of v (2^-14 in the lowest part of a window), and rounding to 13 bits or more.
    assert np.abs(error).max() < relative_error(function) + 2.0**-13
    assert abs(error.mean()) < 1e-5


@pytest.mark.parametrize("width", [2, 3, 4])
def test_the_smallest_values_are_exact_enough(width: int) -> None:
    function = covering(1.0, 2.0**30, 1, 2.0**16, width)
    error = relative(function, np.repeat(np.arange(1, 300), 20))
    assert np.abs(error).max() < 3e-4


@pytest.mark.parametrize(
    ("windows", "width"), [(n, 2) for n in range(1, 21)] + [(n, 4) for n in range(1, 11)]
)
def test_any_number_of_windows_and_its_rounds(windows: int, width: int) -> None:
    top = width * windows
    function = InversePower(0.5, 2.0**20, width, windows, width)
    x = np.clip(edges(1, 2**top), 1, 2**top - 1)
    if top == 40:
        x = np.minimum(x, 2**40)
    error = relative(function, x)
    assert np.abs(error[x < 2**12]).max() < 3e-4
    levels = int(np.ceil(np.log2(max(windows - 1, 1))))
    assert evaluate_cost(1, function).rounds == (4 if windows == 1 else 4 + max(levels, 1))


def test_fewest_windows_that_cover() -> None:
    function = covering(0.5, 2.0**20, 100, 10_000)
    assert covering(1.0, 2.0**40, 1, 2**37).bottom == 2  # the value 1 must be inside
    assert function.top == 14 and function.bottom - 2 <= np.log2(100)
    assert InversePower(0.5, 2.0**20, function.bottom + 2, function.windows - 1).bottom - 2 > np.log2(100)


@pytest.mark.parametrize("x", [0, 3, 1 << 20])
def test_outside_the_windows_is_refused_by_the_model(x: int) -> None:
    with pytest.raises(RangeError):
        relative(covering(1.0, 2.0**34, 4, 2**20), np.array([x]))
