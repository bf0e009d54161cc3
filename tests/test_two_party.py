"""Every two-party primitive against the model, on the same input shares: values, bytes and rounds."""

from dataclasses import astuple
from typing import Any

import numpy as np
import pytest

from sottovoce.errors import ProtocolError, RangeError
from sottovoce.mpc import field
from sottovoce.mpc.field import P_FIELD, P_SMALL
from sottovoce.mpc.model import ModelArithmetic
from sottovoce.mpc.requests import (
    And,
    MaskRows,
    Mul,
    Mux,
    RegionLookup,
    SplineLookup,
    SumSquares,
    ToArithmetic,
    Wrap,
    WrapOutput,
)
from sottovoce.mpc.tables import RegionTable, SplineTable
from two_party_fixtures import both

RNG = np.random.default_rng(1)


def share(values: Any, modulus: int, rng: np.random.Generator = RNG) -> np.ndarray:
    """Random shares (2, *S) of signed integers."""
    residues = field.from_signed(values, modulus)
    x0 = rng.integers(0, modulus, residues.shape, dtype=np.uint64)
    return np.stack([x0, field.sub(residues, x0, modulus)])


def share_bits(bits: Any) -> np.ndarray:
    b0 = RNG.integers(0, 2, np.shape(bits), dtype=np.uint8)
    return np.stack([b0, b0 ^ np.asarray(bits, dtype=np.uint8)])


def opened(x: np.ndarray, modulus: int) -> np.ndarray:
    return x[0] ^ x[1] if x.dtype == np.uint8 else field.add(x[0], x[1], modulus)


def same(make: Any, shares: tuple[np.ndarray, ...], moduli: tuple[int, ...]) -> list[np.ndarray]:
    """Run the request make(*shares) at both parties and in the model -> the opened results, found equal.

    The ledger must say what the model says that the request costs.
    """
    kind = "lookup" if isinstance(make(*(s[0] for s in shares)), SplineLookup | RegionLookup) else "exchange"
    model = ModelArithmetic(np.random.default_rng(2), check=False)
    wanted = getattr(model, kind)([make(*shares)])[0]
    got, paid = both(lambda a, role: getattr(a, kind)([make(*(s[role] for s in shares))])[0])
    assert (paid.rounds, paid.bytes_up, paid.bytes_down) == astuple(model.spent)
    values = []
    for g, w, modulus in zip(listed(got), listed(wanted), moduli, strict=True):
        assert g.shape == w.shape and g.dtype == w.dtype and int(g.max(initial=0)) < modulus
        np.testing.assert_array_equal(opened(g, modulus), opened(w, modulus))
        values.append(opened(g, modulus))
    return values


def listed(x: Any) -> list[np.ndarray]:
    return x if isinstance(x, list) else [x]


# ---------------------------------------------------------------- wrap


@pytest.mark.parametrize("p", [17, 97])
@pytest.mark.parametrize("signed", [False, True])
def test_wrap_is_exact_for_every_share_of_a_small_prime(p: int, signed: bool) -> None:
    values = np.arange(-(p // 4) + 1, p // 4) if signed else np.arange((p + 1) // 2)
    values, x0 = np.meshgrid(values, np.arange(p), indexing="ij")
    x = field.from_signed(values, p)
    shares = np.stack([x0.astype(np.uint64), field.sub(x, x0.astype(np.uint64), p)])
    outputs = tuple(WrapOutput(0, m) for m in (P_FIELD, P_SMALL, 1 << 8, 1 << 40, 61, p))
    results = same(lambda x: Wrap(x, outputs, signed, p), (shares,), tuple(o.modulus for o in outputs))
    for out, result in zip(outputs, results, strict=True):
        np.testing.assert_array_equal(result, field.from_signed(values, out.modulus))


@pytest.mark.parametrize("modulus", [P_FIELD, P_SMALL])
def test_wrap_at_the_edges_of_the_field(modulus: int) -> None:
    edges = np.array([0, 1, modulus // 4, modulus // 2, modulus // 2 + 1, modulus - 1], dtype=np.int64)
    near = np.unique(np.clip(np.concatenate([edges - 1, edges, edges + 1]), 0, modulus - 1)).astype(np.uint64)
    values = np.array([0, 1, -1, 5000, -5000, modulus // 4 - 4097, 4097 - modulus // 4], dtype=np.int64)
    values, x0 = np.meshgrid(values, near, indexing="ij")
    shares = np.stack([x0, field.sub(field.from_signed(values, modulus), x0, modulus)])
    outputs = (
        WrapOutput(12, P_FIELD),
        WrapOutput(6, P_FIELD),
        WrapOutput(3, P_SMALL),
        WrapOutput(2, 1 << 17),
        WrapOutput(0, 1 << 43),
    )
    results = same(lambda x: Wrap(x, outputs, True, modulus), (shares,), tuple(o.modulus for o in outputs))
    for out, result in zip(outputs, results, strict=True):
        floor = field.from_signed(values >> out.shift, out.modulus)
        error = field.centred(field.sub(result, floor, out.modulus), out.modulus)
        # Floor plus 0 or 1; what P = round(p / 2^f) leaves over can take one unit off.
        assert error.min() >= -1 and error.max() <= 1
        if out.shift == 0:
            assert not error.any()


def test_rescaling_is_unbiased() -> None:
    values = RNG.integers(-(1 << 30), 1 << 30, 40000)
    (result,) = same(lambda x: Wrap(x, (WrapOutput(12),)), (share(values, P_FIELD),), (P_FIELD,))
    error = field.centred(result, P_FIELD) - values / 4096
    assert np.abs(error).max() <= 1
    assert abs(error.mean()) < 0.02 and 0.38 < error.std() < 0.44


def test_unsigned_wrap_covers_half_of_the_field() -> None:
    values = np.array([0, 1, P_FIELD // 4, P_FIELD // 2 - 1, P_FIELD // 2], dtype=np.int64).repeat(50)
    same(
        lambda x: Wrap(x, (WrapOutput(11), WrapOutput(0, 1 << 18)), False),
        (share(values, P_FIELD),),
        (P_FIELD, 1 << 18),
    )


# ---------------------------------------------------------------- bits


def test_and_of_all_shares() -> None:
    every = ((np.arange(16)[:, None] >> np.arange(4)) & 1).astype(np.uint8).repeat(20, axis=0)
    a, b = every[:, :2].T.copy(), every[:, 2:].T.copy()
    (result,) = same(And, (a, b), (2,))
    np.testing.assert_array_equal(result, (a[0] ^ a[1]) & (b[0] ^ b[1]))


@pytest.mark.parametrize("modulus", [P_FIELD, P_SMALL, 97, 1 << 17, 1 << 43])
def test_bits_become_arithmetic(modulus: int) -> None:
    bits = RNG.integers(0, 2, (3, 101), dtype=np.uint8)
    (result,) = same(lambda b: ToArithmetic(b, modulus), (share_bits(bits),), (modulus,))
    np.testing.assert_array_equal(result, bits)


@pytest.mark.parametrize("modulus", [P_FIELD, P_SMALL, 5, 1 << 17])
def test_mux(modulus: int) -> None:
    values = np.concatenate([np.arange(-2, 3), RNG.integers(0, modulus, 300)]).repeat(4).astype(np.int64)
    bits = RNG.integers(0, 2, values.shape, dtype=np.uint8)
    make = lambda b, v: Mux(b, v, modulus)  # noqa: E731
    (result,) = same(make, (share_bits(bits), share(values, modulus)), (modulus,))
    np.testing.assert_array_equal(result, field.from_signed(values * bits, modulus))


# ---------------------------------------------------------------- products


def field_samples(shape: tuple[int, ...]) -> np.ndarray:
    x = RNG.integers(0, P_FIELD, shape, dtype=np.uint64)
    flat = x.reshape(-1)
    edges = [0, 1, P_FIELD - 1, P_FIELD // 2, P_FIELD // 2 + 1, P_FIELD // 4]
    flat[: len(edges)] = edges
    return x


def test_products_of_any_field_elements() -> None:
    x, y = field_samples((4, 25)), field_samples((4, 25))[::-1]
    sx, sy = share(x, P_FIELD), share(y, P_FIELD)
    (result,) = same(Mul, (sx, sy), (P_FIELD,))
    np.testing.assert_array_equal(result, x.astype(object) * y.astype(object) % P_FIELD)


def test_sum_of_squares() -> None:
    x = RNG.integers(-(1 << 17), 1 << 17, (3, 2, 60))
    (result,) = same(SumSquares, (share(x, P_FIELD),), (P_FIELD,))
    np.testing.assert_array_equal(result, (x * x).sum(axis=-1).astype(np.uint64))


def test_rows_times_scalars() -> None:
    v, s = field_samples((3, 2, 40)), field_samples((3, 2))
    sv, ss = share(v, P_FIELD), share(s, P_FIELD)

    def program(arithmetic: Any, role: int) -> Any:
        return arithmetic.scale_rows(arithmetic.mask_rows(sv[role]), ss[role])

    got, paid = both(program)
    model = ModelArithmetic(RNG, check=False)
    wanted = model.scale_rows(model.mask_rows(sv), ss)
    np.testing.assert_array_equal(opened(got, P_FIELD), opened(wanted, P_FIELD))
    assert (paid.rounds, paid.bytes_up, paid.bytes_down) == (2, model.spent.bytes_up, model.spent.bytes_down)
    assert paid.bytes_up == (240 * 43 + 7) // 8 + (6 * 43 + 7) // 8


def test_masked_rows_are_scaled_once() -> None:
    def program(arithmetic: Any, role: int) -> None:
        rows = arithmetic.mask_rows(np.ones((1, 4), np.uint64))
        arithmetic.scale_rows(rows, np.ones(1, np.uint64))
        arithmetic.scale_rows(rows, np.ones(1, np.uint64))

    with pytest.raises(ProtocolError, match="twice"):
        both(program)


# ---------------------------------------------------------------- look-ups


def spline_table(
    segment_bits: int, remainder_bits: int, modulus: int, products: int, constant: bool
) -> SplineTable:
    u, terms = 1 << remainder_bits, products + constant
    entries = RNG.integers(0, modulus, (u << segment_bits, terms), dtype=np.uint64)
    basis = RNG.integers(0, modulus, (products, u), dtype=np.uint64)
    return SplineTable(segment_bits, modulus, entries, basis, constant)


@pytest.mark.parametrize("segment_bits, remainder_bits", [(1, 0), (2, 3), (4, 2), (3, 3)])
@pytest.mark.parametrize("products, constant", [(1, False), (1, True), (3, True)])
def test_spline_for_every_pair_of_shares(
    segment_bits: int, remainder_bits: int, products: int, constant: bool
) -> None:
    table = spline_table(segment_bits, remainder_bits, P_FIELD, products, constant)
    length = np.uint64(1 << table.ring_bits)
    y0, y1 = np.meshgrid(np.arange(length), np.arange(length), indexing="ij")
    y = np.stack([y0, y1]).astype(np.uint64)
    same(lambda y: SplineLookup(y, table), (y,), (P_FIELD,))


def test_spline_of_a_realistic_table() -> None:
    table = spline_table(3, 11, P_FIELD, 3, True)
    y = RNG.integers(0, 1 << 14, (2, 1, 500), dtype=np.uint64)
    same(lambda y: SplineLookup(y, table), (y,), (P_FIELD,))


@pytest.mark.parametrize("width", [1, 2, 3, 8])
@pytest.mark.parametrize("segment_bits, remainder_bits, longer", [(1, 0, 0), (3, 2, 0), (4, 0, 1), (6, 1, 0)])
def test_regions_for_every_pair_of_shares(
    width: int, segment_bits: int, remainder_bits: int, longer: int
) -> None:
    count = 1 << (segment_bits + remainder_bits)
    entries = RNG.integers(0, 1 << width, count << longer, dtype=np.uint8)
    table = RegionTable(segment_bits, remainder_bits, width, entries)
    y = np.stack(np.meshgrid(np.arange(count), np.arange(count << longer), indexing="ij")).astype(np.uint64)
    same(lambda y: RegionLookup(y, table), (y,), (2,))


def test_a_share_outside_the_table_is_refused() -> None:
    table = RegionTable(2, 1, 1, np.zeros(8, np.uint8))
    with pytest.raises(RangeError):
        both(lambda arithmetic, role: arithmetic.region_bits(np.full(3, 8, np.uint64), table))


# ---------------------------------------------------------------- fusing


def test_requests_of_one_call_share_one_exchange() -> None:
    bits, x, rows = share_bits([0, 1, 1]), share([5, -6, 7], P_FIELD), share([[1, 2], [3, 4]], P_FIELD)

    def requests(i: Any) -> list[Any]:
        return [
            Wrap(i(x), (WrapOutput(2), WrapOutput(0, 1 << 18))),
            And(i(bits), i(bits)),
            Mux(i(bits), i(x)),
            ToArithmetic(i(bits), P_SMALL),
            Mul(i(x), i(x)),
            SumSquares(i(rows)),
            MaskRows(i(rows)),
        ]

    got, paid = both(lambda arithmetic, role: arithmetic.exchange(requests(lambda s: s[role])))
    model = ModelArithmetic(RNG)
    wanted = model.exchange(requests(lambda s: s))
    assert (paid.rounds, paid.bytes_up, paid.bytes_down) == (1, model.spent.bytes_up, model.spent.bytes_down)
    for index, modulus in ((1, 2), (2, P_FIELD), (3, P_SMALL), (4, P_FIELD), (5, P_FIELD)):
        np.testing.assert_array_equal(opened(got[index], modulus), opened(wanted[index], modulus))
    np.testing.assert_array_equal(opened(got[0][1], 1 << 18), opened(wanted[0][1], 1 << 18))
    scaled, _ = both(lambda arithmetic, role: arithmetic.mask_rows(rows[role]).shape)
    assert scaled[0].tolist() == [2, 2]


def test_lookups_of_one_call_share_two_messages() -> None:
    regions = RegionTable(3, 2, 2, RNG.integers(0, 4, 32, dtype=np.uint8))
    spline = spline_table(2, 3, P_FIELD, 2, True)
    y = RNG.integers(0, 32, (2, 77), dtype=np.uint64)

    def lookups(i: Any) -> list[Any]:
        return [RegionLookup(i(y), regions), SplineLookup(i(y), spline), RegionLookup(i(y)[..., :3], regions)]

    got, paid = both(lambda arithmetic, role: arithmetic.lookup(lookups(lambda s: s[role])))
    model = ModelArithmetic(RNG)
    wanted = model.lookup(lookups(lambda s: s))
    assert (paid.rounds, paid.bytes_up, paid.bytes_down) == (2, model.spent.bytes_up, model.spent.bytes_down)
    for g, w, modulus in zip(got, wanted, (2, P_FIELD, 2), strict=True):
        np.testing.assert_array_equal(opened(g, modulus), opened(w, modulus))


# ---------------------------------------------------------------- local steps


def test_local_steps_agree_with_the_model() -> None:
    model = ModelArithmetic(RNG)
    values = np.array([[3, -4, 0], [1, 1, -9]])
    y = share(RNG.integers(0, 1 << 18, 50), 1 << 18)

    def program(a: Any, role: int) -> Any:
        return [
            a.from_public(values),
            a.from_public(values, 1 << 18),
            a.from_client(values if role == 0 else None, values.shape),
            a.from_server(values if role == 1 else None, values.shape, P_SMALL),
            a.take_bits(y[role], 4, 14),
            a.take_bits(y[role], 0, 9),
            a.not_(np.array([0, 1, 1], np.uint8)),
        ]

    got, paid = both(program)
    assert paid.rounds == 0
    wanted = [
        model.from_public(values),
        model.from_public(values, 1 << 18),
        model.from_client(values, values.shape),
        model.from_server(values, values.shape, P_SMALL),
        model.take_bits(y, 4, 14),
        model.take_bits(y, 0, 9),
        model.not_(np.array([[0, 1, 1]] * 2, np.uint8)),
    ]
    for g, w in zip(got, wanted, strict=True):
        np.testing.assert_array_equal(g, w)
