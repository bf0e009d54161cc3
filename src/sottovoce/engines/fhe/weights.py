"""A model's matrices as plaintexts in slots, with everything folded in that costs nothing there.

Folded: gains of norms into the rows behind them, LayerNorm's mean (x − mean is a matrix), 1/√d_h and the
scale of scores into W_Q, the scale of an activation's argument, rotary order, copies of grouped heads, and
the halves that splitting a complex value into its parts leaves over. The residual stream is x/ρ. q and k,
and gate and up, are the real and imaginary part of one product.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from sottovoce.engines.fhe.functions import Functions
from sottovoce.engines.fhe.shape import Shape
from sottovoce.models.weights import BlockWeights, Weights
from sottovoce.packing.slots import Interleaved, Plain, Vector, constant, padded

Array = npt.NDArray[np.float64]
# Plaintexts of a matrix are kept if they take less than this, else made again each time.
_KEPT_BYTES = 1 << 23


@dataclass(frozen=True)
class Matrix:
    """Plaintexts of one product, and what is added to its result (None: nothing), in output order. weights:
    (inputs, outputs), padded; None where only operations are counted."""

    plaintexts: Sequence[Plain]
    bias: Vector | None = None
    weights: Vector | None = None


@dataclass(frozen=True)
class Block:
    qk: Matrix
    v: Matrix
    o: Matrix
    up: Matrix  # gate + i·up, halved; up alone without a gate
    down: Matrix


@dataclass(frozen=True)
class SlotWeights:
    """embed: one product for each block of the vocabulary; head likewise. positions: (tokens, width)."""

    embed: tuple[Matrix, ...]
    blocks: tuple[Block, ...]
    head: tuple[Matrix, ...]
    positions: Array | None


def counted(shape: Shape) -> SlotWeights:
    """Plaintexts without values, for counting."""

    def matrix(plan: Interleaved) -> Matrix:
        return Matrix([_nothing] * plan.count)

    block = Block(*(matrix(p) for p in (shape.qkv, shape.qkv, shape.out, shape.up, shape.down)))
    blocks = shape.vocabulary_blocks
    return SlotWeights(
        (matrix(shape.embed),) * blocks, (block,) * shape.config.layers, (matrix(shape.head),) * blocks, None
    )


def slot_weights(weights: Weights, shape: Shape, functions: Functions) -> SlotWeights:
    """All matrices of a model, with the scales that its functions take."""
    rho = functions.residual
    size, count = shape.vocabulary, shape.vocabulary_blocks
    embedding = weights.embedding.astype(np.float64) / rho
    rows = [embedding[i * size : (i + 1) * size] for i in range(count)]
    fold = _Folded(shape, weights.norm, weights.norm_bias, rho)
    output = weights.output.astype(np.float64)
    head = [fold.matrix(output[i * size : (i + 1) * size], None) for i in range(count)]
    return SlotWeights(
        tuple(_matrix(shape.embed, part, None) for part in rows),
        tuple(_block(block, shape, functions, i) for i, block in enumerate(weights.blocks)),
        tuple(_matrix(shape.head, *part) for part in head),
        None if weights.positions is None else weights.positions.astype(np.float64),
    )


class _Folded:
    """Matrices behind a norm: (x·r·gain + bias)·W + b = (x·r)·W' + b', mean included for LayerNorm."""

    def __init__(
        self,
        shape: Shape,
        gain: npt.NDArray[np.float32],
        bias: npt.NDArray[np.float32] | None,
        residual: float,
    ) -> None:
        self._centred, self._residual = shape.config.norm == "layer", residual
        self._gain, self._bias = gain.astype(np.float64), None if bias is None else bias.astype(np.float64)

    def matrix(
        self, weights: npt.NDArray[np.float32] | Array, bias: npt.NDArray[np.float32] | None
    ) -> tuple[Array, Array | None]:
        """(outputs, inputs) -> (inputs, outputs) and the new bias."""
        w = weights.T.astype(np.float64)
        added = None if bias is None else bias.astype(np.float64)
        if self._bias is not None:
            added = self._bias @ w + (0.0 if added is None else added)
        w = self._residual * self._gain[:, None] * w
        if self._centred:
            w = w - w.mean(axis=0)
        return w, added


def _block(b: BlockWeights, shape: Shape, functions: Functions, layer: int) -> Block:
    c, heads, rho = shape.config, shape.heads, functions.residual
    radius = functions.blocks[layer].activation.radius
    interleaved = c.rope is not None and c.rope.style == "interleaved"
    first = _Folded(shape, b.norm1, b.norm1_bias, rho)
    second = _Folded(shape, b.norm2, b.norm2_bias, rho)
    (wq, bq), (wk, bk), (wv, bv) = (
        first.matrix(w, bias) for w, bias in ((b.q, b.q_bias), (b.k, b.k_bias), (b.v, b.v_bias))
    )
    # The two parts come back doubled.
    half = 0.5 * functions.key_scale(c.head_dim)
    wqk = half * (heads.query_columns(wq, interleaved) + 1j * heads.key_columns(wk, interleaved))
    bqk = None
    if bq is not None and bk is not None:
        bqk = half * heads.query_columns(bq[None], interleaved)[0]
        bqk = bqk + 1j * half * heads.key_columns(bk[None], interleaved)[0]
    wv = 0.5 * heads.key_columns(wv)
    bv = None if bv is None else 0.5 * heads.key_columns(bv[None])[0]
    wu, bu = second.matrix(b.up, b.up_bias)
    if b.gate is not None:
        wg, bg = second.matrix(b.gate, b.gate_bias)
        wu = 0.5 * (wg / radius + 1j * wu)
        bu = None if bg is None or bu is None else 0.5 * (bg / radius + 1j * bu)
    else:
        wu, bu = wu / radius, None if bu is None else bu / radius
    return Block(
        _matrix(shape.qkv, wqk, bqk),
        _matrix(shape.qkv, wv, bv),
        _matrix(shape.out, heads.output_rows(b.o.T.astype(np.float64)) / rho, _over(b.o_bias, rho)),
        _matrix(shape.up, wu, bu),
        _matrix(shape.down, b.down.T.astype(np.float64) / rho, _over(b.down_bias, rho)),
    )


def _matrix(plan: Interleaved, weights: Vector, bias: Vector | None) -> Matrix:
    weights = padded(weights, plan.d_in, plan.d_out)
    added = None if bias is None else np.pad(bias, (0, plan.d_out - len(bias)))
    if plan.count * plan.n * weights.itemsize <= _KEPT_BYTES:
        return Matrix([constant(plan.plaintext(weights, q)) for q in range(plan.count)], added, weights)
    return Matrix([partial(plan.plaintext, weights, q) for q in range(plan.count)], added, weights)


def _over(bias: npt.NDArray[np.float32] | None, by: float) -> Array | None:
    return None if bias is None else bias.astype(np.float64) / by


def _nothing() -> Vector:
    raise AssertionError("a plaintext of a model without weights")
