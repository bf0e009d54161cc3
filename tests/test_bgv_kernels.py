"""The native kernels against Python integers, on every instruction set: same bits, edges included."""

import math

import numpy as np
import pytest

from sottovoce import _native
from sottovoce.ring import RingContext
from sottovoce.ring.primes import P_FIELD, P_SMALL, SIMD_PRIMES, SPECIAL_PRIME, ntt_primes

N = 64
WIDE = ntt_primes(58, 2 * N, 3)  # too large for the vector kernels: the portable ones must take over


@pytest.fixture(params=["portable", "avx2", "avx512"], autouse=True)
def isa(request):
    before = _native.active_isa()
    _native.set_isa(request.param)
    yield request.param
    _native.set_isa(before)


@pytest.fixture(params=[SIMD_PRIMES, WIDE], ids=["50 bits", "58 bits"])
def primes(request):
    return list(request.param)


def residues(rng, primes, *batch):
    """Random residues, with the extremes in the first coefficients."""
    out = np.empty((*batch, len(primes), N), np.uint64)
    for limb, q in enumerate(primes):
        out[..., limb, :] = rng.integers(0, q, (*batch, N), dtype=np.uint64)
        out[..., limb, :4] = [0, q - 1, q // 2, q // 2 + 1]
    return out


def integers(x, primes):
    """(..., L, N) -> exact values in [0, Q)."""
    modulus = math.prod(primes)
    total = np.zeros((*x.shape[:-2], x.shape[-1]), object)
    for limb, q in enumerate(primes):
        rest = modulus // q
        total += x[..., limb, :].astype(object) * (rest * pow(rest, -1, q))
    return total % modulus


def centred(v, q):
    return np.where(v > q // 2, v - q, v)


def dense(data, width, count=N):
    stream = int.from_bytes(data.tobytes(), "little")
    return [stream >> (i * width) & ((1 << width) - 1) for i in range(count)]


def wire_values(data, kappa):
    """A rounded half: above 64 bits, the low words of all coefficients come first."""
    if kappa < 64:
        return dense(data, kappa)
    low, high = dense(data[: 8 * N], 64), dense(data[8 * N :], kappa - 64)
    return [a | b << 64 for a, b in zip(low, high, strict=True)]


@pytest.fixture
def rng():
    return np.random.default_rng(11)


@pytest.mark.parametrize("source", [P_FIELD, P_SMALL, SPECIAL_PRIME, SIMD_PRIMES[0]])
@pytest.mark.parametrize("scale", [1, 12345678])
@pytest.mark.parametrize("n", [4, 8, N])
def test_lift(rng, primes, source, scale, n):
    x = residues(rng, [source], 2)[:, 0, :n].copy()
    out = np.empty((2, 3, n), np.uint64)
    _native.bgv_lift(x, source, scale, primes, out)
    v = centred(x.astype(object) * scale % source, source)
    for limb, q in enumerate(primes):
        assert (out[:, limb] == v % q).all()


@pytest.mark.parametrize("count", [1, 3, 8, 9, 40])
@pytest.mark.parametrize("accumulate", [False, True])
def test_products(rng, primes, count, accumulate):
    a, b, key = residues(rng, primes, 2, count), residues(rng, primes, count), residues(rng, primes, count, 2)
    out = residues(rng, primes, 2, 2)
    start = out.astype(object) if accumulate else 0
    _native.bgv_key_product(a, key, primes, out, accumulate)
    column = np.array(primes, object)[:, None]
    expected = (a[:, :, None].astype(object) * key[None]).sum(1)
    assert (out == (start + expected) % column).all()

    a, b = residues(rng, primes, count, 2), residues(rng, primes, count, 2)
    out = residues(rng, primes, 3)
    start = out.astype(object) if accumulate else 0
    _native.bgv_tensor(a, b, primes, out, accumulate)
    A, B = a.astype(object), b.astype(object)
    products = [A[:, 0] * B[:, 0], A[:, 0] * B[:, 1] + A[:, 1] * B[:, 0], A[:, 1] * B[:, 1]]
    assert (out == (start + np.stack([p.sum(0) for p in products])) % column).all()


def test_sub_scale(rng, primes):
    x, y = residues(rng, [*primes, SPECIAL_PRIME], 2), residues(rng, primes, 2)
    out, scales = np.empty_like(y), [3, primes[1] - 1, 0]
    _native.bgv_sub_scale(x, y, primes, scales, out)
    column = np.array(primes, object)[:, None]
    factors = np.array(scales, object)[:, None]
    assert (out == (x[:, :3].astype(object) - y) * factors % column).all()


@pytest.mark.parametrize("kappa", [1, 12, 48, 51, 52, 53, 63, 65, 88, 92, 95, 103])
@pytest.mark.parametrize("limbs", [1, 2, 3])
def test_rounding_and_lifting_back(rng, primes, kappa, limbs):
    primes = primes[:limbs]
    modulus = math.prod(primes)
    x = residues(rng, primes, 3)
    packed = np.empty((3, N // 8 * kappa), np.uint8)
    _native.bgv_round_pack(x, primes, kappa, packed)
    # Exact to the 104 bits that a fraction holds: the sum of the terms, each floored.
    fraction = np.zeros((3, N), object)
    for limb, q in enumerate(primes):
        inverse = pow(modulus // q, -1, q)
        fraction += (x[:, limb].astype(object) * inverse % q) * (1 << 104) // q
    expected = ((fraction + (1 << (103 - kappa))) >> (104 - kappa)) % (1 << kappa)
    for row, want in zip(packed, expected, strict=True):
        assert wire_values(row, kappa) == list(want)
    exact = integers(x, primes) * (1 << kappa)
    error = abs(centred((expected * modulus - exact) % (modulus << kappa), modulus << kappa))
    assert (error <= modulus // 2 + (3 * modulus >> (104 - kappa))).all()

    out = np.empty((3, limbs, N), np.uint64)
    _native.bgv_unpack_lift(packed, kappa, primes, out)
    lifted = (expected * modulus + (1 << (kappa - 1))) >> kappa
    for limb, q in enumerate(primes):
        assert (out[:, limb] == lifted % q).all()


@pytest.mark.parametrize("p", [P_FIELD, P_SMALL])
@pytest.mark.parametrize("kappa", [0, 48, 88])
def test_scaling_to_the_plaintext_modulus(rng, primes, p, kappa):
    modulus = math.prod(primes)
    x = residues(rng, primes, 2)
    added = rng.integers(0, 256, (2, N // 8 * kappa), dtype=np.uint8)
    out = np.empty((2, N), np.uint64)
    _native.bgv_scale_to_plain(x, primes, added if kappa else np.zeros((0, 0), np.uint8), kappa, p, 5, out)
    total = integers(x, primes) * (1 << kappa)
    if kappa:
        for row, data in enumerate(added):
            total[row] += np.array(wire_values(data, kappa), object) * modulus
    denominator = modulus << kappa
    exact = (2 * p * total + denominator) // (2 * denominator) * 5 % p
    assert (out == exact).mean() > 0.98  # the extremes sit on rounding boundaries: see below
    near = (2 * p * total + denominator) % (2 * denominator)
    tie = np.minimum(near, 2 * denominator - near) < (2 * denominator >> 50)
    assert ((out == exact) | tie).all()


@pytest.mark.parametrize("bits", [1, 30, 52, 53, 104])
def test_wide_uniform(rng, primes, bits):
    words = rng.integers(0, 1 << 64, (2, 2, N), dtype=np.uint64)
    low, high = words[:, 0].astype(object), words[:, 1].astype(object)
    expected = (low % (1 << min(bits, 52))) + (high % (1 << max(bits - 52, 0)) << 52) - (1 << (bits - 1))
    out = np.empty((2, 3, N), np.uint64)
    _native.bgv_wide_uniform(words, bits, primes, out)
    for limb, q in enumerate(primes):
        assert (out[:, limb] == expected % q).all()


@pytest.mark.parametrize("n", [8, N, 1000])
@pytest.mark.parametrize("bits", [28, 43, 48, 50, 52, 58])
def test_residues_on_the_wire(rng, bits, n):
    primes = [(1 << bits) - 1, (1 << (bits - 1)) + 1]
    x = np.stack([rng.integers(0, q, (2, n), dtype=np.uint64) for q in primes], 1)
    widths = [bits, bits]
    out = np.empty((2, n // 8 * sum(widths)), np.uint8)
    _native.bgv_pack_residues(x, primes, out)
    for row, data in zip(x, out, strict=True):
        assert dense(data, bits, 2 * n) == list(row.reshape(-1))
    again = np.zeros((2, 2, 2, n), np.uint64)
    assert _native.bgv_unpack_residues(out, primes, again)
    assert (again[:, 0] == x).all() and not again[:, 1].any()
    out[1, -1] = 255  # the last residue of the last row is now too large for the second prime
    assert not _native.bgv_unpack_residues(out, primes, again)


def test_samplers(rng, primes):
    """Random bytes become the values that the reference samplers draw from them."""
    words = rng.integers(0, 1 << 64, (2, N), dtype=np.uint64)
    words[0, :3] = [0, (1 << 64) - 1, (1 << 21) - 1]
    out = np.empty((2, 3, N), np.uint64)
    _native.bgv_error(words, primes, out)
    mask = (1 << 21) - 1
    values = [[(int(w) & mask).bit_count() - (int(w) >> 21 & mask).bit_count() for w in row] for row in words]
    for limb, q in enumerate(primes):
        assert (out[:, limb] == np.array(values, object) % q).all()
    small = rng.integers(0, 1 << 32, (2, N), dtype=np.uint32)
    small[0, :2] = [0, (1 << 32) - 1]
    _native.bgv_ternary(small, primes, out)
    for limb, q in enumerate(primes):
        assert (out[:, limb] == ((small.astype(object) * 3 >> 32) - 1) % q).all()
    for q in primes:
        bits = q.bit_length()
        draw = rng.integers(0, 1 << 64, 200, dtype=np.uint64)
        draw[:2] = [(q << (64 - bits)) - 1, q << (64 - bits)]
        kept = [int(w) >> (64 - bits) for w in draw if int(w) >> (64 - bits) < q]
        for size in (100, 300):
            out = np.zeros(size, np.uint64)
            filled = _native.bgv_reject(draw, q, out)
            assert filled == min(size, len(kept)) and list(out[:filled]) == kept[:filled]


def test_key_switching_steps(rng, primes):
    """Digits lift exactly; division by P leaves (x − [x]_P)·scale."""
    special = SPECIAL_PRIME if primes[0] < 1 << 50 else ntt_primes(59, 2 * N, 1)[0]
    ring, full = RingContext(N, primes), RingContext(N, [*primes, special])
    x = residues(rng, primes, 2)
    out = np.empty((2, 3, 4, N), np.uint64)
    _native.bgv_decompose(full._native, np.stack([x, ring.ntt(x.copy())], 1), 1, out)
    full.intt(out)
    for digit, q in enumerate(primes):
        v = centred(x[:, digit].astype(object), q)
        for limb, target in enumerate(full.primes):
            assert (out[:, digit, limb] == v % target).all()

    x, more = residues(rng, full.primes, 2, 2), residues(rng, primes, 2, 1)
    scales = [pow(special, -1, q) for q in primes]
    out = np.empty((2, 2, 3, N), np.uint64)
    _native.bgv_mod_down(full._native, full.ntt(x.copy()), scales, ring.ntt(more.copy()), out)
    ring.intt(out)
    rest = centred(x[:, :, 3].astype(object), special)
    column = np.array(primes, object)[:, None]
    expected = (x[:, :, :3].astype(object) - rest[:, :, None]) * np.array(scales, object)[:, None]
    expected[:, :1] += more
    assert (out == expected % column).all()


def test_shapes_are_checked(primes):
    x = np.zeros((1, 3, N), np.uint64)
    out = np.zeros((1, N // 8 * 92 - 1), np.uint8)
    with pytest.raises(ValueError):
        _native.bgv_round_pack(x, primes, 92, out)
    with pytest.raises(ValueError):
        _native.bgv_round_pack(x, primes, 104, np.zeros((1, N // 8 * 104), np.uint8))
    with pytest.raises(ValueError):
        _native.bgv_tensor(x[None], x[None], primes, x, False)
    with pytest.raises(ValueError):
        _native.bgv_lift(x[0], P_FIELD, P_FIELD, primes, np.zeros((3, 3, N), np.uint64))


@pytest.mark.parametrize("parts", [1, 2])
def test_switching_in_one_pass_is_the_three_steps(rng, primes, parts):
    """Products, division and automorphism fused, against the kernels that do one each."""
    special = SPECIAL_PRIME if primes[0] < 1 << 50 else ntt_primes(59, 2 * N, 1)[0]
    ring, full = RingContext(N, primes), RingContext(N, [*primes, special])
    digits, more = residues(rng, full.primes, 2, 3), residues(rng, primes, 2, 2)
    keys = [residues(rng, full.primes, 3, 2) for _ in range(3)]
    scales, elements = [7, 8, 9], [1, 3, 2 * N - 1]
    out = np.empty((3, 2, 2, 3, N), np.uint64)
    _native.bgv_switch(full._native, digits, keys, elements, scales, more, parts, out)
    for key, element, got in zip(keys, elements, out, strict=True):
        product, divided = np.empty((2, 2, 4, N), np.uint64), np.empty((2, 2, 3, N), np.uint64)
        _native.bgv_key_product(digits, key, list(full.primes), product, False)
        _native.bgv_mod_down(full._native, product, scales, more[:, :parts].copy(), divided)
        assert (got == (divided if element == 1 else ring.automorphism_ntt(divided, element))).all()
    with pytest.raises(ValueError):
        _native.bgv_switch(full._native, digits, keys[:2], elements, scales, more, parts, out)
