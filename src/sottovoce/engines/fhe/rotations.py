"""Orthogonal rotations of a model: the same logits, smaller extremes.

The residual stream is turned by one orthogonal matrix, the values of every key-value head by another; both
are folded into the matrices before and behind, gains of norms too. RMSNorm does not see a rotation. Inputs
of SiLU and of softmax stay what they were: only what is written to the stream and read from the cache
changes. What the first token does to a model is kept out by making that token public (position 0).

Source: QuaRot (Ashkboos et al., 2024), without its quantisation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from sottovoce.errors import UnsupportedModelError
from sottovoce.models.model import Model, build
from sottovoce.models.weights import Array as Array32
from sottovoce.models.weights import BlockWeights, Weights

Array = npt.NDArray[np.float64]


def rotated(model: Model, seed: int = 0) -> Model:
    """The model with its stream and values rotated. UnsupportedModelError unless its norms are RMSNorm."""
    config, w = model.config, model.weights
    if config.norm != "rms" or config.o_bias or (config.mlp_bias and not config.gated):
        raise UnsupportedModelError("rotations are folded into models with RMSNorm and without output biases")
    rng = np.random.default_rng(seed)
    stream = orthogonal(config.width, rng)
    values = [
        [orthogonal(config.head_dim, rng) for _ in range(config.kv_heads)] for _ in range(config.layers)
    ]
    blocks = tuple(_block(b, stream, v, config.heads) for b, v in zip(w.blocks, values, strict=True))
    weights = Weights(
        embedding=_single(w.embedding @ stream),
        positions=None,
        blocks=blocks,
        norm=np.ones_like(w.norm),
        head=_single((w.output * w.norm) @ stream),
    )
    card = model.card
    return build(card.name, replace(config, tied_head=False), weights, card.tokenizer_or_none, card.template)


def orthogonal(size: int, rng: np.random.Generator) -> Array:
    """Uniform among the orthogonal matrices (size, size)."""
    q, r = np.linalg.qr(rng.standard_normal((size, size)))
    return np.asarray(q * np.sign(np.diag(r)))


def _block(b: BlockWeights, stream: Array, values: list[Array], heads: int) -> BlockWeights:
    reads1 = b.norm1.astype(np.float64)[:, None] * stream
    reads2 = b.norm2.astype(np.float64)[:, None] * stream
    turn = _diagonal(values)
    copies = heads // len(values)
    back = _diagonal([v for v in values for _ in range(copies)])
    return replace(
        b,
        norm1=np.ones_like(b.norm1),
        q=_single(b.q @ reads1),
        k=_single(b.k @ reads1),
        v=_single(turn.T @ (b.v @ reads1)),
        v_bias=None if b.v_bias is None else _single(turn.T @ b.v_bias),
        o=_single(stream.T @ (b.o @ back)),
        norm2=np.ones_like(b.norm2),
        gate=None if b.gate is None else _single(b.gate @ reads2),
        up=_single(b.up @ reads2),
        down=_single(stream.T @ b.down),
    )


def _diagonal(parts: list[Array]) -> Array:
    size = len(parts[0])
    out = np.zeros((size * len(parts), size * len(parts)))
    for i, part in enumerate(parts):
        out[i * size : (i + 1) * size, i * size : (i + 1) * size] = part
    return out


def _single(x: Array) -> Array32:
    return np.ascontiguousarray(x, np.float32)


@dataclass(frozen=True)
class Extremes:
    """The largest |x| of the residual stream, of values, of activations' inputs and of scores, by layer."""

    stream: list[float]
    values: list[float]
    activations: list[float]
    scores: list[float]


def extremes(model: Model, texts: list[list[int]], first: int) -> Extremes:
    """Over positions from `first` on: 0 includes the first token, 1 leaves it out as public."""
    layers = model.config.layers
    found = Extremes(*([0.0] * layers for _ in range(4)))
    rows = {"norm1_in": found.stream, "v": found.values, "scores": found.scores}
    rows["gate" if model.config.gated else "up"] = found.activations

    def hook(name: str, layer: int, value: Array32) -> Array32:
        if name in rows:
            new = value.shape[1] if name == "scores" else len(value)
            seen = np.abs(value[:, first:] if name == "scores" else value[first:])
            if name == "scores":  # entries of later tokens are no scores
                seen = seen * np.tri(new, value.shape[2])[first:]
            rows[name][layer] = max(rows[name][layer], float(seen.max(initial=0.0)))
        return value

    for text in texts:
        model.hidden(text, hook=hook)
    return found
