"""A model's float32 weights in one canonical order, whatever file they came from.

Matrices are (outputs, inputs), so a layer is x @ W.T + b. Query and key rows are in the rotary order that
`Config.rope.style` names. Gains and biases are kept as they are: nothing is folded here.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sottovoce.errors import CorruptFileError
from sottovoce.models.config import Config, Rope

Array = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class BlockWeights:
    """One decoder block. `None` where the description has no such tensor."""

    norm1: Array
    norm1_bias: Array | None = None
    q: Array
    q_bias: Array | None = None
    k: Array
    k_bias: Array | None = None
    v: Array
    v_bias: Array | None = None
    o: Array
    o_bias: Array | None = None
    norm2: Array
    norm2_bias: Array | None = None
    gate: Array | None = None
    gate_bias: Array | None = None
    up: Array
    up_bias: Array | None = None
    down: Array
    down_bias: Array | None = None


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Embedding, blocks, final norm, head (None if it is the embedding)."""

    embedding: Array
    positions: Array | None = None
    blocks: tuple[BlockWeights, ...]
    norm: Array
    norm_bias: Array | None = None
    head: Array | None = None

    @property
    def output(self) -> Array:
        """The matrix that makes logits: (vocab_size, width)."""
        return self.embedding if self.head is None else self.head

    def named(self) -> Iterator[tuple[str, Array]]:
        """Every tensor that exists, with its name, in canonical order."""
        for name in ("embedding", "positions"):
            if getattr(self, name) is not None:
                yield name, getattr(self, name)
        for layer, block in enumerate(self.blocks):
            for entry in dataclasses.fields(BlockWeights):
                array = getattr(block, entry.name)
                if array is not None:
                    yield f"blocks.{layer}.{entry.name}", array
        for name in ("norm", "norm_bias", "head"):
            if getattr(self, name) is not None:
                yield name, getattr(self, name)


def expected_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a model of this description has."""
    c = config
    block: dict[str, tuple[int, ...]] = {
        "norm1": (c.width,),
        "q": (c.q_width, c.width),
        "k": (c.kv_width, c.width),
        "v": (c.kv_width, c.width),
        "o": (c.width, c.q_width),
        "norm2": (c.width,),
        "up": (c.ffn_width, c.width),
        "down": (c.width, c.ffn_width),
    }
    if c.norm == "layer":
        block |= {"norm1_bias": (c.width,), "norm2_bias": (c.width,)}
    if c.qkv_bias:
        block |= {"q_bias": (c.q_width,), "k_bias": (c.kv_width,), "v_bias": (c.kv_width,)}
    if c.o_bias:
        block["o_bias"] = (c.width,)
    if c.gated:
        block["gate"] = (c.ffn_width, c.width)
    if c.mlp_bias:
        block |= {"up_bias": (c.ffn_width,), "down_bias": (c.width,)}
        if c.gated:
            block["gate_bias"] = (c.ffn_width,)
    shapes: dict[str, tuple[int, ...]] = {"embedding": (c.vocab_size, c.width), "norm": (c.width,)}
    if c.rope is None:
        shapes["positions"] = (c.context_length, c.width)
    if c.norm == "layer":
        shapes["norm_bias"] = (c.width,)
    if not c.tied_head:
        shapes["head"] = (c.vocab_size, c.width)
    for layer in range(c.layers):
        shapes |= {f"blocks.{layer}.{name}": shape for name, shape in block.items()}
    return shapes


def check_weights(config: Config, weights: Weights) -> None:
    """Refuse weights that do not match the description: wrong shape, missing, unexpected, NaN or infinite."""
    expected = expected_shapes(config)
    actual = dict(weights.named())
    if odd := sorted(set(expected) ^ set(actual)):
        raise CorruptFileError(f"weights and description disagree about the tensors {odd[:6]}")
    for name, array in actual.items():
        if array.shape != expected[name]:
            raise CorruptFileError(
                f"tensor {name} has shape {array.shape}, the description says {expected[name]}"
            )
        # The sum of a tensor is finite exactly when all entries are (float64: no overflow); cheaper than
        # isfinite.
        if not np.isfinite(array.sum(dtype=np.float64)):
            raise CorruptFileError(f"tensor {name} holds values that are not finite")


def commitment(config: Config, weights: Weights) -> str:
    """SHA-256 (hex) over the description and every tensor.

    The identity of a model, independent of its file.
    """
    digest = hashlib.sha256(b"sottovoce model 1\n")
    digest.update(json.dumps(config.to_json(), sort_keys=True).encode())
    for name, array in weights.named():
        digest.update(f"\n{name} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array, dtype="<f4").data)
    return digest.hexdigest()


def rotate_half_order(rows: Array, heads: int) -> Array:
    """Reorder rows (heads·head_dim, ...) from rotary pairs (2j, 2j + 1) to pairs (j, j + head_dim/2)."""
    head_dim = rows.shape[0] // heads
    pairs = rows.reshape(heads, head_dim // 2, 2, *rows.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows.shape)


def to_rotate_half(config: Config, weights: Weights) -> tuple[Config, Weights]:
    """The same function with rotary style `half`.

    Scores do not change when q and k rows are permuted alike.
    """
    if config.rope is None or config.rope.style == "half":
        return config, weights

    def reorder(block: BlockWeights) -> BlockWeights:
        def of(rows: Array | None, heads: int) -> Array | None:
            return None if rows is None else rotate_half_order(rows, heads)

        return dataclasses.replace(
            block,
            q=rotate_half_order(block.q, config.heads),
            k=rotate_half_order(block.k, config.kv_heads),
            q_bias=of(block.q_bias, config.heads),
            k_bias=of(block.k_bias, config.kv_heads),
        )

    half = dataclasses.replace(config, rope=Rope(theta=config.rope.theta, style="half"))
    return half, dataclasses.replace(weights, blocks=tuple(reorder(block) for block in weights.blocks))
