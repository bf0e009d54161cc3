"""SiLU and GELU over the whole range, the fuzzy thresholds and the ends of the index ring included."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from sottovoce.errors import RangeError
from sottovoce.mpc.functions import gelu, silu
from sottovoce.mpc.functions.activation import IN_BITS, OUT_BITS
from sottovoce.mpc.functions.fit import polynomials
from sottovoce.mpc.model import ModelArithmetic

# (from, to, largest error): table, fuzzy units, both tails. Far right the index does not matter: x itself.
SILU_BOUNDS = [(-63, -7, 7e-3), (-7, -5.98, 0.0151), (-5.98, 5.98, 3e-3), (5.98, 7, 0.0151), (7, 64, 7e-3)]
GELU_BOUNDS = [(-63, -7, 3e-4), (-7, 7, 9e-4), (7, 64, 5e-4)]


def errors(
    function: Callable[..., Any], exact: Callable[..., Any], x: np.ndarray, seed: int = 1
) -> np.ndarray:
    model = ModelArithmetic(np.random.default_rng(seed))
    return model.decode(function(model, model.encode(x, IN_BITS)), OUT_BITS) - exact(x)


@pytest.mark.parametrize(
    ("function", "exact", "bounds"),
    [(silu.silu, silu.silu_reference, SILU_BOUNDS), (gelu.gelu, gelu.gelu_reference, GELU_BOUNDS)],
    ids=["silu", "gelu"],
)
def test_accuracy_over_the_whole_range(
    function: Any, exact: Any, bounds: list[tuple[float, float, float]]
) -> None:
    grid = np.linspace(-63, 64, 400_000, endpoint=False)
    # Every threshold and segment edge, hit exactly and one unit beside, with many sharings.
    edges = np.repeat(np.arange(-63, 64), 3) + np.tile([-(2.0**-23), 0, 2.0**-23], 127)
    x = np.concatenate([grid, np.repeat(np.clip(edges, -63, 64 - 2**-20), 200)])
    error = np.abs(errors(function, exact, x))
    for low, high, bound in bounds:
        inside = (x >= low) & (x < high)
        assert error[inside].max() < bound, (low, high)


def test_root_mean_square_error_where_values_lie() -> None:
    x = np.random.default_rng(2).normal(0, 2, 100_000)
    error = errors(silu.silu, silu.silu_reference, x)
    assert np.sqrt(np.mean(error**2)) < 1e-3 and abs(error.mean()) < 1e-4


@pytest.mark.parametrize("x", [-63.5, 64.0, 1000.0])
def test_outside_the_range_is_refused_by_the_model(x: float) -> None:
    with pytest.raises(RangeError, match="silu"):
        errors(silu.silu, silu.silu_reference, np.array([x]))


def test_gated_product_with_a_break_out() -> None:
    gate = np.concatenate([np.random.default_rng(3).normal(0, 3, 5000), [46.0, 48.6, -35.0]])
    up = np.concatenate([np.random.default_rng(4).normal(0, 2, 5000), [65.0, 72.0, 40.0]])
    model = ModelArithmetic(np.random.default_rng(5))
    product = silu.gated_silu(model, model.encode(gate, 23), model.encode(up, 23))
    exact = silu.silu_reference(gate) * up
    error = np.abs(model.decode(product, 12) - exact)
    assert np.all(error <= 0.016 * np.abs(up) + 3e-4 * np.abs(gate) + 1e-3)
    assert model.spent == silu.gated_silu_cost(len(gate)) and model.spent.rounds == 7


def test_stated_costs() -> None:
    for n in (1, 7, 1536):
        for function, cost in ((silu.silu, silu.silu_cost), (gelu.gelu, gelu.gelu_cost)):
            model = ModelArithmetic(np.random.default_rng(6))
            function(model, model.encode(np.zeros(n), IN_BITS))
            assert model.spent == cost(n) and model.spent.rounds == 5


@pytest.mark.parametrize("bits", [20, 25, 27])
def test_other_input_scales(bits: int) -> None:
    x = np.linspace(-20, 20, 5001)
    model = ModelArithmetic(np.random.default_rng(8))
    z = silu.gated_silu(model, model.encode(x, bits), model.encode(np.ones_like(x), bits + 1), bits, bits + 1)
    assert np.abs(model.decode(z, 12) - silu.silu_reference(x)).max() < 0.017
    assert (
        np.abs(model.decode(gelu.gelu(model, model.encode(x, bits), bits), 12) - gelu.gelu_reference(x)).max()
        < 1e-3
    )


def test_shape_is_kept() -> None:
    model = ModelArithmetic(np.random.default_rng(7))
    assert model.shape(silu.silu(model, model.encode(np.zeros((2, 3, 4)), IN_BITS))) == (2, 3, 4)


def test_polynomial_fit_is_exact_for_polynomials() -> None:
    starts = np.linspace(-2, 2, 9)
    c = polynomials(lambda x: 1 + x - 2 * x**3, starts, 0.5, 3)
    t = np.linspace(0, 1, 11)
    x = starts[:, None] + 0.5 * t
    assert np.allclose(c @ t ** np.arange(4)[:, None], 1 + x - 2 * x**3)
