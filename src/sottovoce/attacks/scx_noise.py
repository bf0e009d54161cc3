"""What Laplace noise hides, and what it does not.

- `two-layer-fitting`: a two-layer network is fitted to undo the encoding of the first message, on text of the
  attacker's own choice with noise of its own, and then reads the user's rows.
- `dp-accounting`: the published ε is one of a coordinate. Rows have hundreds of them, each with a noise of
  its own around the same token: the ε of the whole row is what counts, and the likeliest token of a row under
  that noise (its nearest neighbour in L1) is the token.

Rows come permuted and with redundant ones: what counts is which tokens are found, not where.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sottovoce.attacks.base import Control, Outcome, Setting
from sottovoce.attacks.candidates import Floats
from sottovoce.attacks.scx_session import (
    WEAK_NOISE,
    CuriousServer,
    Seen,
    recovered_unordered,
    shortened,
)
from sottovoce.attacks.vocabulary import Vocabulary, nearest, nearest_l1, unit_rows
from sottovoce.engines.scx import PROFILES
from sottovoce.engines.scx.masked import GRID_BITS, KL_PER_PRODUCT, MASK_BITS
from sottovoce.models import Model

Reader = Callable[[Floats], Sequence[int]]
_TRAINING = 4096  # tokens
_HIDDEN = 1024
_RIDGE = 1e-2


def rates(setting: Setting, model: Model, profile: str, read: Reader, weak: bool = False) -> float:
    """Share of the tokens that `read` finds in the first message of a prompt."""
    found = []
    with CuriousServer(model, profile, weak) as server:
        for number, prompt in enumerate(setting.prompts.tokens):
            setting.progress(number, len(setting.prompts.tokens), "prompts")
            found.append(recovered_unordered(read(first_message(server.watch(prompt), profile)), prompt))
    return float(np.mean(found))


def first_message(seen: Seen, profile: str) -> Floats:
    return seen.first("noised input" if profile == "paper" else "qkv", 0)


def noise_scale(vocabulary: Vocabulary) -> float:
    """Of the published profile on this model."""
    return PROFILES["paper"].noise * float(np.sqrt(np.mean(vocabulary.inputs.astype(np.float64) ** 2)))


class TwoLayerFitting:
    name, target, profiles, samples = "two-layer-fitting", "scx", ("paper", "hardened"), 100
    says = "a two-layer network fitted to take the noise away"

    def run(self, setting: Setting) -> Outcome:
        model = shortened(setting.model, 2)
        vocabulary = Vocabulary(model)
        details = {"hidden": _HIDDEN, "training_tokens": _TRAINING, "text": setting.prompts.source}
        reader = fitted(vocabulary, setting.profile, 1.0)
        rate = rates(setting, model, setting.profile, reader)
        weak = rates(
            setting.for_control(),
            model,
            setting.profile,
            fitted(vocabulary, setting.profile, WEAK_NOISE),
            weak=True,
        )
        name = "a tenth of the noise" if setting.profile == "paper" else "masks a tenth of what they hide"
        return Outcome(rate, (Control(name, weak),), len(setting.prompts.tokens), details)


def fitted(vocabulary: Vocabulary, profile: str, noise: float) -> Reader:
    """A reader with random first-layer weights and a ridge regression behind them."""
    rng = np.random.default_rng(0)
    table = vocabulary.directions
    chosen = rng.choice(len(table), min(_TRAINING, len(table)), replace=False)
    truth = vocabulary.inputs[chosen].astype(np.float64)
    if profile == "paper":
        rows = truth + rng.laplace(0.0, noise * noise_scale(vocabulary), truth.shape)
    else:
        spread = 2.0 ** (MASK_BITS - GRID_BITS) if noise == 1.0 else 2.0**-8
        rows = unit_rows(truth) + rng.normal(0.0, spread, truth.shape)
    first = rng.standard_normal((rows.shape[1], _HIDDEN)) / np.sqrt(rows.shape[1])

    def features(x: Floats) -> Floats:
        x = unit_rows(x) * np.sqrt(x.shape[1])
        return np.concatenate([np.maximum(x @ first, 0.0), x], axis=1)

    a = features(rows)
    gram = a.T @ a + _RIDGE * len(a) * np.eye(a.shape[1])
    second = np.linalg.solve(gram, a.T @ unit_rows(truth))

    def read(x: Floats) -> list[int]:
        return [int(t) for t in nearest(unit_rows(features(x.astype(np.float64)) @ second), table)[:, 0]]

    return read


class DpAccounting:
    name, target, profiles, samples = "dp-accounting", "scx", ("paper", "hardened"), 100
    says = "the whole row's ε beside the coordinate's, and the likeliest token of each noised row"

    def run(self, setting: Setting) -> Outcome:
        model = shortened(setting.model, 2)
        vocabulary = Vocabulary(model)
        if setting.profile == "paper":
            table = vocabulary.inputs

            def read(rows: Floats) -> list[int]:
                return [int(t) for t in nearest_l1(rows, table)]

            rate = rates(setting, model, "paper", read)
            control = Control(
                "a tenth of the noise", rates(setting.for_control(), model, "paper", read, weak=True)
            )
            details = accounting(vocabulary, setting.length)
        else:

            def read(rows: Floats) -> list[int]:
                return [int(t) for t in nearest(unit_rows(rows), vocabulary.directions)[:, 0]]

            rate = rates(setting, model, "hardened", read)
            control = Control(
                "masks a tenth of what they hide",
                rates(setting.for_control(), model, "hardened", read, weak=True),
            )
            details = masked_accounting(setting.model)
        details["text"] = setting.prompts.source
        return Outcome(rate, (control,), len(setting.prompts.tokens), details)


def accounting(vocabulary: Vocabulary, tokens: int) -> dict[str, Any]:
    """ε of Laplace noise on the first message: largest difference over scale, for one coordinate and for rows
    (over pairs of 256 tokens), and for a prompt of that many tokens."""
    scale, h = noise_scale(vocabulary), vocabulary.inputs.astype(np.float64)
    one = float((h.max(axis=0) - h.min(axis=0)).max()) / scale
    some = h[:: max(1, len(h) // 256)]
    pairs = np.abs(some[:, None] - some[None]).sum(axis=-1) / scale
    return {
        "epsilon_of_a_coordinate": one,
        "epsilon_of_a_row_largest": float(pairs.max()),
        "epsilon_of_a_row_median": float(np.median(pairs[np.triu_indices(len(some), 1)])),
        "epsilon_of_the_prompt": tokens * float(pairs.max()),
        "noise_scale": scale,
    }


def masked_accounting(model: Model) -> dict[str, Any]:
    """Kullback-Leibler divergence, in nats, and total variation between what any two tokens look like."""
    products = 4 * model.config.layers
    divergence = products * KL_PER_PRODUCT
    return {
        "products_of_a_token": products,
        "divergence_of_a_token": divergence,
        "total_variation_of_a_token": float(np.sqrt(divergence / 2)),
    }
