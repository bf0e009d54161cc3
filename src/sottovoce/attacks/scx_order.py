"""Attacks on the order of tokens, which the paper's row permutation hides in some of its messages.

Under `paper` both take the multiset of tokens for granted: the permuted residuals of the first block are
exact, and their nearest embeddings name it. (The order itself is plain elsewhere: queries, keys and values
come back in order.) Under masks they start from the tokens that the masked rows look most like.

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
from sottovoce.attacks.candidates import Floats, Sequences
from sottovoce.attacks.scx_matching import over_prompts, read_values
from sottovoce.attacks.scx_session import CuriousServer, Seen, recovered, rouge_l, shortened
from sottovoce.attacks.vocabulary import Vocabulary, nearest, unit_rows
from sottovoce.engines.scx import PROFILES, Arrays, ops
from sottovoce.models import Model

_TRIES = 24  # orders, as many as four tokens have
_SHORT = 4


class BruteForce:
    name, target, profiles, samples = "brute-force", "scx", ("paper", "hardened"), 100
    says = "orders of the known tokens, tried one after the other and checked exactly"

    def run(self, setting: Setting) -> Outcome:
        model, profile = shortened(setting.model, 2), setting.profile
        prompts = setting.prompts.tokens
        length = len(prompts[0])
        details: dict[str, Any] = {"tries": _TRIES, "text": setting.prompts.source, **key_bits(model, length)}
        short = [prompt[:_SHORT] for prompt in prompts]
        weak = profile == "hardened"
        name = f"prompts of {_SHORT} tokens" + (", masks a tenth of what they hide" if weak else "")
        control = Control(name, _tried(model, profile, short, weak))
        return Outcome(_tried(model, profile, prompts), (control,), len(prompts), details)


def _tried(model: Model, profile: str, prompts: Sequence[Sequence[int]], weak: bool = False) -> float:
    """Share of tokens at their place in the best of the orders that were tried."""
    rng = np.random.default_rng(0)
    vocabulary = Vocabulary(model)

    def read(seen: Seen, prompt: Sequence[int]) -> list[int]:
        known = list(rng.permutation(known_tokens(vocabulary, profile, seen, prompt)))
        if len(prompt) <= _SHORT:
            orders: Iterable[Any] = itertools.permutations(known)
        else:
            orders = (rng.permutation(known) for _ in range(_TRIES))
        rows = left_behind(profile, seen)
        return [int(t) for t in min(orders, key=lambda o: misfit(rows, expected(model, profile, list(o))))]

    with CuriousServer(model, profile, weak) as server:
        return float(np.mean([recovered(read(server.watch(p), p), p) for p in prompts]))


def known_tokens(
    vocabulary: Vocabulary, profile: str, seen: Seen, prompt: Sequence[int]
) -> npt.NDArray[np.int64]:
    """The tokens in some order: under `paper` the prompt's own, which the attacks take for granted; under
    masks what the first block's inputs look most like."""
    if profile == "paper":
        return np.array(prompt, np.int64)
    return nearest(unit_rows(seen.first("qkv", 0)), vocabulary.directions)[:, 0]


def left_behind(profile: str, seen: Seen) -> Floats:
    """What the server sees behind the first block's attention: residuals, or their norms under masks."""
    return seen.first("permuted residual", 0) if profile == "paper" else unit_rows(seen.first("mlp_in", 0))


def expected(model: Model, profile: str, order: Sequence[int]) -> Floats:
    """The same for tokens in an order, (T, width)."""
    x, block = first_residuals(model, order), model.weights.blocks[0]
    return x if profile == "paper" else unit_rows(ops.norm(x, block.norm2, block.norm2_bias, model.config))


def misfit(rows: Floats, state: Floats) -> float:
    """How far the rows that are expected are from those seen, each from the nearest."""
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
        model, profile = shortened(setting.model, 2), setting.profile
        vocabulary = Vocabulary(model)

        def in_order(seen: Seen, prompt: Sequence[int]) -> Sequence[int]:
            if profile == "paper":
                return read_values(vocabulary, seen.first("values", 0))
            return [int(t) for t in known_tokens(vocabulary, profile, seen, prompt)]

        rng, prompts = np.random.default_rng(0), setting.prompts.tokens
        with CuriousServer(model, profile) as server:
            known = [rng.permutation(known_tokens(vocabulary, profile, server.watch(p), p)) for p in prompts]
        found = list(zip(likely_orders(setting.model, np.stack(known)).tolist(), prompts, strict=True))
        rate = float(np.mean([recovered(order, prompt) for order, prompt in found]))
        details["rouge_l"] = float(np.mean([rouge_l(order, prompt) for order, prompt in found]))
        with CuriousServer(model, profile, weak=profile == "hardened") as server:
            ordered, _ = over_prompts(setting.for_control(), server, in_order)
        name = "rows in order, as queries, keys and values travel"
        name = name if profile == "paper" else "rows in order, masks a tenth of what they hide"
        return Outcome(rate, (Control(name, ordered),), len(setting.prompts.tokens), details)


def likely_orders(model: Model, tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Tokens (P, T) of P prompts in another order: always the most likely of those that are left, behind the
    model's public first token."""
    count, length = tokens.shape
    left, out = np.ones((count, length), bool), np.empty((count, length), np.int64)
    sequences = Sequences(model, count)
    for token in list(model.card.plain("a").public) or [int(tokens[0, 0])]:
        hidden = sequences.append(np.full(count, token))
    for place in range(length):
        logits = np.einsum("ptd,pd->pt", model.weights.output[tokens], hidden)
        best = np.where(left, logits, -np.inf).argmax(axis=1)
        left[np.arange(count), best] = False
        out[:, place] = tokens[np.arange(count), best]
        if place + 1 < length:
            hidden = sequences.append(out[:, place])
    return out
