"""Field products, the int16 matrix product and bit packing against Python integers, on every instruction
set."""

from collections.abc import Iterator

import numpy as np
import pytest

from sottovoce import _native
from sottovoce.ring.primes import P_FIELD, P_SMALL, SIMD_PRIMES

ISAS = ["portable", "avx2", "avx512"]


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    if ISAS.index(request.param) > ISAS.index(_native.detected_isa()):
        pytest.skip(f"this machine has no {request.param}")
    _native.set_isa(request.param)
    yield request.param
    _native.set_isa(_native.detected_isa())


@pytest.mark.parametrize("p", [P_FIELD, P_SMALL, SIMD_PRIMES[0], (1 << 61) - 1, 3])
@pytest.mark.parametrize("n", [0, 1, 7, 8, 1000])
def test_field_mul(isa: str, p: int, n: int) -> None:
    rng = np.random.default_rng(n)
    a, b = rng.integers(0, p, (2, n), dtype=np.uint64)
    if n:
        a[0] = b[0] = p - 1
    out = np.empty(n, np.uint64)
    _native.field_mul(a, b, p, out)
    assert np.array_equal(out, a.astype(object) * b.astype(object) % p)


@pytest.mark.parametrize("p", [P_FIELD, P_SMALL, (1 << 47) - 115])
@pytest.mark.parametrize(
    ("rows", "columns", "batch"), [(1, 1, 1), (70, 33, 1), (130, 576, 3), (9, 1536, 9), (3, 5000, 2)]
)
def test_field_matvec(isa: str, p: int, rows: int, columns: int, batch: int) -> None:
    rng = np.random.default_rng(rows)
    w = rng.integers(-(1 << 15), 1 << 15, (rows, columns)).astype(np.int16)
    w[0] = -(1 << 15)
    x = rng.integers(0, p, (batch, columns), dtype=np.uint64)
    x[0] = p - 1
    out = np.empty((batch, rows), np.uint64)
    for threads in (1, 2):
        _native.field_matvec_i16(w, x, p, out, threads)
        assert np.array_equal(out, x.astype(object) @ w.astype(object).T % p)


def test_field_matvec_of_the_widest_matrix(isa: str) -> None:
    columns = 1 << 17
    w = np.full((1, columns), -(1 << 15), np.int16)
    x = np.full((1, columns), (1 << 47) - 116, np.uint64)
    out = np.empty((1, 1), np.uint64)
    p = (1 << 47) - 115
    _native.field_matvec_i16(w, x, p, out)
    assert int(out[0, 0]) == (columns << 15) % p
    with pytest.raises(ValueError):
        _native.field_matvec_i16(
            np.zeros((1, 2 * columns), np.int16), np.zeros((1, 2 * columns), np.uint64), p, out
        )


@pytest.mark.parametrize("width", [1, 3, 8, 28, 43, 50, 63, 64])
@pytest.mark.parametrize("count", [0, 1, 2, 5, 64, 1001])
def test_pack_bits(isa: str, width: int, count: int) -> None:
    values = np.random.default_rng(count).integers(0, 1 << width, count, dtype=np.uint64)
    out = np.empty((count * width + 7) // 8, np.uint8)
    _native.pack_bits(values, width, out)
    whole = sum(int(v) << (i * width) for i, v in enumerate(values))
    assert out.tobytes() == whole.to_bytes(len(out), "little")
    back = np.empty(count, np.uint64)
    _native.unpack_bits(out, width, back)
    assert np.array_equal(back, values)


def test_packing_checks_lengths() -> None:
    with pytest.raises(ValueError):
        _native.pack_bits(np.zeros(8, np.uint64), 43, np.empty(42, np.uint8))
    with pytest.raises(ValueError):
        _native.unpack_bits(np.zeros(44, np.uint8), 43, np.empty(8, np.uint64))
    with pytest.raises(ValueError):
        _native.pack_bits(np.zeros(8, np.uint64), 65, np.empty(65, np.uint8))
