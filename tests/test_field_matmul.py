"""Products of matrices over the field, on every instruction set, against Python integers."""

import numpy as np
import pytest

from sottovoce import _native
from sottovoce.ring.primes import P_FIELD, P_SMALL

ISAS = ["portable", "avx2", "avx512"]


@pytest.fixture(params=ISAS)
def isa(request):
    before = _native.active_isa()
    if ISAS.index(request.param) > ISAS.index(_native.detected_isa()):
        pytest.skip(f"no {request.param} here")
    _native.set_isa(request.param)
    yield request.param
    _native.set_isa(before)


def product(x, y, p):
    return np.mod(x.astype(object) @ y.astype(object), p).astype(np.uint64)


@pytest.mark.parametrize("p", [P_FIELD, P_SMALL, (1 << 44) - 17])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 5, 7), (3, 4, 64, 8), (1, 21, 33, 17)])
def test_matmul_equals_integers(isa, p, shape):
    batch, m, k, n = shape
    rng = np.random.default_rng(sum(shape))
    x, y = rng.integers(0, p, (batch, m, k), np.uint64), rng.integers(0, p, (batch, k, n), np.uint64)
    out = np.empty((batch, m, n), np.uint64)
    _native.field_matmul(x, y, p, out, 2)
    assert np.array_equal(out, product(x, y, p))


def test_long_sums_of_the_largest_residues(isa):
    p, k = (1 << 44) - 17, 2 * 4096 + 3
    x, y = np.full((1, 1, k), p - 1, np.uint64), np.full((1, k, 9), p - 1, np.uint64)
    out = np.empty((1, 1, 9), np.uint64)
    _native.field_matmul(x, y, p, out)
    assert np.array_equal(out, product(x, y, p))


def test_a_strided_right_operand(isa):
    rng = np.random.default_rng(0)
    store = rng.integers(0, P_FIELD, (2, 6, 40), np.uint64)
    x, out = rng.integers(0, P_FIELD, (2, 3, 5), np.uint64), np.empty((2, 3, 11), np.uint64)
    _native.field_matmul(x, store[:, :5, :11], P_FIELD, out)
    assert np.array_equal(out, product(x, store[:, :5, :11], P_FIELD))


def test_wrong_shapes_are_refused():
    x, y, out = np.zeros((1, 2, 3), np.uint64), np.zeros((1, 3, 4), np.uint64), np.zeros((1, 2, 4), np.uint64)
    for bad in ((x, y[:, :2], out), (x, y, out[:, :1].copy()), (x, y.swapaxes(1, 2), out)):
        with pytest.raises((ValueError, TypeError)):
            _native.field_matmul(*bad[:2], P_FIELD, bad[2])
    with pytest.raises(ValueError):
        _native.field_matmul(x, y, 1 << 45, out)
