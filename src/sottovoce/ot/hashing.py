"""From rows of correlated OTs to pads: the hash and the polynomials of 1-of-2^m transfers."""

import numpy as np
import numpy.typing as npt

from sottovoce import _native

U8 = npt.NDArray[np.uint8]
U64 = npt.NDArray[np.uint64]

ZERO_OFFSET: U64 = np.zeros((1, 2), np.uint64)


def hash_rows(key: U8, rows: U64, offsets: U64, first: int, words: int) -> U64:
    """(n, entries, words) of H(first + i, rows[i] ⊕ offsets[e]); entries 1, 2 or a multiple of 4.

    The tweak is the index, so two calls of one session and direction must never overlap in [first, first +
    n).
    """
    out = np.empty((len(rows), len(offsets), words), np.uint64)
    _native.ot_hash(key, np.ascontiguousarray(rows), offsets, first, out)
    return out


def combine_rows(rows: U64, m_bits: int) -> U64:
    """(n·m, 2) rows to (n, 2): K = Σ_t X^t·K_t in GF(2^128)."""
    if m_bits == 1:
        return rows
    out = np.empty((len(rows) // m_bits, 2), np.uint64)
    _native.gf_combine(np.ascontiguousarray(rows), m_bits, out)
    return out


def polynomial_multiples(delta: U64, m_bits: int) -> U64:
    """(2^m, 2): i(X)·Δ for every entry i, where bit t of i is the coefficient of X^t."""
    count = 1 << m_bits
    terms = np.zeros((count, m_bits, 2), np.uint64)
    chosen = np.arange(count)[:, None] >> np.arange(m_bits) & 1 == 1
    terms[chosen] = delta
    return combine_rows(terms.reshape(-1, 2), m_bits)
