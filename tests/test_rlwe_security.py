"""An independent look at the security table: the primal attack by the geometric series assumption.

Bai-Galbraith embedding of n coordinates of the secret, scaled to the error, and m samples; block size β
succeeds if σ·√β ≤ δ^(2β-d-1)·vol^(1/d) (Alkim et al., "Post-quantum key exchange", 2016); cost
2^(0.292β + 16.4)·8d. One attack only: a check of magnitude, not a proof.
"""

import math

import pytest

from sottovoce.bgv import SIMD
from sottovoce.ckks import ENGINE16, FULL16, LEVELED13, LEVELED14, LEVELED15
from sottovoce.ring import security
from sottovoce.ring.sampling import ERROR_SIGMA


def root_hermite(beta):
    return ((math.pi * beta) ** (1 / beta) * beta / (2 * math.pi * math.e)) ** (1 / (2 * (beta - 1)))


def succeeds(beta, n, log_q):
    delta, scale = math.log2(root_hermite(beta)), math.log2(ERROR_SIGMA / math.sqrt(2 / 3))
    short = 0.5 * math.log2(beta) + math.log2(ERROR_SIGMA)
    for m in range(n // 2, 2 * n + 1, n // 64):
        d = m + n + 1
        if short <= (2 * beta - d - 1) * delta + (m * log_q + n * scale) / d:
            return d
    return 0


def primal_bits(n, log_q):
    beta = next(b for b in range(60, 2000) if succeeds(b, n, log_q))
    return 0.292 * beta + 16.4 + math.log2(8 * succeeds(beta, n, log_q))


def test_the_simd_set_has_a_margin():
    assert primal_bits(SIMD.degree, math.log2(SIMD.modulus() * SIMD.special)) > 138


@pytest.mark.parametrize("row", security.LIMITS[:4], ids=lambda row: str(row.n))
def test_every_row_of_the_table_resists(row):
    assert 128 < primal_bits(row.n, row.log_qp) < 136


@pytest.mark.parametrize("parameters", [ENGINE16, FULL16, LEVELED13, LEVELED14, LEVELED15])
def test_the_sets_of_ckks_resist(parameters):
    """Those with uniform ternary secrets; sparse ones need attacks that guess, which this is not."""
    assert primal_bits(parameters.degree, parameters.log_qp) > 128
