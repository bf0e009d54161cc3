"""Attacks on the order of tokens, which the paper's row permutation hides in some of its messages.

Both take the multiset of tokens for granted: the permuted residuals of the first block are exact, and their
nearest embeddings name it. (The order itself is plain elsewhere: queries, keys and values come back in
order.)

- `brute-force`: tries orders and checks each exactly, by what the first block would leave behind. The
  number of orders defends against it.
- `lm-reordering`: a local language model (the served one) puts the tokens in the most likely order.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sottovoce.attacks.base import Control, Outcome, Setting
from sottovoce.attacks.candidates import Floats
from sottovoce.attacks.scx_matching import over_prompts, read_values
from sottovoce.attacks.scx_session import CuriousServer, Seen, recovered, shortened
from sottovoce.attacks.vocabulary import Vocabulary
from sottovoce.engines.scx import PROFILES, Arrays, ops
from sottovoce.models import Model

_TRIES = 24  # orders, as many as four tokens have
_SHORT = 4


class BruteForce:
    name, target, profiles, samples = "brute-force", "scx", ("paper", "hardened"), 100
    says = "orders of the known tokens, tried one after the other and checked exactly"

    def run(self, setting: Setting) -> Outcome:
        model = shortened(setting.model, 2)
        length = len(setting.prompts.tokens[0])
        details: dict[str, Any] = {"tries": _TRIES, "text": setting.prompts.source, **key_bits(model, length)}
        control = Control(f"prompts of {_SHORT} tokens", _tried(setting, model, _SHORT))
        if setting.profile == "hardened":
            details["why"] = "no row of a token reaches the server, in any order"
            return Outcome(0.0, (control,), len(setting.prompts.tokens), details)
        return Outcome(_tried(setting, model, length), (control,), len(setting.prompts.tokens), details)


def _tried(setting: Setting, model: Model, length: int) -> float:
    """Share of tokens at their place in the best of the orders that were tried."""
    rng = np.random.default_rng(0)

    def read(seen: Seen, prompt: Sequence[int]) -> list[int]:
        rows = seen.first("permuted residual", 0)
        known = list(rng.permutation(prompt))
        if length <= _SHORT:
            orders: Iterable[Any] = itertools.permutations(known)
        else:
            orders = (rng.permutation(known) for _ in range(_TRIES))
        return [int(t) for t in min(orders, key=lambda order: misfit(model, rows, list(order)))]

    short = [p[:length] for p in setting.prompts.tokens]
    with CuriousServer(model, "paper") as server:
        return float(np.mean([recovered(read(server.watch(p), p), p) for p in short]))


def misfit(model: Model, rows: Floats, order: Sequence[int]) -> float:
    """How far the residuals behind the first block's attention, in this order, are from the rows seen."""
    state = first_residuals(model, order)
    distances = np.linalg.norm(rows[None] - state[:, None], axis=-1)
    return float(distances.min(axis=1).sum())


def first_residuals(model: Model, tokens: Sequence[int]) -> Floats:
    """(T, width) behind the first block's attention."""
    c, layer = model.config, ops.layer_of(model.weights.blocks[0], Arrays(np))
    x = model.weights.embedding[np.asarray(tokens)]
    if model.weights.positions is not None:
        x = x + model.weights.positions[: len(tokens)]
    q, k, v = ops.split(ops.qkv(ops.norm(x, layer.norm1, layer.norm1_bias, c), layer), c)
    q, k = (ops.rotate(part, c, 0, Arrays(np)) for part in (q, k))
    return np.asarray(x + ops.linear(ops.attention(q, k, v), layer.o, layer.o_bias))


def key_bits(model: Model, tokens: int) -> dict[str, float]:
    """log2 of the number of keys, as the published argument counts them."""
    c, redundant = model.config, PROFILES["paper"].redundant(tokens)

    def bits(n: int) -> float:
        return math.lgamma(n + 1) / math.log(2)

    return {
        "bits_of_row_key": bits(tokens + redundant) - bits(redundant),
        "bits_of_orders": bits(tokens),
        "bits_of_head_key": 2 * c.kv_heads * bits(c.head_dim),
    }


class LmReordering:
    name, target, profiles, samples = "lm-reordering", "scx", ("paper", "hardened"), 100
    says = "the known tokens in the order that a local language model finds most likely"

    def run(self, setting: Setting) -> Outcome:
        details: dict[str, Any] = {"text": setting.prompts.source, "by_chance": 1 / setting.length}
        model = shortened(setting.model, 2)
        vocabulary = Vocabulary(model)
        with CuriousServer(model, "paper") as server:
            ordered, _ = over_prompts(
                setting, server, lambda seen, _: read_values(vocabulary, seen.first("values", 0))
            )
        control = Control("rows in order, as queries, keys and values travel", ordered)
        if setting.profile == "hardened":
            details["why"] = "no row of a token reaches the server, in any order"
            return Outcome(0.0, (control,), len(setting.prompts.tokens), details)
        rng = np.random.default_rng(0)
        rates = []
        for number, prompt in enumerate(setting.prompts.tokens):
            setting.progress(number, len(setting.prompts.tokens), "prompts")
            rates.append(recovered(likely_order(setting.model, rng.permutation(prompt)), prompt))
        return Outcome(float(np.mean(rates)), (control,), len(rates), details)


def likely_order(model: Model, tokens: npt.NDArray[np.int64]) -> list[int]:
    """Always the most likely of the tokens that are left, behind the model's public first token."""
    left, out = [int(t) for t in tokens], []
    cache = model.new_cache()
    last = list(model.card.plain("a").public) or [left[0]]
    while left:
        logits = model.weights.output[left] @ model.hidden(last, cache)[-1]
        best = int(logits.argmax())
        out.append(left.pop(best))
        last = out[-1:]
    return out
