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

from dataclasses import dataclass

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


@dataclass(frozen=True)
class MaskLayout:
    """How S products (m, k) x (k, n) lie in ciphertexts. `columns` is c1."""

    batch: int  # S
    m: int
    k: int
    n: int
    columns: int

    @classmethod
    def plan(cls, batch: int, m: int, k: int, n: int) -> MaskLayout:
        """The cheapest in bytes; public sizes decide. ParameterError for more rows than fit."""
        if not 0 < m <= MOST_ROWS or min(batch, k, n) < 1:
            raise ParameterError(f"mask products take 1 to {MOST_ROWS} rows, not {m} x {k} x {n}")
        widest = COEFFICIENTS.degree >> (m - 1).bit_length()
        splits = [cls(batch, m, k, n, 1 << i) for i in range(widest.bit_length())]
        layout = min(splits, key=lambda split: split.sent + split.returned)
        if error_bits(layout.inputs * layout.columns * layout.places) > ERROR_BITS:
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
        """Ciphertexts that hold one X."""
        return -(-self.k // self.columns)

    @property
    def outputs(self) -> int:
        """Ciphertexts that hold one product."""
        return -(-self.n // self.places)

    @property
    def size(self) -> int:
        """Coefficients of results that travel, for one product: m·n rounded up to a multiple of 8."""
        return -(-self.m * self.n // 8) * 8

    @property
    def sent(self) -> int:
        """Bytes of all encrypted X."""
        return encrypted_bytes(self.batch * self.inputs)

    @property
    def returned(self) -> int:
        """Bytes of all returned products."""
        return returned_bytes(self.batch * self.outputs, self.batch, self.size)

    def lay_out(self, x: Words) -> Words:
        """X (S, m, k) -> coefficients (S·inputs, N) to encrypt."""
        padded = np.zeros((self.batch, self.inputs * self.columns, self.m), np.uint64)
        padded[:, : self.k] = x.swapaxes(1, 2)
        shape = (self.batch, self.inputs, self.columns * self.places, self.stride)
        rows = np.zeros(shape, np.uint64)
        rows[:, :, : self.columns, : self.m] = padded.reshape(self.batch, self.inputs, self.columns, self.m)
        return rows.reshape(-1, COEFFICIENTS.degree)

    def polynomials(self, y: Words) -> Words:
        """Y (S, k, n) -> (S, outputs, inputs, N/m') coefficients of plaintexts in X^m'."""
        padded = np.zeros((self.batch, self.inputs * self.columns, self.outputs * self.places), np.uint64)
        padded[:, : self.k, : self.n] = y
        parts = padded.reshape(self.batch, self.inputs, self.columns, self.outputs, self.places)
        ordered = parts.transpose(0, 3, 1, 4, 2)[..., ::-1]
        return ordered.reshape(self.batch, self.outputs, self.inputs, self.places * self.columns)

    def select(self, results: Words) -> Words:
        """(S·outputs, L, N) coefficients -> (S, L, size): those that hold results, column by column."""
        limbs = results.shape[1]
        parts = results.reshape(self.batch, self.outputs, limbs, self.places, self.columns, self.stride)
        useful = parts[:, :, :, :, self.columns - 1, : self.m].swapaxes(1, 2)
        flat = useful.reshape(self.batch, limbs, -1)[..., : self.m * self.n]
        chosen = np.zeros((self.batch, limbs, self.size), np.uint64)
        chosen[..., : self.m * self.n] = flat
        return chosen

    def collect(self, shares: Words) -> Words:
        """(S, size) -> the product (S, m, n)."""
        return shares[:, : self.m * self.n].reshape(self.batch, self.n, self.m).swapaxes(1, 2)


class MaskProducts:
    """One party's half: makes products in lockstep with the other. Keys are exchanged at the first use."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._own: CoefficientKey | None = None
        self._peer: PublicKey | None = None

    def multiply(self, pairs: list[tuple[Words, Words]]) -> list[Words]:
        """Shares of X (S, m, k) and Y (S, k, n), several pairs at once -> shares (S, m, n) of X·Y mod p.

        Right up to a few hundred units. Two exchanges, `cost(shapes)` bytes each way. Leaks nothing: what
        travels is encrypted, or masked over all of Z_Q.
        """
        own, peer = self.keys()
        layouts = [MaskLayout.plan(*x.shape, y.shape[2]) for x, y in pairs]
        sent = b"".join(own.encrypt(layout.lay_out(x)) for layout, (x, _) in zip(layouts, pairs, strict=True))
        received = self._channel.exchange(sent, len(sent))
        replies, masked, at = [], [], 0
        for layout, (_, y) in zip(layouts, pairs, strict=True):
            reply, share = _answer(layout, received[at : at + layout.sent], y, peer)
            at += layout.sent
            replies.append(reply)
            masked.append(share)
        back = b"".join(replies)
        received, results, at = self._channel.exchange(back, len(back)), [], 0
        for layout, (x, y), share in zip(layouts, pairs, masked, strict=True):
            part = received[at : at + layout.returned]
            opened = own.open(part, layout.batch * layout.outputs, layout.select, layout.batch, layout.size)
            at += layout.returned
            cross = layout.collect(add_mod(opened, share, P_FIELD))
            results.append(add_mod(cross, matmul(x, y), P_FIELD))
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
    layouts = [MaskLayout.plan(*shape) for shape in shapes]
    return sum(layout.sent + layout.returned for layout in layouts)


def matmul(x: Words, y: Words) -> Words:
    """x (S, m, k) times y (S, k, n) mod p. A view y is read in place if its last axis is dense."""
    if y.strides[2] != y.itemsize:
        y = np.ascontiguousarray(y)
    out = np.empty((len(x), x.shape[1], y.shape[2]), np.uint64)
    _native.field_matmul(np.ascontiguousarray(x), y, P_FIELD, out, threads())
    return out


def _answer(layout: MaskLayout, data: memoryview, y: Words, owner: PublicKey) -> tuple[bytes, Words]:
    """Multiply the other party's encrypted X by the own Y: (bytes to return, own shares (S, size))."""
    inputs, outputs = layout.inputs, layout.outputs
    pairs = load(data, layout.batch * inputs).reshape(layout.batch, inputs, 2, *_ring_shape())
    plains = plaintexts(layout.polynomials(y))
    results = np.zeros((layout.batch, outputs, 2, *_ring_shape()), np.uint64)
    ring = COEFFICIENTS.ring()
    for result, ciphertexts, plain in zip(results, pairs, plains, strict=True):
        ring.mac_matrix(result, list(ciphertexts), [list(row) for row in plain])
    return give_back(results.reshape(-1, 2, *_ring_shape()), owner, layout.select)


def _ring_shape() -> tuple[int, int]:
    return COEFFICIENTS.limbs, COEFFICIENTS.degree
