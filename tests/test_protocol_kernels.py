"""Kernels around an opening against NumPy: small moduli exhaustively, the field at its ends and at random."""

import itertools
from typing import Any

import numpy as np
import pytest

from sottovoce import _native
from sottovoce.correlations import SimulatedSource
from sottovoce.mpc import field
from sottovoce.mpc.arithmetic import Arithmetic
from sottovoce.mpc.field import P_FIELD, P_SMALL, width
from sottovoce.mpc.protocols import reference
from sottovoce.mpc.protocols.wrap import _constants, multiple
from sottovoce.mpc.two_party import TwoPartyArithmetic
from sottovoce.net import Role, memory_pair, pack_bits, packed_size, unpack_bits

PRIMES = [13, P_SMALL, P_FIELD]
MODULI = [*PRIMES, 2, 1 << 17, 1 << 43]
ROLES = [True, False]


def rng() -> np.random.Generator:
    return np.random.default_rng(11)


def residues(generator: np.random.Generator, modulus: int, *shape: int) -> np.ndarray:
    """Random ones, a third of them at the ends of the range."""
    drawn = generator.integers(0, modulus, shape, dtype=np.uint64)
    ends = np.array([0, 1 % modulus, modulus // 2, (modulus + 1) // 2 % modulus, modulus - 1], np.uint64)
    return np.where(generator.random(shape) < 0.33, generator.choice(ends, shape), drawn)


def bits(generator: np.random.Generator, n: int) -> np.ndarray:
    return generator.integers(0, 2, n, dtype=np.uint8)


def packed(values: np.ndarray, modulus: int) -> np.ndarray:
    if modulus == 2 and values.dtype == np.uint8:
        return np.packbits(values, bitorder="little")
    return pack_bits(values, width(modulus))


@pytest.mark.parametrize("is_client", ROLES)
@pytest.mark.parametrize(("shift", "modulus"), [(0, 13), (0, 32), (1, 13), (2, 7), (2, 8), (3, 64)])
def test_a_wrap_for_every_share_and_bit_of_a_small_prime(is_client: bool, shift: int, modulus: int) -> None:
    p, offset = 13, 0 if shift else 3
    cases = np.array(list(itertools.product(range(p), (0, 1), (0, 1), range(modulus))), np.uint64)
    x, beta, theirs, product = (np.ascontiguousarray(column) for column in cases.T)
    beta, theirs = beta.astype(np.uint8), theirs.astype(np.uint8)
    own = 0 if is_client else offset
    shifted, mine = np.empty_like(x), np.empty_like(beta)
    message = np.empty(packed_size(len(x), 1), np.uint8)
    _native.wrap_open(x, p, own, beta, shifted, mine, message)
    assert np.array_equal(shifted, (x + np.uint64(own)) % np.uint64(p))
    assert np.array_equal(mine, reference.lower_half(shifted, p) ^ beta)
    assert np.array_equal(message, packed(mine, 2))
    out = np.empty_like(x)
    constants = _constants(is_client, p, shift, modulus, offset)
    assert _native.wrap_share(
        shifted, p, mine, packed(theirs, 2), product, constants, shift, is_client, modulus, out
    )
    want = reference.wrap_share(shifted, p, mine, theirs, product, shift, is_client, modulus, offset)
    assert np.array_equal(out, want)


@pytest.mark.parametrize("is_client", ROLES)
@pytest.mark.parametrize(("shift", "modulus"), [(0, 1 << 41), (11, P_FIELD), (22, P_FIELD), (12, P_SMALL)])
def test_a_wrap_in_the_field(is_client: bool, shift: int, modulus: int) -> None:
    generator, n = rng(), 501
    x, product = residues(generator, P_FIELD, n), residues(generator, modulus, n)
    mine, theirs = bits(generator, n), bits(generator, n)
    offset = P_FIELD // 4 >> shift << shift
    out = np.empty(n, np.uint64)
    constants = _constants(is_client, P_FIELD, shift, modulus, offset)
    assert _native.wrap_share(
        x, P_FIELD, mine, packed(theirs, 2), product, constants, shift, is_client, modulus, out
    )
    want = reference.wrap_share(x, P_FIELD, mine, theirs, product, shift, is_client, modulus, offset)
    assert np.array_equal(out, want)
    assert multiple(P_FIELD, shift) >= 1


@pytest.mark.parametrize("is_client", ROLES)
def test_every_and(is_client: bool) -> None:
    cases = np.array(list(itertools.product((0, 1), repeat=7)), np.uint8)
    a, b, ta, tb, tc, d, e = (np.ascontiguousarray(column) for column in cases.T)
    mine, message = np.empty(2 * len(a), np.uint8), np.empty(packed_size(2 * len(a), 1), np.uint8)
    _native.and_open(a, b, ta, tb, mine, message)
    assert np.array_equal(mine, np.concatenate([a ^ ta, b ^ tb]))
    assert np.array_equal(message, packed(mine, 2))
    out, theirs = np.empty_like(a), np.concatenate([d, e])
    assert _native.and_share(mine, packed(theirs, 2), ta, tb, tc, is_client, out)
    assert np.array_equal(out, reference.and_share(mine, theirs, ta, tb, tc, is_client))


@pytest.mark.parametrize("is_client", ROLES)
@pytest.mark.parametrize("modulus", MODULI)
def test_bits_and_selections(modulus: int, is_client: bool) -> None:
    generator, n = rng(), 333
    x, mask, theirs = (bits(generator, n) for _ in range(3))
    mine, message = np.empty(n, np.uint8), np.empty(packed_size(n, 1), np.uint8)
    _native.bits_open(x, mask, mine, message)
    assert np.array_equal(mine, x ^ mask) and np.array_equal(message, packed(mine, 2))
    value, own, other, arithmetic, products = (residues(generator, modulus, n) for _ in range(5))
    out = np.empty(n, np.uint64)
    assert _native.bit_share(mine, packed(theirs, 2), value, modulus, is_client, out)
    assert np.array_equal(out, reference.bit_share(mine, theirs, value, modulus, is_client))
    reply = np.concatenate([packed(theirs, 2), packed(other, modulus)])
    assert _native.mux_share(value, mine, own, reply, arithmetic, products, modulus, out)
    opened = field.add(own, other, modulus)
    want = reference.mux_share(value, mine ^ theirs, opened, arithmetic, products, modulus)
    assert np.array_equal(out, want)


@pytest.mark.parametrize("is_client", ROLES)
@pytest.mark.parametrize("modulus", MODULI)
def test_openings_and_products(modulus: int, is_client: bool) -> None:
    generator, n = rng(), 222
    x, y, a, b, c = (residues(generator, modulus, n) for _ in range(5))
    theirs = residues(generator, modulus, 2 * n)
    mine = np.empty(2 * n, np.uint64)
    message = np.empty(packed_size(2 * n, width(modulus)), np.uint8)
    _native.mul_open(x, y, a, b, modulus, mine, message)
    assert np.array_equal(mine, np.concatenate([field.sub(x, a, modulus), field.sub(y, b, modulus)]))
    assert np.array_equal(unpack_bits(message, 2 * n, width(modulus)), mine)
    d, e = np.split(field.add(mine, theirs, modulus), 2)
    out = np.empty(n, np.uint64)
    assert _native.mul_share(mine, packed(theirs, modulus), a, b, c, modulus, is_client, out)
    assert np.array_equal(out, reference.mul_share(d, e, a, b, c, modulus, is_client))
    half = np.empty(packed_size(n, width(modulus)), np.uint8)
    _native.residues_open(x, a, modulus, out, half)
    assert np.array_equal(out, mine[:n]) and np.array_equal(half, packed(out, modulus))
    assert _native.residues_opened(mine[:n], packed(theirs[:n], modulus), modulus, out)
    assert np.array_equal(out, d)


@pytest.mark.parametrize("is_client", ROLES)
@pytest.mark.parametrize("modulus", PRIMES)
def test_rows(modulus: int, is_client: bool) -> None:
    generator, rows, n = rng(), 5, 61
    mine, theirs, r, products = (residues(generator, modulus, rows, n) for _ in range(4))
    one, two, three = (residues(generator, modulus, rows) for _ in range(3))
    opened = field.add(mine, theirs, modulus)
    out = np.empty(rows, np.uint64)
    assert _native.squares_share(mine, packed(theirs, modulus), r, one, modulus, is_client, out)
    assert np.array_equal(out, reference.squares_share(opened, r, one, modulus, is_client))
    scaled = np.empty((rows, n), np.uint64)
    assert _native.scale_share(opened, r, products, one, two, packed(three, modulus), modulus, scaled)
    masked = field.add(two, three, modulus)
    assert np.array_equal(scaled, reference.scale_share(opened, r, products, one, masked, modulus))


@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize("modulus", PRIMES)
def test_splines(modulus: int, constant: bool) -> None:
    generator, n, products = rng(), 57, 3
    terms = products + constant
    basis, factors = residues(generator, modulus, products, 16), residues(generator, modulus, n, products)
    entries, cross = residues(generator, modulus, n, terms), residues(generator, modulus, n)
    remainder = generator.integers(0, 16, n, dtype=np.uint64)
    message = np.empty(packed_size(n * products, width(modulus)), np.uint8)
    _native.basis_open(basis, remainder, factors, modulus, message)
    powers = basis[:, remainder]
    assert np.array_equal(message, packed(field.sub(powers, factors.T, modulus), modulus))
    out = np.empty(n, np.uint64)
    assert _native.spline_share(entries, basis, remainder, cross, modulus, constant, out)
    assert np.array_equal(out, reference.spline_share(entries, powers, cross, modulus, constant))
    assert _native.spline_masked_share(message, entries, cross, modulus, constant, out)
    corrections = field.sub(powers, factors.T, modulus)
    want = reference.spline_masked_share(corrections, entries, cross, modulus, constant)
    assert np.array_equal(out, want)
    entries[n - 1, terms - 1] = modulus
    assert not _native.spline_share(entries, basis, remainder, cross, modulus, constant, out)


def test_choices() -> None:
    y = np.arange(64, dtype=np.uint64)
    index = np.arange(64, dtype=np.uint64)[::-1] % np.uint64(8)
    remainder, message = np.empty(64, np.uint64), np.empty(24, np.uint8)
    assert _native.choose(y, 3, 3, index, remainder, message)
    assert np.array_equal(remainder, y % np.uint64(8))
    assert np.array_equal(unpack_bits(message, 64, 3), ((y >> np.uint64(3)) - index) % np.uint64(8))
    assert not _native.choose(y + np.uint64(1), 3, 3, index, remainder, message)


@pytest.mark.parametrize("ceiling", [True, False])
@pytest.mark.parametrize(("low", "high"), [(0, 8), (3, 8), (0, 5), (2, 5), (7, 8)])
def test_bits_of_every_byte(low: int, high: int, ceiling: bool) -> None:
    y, out = np.arange(256, dtype=np.uint64), np.empty(256, np.uint64)
    _native.take_bits(y, low, high, ceiling, out)
    assert np.array_equal(out, reference.take_bits(y, low, high, ceiling))


@pytest.mark.parametrize("role", [Role.CLIENT, Role.SERVER])
def test_windows_are_bits_of_every_window(role: Role) -> None:
    channel = memory_pair()[int(role)]
    arithmetic = TwoPartyArithmetic(channel, SimulatedSource(role, 1))
    y = rng().integers(0, 1 << 43, (3, 41), dtype=np.uint64)
    highs = [3, 7, 16, 17, 18, 30, 43]
    for bits in (1, 4, 14, 17, 43):
        windows = arithmetic.take_windows(y, highs, bits)
        assert np.array_equal(windows, Arithmetic.take_windows(arithmetic, y, highs, bits))


@pytest.mark.parametrize("n", [1, 3, 8, 9, 64])
def test_every_kernel_that_reads_a_message_checks_it(n: int) -> None:
    x, small, out = np.zeros(n, np.uint64), np.zeros(n, np.uint8), np.empty(n, np.uint64)
    good = np.zeros(packed_size(n, 43), np.uint8)
    above = pack_bits(np.full(n, P_FIELD, np.uint64), 43)
    dirty = good.copy()
    dirty[-1] |= 0x80
    bit = np.zeros(packed_size(n, 1), np.uint8)
    calls: list[Any] = [
        lambda m: _native.residues_opened(x, m, P_FIELD, out),
        lambda m: _native.scale_share(x, x, x, x, x, m, P_FIELD, out),
        lambda m: _native.squares_share(x, m, x, x, P_FIELD, True, out),
        lambda m: _native.spline_masked_share(m, x, x, P_FIELD, False, out),
        lambda m: _native.mux_share(x, small, x, np.concatenate([bit, m]), x, x, P_FIELD, out),
    ]
    for call in calls:
        assert call(good) and not call(above)
        # Where there is no padding the bit belongs to a value, which stays below p.
        assert call(dirty) == (n * 43 % 8 == 0)
    if n % 8:
        bit[-1] |= 0x80
        assert not _native.bit_share(small, bit, x, P_FIELD, True, out)
        assert not calls[-1](good)


def test_sizes_that_do_not_fit_are_refused() -> None:
    x, out = np.zeros(4, np.uint64), np.empty(4, np.uint64)
    with pytest.raises(ValueError, match="sizes"):
        _native.residues_opened(x, np.zeros(21, np.uint8), P_FIELD, out)
    with pytest.raises(ValueError, match="modulus"):
        _native.residues_opened(x, np.zeros(0, np.uint8), 1, out)
