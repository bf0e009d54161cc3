"""Distributions by statistical test (bounds far beyond chance), expansion by fixed vectors."""

import hashlib
import math

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from scipy import stats

from chance import LEAST_P
from sottovoce.errors import ParameterError
from sottovoce.ring import primes, security
from sottovoce.ring.sampling import ERROR_BOUND, ERROR_SIGMA, Stream, expand

SEED = bytes(range(32))


def test_uniform_is_uniform() -> None:
    for modulus in (2, 3, 960, primes.P_FIELD, primes.SIMD_PRIMES[0]):
        draw = Stream(SEED, b"test").uniform(modulus, 100, 1000)
        assert draw.shape == (100, 1000)
        assert int(draw.max()) < modulus
        buckets = min(modulus, 64)
        counts = np.bincount(
            (draw.ravel().astype(object) * buckets // modulus).astype(np.int64), minlength=buckets
        )
        assert stats.chisquare(counts).pvalue > LEAST_P


def test_ternary_and_error_distributions() -> None:
    stream = Stream(SEED, b"test")
    counts = np.bincount(stream.ternary(300_000) + 1, minlength=3)
    assert len(counts) == 3
    assert stats.chisquare(counts).pvalue > LEAST_P
    error = stream.error(300_000)
    assert np.abs(error).max() <= ERROR_BOUND
    observed = np.bincount(error[np.abs(error) <= 12] + 12, minlength=25).astype(float)
    expected = np.array([math.comb(42, 21 + e) for e in range(-12, 13)], float)
    assert stats.chisquare(observed, expected / expected.sum() * observed.sum()).pvalue > LEAST_P
    assert abs(error.std() - ERROR_SIGMA) < 0.05
    assert 3.19 <= ERROR_SIGMA < 3.3


def test_bits_are_balanced_and_draws_do_not_repeat() -> None:
    stream = Stream()
    bits = stream.bits(100_001)
    assert bits.shape == (100_001,)
    assert stats.binomtest(int(bits.sum()), len(bits)).pvalue > LEAST_P
    assert not np.array_equal(stream.words(8), stream.words(8))
    assert not np.array_equal(Stream().words(8), Stream().words(8))


def test_expansion_follows_its_definition() -> None:
    """The first words by the definition: AES-256-CTR under SHA-256(label, version, length, purpose, seed)."""
    ring_primes, n = primes.SIMD_PRIMES, 512
    key = hashlib.sha256(b"sottovoce expand" + b"\x01\x00" + b"\x02\x00\x00\x00" + b"ct" + SEED).digest()
    got = expand(SEED, b"ct", ring_primes, n, index=7)
    for limb, q in enumerate(ring_primes):
        counter = (7 * 3 + limb).to_bytes(8, "big") + bytes(8)
        encryptor = Cipher(algorithms.AES256(key), modes.CTR(counter)).encryptor()
        words = np.frombuffer(encryptor.update(bytes(8 * 2 * n)), "<u8") >> np.uint64(14)
        assert np.array_equal(got[limb], words[words < np.uint64(q)][:n])


def test_expansion_separates_purposes_and_indices() -> None:
    base = expand(SEED, b"ct", primes.SIMD_PRIMES, 64)
    assert np.array_equal(base, expand(SEED, b"ct", primes.SIMD_PRIMES, 64))
    for other in (
        expand(SEED, b"pk", primes.SIMD_PRIMES, 64),
        expand(SEED, b"ct", primes.SIMD_PRIMES, 64, index=1),
        expand(SEED[::-1], b"ct", primes.SIMD_PRIMES, 64),
    ):
        assert not np.any(base == other)
    with pytest.raises(ParameterError):
        expand(b"short", b"ct", primes.SIMD_PRIMES, 64)


def test_named_primes() -> None:
    assert all(
        map(primes.is_prime, (primes.P_FIELD, primes.P_SMALL, *primes.SIMD_PRIMES, primes.SPECIAL_PRIME))
    )
    assert primes.P_FIELD == 2**43 - 163839 and primes.P_SMALL == 2**28 - 65535
    assert primes.ntt_primes(50, 1 << 15, 1, exclude=primes.SIMD_PRIMES) == (primes.SPECIAL_PRIME,)
    assert primes.SIMD_PRIMES == primes.ntt_primes(50, 1 << 15, 3)
    assert [n for n in range(100) if primes.is_prime(n)] == [
        n for n in range(2, 100) if all(n % d for d in range(2, n))
    ]
    assert not primes.is_prime(3215031751)  # a strong pseudoprime to bases 2, 3, 5, 7
    with pytest.raises(ParameterError):
        primes.ntt_primes(20, 1 << 18, 4)


def test_security_table() -> None:
    security.check(8192, 200)
    security.check(8192, 999, security="unchecked")
    for n, bits in ((8192, 215), (2048, 54), (1024, 20)):
        with pytest.raises(ParameterError):
            security.check(n, bits)
    with pytest.raises(ParameterError):
        security.check(8192, 100, secret="sparse")
    limits = [row.log_qp for row in security.LIMITS if row.secret == "ternary"]
    assert limits == [53, 106, 214, 430, 868, 1747]
    with pytest.raises(ParameterError):
        security.check(65536, 1600, secret="sparse-192")
    with pytest.raises(ParameterError):
        security.check(65536, 200, secret="ephemeral-32")
