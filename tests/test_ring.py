"""Polynomial kernels against python-flint and against one-line definitions, on every instruction set."""

from collections.abc import Iterator

import flint
import numpy as np
import pytest

from sottovoce import _native
from sottovoce.errors import ParameterError
from sottovoce.ring import RingContext, bit_reversal, context
from sottovoce.ring.primes import P_FIELD, P_SMALL, SIMD_PRIMES, SPECIAL_PRIME, ntt_primes

ISAS = ["portable", "avx2", "avx512"]
WIDE = ntt_primes(60, 1 << 17, 2)  # too wide for the vector path: the portable kernels must take over


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    if ISAS.index(request.param) > ISAS.index(_native.detected_isa()):
        pytest.skip(f"this machine has no {request.param}")
    _native.set_isa(request.param)
    yield request.param
    _native.set_isa(_native.detected_isa())


def random_polynomials(ring: RingContext, *batch: int, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    limbs = [rng.integers(0, q, (*batch, ring.n), dtype=np.uint64) for q in ring.primes]
    x = np.ascontiguousarray(np.stack(limbs, axis=-2))
    x[..., :, 0] = np.array(ring.primes, np.uint64) - 1  # the largest residue must survive every lazy bound
    return x


def slow_product(a: np.ndarray, b: np.ndarray, q: int) -> list[int]:
    n = len(a)
    product = flint.nmod_poly([int(v) for v in a], q) * flint.nmod_poly([int(v) for v in b], q)
    c = [int(v) for v in product.coeffs()] + [0] * (2 * n)
    return [(c[i] - c[i + n]) % q for i in range(n)]


@pytest.mark.parametrize("n", [2, 4, 8, 16, 32, 64, 256, 1024, 8192])
@pytest.mark.parametrize("primes", [SIMD_PRIMES + (SPECIAL_PRIME,), (P_FIELD, P_SMALL), WIDE])
def test_product_is_negacyclic(isa: str, n: int, primes: tuple[int, ...]) -> None:
    ring = context(n, primes)
    a, b = random_polynomials(ring), random_polynomials(ring, seed=2)
    product = ring.intt(ring.mul(ring.ntt(a.copy()), ring.ntt(b.copy())))
    for limb, q in enumerate(primes):
        assert product[limb].tolist() == slow_product(a[limb], b[limb], q)


def test_evaluation_order(isa: str) -> None:
    ring = context(64, SIMD_PRIMES)
    x = random_polynomials(ring)
    values = ring.ntt(x.copy())
    order = bit_reversal(64)
    for limb, (q, psi) in enumerate(zip(ring.primes, ring._native.roots, strict=True)):
        assert pow(psi, 64, q) == q - 1
        for i in range(64):
            point = pow(psi, 2 * int(order[i]) + 1, q)
            assert int(values[limb, i]) == sum(int(c) * pow(point, e, q) for e, c in enumerate(x[limb])) % q


@pytest.mark.parametrize("n", [16, 64, 2048, 4096, 8192, 16384, 65536])
def test_transform_round_trip_and_isas_agree(isa: str, n: int) -> None:
    # Lazy bounds and the factors' companion words depend on the bit length.
    vector = [q for bits in (50, 49, 47, 46, 41) for q in ntt_primes(bits, 1 << 17, 1)]
    ring = context(n, (*vector, *ntt_primes(50, 1 << 17, 3)[1:], *WIDE[:1]))
    x = random_polynomials(ring, 2)
    x[1] = np.array(ring.primes, np.uint64)[:, None] - np.uint64(1)
    values, back = ring.ntt(x.copy()), ring.intt(x.copy())
    _native.set_isa("portable")
    assert np.array_equal(values, ring.ntt(x.copy()))
    assert np.array_equal(back, ring.intt(x.copy()))
    _native.set_isa(isa)
    assert np.array_equal(ring.intt(values), x)


def test_long_transforms_of_many_primes(isa: str) -> None:
    """What derived companion words err by is seen at some primes and a few of 10^5 places only."""
    ring = context(65536, ntt_primes(49, 1 << 17, 20)[6:])
    x = random_polynomials(ring, 2)
    values = ring.ntt(x.copy())
    _native.set_isa("portable")
    assert np.array_equal(values, ring.ntt(x.copy()))


@pytest.mark.parametrize("primes", [SIMD_PRIMES, (P_FIELD,), (P_SMALL,), WIDE])
def test_pointwise_against_integers(isa: str, primes: tuple[int, ...]) -> None:
    ring = context(32, primes)
    a, b, c = (random_polynomials(ring, 3, seed=s) for s in (1, 2, 3))
    q = np.array(primes, object)[:, None]
    A, B, C = (v.astype(object) for v in (a, b, c))
    assert np.array_equal(ring.add(a, b), (A + B) % q)
    assert np.array_equal(ring.sub(a, b), (A - B) % q)
    assert np.array_equal(ring.neg(a), -A % q)
    assert np.array_equal(ring.mul(a, b), A * B % q)
    assert np.array_equal(ring.mul(a, b[0]), A * B[0] % q)
    assert np.array_equal(ring.mul_scalar(a, -5), A * -5 % q)
    assert np.array_equal(ring.mul_add(c.copy(), a, b), (C + A * B) % q)
    a_copy = a.copy()
    assert np.array_equal(ring.add(a_copy, b, out=a_copy), (A + B) % q)


@pytest.mark.parametrize("k", [3, 5, 2047, 2 * 1024 - 1])
def test_automorphism_in_both_forms(isa: str, k: int) -> None:
    ring = context(1024, SIMD_PRIMES)
    x = random_polynomials(ring, 2)
    moved = ring.automorphism_coeff(x, k)
    for i in range(0, 1024, 37):
        e = i * k % 2048
        expected = x[0, 0, i] if e < 1024 else (ring.primes[0] - x[0, 0, i]) % ring.primes[0]
        assert moved[0, 0, e % 1024] == expected
    assert np.array_equal(ring.automorphism_ntt(ring.ntt(x.copy()), k), ring.ntt(moved))


@pytest.mark.parametrize(
    ("components", "run", "count"), [(2, 1, 5), (2, 8, 3), (1, 2, 7), (3, 4, 1), (2, 64, 40)]
)
@pytest.mark.parametrize("primes", [SIMD_PRIMES, WIDE])
def test_mac_with_short_plaintexts(
    isa: str, components: int, run: int, count: int, primes: tuple[int, ...]
) -> None:
    ring = context(1024, primes)
    acc = random_polynomials(ring, components, seed=5)
    cts = random_polynomials(ring, count, components)
    pts = np.ascontiguousarray(random_polynomials(ring, count, seed=9)[..., : 1024 // run])
    full = np.repeat(pts, run, axis=-1).astype(object)
    q = np.array(primes, object)[:, None]
    expected = (acc.astype(object) + (cts.astype(object) * full[:, None]).sum(axis=0)) % q
    assert np.array_equal(ring.mac_many(acc.copy(), cts, pts), expected)
    assert np.array_equal(ring.mac_many(acc.copy(), cts, pts, threads=2), expected)


def test_mac_matrix_is_mac_many_row_by_row(isa: str) -> None:
    ring = context(1024, SIMD_PRIMES)
    cts, pts = random_polynomials(ring, 4, 2), random_polynomials(ring, 3, 4, seed=2)
    acc = random_polynomials(ring, 3, 2, seed=3)
    rows = np.stack([ring.mac_many(acc[g].copy(), cts, pts[g]) for g in range(3)])
    assert np.array_equal(ring.mac_matrix(acc, cts, pts), rows)


def test_mac_of_many_largest_products(isa: str) -> None:
    ring = context(16, SIMD_PRIMES)
    largest = np.broadcast_to(np.array(ring.primes, np.uint64)[:, None] - np.uint64(1), (3, 16))
    ct, pt = np.ascontiguousarray(largest)[None], np.ascontiguousarray(largest)
    acc = ring.mac_many(ring.zeros(1), [ct] * 9000, [pt] * 9000)
    assert np.array_equal(acc, np.full((1, 3, 16), 9000))  # (-1)·(-1), 9000 times


def test_broadcast_is_a_polynomial_in_a_power() -> None:
    ring, short = context(256, SIMD_PRIMES), 32
    x = ring.zeros()
    x[:, :: 256 // short] = random_polynomials(ring)[:, :short]
    values = ring.ntt(x).reshape(3, short, 256 // short)
    assert np.array_equal(values, np.repeat(values[..., :1], 256 // short, axis=-1))


def test_bad_shapes_and_primes_are_refused() -> None:
    ring = context(64, SIMD_PRIMES)
    with pytest.raises(ParameterError):
        ring.ntt(np.zeros((3, 32), np.uint64))
    with pytest.raises(ParameterError):
        ring.ntt(np.zeros((3, 64), np.int64))
    with pytest.raises(ParameterError):
        ring.add(ring.zeros(2), ring.zeros(3))
    with pytest.raises(ParameterError):
        ring.ntt(np.asfortranarray(ring.zeros()))
    with pytest.raises(ParameterError):
        ring.mac_many(ring.zeros(2), [ring.zeros(2)], [np.zeros((3, 48), np.uint64)])
    with pytest.raises(ParameterError):
        ring.automorphism_ntt(ring.zeros(), 4)
    for primes in [(15,), (1125899904679939,), (), SIMD_PRIMES[:1] * 2]:
        with pytest.raises(ParameterError):
            RingContext(64, primes)
