"""The kernels of CKKS against exact integers, on every instruction set."""

import math

import numpy as np
import pytest

from sottovoce import _native
from sottovoce.ckks.parameters import chain
from sottovoce.ckks.switching import expansion_keys
from sottovoce.errors import ParameterError
from sottovoce.ring import context
from sottovoce.ring.primes import is_prime

N = 64
PRIMES = chain(N, [49, 41, 41, 41, 41, 45, 50, 50])
CHAIN, SPECIAL = PRIMES[:6], PRIMES[6:]
MASK = (1 << 52) - 1
NOTHING = np.zeros((0, 0, 0), np.uint64)


@pytest.fixture(params=["portable", "avx2", "avx512"])
def isa(request):
    order = ["portable", "avx2", "avx512"]
    if order.index(request.param) > order.index(_native.detected_isa()):
        pytest.skip(f"this machine has no {request.param}")
    _native.set_isa(request.param)
    yield request.param
    _native.set_isa(_native.detected_isa())


def random_integers(bound, count, seed=0):
    rng = np.random.default_rng(seed)
    words = [int.from_bytes(rng.bytes(80), "little") for _ in range(count)]
    return [w % (2 * bound + 1) - bound for w in words]


def to_rns(values, primes):
    return np.array([[v % q for v in values] for q in primes], np.uint64)


def from_rns(data, primes):
    """Centred integers of a coefficient-form polynomial."""
    q = math.prod(primes)
    weights = [q // p * pow(q // p, -1, p) for p in primes]
    values = [sum(int(x) * w for x, w in zip(column, weights, strict=True)) % q for column in data.T]
    return [v - q if v > q // 2 else v for v in values]


@pytest.mark.parametrize("alpha", [1, 2, 4, 6])
def test_digits_are_the_centred_residues(isa, alpha):
    ring, low = context(N, PRIMES), context(N, CHAIN)
    modulus = math.prod(CHAIN)
    values = random_integers(modulus // 2, N)
    digits = -(-len(CHAIN) // alpha)
    out = np.empty((digits, len(PRIMES), N), np.uint64)
    _native.ckks_decompose(ring._native, low.ntt(to_rns(values, CHAIN)), alpha, out, 2)
    ring.intt(out)
    for d in range(digits):
        part = CHAIN[d * alpha : (d + 1) * alpha]
        q = math.prod(part)
        expected = [v % q - (q if v % q > q // 2 else 0) for v in values]
        # The digit is the same integer modulo every prime.
        assert np.array_equal(out[d], to_rns(expected, PRIMES))


@pytest.mark.parametrize("dropped", [1, 2, 3, 7])
@pytest.mark.parametrize("element", [1, 5])
def test_division_rounds_to_nearest(isa, dropped, element):
    kept = PRIMES[: len(PRIMES) - dropped]
    ring, low, p = context(N, PRIMES), context(N, kept), math.prod(PRIMES[len(PRIMES) - dropped :])
    values = [random_integers(math.prod(PRIMES) // 2, N, seed) for seed in (1, 2)]
    more = [random_integers(100, N, 3)]
    data = np.stack([to_rns(v, PRIMES) for v in values])
    plus = low.ntt(np.stack([to_rns(v, kept) for v in more]))
    out = np.empty((2, len(kept), N), np.uint64)
    _native.ckks_mod_down(ring._native, ring.ntt(data), plus, element, out, 2)
    low.intt(out)
    for part in range(2):
        quotient = [(2 * v + p) // (2 * p) for v in values[part]]
        if part == 0:
            quotient = [a + b for a, b in zip(quotient, more[0], strict=True)]
        expected = to_rns(quotient, kept)
        if element != 1:
            expected = low.automorphism_coeff(expected, element)
        assert np.array_equal(out[part], expected)


def test_conversions_at_their_limits(isa):
    """Sums of the largest terms, for primes of every length: the same on every instruction set."""
    n, special = 512, 6
    primes = chain(n, [49] * 12 + [47, 46, 41, 41] + [50] * special)
    limbs, rng = len(primes) - special, np.random.default_rng(3)
    ring = context(n, primes)

    def extreme(first, last):
        """(last − first, n): what the conversion scales to 0, 1, q − 1 or anything, modulo these primes."""
        whole = math.prod(primes[first:last])
        rows = []
        for q in primes[first:last]:
            kind, some = rng.integers(0, 5, n), rng.integers(0, q, n)
            scaled = [(0, 1, q - 1, q - 2, int(v))[k] for k, v in zip(kind, some, strict=True)]
            rows.append([y * (whole // q) % q for y in scaled])
        return np.array(rows, np.uint64)

    x = np.concatenate([extreme(d, min(d + special, limbs)) for d in range(0, limbs, special)])
    context(n, primes[:limbs]).ntt(x)
    wide = np.concatenate([x[:-1], context(n, primes[limbs - 1 :]).ntt(extreme(limbs - 1, len(primes)))])[
        None
    ]

    def converted():
        digits = np.empty((-(-limbs // special), len(primes), n), np.uint64)
        _native.ckks_decompose(ring._native, x, special, digits, 2)
        divided = [np.empty((1, kept, n), np.uint64) for kept in (limbs, limbs - 1)]
        for out in divided:
            _native.ckks_mod_down(ring._native, wide, NOTHING, 1, out, 2)
        return digits, *divided

    found = converted()
    _native.set_isa("portable")
    assert all(np.array_equal(a, b) for a, b in zip(found, converted(), strict=True))


def test_a_strided_operand_is_read_at_its_own_level(isa):
    ring = context(N, PRIMES)
    data = np.stack([to_rns(random_integers(1 << 60, N, seed), (*PRIMES, 97)) for seed in (1, 2)])
    view, out = data[:, : len(PRIMES)], np.empty((2, len(PRIMES) - 1, N), np.uint64)
    again = out.copy()
    _native.ckks_mod_down(ring._native, view, NOTHING, 1, out, 1)
    _native.ckks_mod_down(ring._native, np.ascontiguousarray(view), NOTHING, 1, again, 1)
    assert np.array_equal(out, again)


def test_products_of_ciphertexts(isa):
    ring = context(N, CHAIN)
    a, b, plus = (
        np.stack([to_rns(random_integers(1 << 240, N, s + k), CHAIN) for k in (0, 1)]) for s in (1, 3, 5)
    )
    products = (
        ring.mul(a[0], b[0]),
        ring.add(ring.mul(a[0], b[1]), ring.mul(a[1], b[0])),
        ring.mul(a[1], b[1]),
    )
    out = np.empty((3, len(CHAIN), N), np.uint64)
    _native.ckks_tensor(ring._native, a, b, 1, [], NOTHING, out, 2)
    assert np.array_equal(out, products)
    constant = [q - 3 for q in CHAIN]
    _native.ckks_tensor(ring._native, a, b, 5, constant, plus, out, 2)
    expected = [ring.mul_scalar(p, 5) for p in products]
    primes = np.array(CHAIN, np.uint64)[:, None]
    expected[0] = (expected[0] + primes - np.uint64(3)) % primes
    expected[:2] = [ring.add(e, p) for e, p in zip(expected[:2], plus, strict=True)]
    assert np.array_equal(out, expected)
    # What is added may be what is written to.
    _native.ckks_tensor(ring._native, a, b, 1, [], out, out, 1)
    assert np.array_equal(out, [ring.add(e, p) for e, p in zip(expected, products, strict=True)])


def reference_expansion(key, q, n):
    """52 bits of word i of the counter blocks, or of later ones if beyond the last whole multiple of q."""

    def stream(block, count):
        out = np.empty((1, count, 16), np.uint8)
        _native.aes_ctr(np.frombuffer(key, np.uint8)[None].copy(), block, out)
        return out.reshape(-1).view("<u8") & np.uint64(MASK)

    last = (1 << 52) // q * q
    words = [int(w) for w in stream(0, n // 2)]
    for i in range(n):
        attempt = 0
        while words[i] >= last:
            attempt += 1
            words[i] = int(stream((attempt << 32) + i // 2, 1)[i % 2])
    return [w % q for w in words]


def test_expansion_is_uniform_and_the_same_everywhere(isa):
    n = 4096
    primes = chain(n, [50, 49, 41, 30])
    keys = expansion_keys(bytes(range(32)), b"test", (len(primes),))
    out = np.empty((len(primes), n), np.uint64)
    _native.ckks_expand(keys, list(primes), out, 2)
    for row, key, q in zip(out, keys, primes, strict=True):
        assert [int(v) for v in row] == reference_expansion(key.tobytes(), q, n)
        assert abs(float(row.mean()) / q - 0.5) < 0.03


def test_words_beyond_the_last_multiple_are_drawn_again(isa):
    """A prime that leaves a large remainder of 2^52 refuses an eighth of the words, so some of them twice."""
    n, step = 2048, 1 << 17
    q = next(c for c in range(3 * 2**48 + 1, 2**50, step) if (1 << 52) % c > c // 4 and is_prime(c))
    keys = expansion_keys(bytes(32), b"retry", (2,))
    out = np.empty((2, n), np.uint64)
    _native.ckks_expand(keys, [q], out, 2)
    for row, key in zip(out, keys, strict=True):
        assert [int(v) for v in row] == reference_expansion(key.tobytes(), q, n)
        assert abs(float(row.mean()) / q - 0.5) < 0.05


@pytest.mark.parametrize("level", [3, 2, 1])
def test_switched_components(isa, level):
    """The digits times the key, its uniform half expanded; at the key's level and below it."""
    n, special = 1024, 2
    primes = chain(n, [49, 41, 41, 41, 50, 50])
    keys = expansion_keys(bytes(32), b"product", (2, len(primes)))
    rng = np.random.default_rng(5)
    b = np.stack([np.stack([rng.integers(0, q, n).astype(np.uint64) for q in primes]) for _ in range(2)])
    a = np.empty((2 * len(primes), n), np.uint64)
    _native.ckks_expand(keys.reshape(-1, 16), list(primes), a, 1)
    a = a.reshape(2, len(primes), n)
    rows = [*range(level + 1), 4, 5]
    ring, low = context(n, tuple(primes[r] for r in rows)), context(n, primes[: level + 1])
    x = np.ascontiguousarray(b[1][: level + 1])
    digits = np.empty((-(-(level + 1) // special), len(rows), n), np.uint64)
    _native.ckks_decompose(ring._native, x, special, digits, 1)
    # P times what lacks it; all of a value modulo Q·P.
    short = np.ascontiguousarray(b[0][rows[:-2]])
    scaled = low.mul_scalar(short, primes[4] * primes[5])
    lazy = np.ascontiguousarray(b[0][rows])
    for more, value in ((NOTHING, None), (short[None], scaled), (lazy[None], lazy)):
        out = np.empty((2, 2, len(rows), n), np.uint64)
        _native.ckks_switch_keys(ring._native, x, [b, b], [keys, keys], more, [1, 25], False, out, 2)
        sums = []
        for half in (b, a):
            total = ring.zeros()
            for d, digit in enumerate(digits):
                ring.mul_add(total, digit, np.ascontiguousarray(half[d, rows]))
            sums.append(total)
        if value is not None:
            part = np.ascontiguousarray(sums[0][: len(value)])
            sums[0][: len(value)] = context(n, ring.primes[: len(value)]).add(part, value)
        expected = np.stack(sums)
        assert np.array_equal(out[0], expected)
        assert np.array_equal(out[1], ring.automorphism_ntt(expected, 25))
        again = out[1:].copy()
        _native.ckks_switch_keys(ring._native, x, [b], [keys], more, [25], True, again, 1)
        assert np.array_equal(again[0], ring.add(out[1], out[1]))


@pytest.mark.parametrize("size", [1, 2, 16, N])
def test_short_plaintexts_are_added(isa, size):
    ring = context(N, CHAIN)
    x = np.stack([to_rns(random_integers(1 << 240, N, seed), (*CHAIN, 97)) for seed in range(3)])
    x = x[:, : len(CHAIN)]
    plain = to_rns(random_integers(1 << 240, size, 7), CHAIN)
    out = np.empty(x.shape, np.uint64)
    _native.ckks_add_plain(ring._native, x, plain, out, 2)
    assert np.array_equal(out[0], ring.add(x[0], np.repeat(plain, N // size, axis=1)))
    assert np.array_equal(out[1:], x[1:])


def test_integers_and_residues(isa):
    values = np.array([0, 1, -1, 2**62, -(2**62), 12345678901234567, -(2**63)], np.int64)
    out = np.empty((len(CHAIN), len(values)), np.uint64)
    for shift in (0, 3, 70):
        _native.ckks_reduce(values, shift, list(CHAIN), out, 1)
        assert np.array_equal(out, to_rns([int(v) << shift for v in values], CHAIN))
    for q in (97, *CHAIN):  # small ones need no reduction, up to q - 1 and not beyond
        for largest in (q - 3, q - 2, q - 1, q, q + 1):
            values = np.array([largest, -largest, 0, -1], np.int64)
            out = np.empty((1, 4), np.uint64)
            _native.ckks_reduce(values, 0, [q], out, 1)
            assert out[0].tolist() == [int(v) % q for v in values]
    wide = random_integers(1 << 200, 50)
    lifted = np.empty(50)
    _native.ckks_lift(to_rns(wide, CHAIN), list(CHAIN), lifted, 1)
    assert np.allclose(lifted, [float(v) for v in wide], rtol=1e-14)


def test_wrong_shapes_are_refused():
    ring, x = context(N, PRIMES), np.zeros((6, N), np.uint64)
    with pytest.raises(ValueError):
        _native.ckks_decompose(ring._native, x, 2, np.zeros((2, 8, N), np.uint64), 1)
    with pytest.raises(ValueError):
        _native.ckks_mod_down(ring._native, x[None], NOTHING, 1, np.zeros((1, 5, N), np.uint64), 1)
    with pytest.raises(ValueError):
        _native.ckks_tensor(ring._native, x, x, 1, [], NOTHING, np.zeros((3, 8, N), np.uint64), 1)
    with pytest.raises(ValueError):
        _native.ckks_switch_keys(
            ring._native, x, [], [], NOTHING, [1], False, np.zeros((1, 2, 8, N), np.uint64), 1
        )
    with pytest.raises(ValueError):
        _native.ckks_reduce(np.zeros(4, np.int64), 0, [97], np.zeros((1, 5), np.uint64), 1)
    with pytest.raises(ParameterError):
        chain(N, [12])


def test_memory_of_other_sizes_is_used_again():
    """What one array leaves serves two smaller ones, which together leave room for it again."""
    words = 1 << 18  # a page of the pool
    whole = _native.recycled_words([4, words])
    start, end = whole.ctypes.data, whole.ctypes.data + whole.nbytes
    del whole
    parts = [_native.recycled_words([words]), _native.recycled_words([3, words])]
    assert all(part.ctypes.data + part.nbytes <= end for part in parts)
    for value, part in enumerate(parts):
        part[:] = value
    assert all((part == value).all() for value, part in enumerate(parts))
    del part, parts
    assert _native.recycled_words([4, words]).ctypes.data <= start
    before = _native.keep_recycled(0)  # everything unused goes back to the system
    fresh = _native.recycled_words([4, words])
    fresh[:] = 9
    assert (fresh == 9).all()
    assert _native.keep_recycled(before) == 0


def test_memory_is_used_again():
    before = _native.keep_recycled(0)  # whatever other tests left
    _native.keep_recycled(1 << 30)
    first = _native.recycled_words([3, 1 << 18])
    first[:] = 7
    address = first.ctypes.data
    del first
    again = _native.recycled_words([1 << 18, 3])
    assert again.shape == (1 << 18, 3) and again.dtype == np.uint64 and again.flags.writeable
    assert again.ctypes.data == address
    assert _native.keep_recycled(0) == 1 << 30
    del again
    assert _native.keep_recycled(before) == 0
