"""The server's half: the hint of a matrix, once, and answers to batches, each under a fresh mask."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from sottovoce import _native
from sottovoce.dense.data import answer_bytes, fresh_bytes, public_key_bytes
from sottovoce.dense.keystream import row_keys, row_words
from sottovoce.dense.parameters import FRESH_BITS, LOG_Q, SENT_BITS, SENT_BYTES, DenseParameters
from sottovoce.dense.public import MASK, feature_rows, rerandomiser
from sottovoce.errors import FrameError, ParameterError
from sottovoce.net import unpack_bits
from sottovoce.net.channel import Payload
from sottovoce.ring import sampling, threads

Words = npt.NDArray[np.uint64]
Int16 = npt.NDArray[np.int16]
U8 = npt.NDArray[np.uint8]
Coins = npt.NDArray[np.uint32]

_FEATURES_AT_ONCE = 2048  # expanded uniform halves in memory: 32 MB


@dataclass(frozen=True)
class HintSecret:
    """What re-randomises the fixed half of every product: u ternary and e small, one pair per output row.

    seed: public, of the uniform halves. secret: 32 bytes that never leave the server; whoever has them and
    the hint has the weights. One hint serves every batch and every client.
    """

    parameters: DenseParameters
    seed: bytes
    secret: bytes = field(repr=False)

    @classmethod
    def generate(cls, parameters: DenseParameters) -> HintSecret:
        return cls(parameters, sampling.fresh_seed(), sampling.fresh_seed())

    def hint(self, matrix: int, weights: Int16, first: int, count: int) -> U8:
        """Rows first … of the hint: (count, 5 N), the upper 40 bits of W·A + u·a + e.

        Cost: d_in·N products of words per row.
        """
        return self.hint_of(matrix, self._fixed_product(matrix, weights[first : first + count]), first)

    def hint_of(self, matrix: int, sums: Words, first: int) -> U8:
        """`hint` from W·A (count, N)."""
        count, n = sums.shape
        key = self.parameters.whole(rerandomiser(self.parameters, self.seed))
        noise = row_words(row_keys(self.secret, b"errors of matrix %d" % matrix, first, count), 0, n)
        out = np.empty((count, SENT_BYTES * n), np.uint8)
        coins, primes = self.coins(matrix, first, count), self.parameters.primes
        _native.dense_hint(sums, coins, key, primes, noise, self.parameters.block, out, threads())
        return out

    def coins(self, matrix: int, first: int, count: int) -> Coins:
        """(count, N): the randomness of the ternary polynomials u of output rows first … of a matrix."""
        keys = row_keys(self.secret, b"ternary of matrix %d" % matrix, first, count)
        return row_words(keys, 0, self.parameters.degree // 2).view(np.uint32)

    def _fixed_product(self, matrix: int, weights: Int16) -> Words:
        weights = np.ascontiguousarray(weights)
        out = np.zeros((len(weights), self.parameters.degree), np.uint64)
        for at in range(0, weights.shape[1], _FEATURES_AT_ONCE):
            count = min(_FEATURES_AT_ONCE, weights.shape[1] - at)
            a = feature_rows(self.parameters, self.seed, matrix, at, count)
            _native.dense_matmul(weights, at, a, out, at > 0, threads())
        return out


class BatchAnswers:
    """Answers to one batch of a client, under its public key and masks of this batch.

    masks: the seed of the masks, from which the server takes its shares when they are used.
    """

    def __init__(self, hints: HintSecret, public_key: Payload, n: int, masks: bytes | None = None) -> None:
        parameters = hints.parameters
        data = np.frombuffer(public_key, np.uint8)
        if data.size != public_key_bytes(parameters):
            raise FrameError(f"a public key takes {public_key_bytes(parameters)} bytes here, got {data.size}")
        if not 1 <= n <= parameters.block:
            raise ParameterError(f"a batch has 1 to {parameters.block} tokens, not {n}")
        self.parameters, self.hints, self.n = parameters, hints, n
        self.masks = sampling.fresh_seed() if masks is None else masks
        self._answered: dict[int, int] = {}
        key = unpack_bits(data, parameters.degree, FRESH_BITS)
        self._key = parameters.first(key << np.uint64(LOG_Q - FRESH_BITS), 2)
        drop = FRESH_BITS - SENT_BITS
        upper = ((key + np.uint64(1 << (drop - 1))) >> np.uint64(drop)).view(np.int64)
        centred = upper - (((upper >> (SENT_BITS - 1)) & 1) << SENT_BITS)
        self._upper_key = parameters.first(centred)

    def load(self, data: Payload, features: int) -> Words:
        """What `BatchSecret.encrypt` made -> words (features, n) modulo q. FrameError on a wrong size."""
        view = np.frombuffer(data, np.uint8)
        expected = fresh_bytes(features, self.n)
        if view.size != expected:
            raise FrameError(f"{features} features of {self.n} tokens take {expected} bytes, got {view.size}")
        words = unpack_bits(view, features * self.n, FRESH_BITS)
        words <<= np.uint64(LOG_Q - FRESH_BITS)
        return words.reshape(features, self.n)

    def answer(self, matrix: int, sums: Words, first: int, opened: bool = False) -> U8:
        """W·B (rows, n) of output rows first … -> what the client gets: answer_bytes(rows, n) bytes.

        Adds the second half of this row's encryption of zero and a mask uniform modulo q. `first` is even,
        and grows from call to call: no mask is used twice.

        opened: the client will see W·r itself, with its error. The encryption of zero is then computed from
        all bits of the client's key, in twice the time: with the upper 40 the error has a part
        (hint secret)·(rounding of the key) of 85 units, and the client knows that rounding.
        """
        rows = len(sums)
        if first < self._answered.get(matrix, 0):
            raise ParameterError(f"matrix {matrix}: row {first} has been answered in this batch")
        self._answered[matrix] = first + rows
        keys = row_keys(self.masks, b"masks of matrix %d" % matrix, 0, self.n)
        masks = np.ascontiguousarray(row_words(keys, first, rows).T)
        out = np.empty((rows, SENT_BYTES * self.n), np.uint8)
        coins, key = self.hints.coins(matrix, first, rows), self._key if opened else self._upper_key
        _native.dense_settle(sums, coins, key, self.parameters.primes[: len(key)], masks, out, threads())
        return out


def server_share(
    parameters: DenseParameters, masks: bytes, matrix: int, slot: int, count: int, outputs: int
) -> Words:
    """(count, outputs): the server's shares of W·R for tokens slot … of a batch; masks: the seed of its
    masks."""
    words = row_words(row_keys(masks, b"masks of matrix %d" % matrix, slot, count), 0, outputs)
    words = np.ascontiguousarray(words & MASK)
    out = np.empty_like(words)
    _native.dense_scale(words, LOG_Q, parameters.plaintext, True, out)
    return out


def matrix_product(weights: Int16, first: int, words: Words, out: Words, accumulate: bool) -> Words:
    """out (d_out, n) (+)= W[:, first : first + k] · words (k, n) modulo q."""
    _native.dense_matmul(weights, first, words, out, accumulate, threads())
    return out


__all__ = [
    "BatchAnswers",
    "HintSecret",
    "answer_bytes",
    "matrix_product",
    "server_share",
]
