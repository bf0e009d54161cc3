"""Products of matrices of masks: shares of X·Y for shared X and Y, made from both cross terms.

X = X0 + X1 (m, k), Y = Y0 + Y1 (k, n). X0·Y0 and X1·Y1 are local. For X0·Y1 the client encrypts X0, the
server multiplies by Y1 and returns the product masked; X1·Y0 is the mirror image, at the same time, under
the server's key. Nothing is kept: every X is fresh, Y may be used again with another X.

Layout, N = m'·c1·c2 (m' ≥ m a power of two): a ciphertext holds c1 columns of X, column δ at the
coefficients δ·m' + row. The plaintext is a polynomial in X^m' with Y's elements for these c1 rows and for c2
of its columns at exponents c1·j + c1 − 1 − δ; the products of column j then gather at exponent c1·j + c1 − 1.
More columns together (c1) make fewer ciphertexts up and more back, of which c1 − 1 in c1 coefficients are
of no use and stay at home; `MaskLayout.plan` takes the split with the fewest bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from sottovoce import _native
from sottovoce.correlations.coefficients import (
    COEFFICIENTS,
    CoefficientKey,
    Words,
    encrypted_bytes,
    error_bits,
    give_back,
    load,
    plaintexts,
    returned_bytes,
)
from sottovoce.errors import ParameterError
from sottovoce.net import Channel
from sottovoce.ot.modular import add_mod
from sottovoce.ring import threads
from sottovoce.ring.primes import P_FIELD
from sottovoce.rlwe import PublicKey

_KEY_BYTES = 1 << 17
# Results may be wrong by this many bits of units (standard deviation): scores have 24 bits below the point.
ERROR_BITS = 11.0
MOST_ROWS = COEFFICIENTS.degree // 4  # transforms of plaintexts have at least four points
_SHARED_WORK = 1 << 22  # from so many products on, about 0.5 ms, other threads are worth being woken
_AT_ONCE = 8  # ciphertexts returned together: a megabyte, which stays in the cache


@dataclass(frozen=True)
class MaskLayout:
    """How a product (m, k) x (k, n) lies in ciphertexts. `columns` is c1."""

    m: int
    k: int
    n: int
    columns: int

    @classmethod
    def plan(cls, m: int, k: int, n: int) -> MaskLayout:
        """The cheapest in bytes; public sizes decide. ParameterError for more rows than fit."""
        if not 0 < m <= MOST_ROWS or min(k, n) < 1:
            raise ParameterError(f"mask products take 1 to {MOST_ROWS} rows, not {m} x {k} x {n}")
        widest = COEFFICIENTS.degree >> (m - 1).bit_length()
        splits = [cls(m, k, n, 1 << i) for i in range(widest.bit_length())]
        layout = min(splits, key=lambda split: split.sent + split.returned)
        if error_bits(layout.terms) > ERROR_BITS:
            raise ParameterError(f"an inner product of {k} masks would not stay accurate")
        return layout

    @property
    def stride(self) -> int:
        """m': rows rounded up to a power of two."""
        return 1 << (self.m - 1).bit_length()

    @property
    def places(self) -> int:
        """c2: result columns in one ciphertext."""
        return COEFFICIENTS.degree // self.stride // self.columns

    @property
    def inputs(self) -> int:
        """Ciphertexts that hold X."""
        return -(-self.k // self.columns)

    @property
    def outputs(self) -> int:
        """Ciphertexts that hold the product."""
        return -(-self.n // self.places)

    @property
    def size(self) -> int:
        """Coefficients of results: m·n rounded up to a multiple of 8."""
        return -(-self.m * self.n // 8) * 8

    @property
    def terms(self) -> int:
        """Products that every coefficient of a result is a sum of."""
        return self.inputs * self.columns * self.places

    @property
    def sent(self) -> int:
        """Bytes of the encrypted X."""
        return encrypted_bytes(self.inputs)

    @property
    def returned(self) -> int:
        """Bytes of the returned product."""
        return sum(returned_bytes(part.outputs, part.size) for _, part in self.parts())

    def parts(self) -> Iterator[tuple[int, MaskLayout]]:
        """(first column, layout) of parts of a few ciphertexts each: what is held in memory at a time."""
        width = _AT_ONCE * self.places
        for first in range(0, self.n, width):
            yield first, replace(self, n=min(width, self.n - first))

    def lay_out(self, x: Words) -> Words:
        """X (m, k) -> coefficients (inputs, N) to encrypt."""
        padded = np.zeros((self.inputs * self.columns, self.m), np.uint64)
        padded[: self.k] = x.T
        rows = np.zeros((self.inputs, self.columns * self.places, self.stride), np.uint64)
        rows[:, : self.columns, : self.m] = padded.reshape(self.inputs, self.columns, self.m)
        return rows.reshape(self.inputs, COEFFICIENTS.degree)

    def polynomials(self, y: Words) -> Words:
        """Y (k, n) -> (outputs, inputs, N/m') coefficients of plaintexts in X^m'."""
        padded = np.zeros((self.inputs * self.columns, self.outputs * self.places), np.uint64)
        padded[: self.k, : self.n] = y
        parts = padded.reshape(self.inputs, self.columns, self.outputs, self.places)
        ordered = parts.transpose(2, 0, 3, 1)[..., ::-1]
        return ordered.reshape(self.outputs, self.inputs, self.places * self.columns)

    def select(self, results: Words) -> Words:
        """(outputs, L, N) coefficients -> (L, size): those that hold results, column by column."""
        limbs = results.shape[1]
        parts = results.reshape(self.outputs, limbs, self.places, self.columns, self.stride)
        useful = parts[:, :, :, self.columns - 1, : self.m].swapaxes(0, 1)
        chosen = np.zeros((limbs, self.size), np.uint64)
        chosen[:, : self.m * self.n] = useful.reshape(limbs, -1)[:, : self.m * self.n]
        return chosen

    def collect(self, shares: Words) -> Words:
        """(size,) -> the product (m, n)."""
        return shares[: self.m * self.n].reshape(self.n, self.m).T


class MaskProducts:
    """One party's half: makes products in lockstep with the other. Keys are exchanged at the first use."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._own: CoefficientKey | None = None
        self._peer: PublicKey | None = None

    def multiply(self, pairs: list[tuple[Words, Words]]) -> list[Words]:
        """Shares of X (S, m, k) and Y (S, k, n), several pairs at once -> shares (S, m, n) of X·Y mod p.

        Right up to 750 units (σ). Two exchanges, `products_bytes` each way. Leaks nothing: what travels
        is encrypted, or masked over all of Z_Q.
        """
        own, peer = self.keys()
        layouts = [MaskLayout.plan(x.shape[1], x.shape[2], y.shape[2]) for x, y in pairs]
        jobs = [
            (layout, left, right)
            for layout, (x, y) in zip(layouts, pairs, strict=True)
            for left, right in zip(x, y, strict=True)
        ]
        sent = b"".join(own.encrypt(layout.lay_out(left)) for layout, left, _ in jobs)
        received, at, replies, masked = self._channel.exchange(sent, len(sent)), 0, [], []
        for layout, _, right in jobs:
            reply, share = _answer(layout, received[at : (at := at + layout.sent)], right, peer)
            replies.append(reply)
            masked.append(share)
        back = b"".join(replies)
        received, at, opened = self._channel.exchange(back, len(back)), 0, []
        for layout, _, _ in jobs:
            opened.append(_opened(layout, received[at : (at := at + layout.returned)], own))
        cross = iter(zip(opened, masked, strict=True))
        results = []
        for x, y in pairs:
            both = [next(cross) for _ in x]
            terms = [np.stack(shares) for shares in zip(*both, strict=True)]
            results.append(add_mod(add_mod(terms[0], terms[1], P_FIELD), matmul(x, y), P_FIELD))
        return results

    def keys(self) -> tuple[CoefficientKey, PublicKey]:
        """Own keys and the other party's public key: one exchange of 43 KB each way, the first time."""
        if self._own is None or self._peer is None:
            self._own = CoefficientKey.generate()
            public = self._own.public.to_bytes()
            self._peer = PublicKey.from_bytes(COEFFICIENTS, self._channel.exchange(public, len(public)))
        return self._own, self._peer


def products_bytes(shapes: list[tuple[int, int, int, int]]) -> int:
    """Bytes each way of `MaskProducts.multiply` for these (S, m, k, n), keys not counted."""
    layouts = [(batch, MaskLayout.plan(*shape)) for batch, *shape in shapes]
    return sum(batch * (layout.sent + layout.returned) for batch, layout in layouts)


def matmul(x: Words, y: Words) -> Words:
    """x (S, m, k) times y (S, k, n) mod p. A view y is read in place if its last axis is dense."""
    if y.strides[2] != y.itemsize:
        y = np.ascontiguousarray(y)
    out = np.empty((len(x), x.shape[1], y.shape[2]), np.uint64)
    workers = threads() if x.size * y.shape[2] >= _SHARED_WORK else 1
    _native.field_matmul(np.ascontiguousarray(x), y, P_FIELD, out, workers)
    return out


def _answer(layout: MaskLayout, data: memoryview, y: Words, owner: PublicKey) -> tuple[bytes, Words]:
    """Multiply the other party's encrypted X by the own Y: bytes to return, own share (m, n)."""
    ciphertexts, ring = list(load(data, layout.inputs)), COEFFICIENTS.ring()
    replies, share = [], np.empty((layout.m, layout.n), np.uint64)
    for first, part in layout.parts():
        columns = slice(first, first + part.n)
        plains = plaintexts(part.polynomials(y[:, columns]))
        results = np.zeros((part.outputs, 2, ring.limbs, ring.n), np.uint64)
        ring.mac_matrix(results, ciphertexts, [list(row) for row in plains])
        reply, masks = give_back(results, owner, part.select)
        replies.append(reply)
        share[:, columns] = part.collect(masks)
    return b"".join(replies), share


def _opened(layout: MaskLayout, data: memoryview, own: CoefficientKey) -> Words:
    """What the other party made of the own X: this party's share (m, n)."""
    share, at = np.empty((layout.m, layout.n), np.uint64), 0
    for first, part in layout.parts():
        size = returned_bytes(part.outputs, part.size)
        opened = own.open(data[at : (at := at + size)], part.outputs, part.select, part.size)
        share[:, first : first + part.n] = part.collect(opened)
    return share
