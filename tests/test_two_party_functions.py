"""Whole functions between two parties: close to the float reference, and exactly as expensive as they say."""

from collections.abc import Callable
from dataclasses import astuple
from typing import Any

import numpy as np
import pytest

from sottovoce.mpc import field
from sottovoce.mpc.cost import Cost
from sottovoce.mpc.field import P_FIELD
from sottovoce.mpc.functions import compare, gelu, norm, silu, softmax
from sottovoce.mpc.functions.inverse_power import covering, evaluate, evaluate_cost
from two_party_fixtures import both

RNG = np.random.default_rng(11)


def run(
    x: np.ndarray, in_bits: int, out_bits: int, function: Callable[[Any, np.ndarray, int], Any]
) -> tuple[np.ndarray, Cost]:
    """Share x, run function(arithmetic, ...) at both parties -> (decoded result, what was paid)."""
    encoded = field.encode(x, in_bits)
    x0 = RNG.integers(0, P_FIELD, encoded.shape, dtype=np.uint64)
    shares = (x0, field.sub(encoded, x0, P_FIELD))
    result, paid = both(lambda arithmetic, role: function(arithmetic, shares[role], role))
    cost = Cost(paid.rounds, paid.bytes_up, paid.bytes_down)
    return field.decode(field.add(result[0], result[1], P_FIELD), out_bits), cost


def test_silu() -> None:
    x = np.concatenate([np.linspace(-60, 60, 193), np.linspace(-8, 8, 208)])
    y, paid = run(x, silu.IN_BITS, silu.OUT_BITS, lambda a, share, role: silu.silu(a, share))
    assert np.abs(y - silu.silu_reference(x)).max() < 0.017
    assert paid == silu.silu_cost(x.size)


def test_gated_silu() -> None:
    x = RNG.normal(0, 3, (2, 2, 150))
    y, paid = run(x, 23, 12, lambda a, share, role: silu.gated_silu(a, share[0], share[1]))
    assert np.abs(y - silu.silu_reference(x[0]) * x[1]).max() < 0.02 * 12
    assert paid == silu.gated_silu_cost(x[0].size)


def test_gelu() -> None:
    x = np.concatenate([np.linspace(-60, 60, 193), np.linspace(-6, 6, 208)])
    y, paid = run(x, 23, 12, lambda a, share, role: gelu.gelu(a, share))
    assert np.abs(y - gelu.gelu_reference(x)).max() < 0.017
    assert paid == gelu.gelu_cost(x.size)


@pytest.mark.parametrize("bits", [2, 9, 16, 42])
def test_sign_at_the_edges_of_its_range(bits: int) -> None:
    half = min(1 << (bits - 1), P_FIELD // 4)
    x = np.array([-half, -half // 2, -2, -1, 0, 1, half // 2, half - 1] * 30)
    x = x[(x >= -half) & (x < half)]
    shares = RNG.integers(0, P_FIELD, (2, len(x)), dtype=np.uint64)
    shares[1] = field.sub(field.from_signed(x, P_FIELD), shares[0], P_FIELD)
    result, paid = both(lambda a, role: compare.is_negative(a, shares[role], bits))
    np.testing.assert_array_equal(result[0] ^ result[1], x < 0)
    assert compare.is_negative_cost(len(x), bits) == Cost(paid.rounds, paid.bytes_up, paid.bytes_down)


@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
def test_rms_norm(scale: float) -> None:
    x = RNG.normal(0, scale, (2, 1, 96))
    public = norm.NormRange(96, scale**2 / 8, scale**2 * 8)
    y, paid = run(x, norm.IN_BITS, norm.OUT_BITS, lambda a, share, role: norm.rms_norm(a, share, public))
    np.testing.assert_allclose(y, norm.rms_norm_reference(x), rtol=4e-4, atol=4e-4)
    assert paid == norm.rms_norm_cost(2, public)


def test_layer_norm() -> None:
    x = RNG.normal(3, 2.0, (3, 80))
    public = norm.NormRange(80, 0.5, 32.0)
    y, paid = run(x, norm.IN_BITS, norm.OUT_BITS, lambda a, share, role: norm.layer_norm(a, share, public))
    np.testing.assert_allclose(y, norm.layer_norm_reference(x), rtol=5e-4, atol=6e-4)
    assert paid == norm.layer_norm_cost(3, public)


def test_softmax_with_a_shift_only_the_server_knows() -> None:
    scores = RNG.normal(0, 4, (3, 2, 21))
    shift = np.rint(scores.max(axis=-1) * 2.0**softmax.IN_BITS).astype(np.int64) + (3 << softmax.IN_BITS)
    live = np.arange(21) <= np.array([20, 12])[:, None]

    def function(a: Any, share: np.ndarray, role: int) -> Any:
        return softmax.softmax(a, share, shift if role == 1 else None, live)

    y, paid = run(scores, softmax.IN_BITS, softmax.OUT_BITS, function)
    wanted = softmax.softmax_reference(scores, live)
    assert np.abs(y - wanted).max() < 2e-3 and not y[:, 1, 13:].any()
    assert paid == softmax.softmax_cost(6, 21, 3 * (21 + 13))


@pytest.mark.parametrize("exponent", [1.0, 0.5])
def test_inverse_powers_at_every_window(exponent: float) -> None:
    x = np.array([4.0**k + d for k in range(2, 12) for d in (-1, 0, 1)] + [3.0 * 4**9])
    function = covering(exponent, 2.0 ** (14 + 24 * exponent), 4.0, 2.0**25)
    y, paid = run(x, 0, 0, lambda a, share, role: evaluate(a, share, function)[0])
    np.testing.assert_allclose(y, function.scale * x**-exponent, rtol=3e-4, atol=1)
    assert paid == evaluate_cost(x.size, function)


def test_the_ledger_names_the_operation() -> None:
    x = np.zeros((2, 8), np.uint64)
    _, paid = both(lambda a, role: silu.silu(a, x[role]))
    names: list[str] = []

    def program(arithmetic: Any, role: int) -> np.ndarray:
        silu.silu(arithmetic, x[role])
        if role:
            names.extend(row.operation for row in arithmetic.channel.ledger.rows())
        return np.zeros(1)

    both(program)
    assert "silu" in names
    assert astuple(silu.silu_cost(8)) == (paid.rounds, paid.bytes_up, paid.bytes_down)
