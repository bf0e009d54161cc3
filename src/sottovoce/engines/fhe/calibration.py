"""Ranges and predictors of a model, from text that it writes itself.

Nothing but the weights is needed: sequences are sampled from the model behind its first token (position 0 is
public and left out). A hook of the reference collects mean squares, scores, queries and MLP inputs. Of long
sequences there are fewer, and softmax rows of some positions only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from sottovoce.engines.fhe.functions import (
    BlockFunctions,
    Degrees,
    Functions,
    Margins,
    Predictor,
    Spread,
    norm_gain,
    residual_scale,
    softmax_functions,
)
from sottovoce.models.layers import rotate as rotate_heads
from sottovoce.models.model import Model
from sottovoce.models.weights import Array as Array32
from sottovoce.packing.slots import polynomial as polynomials

Array = npt.NDArray[np.float64]
_SHORT = 64  # tokens of most sequences
_ROWS = 96  # softmax rows taken of a head and a sequence


@dataclass
class Row:
    """One softmax: query / √d_h rotated and as it was before, its position, its visible scores."""

    query: Array
    plain: Array
    position: int
    scores: Array


@dataclass
class Observed:
    """What a model showed. norms: mean squares by norm in order of execution; inputs: the largest |argument|
    of each activation; rows[layer][head]."""

    norms: list[list[float]]
    inputs: list[float]
    rows: list[list[list[Row]]] = field(default_factory=list)


def sample(model: Model, sequences: int, tokens: int, seed: int = 0) -> list[list[int]]:
    """Text that the model writes on its own, `tokens` long each, first token included."""
    rng, first, found = np.random.default_rng(seed), _first_token(model), []
    for _ in range(sequences):
        cache, text = model.new_cache(), [first]
        while len(text) < tokens:
            logits = model.forward(text[-1:], cache, last_only=True)[-1].astype(np.float64)
            p = np.exp(logits - logits.max())
            text.append(int(rng.choice(len(p), p=p / p.sum())))
        found.append(text)
    return found


def observe(model: Model, texts: Sequence[Sequence[int]]) -> Observed:
    """Run the reference over texts; position 0 is left out."""
    c = model.config
    seen = Observed([[] for _ in range(2 * c.layers + 1)], [0.0] * c.layers)
    seen.rows = [[[] for _ in range(c.heads)] for _ in range(c.layers)]
    queries: dict[int, tuple[Array32, Array32]] = {}

    def hook(name: str, layer: int, value: Array32) -> Array32:
        if name in ("norm1_in", "norm2_in", "norm_in"):
            x = value[1:].astype(np.float64)
            x = x - x.mean(axis=-1, keepdims=True) if c.norm == "layer" else x
            seen.norms[2 * layer + (name == "norm2_in")] += np.mean(x * x, axis=-1).tolist()
        elif name == ("gate" if c.gated else "up"):
            seen.inputs[layer] = max(seen.inputs[layer], float(np.abs(value[1:]).max(initial=0.0)))
        elif name == "q":
            q = value.reshape(len(value), c.heads, c.head_dim)
            queries[layer] = (q if c.rope is None else rotate_heads(q, c.rope, 0)), q
        elif name == "scores":
            _rows(seen.rows[layer], *queries[layer], value)
        return value

    for text in texts:
        model.hidden(list(text), hook=hook)
    return seen


def calibrate(
    model: Model,
    tokens: int,
    sequences: int = 24,
    margins: Margins = Margins(),  # noqa: B008  (frozen)
    degrees: Degrees = Degrees(),  # noqa: B008
    texts: Sequence[Sequence[int]] | None = None,
) -> Functions:
    """All polynomials of a model for contexts of up to `tokens`. A second for a model of 260,000 weights and
    64 tokens. texts: instead of `sequences` that the model writes, first token included."""
    c = model.config
    if texts is None:
        length = min(tokens, c.context_length)
        texts = sample(model, sequences, min(length, _SHORT))
        if length > _SHORT:
            texts += [_one(text) for text in sample(model, max(2, sequences // 6), length, seed=1)]
    seen = observe(model, texts)
    predictors = [_predictor(model, rows, 2.0**degrees.rounds) for rows in seen.rows]
    shifted = [
        _shifted(predictor, head, rows, tokens)
        for predictor, heads in zip(predictors, seen.rows, strict=True)
        for head, rows in enumerate(heads)
    ]
    groups = np.repeat(np.arange(len(shifted)), [len(rows) for rows in shifted])
    softmax = softmax_functions(np.concatenate(shifted), groups, margins, degrees)
    norms = [_norm(model, values, margins, degrees) for values in seen.norms]
    blocks = []
    for layer, predictor in enumerate(predictors):
        bound = margins.activation * seen.inputs[layer]
        make = polynomials.silu if c.activation == "silu" else polynomials.gelu
        activation = make(bound, degrees.activation)
        heads = slice(layer * c.heads, (layer + 1) * c.heads)
        spread = Spread(softmax.spread.offset[:, heads], softmax.spread.slope[:, heads])
        blocks.append(BlockFunctions(norms[2 * layer], norms[2 * layer + 1], activation, predictor, spread))
    return Functions(
        tuple(blocks),
        norms[-1],
        softmax.exponential,
        softmax.coarse,
        softmax.accurate,
        softmax.sums,
        degrees.squarings,
        residual_scale(norms, norm_gain(c)),
        degrees.polish,
    )


def _one(text: list[int]) -> list[int]:
    """Up to where another text begins: generation ends there."""
    again = [i for i, token in enumerate(text) if i and token == text[0]]
    return text[: max(again[0], 2)] if again else text


def _first_token(model: Model) -> int:
    card = model.card
    bos = None if card.tokenizer_or_none is None else card.tokenizer.bos_id
    return 0 if bos is None else bos


def _rows(rows: list[list[Row]], queries: Array32, plain: Array32, scores: Array32) -> None:
    heads, new, _ = scores.shape
    turned, before = (x.astype(np.float64) / np.sqrt(x.shape[-1]) for x in (queries, plain))
    taken = np.unique(np.linspace(1, max(new - 1, 1), _ROWS).astype(int))
    for head in range(heads):
        for position in taken[taken < new]:
            visible = scores[head, position, : position + 1].astype(np.float64)
            rows[head].append(Row(turned[position, head], before[position, head], int(position), visible))


def _norm(model: Model, values: list[float], margins: Margins, degrees: Degrees) -> polynomials.Chebyshev:
    low, high = min(values) / margins.norm_low, max(values) * margins.norm_high
    return polynomials.inverse_root(low, high, degrees.norm, model.config.eps)


def _features(rows: list[Row]) -> Array:
    """Regressors of a head's log-sums: the query, the query before its rotation, 1, log(length)."""
    log = np.log(np.array([row.position for row in rows]) + 1.0)[:, None]
    queries, plain = np.stack([row.query for row in rows]), np.stack([row.plain for row in rows])
    return np.concatenate([queries, plain, np.ones_like(log), log], axis=1)


def _predictor(model: Model, rows: list[list[Row]], heat: float) -> Predictor:
    """Of heat·log Σ exp(scores/heat): what the first round divides by, which varies less than the log-sum and
    is what its inverse needs near 1."""
    dim, found = model.config.head_dim, []
    for head in rows:
        features = _features(head)
        target = np.array([heat * _log_sum(row.scores / heat) for row in head])
        ridge = 1e-3 * np.sqrt(len(head)) * np.eye(features.shape[1])
        a = np.concatenate([features, ridge])
        found.append(np.linalg.lstsq(a, np.concatenate([target, np.zeros(len(ridge))]), rcond=None)[0])
    w = np.stack(found)
    return Predictor(w[:, :dim], w[:, dim : 2 * dim], w[:, 2 * dim], w[:, 2 * dim + 1])


def _log_sum(scores: Array) -> float:
    top = float(scores.max())
    return top + float(np.log(np.exp(scores - top).sum()))


def _shifted(p: Predictor, head: int, rows: list[Row], tokens: int) -> Array:
    """Scores less their predicted log-sum, (rows, tokens), nan behind the last of a row."""
    w = np.concatenate([p.direct[head], p.rotated[head], [p.offset[head], p.slope[head]]])
    out = np.full((len(rows), tokens), np.nan)
    for line, row, predicted in zip(out, rows, _features(rows) @ w, strict=True):
        line[: len(row.scores)] = row.scores - predicted
    return out
