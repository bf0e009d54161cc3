"""The uniform halves that everybody knows: one polynomial per group of input features, from a public seed.

They stay the same for all batches, which is what lets the half of a product that depends on them (the hint)
be made and sent once. The secret is fresh for every batch: samples of many secrets under one uniform
polynomial are as hard as of one (a hybrid argument over the secrets).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sottovoce.dense.keystream import row_keys, row_words
from sottovoce.dense.parameters import LOG_Q, DenseParameters

Words = npt.NDArray[np.uint64]

MASK = np.uint64((1 << LOG_Q) - 1)


def polynomials(parameters: DenseParameters, seed: bytes, matrix: int, first: int, count: int) -> Words:
    """(count, N): polynomials first, first + 1, … of a matrix, uniform modulo q."""
    keys = row_keys(seed, b"uniform halves of matrix %d" % matrix, first, count)
    words: Words = row_words(keys, 0, parameters.degree) & MASK
    return words


def rerandomiser(parameters: DenseParameters, seed: bytes) -> Words:
    """(N,): the uniform half of every public key."""
    words: Words = row_words(row_keys(seed, b"public key", 0, 1), 0, parameters.degree)[0] & MASK
    return words


def feature_rows(parameters: DenseParameters, seed: bytes, matrix: int, first: int, count: int) -> Words:
    """(count, N): row i is what feature first + i is encrypted with: X^(-k) times its polynomial, k its
    component in it. `first` is a multiple of the features per ciphertext."""
    c, n = parameters.features, parameters.degree
    whole = polynomials(parameters, seed, matrix, first // c, -(-count // c)).reshape(-1, c, parameters.block)
    out = np.empty((len(whole), c, c, parameters.block), np.uint64)
    for k in range(c):
        # Component i of the product is component i + k, or, past the last, component i + k − c times X^-c.
        out[:, k, : c - k] = whole[:, k:]
        out[:, k, c - k :, :-1] = whole[:, :k, 1:]
        out[:, k, c - k :, -1] = np.subtract(np.uint64(0), whole[:, :k, 0]) & MASK
    return out.reshape(-1, n)[:count]
