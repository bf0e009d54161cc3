"""What every source of correlations must satisfy; `run(fn)` gives fn(source) of client and server."""

import numpy as np

from sottovoce.ring.primes import P_FIELD, P_SMALL

MODULI = (P_FIELD, P_SMALL, 1 << 17, 1 << 18, 1 << 64)
N = 3000


def opened(x, y, modulus=P_FIELD):
    """x + y mod M as Python integers."""
    return (np.asarray(x, object) + np.asarray(y, object)) % modulus


def is_balanced(bits):
    return abs(int(np.sum(bits)) - len(bits) / 2) < 3.5 * len(bits) ** 0.5  # seven standard deviations


def in_range(x, modulus=P_FIELD):
    return x.dtype == np.uint64 and int(x.max()) < modulus and int(x.max()) > modulus * 0.9


def check_wraps(run):
    targets = [(P_FIELD >> 12, P_FIELD), (-5, P_SMALL), (3, 1 << 17), (1 << 63, 1 << 64)]
    (b0, first), (b1, second) = run(lambda source: source.wraps(N, targets))
    assert is_balanced(b0) and is_balanced(b1) and is_balanced(b0 ^ b1)
    for (value, modulus), x, y in zip(targets, first, second, strict=True):
        assert in_range(x, modulus) and in_range(y, modulus)
        assert np.array_equal(opened(x, y, modulus), (b0 & b1).astype(object) * (value % modulus))


def check_ands(run):
    first, second = run(lambda source: source.ands(N))
    a, b, c = (x ^ y for x, y in zip(first, second, strict=True))
    assert np.array_equal(c, a & b)
    assert all(is_balanced(x) for x in (a, b, *first, *second))


def check_bit_values(run):
    for modulus in MODULI:
        first, second = run(lambda source, modulus=modulus: source.bit_values(N, modulus))
        bit = first.bits ^ second.bits
        value = opened(first.values, second.values, modulus)
        assert is_balanced(bit) and in_range(first.values, modulus) and in_range(second.values, modulus)
        assert np.array_equal(opened(first.arithmetic, second.arithmetic, modulus), bit)
        assert np.array_equal(opened(first.products, second.products, modulus), bit * value)


def check_b2a(run):
    for modulus in MODULI:
        first, second = run(lambda source, modulus=modulus: source.b2a(N, modulus))
        bit = first.bits ^ second.bits
        assert is_balanced(bit) and in_range(first.values, modulus)
        assert np.array_equal(opened(first.values, second.values, modulus), bit)


def check_ots(run):
    for sender in (0, 1):
        for m_bits, words in ((1, 1), (3, 2), (4, 1), (6, 1), (8, 3)):
            n = 300

            def play(source, sender=sender, m_bits=m_bits, words=words, n=n):
                if source.role == sender:
                    return source.send_ots(n, m_bits, words)
                return source.receive_ots(n, m_bits, words)

            results = run(play)
            pads, (index, chosen) = results[sender], results[1 - sender]
            assert pads.shape == (n, 1 << m_bits, words)
            assert np.array_equal(chosen, pads[np.arange(n), index])
            assert len(np.unique(pads)) == pads.size
            assert int(index.max()) < 1 << m_bits and len(np.unique(index)) > (1 << m_bits) * 0.45


def check_triples(run):
    first, second = run(lambda source: source.triples(N))
    a, b, c = (opened(x, y) for x, y in zip(first, second, strict=True))
    assert all(in_range(x) for x in (*first, *second))
    assert np.array_equal(c, a * b % P_FIELD)


def check_squares(run):
    first, second = run(lambda source: source.squares(N))
    a, c = (opened(x, y) for x, y in zip(first, second, strict=True))
    assert all(in_range(x) for x in (*first, *second))
    assert np.array_equal(c, a * a % P_FIELD)


def check_scalars(run):
    first, second = run(lambda source: source.scalars(5, 600))
    r, t, c = (opened(x, y) for x, y in zip(first, second, strict=True))
    assert r.shape == (5, 600) and t.shape == (5,) and len(set(t)) == 5
    assert np.array_equal(c, r * t[:, None] % P_FIELD)


def check_cross_products(run):
    for terms in (1, 3):
        first, second = run(lambda source, terms=terms: source.cross_products(N, terms))
        total = (first.factors.astype(object) * second.factors).sum(axis=1) % P_FIELD
        assert first.factors.shape == (N, terms) and in_range(first.factors) and in_range(second.factors)
        assert np.array_equal(opened(first.products, second.products), total)


BY_OT = [check_wraps, check_ands, check_bit_values, check_b2a, check_ots]
BY_HE = [check_triples, check_squares, check_scalars, check_cross_products]
CHECKS = BY_OT + BY_HE
