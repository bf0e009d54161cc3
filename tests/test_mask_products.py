"""Products of shared masks between two parties, with real parameters: integers, error, bytes, privacy."""

import numpy as np
import pytest
from scipy import stats

from chance import LEAST_P
from sottovoce.correlations.coefficients import (
    COEFFICIENTS,
    KAPPA_A,
    CoefficientKey,
    encrypted_bytes,
    error_bits,
    give_back,
    load,
    plaintexts,
)
from sottovoce.correlations.mask_products import MOST_ROWS, MaskLayout, MaskProducts, matmul, products_bytes
from sottovoce.errors import FrameError, IntegrityError, ParameterError
from sottovoce.net import Channel, run_pair
from sottovoce.ring.primes import P_FIELD
from sottovoce.ring.security import check

U64 = np.uint64
N = COEFFICIENTS.degree


def shares(rng, *shape):
    x = rng.integers(0, P_FIELD, (2, *shape), U64)
    return x, (x[0] + x[1]) % U64(P_FIELD)


def centred(x):
    return (x.astype(np.int64) + P_FIELD // 2) % P_FIELD - P_FIELD // 2


def multiply(shapes, seed=0, tap=None):
    """Errors (units) of the products of random shared matrices of these shapes (S, m, k, n)."""
    rng = np.random.default_rng(seed)
    left = [shares(rng, s, m, k) for s, m, k, _ in shapes]
    right = [shares(rng, s, k, n) for s, _, k, n in shapes]

    def party(channel: Channel):
        products = MaskProducts(channel)
        products.keys()
        if tap is not None:
            channel.tap = lambda payload: tap(bytes(payload))
        before = channel.ledger.snapshot()
        role = int(channel.role)
        result = products.multiply([(x[0][role], y[0][role]) for x, y in zip(left, right, strict=True)])
        rows = channel.ledger.since(before)
        assert sum(r.rounds for r in rows) == 2
        assert [sum(r.bytes_up for r in rows), sum(r.bytes_down for r in rows)] == [
            products_bytes(shapes)
        ] * 2
        return result

    mine, theirs = run_pair(party, party)
    exact = [matmul(x, y) for (_, x), (_, y) in zip(left, right, strict=True)]
    return [
        centred((x0 + x1 + (U64(P_FIELD) - z)) % U64(P_FIELD))
        for x0, x1, z in zip(mine, theirs, exact, strict=True)
    ]


@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (2, 3, 8, 5), (1, 63, 20, 9), (3, 130, 7, 33), (1, 1000, 3, 2), (1, 5, 150, 40)]
)
def test_products_are_those_of_the_masks(shape):
    (errors,) = multiply([shape])
    assert np.abs(errors).max() < 6000


def test_the_error_is_what_the_formula_says():
    shapes = [(1, 200, 64, 40), (1, 200, 60, 64)]
    for (_, m, k, n), errors in zip(shapes, multiply(shapes), strict=True):
        predicted = 2**0.5 * 2.0 ** error_bits(MaskLayout.plan(m, k, n).terms)
        assert 0.8 * predicted < errors.std() < 1.1 * predicted
        assert abs(errors.mean()) < predicted / 10


@pytest.mark.parametrize("m, k, n", [(255, 64, 128), (255, 128, 64), (64, 8, 8), (1, 1, 1), (1024, 5, 1)])
def test_every_split_holds_all_results_once(m, k, n):
    widest = N >> (m - 1).bit_length()
    plan = MaskLayout.plan(m, k, n)
    for columns in (1 << i for i in range(widest.bit_length())):
        layout = MaskLayout(m, k, n, columns)
        assert layout.columns * layout.places * layout.stride == N
        counts = np.arange(layout.outputs * N, dtype=U64).reshape(-1, 1, N)
        chosen = layout.select(counts)[0, : m * n]
        assert len(np.unique(chosen)) == m * n
        assert layout.size % 8 == 0 and layout.size < m * n + 8
        assert plan.sent + plan.returned <= layout.sent + layout.returned
        parts = list(layout.parts())
        assert sum(part.n for _, part in parts) == n
        assert sum(part.outputs for _, part in parts) == layout.outputs


def test_the_parameters_are_far_from_the_limit():
    modulus = np.log2(float(COEFFICIENTS.modulus()))
    assert COEFFICIENTS.key_primes == COEFFICIENTS.primes and 83.9 < modulus < 84
    check(N, modulus)
    check(N, modulus + 20)


def test_too_many_rows_and_too_long_sums_are_refused():
    with pytest.raises(ParameterError, match="rows"):
        MaskLayout.plan(MOST_ROWS + 1, 4, 4)
    with pytest.raises(ParameterError, match="accurate"):
        MaskLayout.plan(64, 1 << 20, 64)


def test_ciphertexts_of_another_size_or_with_wrong_residues_are_refused():
    key = CoefficientKey.generate()
    data = key.encrypt(np.zeros((1, N), U64))
    assert len(data) == encrypted_bytes(1)
    for wrong in (data[:-1], data + b"\0", b""):
        with pytest.raises(FrameError):
            load(wrong, 1)
    with pytest.raises(IntegrityError):
        load(data[:-8] + b"\xff" * 8, 1)
    with pytest.raises(FrameError):
        key.open(b"123", 1, lambda x: x[0], N)


def returned(value: int, key: CoefficientKey):
    """The halves that the other party gets back for a product with this plaintext, and the input's A half."""
    pair = load(key.encrypt(np.ones((1, N), U64)), 1)
    plain = plaintexts(np.full((1, N), value, U64))
    ring = COEFFICIENTS.ring()
    product = ring.mul(pair, np.ascontiguousarray(np.broadcast_to(plain[:, None], pair.shape)))
    packed, _ = give_back(product, key.public, lambda b: b[0])
    a = np.frombuffer(packed[: N // 8 * KAPPA_A], np.uint8)
    return a, np.frombuffer(packed[len(a) :], np.uint8), product


@pytest.mark.parametrize("value", [0, 1, P_FIELD - 1])
def test_what_returns_is_uniform_whatever_it_was_multiplied_with(value):
    """Recipe Z: without the encryption of zero, A' of a product with 0 would be 0."""
    key = CoefficientKey.generate()
    for half in returned(value, key)[:2]:
        assert stats.chisquare(np.bincount(half, minlength=256)).pvalue > LEAST_P


def test_the_same_product_returns_differently_each_time():
    key = CoefficientKey.generate()
    (a, b, _), (c, d, _) = returned(5, key), returned(5, key)
    for left, right in ((a, c), (b, d)):
        assert np.mean(left == right) < 0.02


def test_all_that_travels_is_uniform():
    frames: list[bytes] = []
    multiply([(2, 20, 16, 40), (2, 20, 40, 16)], tap=frames.append)
    assert len(frames) == 4
    for frame in frames:
        assert stats.chisquare(np.bincount(np.frombuffer(frame, np.uint8), minlength=256)).pvalue > LEAST_P
