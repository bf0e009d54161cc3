"""Norms over the ranges of a real model: the first layers, break-outs, one dominating channel."""

import numpy as np
import pytest

from sottovoce.errors import RangeError
from sottovoce.mpc.field import P_FIELD
from sottovoce.mpc.functions.norm import (
    NormRange,
    layer_norm,
    layer_norm_cost,
    layer_norm_reference,
    rms_norm,
    rms_norm_cost,
    rms_norm_reference,
)
from sottovoce.mpc.model import ModelArithmetic

# Mean squares of SmolLM2-135M: layer 0, layers 3-9, layer 12 on with break-outs, the final norm. Widened by
# four.
RANGES = [(0.0014, 0.134), (1.6, 5900.0), (4.4, 7.4e5), (91.0, 1.64e5)]


def rows_of(public: NormRange, mean_square: float, count: int = 6, seed: int = 1) -> np.ndarray:
    x = np.random.default_rng(seed).normal(size=(count, public.width))
    return np.asarray(x * np.sqrt(mean_square / np.mean(x * x, axis=-1, keepdims=True)))


def run(x: np.ndarray, public: NormRange, norm: str = "rms") -> np.ndarray:
    model = ModelArithmetic(np.random.default_rng(2))
    function, cost = (rms_norm, rms_norm_cost) if norm == "rms" else (layer_norm, layer_norm_cost)
    y = model.decode(function(model, model.encode(x, 23), public), 12)
    assert model.spent == cost(int(np.prod(x.shape[:-1])), public)
    return y


@pytest.mark.parametrize(("low", "high"), RANGES)
@pytest.mark.parametrize("width", [576, 896, 64])
def test_rms_norm_at_every_power_of_four(width: int, low: float, high: float) -> None:
    public = NormRange(width, low, high)
    unit = width * 4.0**public.square_bits
    edges = [4.0**k / unit * (1 + d) for k in range(22) for d in (-1e-3, 0, 1e-3)]
    for mean_square in [low, *[e for e in edges if low <= e < high], high * 0.99]:
        x = rows_of(public, mean_square)
        error = run(x, public) - rms_norm_reference(x)
        # Rounding of x relative to its size, and of the result (0.41 and 0.29 unit).
        noise = 2.0**-public.x_bits / np.sqrt(mean_square) + 2.0**-12
        assert np.sqrt(np.mean(error**2)) < 0.6 * noise + 5e-4 * (mean_square < 4 * low) + 1e-4


@pytest.mark.parametrize(("low", "high"), RANGES)
def test_one_channel_that_holds_nearly_all_of_the_energy(low: float, high: float) -> None:
    public = NormRange(576, low, high)
    x = np.random.default_rng(3).normal(size=(4, 576))
    x[:, 507] = 600
    x *= np.sqrt(0.98 * high / np.mean(x * x, axis=-1, keepdims=True))
    y = run(x, public)
    assert np.abs(y - rms_norm_reference(x)).max() < 24 * 3e-4 and np.all(y[:, 507] > 23.9)


@pytest.mark.parametrize(("low", "high"), RANGES)
@pytest.mark.parametrize("width", [64, 768, 1024])
def test_layer_norm(width: int, low: float, high: float) -> None:
    public = NormRange(width, low, high)
    for variance in (low * 1.2, np.sqrt(low * high), high * 0.97):
        x = np.random.default_rng(4).normal(size=(3, width))
        x = (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True) * np.sqrt(variance)
        x += np.array([[0.0], [2.0], [-30.0]]) * np.sqrt(variance) / np.sqrt(width)
        assert np.abs(run(x, public, "layer") - layer_norm_reference(x)).max() < 2e-3


@pytest.mark.parametrize(("low", "high"), RANGES)
@pytest.mark.parametrize("width", [8, 64, 576, 4096])
def test_budgets_hold(width: int, low: float, high: float) -> None:
    public = NormRange(width, low, high)
    assert width * high * 4.0**public.square_bits < P_FIELD / 2
    assert np.sqrt(width) * 2.0 ** (public.x_bits + public.scale_bits) < P_FIELD / 4
    assert 2**12 < 2.0**public.scale_bits / np.sqrt(high) <= 2**14
    assert public.x_bits >= 8 and public.square_bits >= 4


def test_mean_square_out_of_range_is_refused_and_named() -> None:
    public = NormRange(64, 1.0, 16.0)
    for mean_square in (0.05, 300.0):
        with pytest.raises(RangeError, match="rms_norm"):
            run(rows_of(public, mean_square), public)


def test_epsilon_counts_where_rows_are_small() -> None:
    public = NormRange(64, 1e-4, 1e-1, epsilon=1e-4)
    x = rows_of(public, 1.5e-4)
    assert np.abs(run(x, public) - rms_norm_reference(x, 1e-4)).max() < 3e-3
