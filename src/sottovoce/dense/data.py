"""The client's half of a batch: a secret of its own, fresh ciphertexts, and the opening of answers."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sottovoce import _native
from sottovoce.dense.keystream import row_keys, row_words
from sottovoce.dense.parameters import (
    FRESH_BITS,
    LOG_Q,
    SENT_BITS,
    SENT_BYTES,
    DenseParameters,
)
from sottovoce.dense.public import polynomials, rerandomiser
from sottovoce.errors import FrameError, ParameterError
from sottovoce.net import pack_bits, packed_size
from sottovoce.net.channel import Payload
from sottovoce.ring import sampling, threads

Words = npt.NDArray[np.uint64]
U8 = npt.NDArray[np.uint8]


class BatchSecret:
    """The secret of one batch of up to `block` tokens. Every matrix is encrypted at most once under it.

    seed: the public seed of the uniform halves.
    """

    def __init__(self, parameters: DenseParameters, seed: bytes) -> None:
        self.parameters = parameters
        self._seed = seed
        ring = parameters.ring()
        self._secret = ring.ntt(ring.reduce_signed(sampling.Stream().ternary(parameters.degree)))
        self._errors = sampling.fresh_seed()
        self._encrypted: dict[int, int] = {}

    def public_key(self) -> bytes:
        """The second half of the encryption of zero, upper 49 bits: 12.5 KB.

        Not fewer: its rounding ends up in every product, multiplied by secrets of the server that never
        change, and where results are opened the client could take an average over many.
        """
        n, key = self.parameters.degree, rerandomiser(self.parameters, self._seed)
        noise = row_words(row_keys(self._errors, b"public key", 0, 1), 0, n)
        out, zero = np.empty((1, n), np.uint64), np.zeros((1, n), np.uint64)
        primes, p = self.parameters.primes, self.parameters.plaintext
        _native.dense_fresh(key[None], self._secret, primes, zero, noise, p, LOG_Q - FRESH_BITS, out)
        return pack_bits(out, FRESH_BITS).tobytes()

    def encrypt(self, matrix: int, first: int, message: Words) -> U8:
        """Fresh ciphertexts of input features first, first + 1, … of a matrix: message (F, n) residues,
        feature-major.

        `first` is a multiple of the features per ciphertext, and grows from call to call: no polynomial
        serves twice under one secret. fresh_bytes(F, n) bytes.
        """
        c = self.parameters.features
        count, n = message.shape
        if first % c or first < self._encrypted.get(matrix, 0) or not 1 <= n <= self.parameters.block:
            raise ParameterError(
                f"matrix {matrix}: features {first}… cannot be encrypted for {n} tokens here"
            )
        self._encrypted[matrix] = -(-(first + count) // c) * c
        a = polynomials(self.parameters, self._seed, matrix, first // c, -(-count // c))
        keys = row_keys(self._errors, b"errors of matrix %d" % matrix, first, count)
        primes, p = self.parameters.primes, self.parameters.plaintext
        drop = LOG_Q - FRESH_BITS
        # The kernel reads the number of blocks off the number of features: fill the last polynomial.
        padded = np.zeros((2, len(a) * c, n), np.uint64)
        padded[0, :count], padded[1, :count] = message, row_words(keys, 0, n)
        out = np.empty((len(a) * c, n), np.uint64)
        _native.dense_fresh(a, self._secret, primes, padded[0], padded[1], p, drop, out, threads())
        return pack_bits(out[:count], FRESH_BITS)

    def open(self, hint: U8, answer: Payload, n: int) -> Words:
        """The client's share of W·R: hint (rows, 5 N), answer of answer_bytes(rows, n) -> (rows, n) words
        modulo 2^40; `share_of_phase` makes residues of them.

        FrameError on a wrong size; any bytes of the right size open to something.
        """
        rows, data = len(hint), np.frombuffer(answer, np.uint8)
        if data.size != answer_bytes(rows, n):
            raise FrameError(f"{rows} rows of {n} tokens take {answer_bytes(rows, n)} bytes, got {data.size}")
        out = np.empty((rows, n), np.uint64)
        secret, primes = self._secret[:1], self.parameters.primes[:1]
        _native.dense_open(hint, secret, primes, data.reshape(rows, -1), out, threads())
        return out


def share_of_phase(parameters: DenseParameters, phase: Words) -> Words:
    """Words (rows, n) modulo 2^40, as `open` gives them, to the client's shares modulo p."""
    out = np.empty_like(phase)
    _native.dense_scale(phase, SENT_BITS, parameters.plaintext, False, out)
    return out


def fresh_bytes(features: int, n: int) -> int:
    """The size of `encrypt` for F features and n tokens."""
    return packed_size(features * n, FRESH_BITS)


def answer_bytes(rows: int, n: int) -> int:
    """The size of an answer for this many outputs and tokens."""
    return SENT_BYTES * rows * n


def public_key_bytes(parameters: DenseParameters) -> int:
    """The size of `public_key`."""
    return packed_size(parameters.degree, FRESH_BITS)
