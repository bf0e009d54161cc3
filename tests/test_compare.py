"""Exact comparison: every pair of shares of small rings, edges of the field, cost as stated."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from sottovoce.mpc import compare, field
from sottovoce.mpc.cost import Cost
from sottovoce.mpc.field import P_FIELD
from sottovoce.mpc.model import ModelArithmetic
from two_party_fixtures import both

RNG = np.random.default_rng(4)


def run(x: np.ndarray, function: Callable[[Any, Any], Any]) -> tuple[np.ndarray, np.ndarray, Cost]:
    """Residues -> (opened result of two parties, of the model, what the two paid)."""
    x0 = RNG.integers(0, P_FIELD, x.shape, dtype=np.uint64)
    shares = np.stack([x0, field.sub(x, x0, P_FIELD)])
    got, paid = both(lambda arithmetic, role: function(arithmetic, shares[role]))
    model = ModelArithmetic(RNG)
    wanted = function(model, shares)
    assert model.spent == Cost(paid.rounds, paid.bytes_up, paid.bytes_down)
    return *(opened(r) for r in (got, wanted)), model.spent


def opened(r: np.ndarray) -> np.ndarray:
    return r[0] ^ r[1] if r.dtype == np.uint8 else field.add(r[0], r[1], P_FIELD)


@pytest.mark.parametrize("bits", range(1, 10))
def test_carry_of_every_pair(bits: int) -> None:
    y = np.stack(np.meshgrid(np.arange(1 << bits), np.arange(1 << bits), indexing="ij")).astype(np.uint64)
    model = ModelArithmetic(RNG)
    wanted = (y.sum(axis=0) >> np.uint64(bits)).astype(np.uint8)
    np.testing.assert_array_equal(opened(compare.carry(model, y, bits)), wanted)
    assert model.spent == compare.carry_cost(wanted.size, bits)


@pytest.mark.parametrize("bits", [2, 8, 9, 16, 30, 42])
def test_sign(bits: int) -> None:
    half = min(1 << (bits - 1), P_FIELD // 4)
    edges = [-half + 1, -half // 2, -2, -1, 0, 1, 2, half // 2, half - 1]
    values = np.array([v for v in edges if -half <= v < half] * 40)
    got, wanted, paid = run(field.from_signed(values, P_FIELD), lambda a, x: compare.is_negative(a, x, bits))
    np.testing.assert_array_equal(wanted, values < 0)
    np.testing.assert_array_equal(got, values < 0)
    assert paid == compare.is_negative_cost(values.size, bits)


def test_the_default_width_holds_the_whole_signed_range() -> None:
    values = np.array([-(P_FIELD // 4), -1, 0, P_FIELD // 4 - 1] * 30)
    got, _, paid = run(field.from_signed(values, P_FIELD), compare.is_negative)
    np.testing.assert_array_equal(got, values < 0)
    assert paid == compare.is_negative_cost(120)


def test_less_than() -> None:
    x, y = RNG.integers(-50, 50, (2, 300))

    def function(a: Any, shares: Any) -> Any:
        return compare.less_than(a, shares[..., 0], shares[..., 1], 16)

    got, _, _ = run(field.from_signed(np.stack([x, y], axis=-1), P_FIELD), function)
    np.testing.assert_array_equal(got, x < y)


@pytest.mark.parametrize("columns", [1, 2, 4, 7])
def test_maximum(columns: int) -> None:
    x = RNG.integers(-4000, 4000, (5, 3, columns))
    x[0] = x[0, 0, 0]
    got, _, paid = run(field.from_signed(x, P_FIELD), lambda a, s: compare.maximum(a, s, 16))
    np.testing.assert_array_equal(field.centred(got, P_FIELD), x.max(axis=-1))
    assert paid == compare.maximum_cost(15, columns, 16)
