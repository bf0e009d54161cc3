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
        secret = sampling.Stream().ternary(parameters.degree)
        self._whole, self._first = parameters.whole(secret), parameters.first(secret)
        self._errors = sampling.fresh_seed()
        self._encrypted: dict[int, int] = {}

    def public_key(self) -> bytes:
        """The second half of the encryption of zero, upper 49 bits: 12.5 KB.

        Not fewer: its rounding ends up in every product, multiplied by secrets of the server that never
        change, and where results are opened the client could take an average over many.
        """
        shape = self.parameters.features, self.parameters.block
        key = rerandomiser(self.parameters, self._seed)
        noise = row_words(row_keys(self._errors, b"public key", 0, 1), 0, self.parameters.degree)
        out = self._fresh(key[None], np.zeros(shape, np.uint64), noise.reshape(shape))
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
        noise = np.ascontiguousarray(row_words(keys, 0, n))
        return pack_bits(self._fresh(a, np.ascontiguousarray(message), noise), FRESH_BITS)

    def open(self, hint: U8, answer: Payload, n: int) -> Words:
        """The client's share of W·R: hint (rows, 5 N), answer of answer_bytes(rows, n) -> (rows, n) words
        modulo 2^40; `share_of_phase` makes residues of them.

        FrameError on a wrong size; any bytes of the right size open to something.
        """
        rows, data = len(hint), np.frombuffer(answer, np.uint8)
        if data.size != answer_bytes(rows, n):
            raise FrameError(f"{rows} rows of {n} tokens take {answer_bytes(rows, n)} bytes, got {data.size}")
        out = np.empty((rows, n), np.uint64)
        primes = self.parameters.primes[:1]
        _native.dense_open(hint, self._first, primes, data.reshape(rows, -1), out, threads())
        return out

    def _fresh(self, a: Words, message: Words, noise: Words) -> Words:
        """Upper bits of the second halves, (F, n): a has a polynomial for every c features."""
        out, parameters = np.empty_like(message), self.parameters
        _native.dense_fresh(
            a,
            self._whole,
            parameters.primes,
            message,
            noise,
            parameters.plaintext,
            LOG_Q - FRESH_BITS,
            parameters.block,
            out,
            threads(),
        )
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
