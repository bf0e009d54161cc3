"""The hybrid engine's arithmetic without its cryptography: both shares in one process.

The decoder graph is the hybrid engine's own; matrices and cache work on the two shares directly. What differs
from plaintext here is approximation (fixed point, tables); what differs from the hybrid engine would be an
error in its cryptography. Every range that the protocols rely on is asserted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from sottovoce._native import field_matvec_i16
from sottovoce.engines.decoder import Decoder
from sottovoce.engines.public import PublicModel
from sottovoce.errors import RangeError
from sottovoce.models.fixed import ACTIVATION_BITS, FixedModel
from sottovoce.models.quantize import public_keys_values
from sottovoce.mpc import field
from sottovoce.mpc.model import ModelArithmetic
from sottovoce.mpc.requests import Share
from sottovoce.ring.primes import P_FIELD

if TYPE_CHECKING:
    from sottovoce.models import Model

Int64 = npt.NDArray[np.int64]


def matrix_product(weight: npt.NDArray[np.int16], x: Share, bias: Int64 | None) -> Share:
    """W·x + bias on both shares: x (2, T, inputs) -> (2, T, outputs) mod p; the bias goes to the server's
    share."""
    _, tokens, inputs = x.shape
    y = np.empty((2 * tokens, len(weight)), dtype=np.uint64)
    field_matvec_i16(weight, np.ascontiguousarray(x.reshape(2 * tokens, inputs)), P_FIELD, y)
    y = y.reshape(2, tokens, len(weight))
    if bias is not None:
        y[1] = field.add(y[1], np.broadcast_to(field.from_signed(bias, P_FIELD), y[1].shape), P_FIELD)
    return y


def _share(ar: ModelArithmetic, values: Int64) -> Share:
    if ar.check and values.size and int(np.abs(values).max()) >= P_FIELD // 4:
        raise RangeError(
            "a product in the cache leaves the range of the field; the input is out of this model's range"
        )
    return ar.share(field.from_signed(values, P_FIELD))


def _open(ar: ModelArithmetic, x: Share) -> Int64:
    return field.centred(ar.reveal(x), P_FIELD)


class ModelLinears:
    """The matrices of a fixed-point model on both shares."""

    def __init__(self, model: FixedModel) -> None:
        self.model = model

    def apply(self, layer: int, name: str, x: Share) -> Share:
        block = self.model.blocks[layer]
        return matrix_product(getattr(block, name), x, getattr(block, name + "_bias"))


class ModelCache:
    """Keys and values of one layer as plain integers; products are exact, results freshly shared."""

    def __init__(self, ar: ModelArithmetic, heads: int, kv_heads: int, head_dim: int) -> None:
        self.ar = ar
        self.group = heads // kv_heads
        self.k: Int64 = np.zeros((0, kv_heads, head_dim), dtype=np.int64)
        self.v: Int64 = np.zeros((0, kv_heads, head_dim), dtype=np.int64)

    def append_public(self, k: Int64, v: Int64) -> None:
        self.k, self.v = np.concatenate([self.k, k]), np.concatenate([self.v, v])

    def append(self, k: Share, v: Share) -> None:
        self.append_public(_open(self.ar, k), _open(self.ar, v))

    def truncate(self, length: int) -> None:
        self.k, self.v = self.k[:length], self.v[:length]

    def scores(self, q: Share) -> Share:
        queries = _open(self.ar, q)
        tokens, n = len(queries), len(self.k)
        keys = np.repeat(self.k, self.group, axis=1)
        raw = np.einsum("thd,nhd->thn", queries, keys)
        live = np.arange(n)[None, :] <= n - tokens + np.arange(tokens)[:, None]
        return _share(self.ar, raw * live[:, None, :])

    def mix(self, p: Share) -> Share:
        values = np.repeat(self.v, self.group, axis=1)
        return _share(self.ar, np.einsum("thn,nhd->thd", _open(self.ar, p), values))


class FixedExecutor:
    """A session of the fixed-point engine: prefill and decode return logits (vocab,) as floats."""

    def __init__(self, model: Model, fixed: FixedModel, seed: int | None = None, check: bool = True) -> None:
        self.model = model
        self.fixed = fixed
        self.ar = ModelArithmetic(np.random.default_rng(seed), check)
        c = fixed.config
        self.caches = [ModelCache(self.ar, c.heads, c.kv_heads, c.head_dim) for _ in range(c.layers)]
        shifts = [block.softmax_shift for block in fixed.blocks]
        self.decoder = Decoder(
            PublicModel.of(fixed), self.ar, ModelLinears(fixed), self.caches, shifts, self.ar.operation
        )
        self.length = 0

    def prefill_public(self, tokens: Sequence[int]) -> None:
        """A public prefix, in an empty session."""
        for cache, k, v in zip(self.caches, *public_keys_values(self.model, tokens), strict=True):
            cache.append_public(k, v)
        self.length = len(tokens)

    def forward(self, tokens: Sequence[int]) -> npt.NDArray[np.float64]:
        """Append tokens; logits of each of them, (T, vocab)."""
        positions = np.arange(self.length, self.length + len(tokens))
        x = _share(self.ar, self._embed(np.asarray(tokens), positions))
        for i in range(self.fixed.config.layers):
            x = self.decoder.block(i, x, self.length)
        self.length += len(tokens)
        h = self.decoder.final_norm(x)
        logits = matrix_product(self.fixed.head, h, self.fixed.head_bias)
        return np.asarray(_open(self.ar, logits) * 2.0**-self.fixed.residual_bits)

    def truncate(self, length: int) -> None:
        for cache in self.caches:
            cache.truncate(length)
        self.length = length

    def _embed(self, tokens: Int64, positions: Int64) -> Int64:
        x = self.fixed.embedding[tokens].astype(np.int64) << ACTIVATION_BITS
        if self.fixed.positions is not None:
            x = x + self.fixed.positions[positions]
        return x
