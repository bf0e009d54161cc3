"""Dense products in Python integers, one row at a time: slow, and what the kernels must equal bit for bit.

Polynomials are lists of N integers; randomness is an argument everywhere. rounded=False leaves all 52 bits,
which the protocol never sends.
"""

from __future__ import annotations

from collections.abc import Sequence

from sottovoce.dense.parameters import FRESH_BITS, LOG_Q, SENT_BITS, DenseParameters

Q = 1 << LOG_Q
Polynomial = Sequence[int]


def negacyclic(a: Polynomial, b: Polynomial) -> list[int]:
    """a·b modulo X^N + 1, exact."""
    n = len(a)
    out = [0] * n
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            if i + j < n:
                out[i + j] += x * y
            else:
                out[i + j - n] -= x * y
    return out


def shifted(a: Polynomial, k: int) -> list[int]:
    """X^-k · a: what the feature at coefficients k, k + c, k + 2c, … is encrypted with."""
    return [*a[k:], *(-x for x in a[:k])]


def upper(x: int, bits: int) -> int:
    """x modulo q rounded to its upper bits, as an integer below 2^bits."""
    drop = LOG_Q - bits
    return ((x + (1 << drop >> 1)) >> drop) % (1 << bits)


def fresh(
    parameters: DenseParameters, a: Polynomial, s: Polynomial, message: Polynomial, e: Polynomial
) -> list[int]:
    """Upper 49 bits of the second half of a fresh ciphertext: round(q·m/p) + e − a·s."""
    p = parameters.plaintext
    product = negacyclic(a, s)
    lifted = [(2 * Q * m + p) // (2 * p) for m in message]
    return [upper(x + error - y, FRESH_BITS) for x, error, y in zip(lifted, e, product, strict=True)]


def hint(sums: Polynomial, u: Polynomial, key: Polynomial, e: Polynomial, rounded: bool = True) -> list[int]:
    """W·A + u·a + e."""
    values = [x + y + z for x, y, z in zip(sums, negacyclic(u, key), e, strict=True)]
    return [upper(x, SENT_BITS) if rounded else x % Q for x in values]


def answer(
    sums: Polynomial, u: Polynomial, key: Polynomial, mask: Polynomial, c: int = 1, rounded: bool = True
) -> list[int]:
    """W·B + u·b + z; key: the upper 40 bits of b (all, if the result is not rounded either).

    sums, mask and result: of the tokens, coefficients 0, c, 2c, …
    """
    product, shift = negacyclic(u, key)[::c], LOG_Q - SENT_BITS if rounded else 0
    values = [x + (y << shift) + z for x, y, z in zip(sums, product, mask, strict=False)]
    return [upper(x, SENT_BITS) if rounded else x % Q for x in values]


def phase(
    hint: Polynomial, s: Polynomial, answer: Polynomial, c: int = 1, bits: int = SENT_BITS
) -> list[int]:
    """answer + hint·s modulo 2^bits at coefficients 0, c, 2c, …, as many as the answer has."""
    return [(x + y) % (1 << bits) for x, y in zip(negacyclic(hint, s)[::c], answer, strict=False)]


def share(x: int, bits: int, p: int) -> int:
    """round(p·x / 2^bits) mod p."""
    return ((p * x + (1 << bits >> 1)) >> bits) % p
