"""The fixed-point form of a model: what the server of a private engine holds.

Scales. Activations that enter a matrix are at 2^-f (f = 12), matrices at 2^-w (w = `weight_bits` = 11,
int16), so every product, every bias and the residual stream are at 2^-(f+w) = 2^-23. The embedding is at
2^-w as well: a one-hot vector scaled by 2^f selects a row at 2^-23.

Folded away before rounding:
- norm gains into the matrix that follows; LayerNorm's bias into that matrix's bias;
- log2(e)/sqrt(head_dim), the softmax's scale in base 2, into the query rows, except for a power of two: the
  query rows are multiplied by log2(e)/sqrt(head_dim)·2^`score_shift`, a number in [1, 2) when it fits,
  because a smaller factor would throw away bits of the int16 weights. With q and k at 2^-f a raw product
  q·k is therefore the base-2 score at scale 2^-(2f + score_shift), and softmax is 2^(score - c) normalised;
- powers of two from o to the value rows and from down to the up rows, per layer, where that balances the
  effect of rounding (keys and values of a public prefix follow: `public_keys_values`);
- rotary order: query and key rows are permuted so that the rotation is always rotate-half.

Row order of the fused matrices:
- `qkv`: q rows (query head h, dimension j) at h·head_dim + j, then k rows (key-value head, j), then v rows.
  Query head h uses key-value head h // (heads // kv_heads);
- `gate_up`: all gate rows, then all up rows (gated MLPs); just the up rows for a plain GELU MLP.

Public: everything in `Config`, `FixedNorm`, `weight_bits`, `score_shift`, `score_range_bits`, `rope_cos`,
`rope_sin`. Private to the server: matrices, biases, `softmax_shift`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from sottovoce.models.config import Config, NormKind

Int16 = npt.NDArray[np.int16]
Int64 = npt.NDArray[np.int64]

ACTIVATION_BITS = 12  # f: activations and the factors of products
SCORE_BITS = 10  # softmax shifts, and the scores they are subtracted from, are at 2^-SCORE_BITS
ROPE_BITS = 11  # rotary tables


@dataclass(frozen=True)
class FixedNorm:
    """Public constants of one norm.

    `low` and `high` bound the mean square (RMSNorm) or variance (LayerNorm) of its input, already widened.
    Squares are taken of a copy of the input at 2^-square_bits, chosen so that
    width · high · 2^(2·square_bits) < 2^42: the sum is not negative, so half the field is allowed.
    """

    kind: NormKind
    eps: float
    low: float
    high: float
    square_bits: int

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "eps": self.eps,
            "low": self.low,
            "high": self.high,
            "square_bits": self.square_bits,
        }


@dataclass(frozen=True)
class FixedBlock:
    """One decoder block. Matrices are (outputs, inputs) int16 at 2^-w, biases (outputs,) int64 at 2^-(f+w)
    or None."""

    norm1: FixedNorm
    qkv: Int16  # (heads·head_dim + 2·kv_heads·head_dim, width)
    qkv_bias: Int64 | None
    o: Int16  # (width, heads·head_dim)
    o_bias: Int64 | None
    norm2: FixedNorm
    gate_up: Int16  # (2·ffn_width, width) if gated, else (ffn_width, width)
    gate_up_bias: Int64 | None
    down: Int16  # (width, ffn_width)
    down_bias: Int64 | None
    softmax_shift: (
        Int64  # (heads,) base-2 units at 2^-SCORE_BITS: y = softmax_shift - score is what 2^-y is taken of
    )


@dataclass(frozen=True)
class FixedModel:
    """A whole model in fixed point, and the float reference's digest that it was made from."""

    config: Config
    weight_bits: int  # w
    score_shift: int  # raw q·k is at 2^-(2f + score_shift) in base-2 units
    score_range_bits: int  # y = softmax_shift - score lies in [-64, 2^score_range_bits - 64)
    embedding: Int16  # (vocab_size, width) at 2^-w
    positions: Int64 | None  # (context_length, width) at 2^-(f+w), learned positions only
    blocks: tuple[FixedBlock, ...]
    final_norm: FixedNorm
    head: Int16  # (vocab_size, width) at 2^-w, final gain folded in
    head_bias: Int64 | None  # (vocab_size,) at 2^-(f+w), from a LayerNorm bias
    rope_cos: Int64 | None  # (context_length, head_dim // 2) at 2^-ROPE_BITS; None for learned positions
    rope_sin: Int64 | None
    digest: str = field(default="")  # commitment to the float weights (hex SHA-256)

    @property
    def activation_bits(self) -> int:
        return ACTIVATION_BITS

    @property
    def residual_bits(self) -> int:
        """Fractional bits of the residual stream and of every matrix product: f + w."""
        return ACTIVATION_BITS + self.weight_bits

    def norms(self) -> Sequence[FixedNorm]:
        """All norms in the order of execution: norm1, norm2 of every block, then the final one."""
        return [norm for block in self.blocks for norm in (block.norm1, block.norm2)] + [self.final_norm]

    def public_constants(self) -> dict[str, Any]:
        """What the client needs to know beside `Config` to run its half: JSON values, nothing about weights.

        The norm ranges come from calibration on shipped text, not from anything private.
        """
        return {
            "weight_bits": self.weight_bits,
            "score_shift": self.score_shift,
            "score_range_bits": self.score_range_bits,
            "norms": [norm.to_json() for norm in self.norms()],
        }
