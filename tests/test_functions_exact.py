"""Exact rounding: the same for every sharing of a value, over all low bits and at the edges of the field."""

import numpy as np
import pytest

from sottovoce.mpc import field
from sottovoce.mpc.cost import Cost
from sottovoce.mpc.functions.compare import carry, carry_cost
from sottovoce.mpc.functions.exact import exact_cost, exact_rescale, exact_rescales
from sottovoce.mpc.functions.norm import NormRange, layer_norm, layer_norm_cost, rms_norm, rms_norm_cost
from sottovoce.mpc.model import ModelArithmetic
from sottovoce.ring.primes import P_FIELD
from two_party_fixtures import both

EDGE = P_FIELD // 4 - (1 << 24)


def rounded(values: np.ndarray, shift: int) -> np.ndarray:
    return (values + (1 << shift >> 1)) >> shift


def check(model: ModelArithmetic, x: np.ndarray, values: np.ndarray, shifts: list[int]) -> None:
    for y, shift in zip(exact_rescales(model, x, shifts), shifts, strict=True):
        assert np.array_equal(field.centred(model.reveal(y), P_FIELD), rounded(values, shift))


@pytest.mark.parametrize("bits", [1, 3, 4, 5, 7])
def test_the_carry_of_every_pair(bits: int) -> None:
    model = ModelArithmetic(np.random.default_rng(bits))
    pairs = np.stack([g.ravel() for g in np.meshgrid(*[np.arange(1 << bits, dtype=np.uint64)] * 2)])
    bit = carry(model, pairs, bits)
    assert np.array_equal(bit[0] ^ bit[1], (pairs.sum(axis=0) >> np.uint64(bits)).astype(np.uint8))
    assert model.spent == carry_cost(pairs.shape[1], bits)


@pytest.mark.parametrize("shift", [1, 2, 4, 5, 6])
@pytest.mark.parametrize("base", [0, -3 << 20, EDGE, -EDGE])
def test_every_low_part_of_both_shares(shift: int, base: int) -> None:
    """All 4^shift low parts of values and of the client's share, for shares in every quarter of the field."""
    model = ModelArithmetic(np.random.default_rng(shift))
    low = np.arange(1 << shift)
    quarters = np.array([0, P_FIELD // 4, P_FIELD // 2, P_FIELD - (1 << shift)])
    values, shares = (g.ravel() for g in np.meshgrid(base + low, np.add.outer(quarters, low).ravel()))
    x0 = shares.astype(np.uint64) % np.uint64(P_FIELD)
    x = np.stack([x0, field.sub(field.from_signed(values, P_FIELD), x0, P_FIELD)])
    check(model, x, values, [shift])


@pytest.mark.parametrize("shifts", [[24], [13, 6], [0, 5], [11, 11], [40], [0]])
def test_values_over_the_whole_range(shifts: list[int]) -> None:
    model = ModelArithmetic(np.random.default_rng(1))
    unit = 1 << max(shifts)
    edges = np.array([d + s for d in (-EDGE, -unit, -unit // 2, 0, unit // 2, unit) for s in (-1, 0, 1)])
    values = np.concatenate([np.repeat(edges, 40), model.rng.integers(-EDGE, EDGE, 2000)])
    check(model, model.share(field.from_signed(values, P_FIELD)), values, shifts)
    assert model.spent == exact_cost(len(values), shifts)


def test_rounding_by_chance_is_not_exact() -> None:
    """A control: the same test on `rescale` finds two results."""
    model = ModelArithmetic(np.random.default_rng(2))
    x = model.share(field.from_signed(np.full(200, 1000), P_FIELD))
    assert len(np.unique(model.reveal(model.rescale(x, 6)))) == 2
    assert len(np.unique(model.reveal(exact_rescale(model, x, 6)))) == 1


def test_two_parties_round_as_the_model_does() -> None:
    rng = np.random.default_rng(3)
    values = rng.integers(-EDGE, EDGE, (5, 40))
    model = ModelArithmetic(rng)
    shares = model.share(field.from_signed(values, P_FIELD))
    results, paid = both(lambda a, role: exact_rescales(a, shares[role], [17, 9]))
    for y, shift in zip(results, (17, 9), strict=True):
        assert np.array_equal(field.centred(model.reveal(y), P_FIELD), rounded(values, shift))
    assert exact_cost(values.size, [17, 9]) == Cost(paid.rounds, paid.bytes_up, paid.bytes_down)


@pytest.mark.parametrize(("norm", "cost"), [(rms_norm, rms_norm_cost), (layer_norm, layer_norm_cost)])
def test_an_exact_norm_costs_what_is_stated_and_is_as_accurate(norm, cost) -> None:
    public = NormRange(96, 0.3, 40.0)
    x = np.random.default_rng(4).normal(size=(3, 96)) * 2
    model = ModelArithmetic(np.random.default_rng(5))
    y = model.decode(norm(model, model.encode(x, 23), public, exact=True), 12)
    assert model.spent == cost(3, public, exact=True)
    centred = x - x.mean(axis=-1, keepdims=True) if norm is layer_norm else x
    expected = centred / np.sqrt(np.mean(centred**2, axis=-1, keepdims=True) + public.epsilon)
    np.testing.assert_allclose(y, expected, rtol=4e-4, atol=4e-4)


def test_an_exact_norm_changes_from_run_to_run_by_its_inverse_root_only() -> None:
    public = NormRange(96, 0.3, 40.0)
    x = np.random.default_rng(6).normal(size=(1, 96)) * 2

    def spread(exact: bool) -> tuple[float, int]:
        model = ModelArithmetic(np.random.default_rng(7))
        share = model.encode(np.repeat(x, 60, axis=0), 23)
        y = field.centred(model.reveal(rms_norm(model, share, public, exact)), P_FIELD)
        return float(np.mean(y.std(axis=0))), len(np.unique(y, axis=0))

    by_chance, exact = spread(False), spread(True)
    assert by_chance[0] > 0.3 and by_chance[1] == 60
    assert exact[0] < by_chance[0] and exact[1] <= 4
