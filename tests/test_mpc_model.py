"""The model's primitives against plain integers, above all the wrap bit and the rounding of a rescale."""

import numpy as np
import pytest

from sottovoce.errors import RangeError
from sottovoce.mpc import field
from sottovoce.mpc.cost import Cost
from sottovoce.mpc.model import ModelArithmetic
from sottovoce.mpc.requests import MaskRows, Mul, SumSquares, Wrap, WrapOutput
from sottovoce.mpc.tables import RegionTable, SplineTable
from sottovoce.ring.primes import P_FIELD, P_SMALL


@pytest.fixture
def model() -> ModelArithmetic:
    return ModelArithmetic(np.random.default_rng(7))


def _shares_of(x: int, m: int) -> np.ndarray:
    """Every possible pair of shares of x mod a small m: (2, m)."""
    x0 = np.arange(m, dtype=np.uint64)
    return np.stack([x0, (np.uint64(x + m) - x0) % np.uint64(m)])


def test_wrap_bit_is_exact_for_every_sharing_of_every_value_of_a_small_prime(model: ModelArithmetic) -> None:
    m, target = 67, 1 << 20
    for x in range((m + 1) // 2):
        request = Wrap(_shares_of(x, m), (WrapOutput(0, target),), signed=False, modulus=m)
        assert np.all(model.reveal(model.exchange([request])[0][0], target) == x)


def test_signed_wrap_is_exact_for_every_sharing_of_a_small_prime(model: ModelArithmetic) -> None:
    m, target = 67, 1 << 20
    for x in range(-(m // 4), m // 4 + 1):
        request = Wrap(_shares_of(x % m, m), (WrapOutput(0, target),), signed=True, modulus=m)
        assert np.all(field.centred(model.reveal(model.exchange([request])[0][0], target), target) == x)


@pytest.mark.parametrize("modulus", [P_FIELD, P_SMALL])
def test_wrap_at_the_edges_of_the_range(model: ModelArithmetic, modulus: int) -> None:
    half, quarter = modulus // 2, modulus // 4
    edge = np.repeat(np.array([0, 1, quarter - 1, quarter, quarter + 1, half - 1], dtype=np.uint64), 4000)
    (y,) = model.wrap(model.share(edge, modulus), [WrapOutput(0, 1 << 43)], signed=False, modulus=modulus)
    assert np.array_equal(model.reveal(y, 1 << 43), edge)
    signed = np.repeat(np.array([-quarter + 1, -1, 0, quarter - 1]), 4000)
    x = model.share(field.from_signed(signed, modulus), modulus)
    (y,) = model.wrap(x, [WrapOutput(0, 1 << 44)], modulus=modulus)
    assert np.array_equal(field.centred(model.reveal(y, 1 << 44), 1 << 44), signed)


@pytest.mark.parametrize("value", [P_FIELD // 2 + 1, P_FIELD - 1])
def test_wrap_out_of_range_is_refused_and_names_the_operation(model: ModelArithmetic, value: int) -> None:
    x = model.share(np.full(3, value, dtype=np.uint64))
    with model.operation("norm"), pytest.raises(RangeError, match="norm: a wrapped value"):
        model.rescale(x, 11, signed=False)


def test_rescale_error_is_unbiased_and_below_one_unit(model: ModelArithmetic) -> None:
    rng = np.random.default_rng(1)
    values = rng.integers(-(2**40), 2**40, size=200_000)
    for bits in (9, 11, 12, 15):  # the bias is at most 2^-bits: p = 1 mod 2^15
        y = field.centred(
            model.reveal(model.rescale(model.share(field.from_signed(values, P_FIELD)), bits)), P_FIELD
        )
        error = y - values / 2.0**bits
        assert np.abs(error).max() < 1 + 2**-10
        # Standard deviation 0.41, so the mean of 200,000 errors is within 0.0046 (5 sigma).
        assert abs(error.mean()) < 0.0046
        assert error.std() < 0.42


def test_wrap_gives_several_outputs_of_one_value(model: ModelArithmetic) -> None:
    values = np.random.default_rng(2).integers(-(2**30), 2**30, size=1000)
    x = model.share(field.from_signed(values, P_FIELD))
    a, b, c = model.wrap(x, [WrapOutput(11), WrapOutput(13, 1 << 18), WrapOutput(7, P_SMALL)])
    assert np.abs(model.decode(a, 0) - values / 2**11).max() < 1.01
    assert np.abs(field.centred(model.reveal(b, 1 << 18), 1 << 18) - values / 2**13).max() < 1.01
    assert np.abs(field.centred(model.reveal(c, P_SMALL), P_SMALL) - values / 2**7).max() < 1.01


def test_take_bits_reduces_and_drops_low_bits(model: ModelArithmetic) -> None:
    values = np.random.default_rng(3).integers(0, 1 << 30, size=5000, dtype=np.uint64)
    y = model.share(values, 1 << 30)
    exact = model.reveal(model.take_bits(y, 0, 13), 1 << 13)
    assert np.array_equal(exact, values & np.uint64(0x1FFF))
    short = model.reveal(model.take_bits(y, 6, 20), 1 << 14).astype(float)
    difference = (short - (values & np.uint64(0xFFFFF)) / 64.0 + 2**13) % 2**14 - 2**13
    assert np.abs(difference).max() < 1


def test_products_and_sums(model: ModelArithmetic) -> None:
    rng = np.random.default_rng(4)
    a, b = rng.integers(-(2**18), 2**18, size=(2, 5, 8))
    x, y = (model.share(field.from_signed(v, P_FIELD)) for v in (a, b))
    assert np.array_equal(model.decode(model.mul(x, y), 0), a * b)
    assert np.array_equal(model.decode(model.sum_squares(x), 0), (a * a).sum(-1))
    rows, total = model.exchange([MaskRows(x), SumSquares(y)])
    scalar = rng.integers(-1000, 1000, size=5)
    scaled = model.scale_rows(rows, model.share(field.from_signed(scalar, P_FIELD)))
    assert np.array_equal(model.decode(scaled, 0), a * scalar[:, None])
    assert np.array_equal(model.decode(total, 0), (b * b).sum(-1))
    with pytest.raises(ValueError, match="used twice"):
        model.scale_rows(rows, model.share(field.from_signed(scalar, P_FIELD)))


def test_bits(model: ModelArithmetic) -> None:
    rng = np.random.default_rng(5)
    a, b = rng.integers(0, 2, size=(2, 2, 1000), dtype=np.uint8)
    truth_a, truth_b = a[0] ^ a[1], b[0] ^ b[1]
    joined = model.and_(a, b)
    assert np.array_equal(joined[0] ^ joined[1], truth_a & truth_b)
    flipped = model.not_(a)
    assert np.array_equal(flipped[0] ^ flipped[1], 1 - truth_a)
    values = rng.integers(-1000, 1000, size=1000)
    picked = model.mux(a, model.share(field.from_signed(values, P_FIELD)))
    assert np.array_equal(model.decode(picked, 0), truth_a * values)
    assert np.array_equal(model.decode(model.to_arithmetic(a), 0), truth_a)


def test_values_that_one_party_knows_enter_its_share_only(model: ModelArithmetic) -> None:
    value = np.array([3, -4])
    assert not model.from_client(value, (2,))[1].any() and not model.from_server(value, (2,))[0].any()
    assert not model.from_public(value)[0].any()
    x = model.encode(np.zeros((3, 2)), 0)
    assert np.array_equal(model.decode(model.add_server(x, value), 0), np.broadcast_to(value, (3, 2)))
    assert np.array_equal(model.decode(model.mul_public(model.add_public(x, value), -2), 0), [[-6, 8]] * 3)


def test_spline_for_every_start_and_remainder(model: ModelArithmetic) -> None:
    """An index ring of 2^6 with 2^2 segments: all 4096 sharings."""
    rng = np.random.default_rng(6)
    entries = rng.integers(0, P_SMALL, size=(64, 3), dtype=np.uint64)
    basis = rng.integers(0, P_SMALL, size=(2, 16), dtype=np.uint64)
    y0, y1 = (v.ravel().astype(np.uint64) for v in np.meshgrid(np.arange(64), np.arange(64)))
    table = SplineTable(2, P_SMALL, entries, basis)
    result = model.reveal(model.spline(np.stack([y0, y1]), table), P_SMALL)
    start, phi = (y0 - y0 % 16 + y1) % 64, y0 % 16
    expected = [
        (int(entries[a, 0]) + int(entries[a, 1]) * int(basis[0, t]) + int(entries[a, 2]) * int(basis[1, t]))
        % P_SMALL
        for a, t in zip(start, phi, strict=True)
    ]
    assert np.array_equal(result, np.array(expected, dtype=np.uint64))


def test_region_bits_and_malformed_tables(model: ModelArithmetic) -> None:
    entries = np.random.default_rng(8).integers(0, 8, size=64, dtype=np.uint8)
    y = model.share(np.arange(64, dtype=np.uint64), 64)
    bits = model.region_bits(y, RegionTable(3, 3, 3, entries))
    start = (y[0] // 8 * 8 + y[1]) % 64
    assert np.array_equal((bits[0] ^ bits[1]) @ np.array([1, 2, 4]), entries[start])
    with pytest.raises(ValueError):
        RegionTable(4, 3, 3, entries)
    with pytest.raises(ValueError):
        SplineTable(2, P_SMALL, np.zeros((64, 2), np.uint64), np.zeros((2, 16), np.uint64))


def test_what_two_parties_would_spend_is_added_up(model: ModelArithmetic) -> None:
    x = model.encode(np.ones((3, 3)), 12)
    model.exchange([Mul(x, x), Wrap(x, (WrapOutput(4),))])
    size = -(-2 * 9 * 43 // 8) + 2
    assert model.spent == Cost(1, size, size)


def test_shares_are_spread_over_the_field(model: ModelArithmetic) -> None:
    x = model.rescale(model.encode(np.zeros(4000), 12), 4)
    for share in x:
        assert abs(share.astype(float).mean() / P_FIELD - 0.5) < 0.03
