"""What no permutation, rotation or other orthogonal encoding can hide: lengths and inner products.

`gram-matrix`: for attention the server of scx has Q, K and V with permuted features. Lengths of a token's
rows and its own score are what they were, and in the first block they are functions of the token.

Behind `hardened` stands the question how many early blocks have to stay with the user (l_s), were the later
ones encoded by fresh dense orthogonal matrices. The attack answers it: it is run on that encoding at growing
depth, down to the last block, with the prefix known, and `blocks_to_keep` takes the first depth from which on
it reads next to nothing. There is none; so all attention stays with the user.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from sottovoce.attacks.base import Control, Outcome, Setting
from sottovoce.attacks.candidates import Floats, Prefix
from sottovoce.attacks.scx_matching import masked_rates, over_prompts, values_under_masks
from sottovoce.attacks.scx_session import CuriousServer, Seen, recovered, shortened
from sottovoce.attacks.vocabulary import Vocabulary, gram_features, nearest, unit_rows

_DEPTHS = (0, 1, 2, 4, 8, 16)
_CANDIDATES = 64
_KNOWN, _READ = 4, 4  # tokens of each prompt that are known, and read, at a depth
_SAFE = 0.05  # what may be read where attention is at the server


def read_gram(table: Floats, features: Floats) -> list[int]:
    """The tokens whose invariants are nearest, every invariant in units of its spread over the vocabulary."""
    spread = table.std(axis=0) + 1e-30
    return [int(t) for t in nearest(features / spread, table / spread)[:, 0]]


class GramMatrix:
    name, target, profiles, samples = "gram-matrix", "scx", ("paper", "hardened"), 100
    says = "lengths and inner products of queries, keys and values, which no orthogonal encoding changes"

    def run(self, setting: Setting) -> Outcome:
        model = shortened(setting.model, 2)
        vocabulary = Vocabulary(model)
        details = {"text": setting.prompts.source}
        if setting.profile == "paper":

            def read(seen: Seen, _: Sequence[int]) -> list[int]:
                q, k, v = (seen.first(name, 0) for name in ("queries", "keys", "values"))
                if model.weights.positions is None:
                    return read_gram(vocabulary.invariants, gram_features(q, k, v))
                rows = gram_features(q, k, v)
                return [read_gram(vocabulary.at(i).invariants, rows[i : i + 1])[0] for i in range(len(rows))]

            with CuriousServer(model, "paper") as server:
                rate, rouge = over_prompts(setting, server, read)
            control = Control("dense orthogonal matrices instead of permutations", read_mixed(setting, 0))
            return Outcome(rate, (control,), len(setting.prompts.tokens), {"rouge_l": rouge, **details})

        table = invariant_lengths(values_under_masks(model, 0, vocabulary.inputs))

        def read_masked(seen: Seen, _: Sequence[int]) -> list[int]:
            return read_gram(table, invariant_lengths(values_under_masks(model, 0, seen.first("qkv", 0))))

        rate, rouge, weak = masked_rates(setting, model, read_masked)
        layers = setting.model.config.layers
        depths = {d: read_mixed(setting, d) for d in (*(d for d in _DEPTHS if d < layers - 1), layers - 1)}
        # Weak masks leave few of the many digits that lengths need to tell tokens apart.
        controls = tuple(
            Control(f"attention at the server from block {d} on", rate) for d, rate in depths.items()
        )
        shown = {"rouge_l": rouge, "weak_masks": weak[0].success_rate, "candidates_at_depth": _CANDIDATES}
        shown |= {"blocks_to_keep": blocks_to_keep(depths, layers), "of_blocks": layers}
        return Outcome(rate, controls, len(setting.prompts.tokens), {**shown, **details})


def blocks_to_keep(rates: Mapping[int, float], layers: int) -> int:
    """l_s: how many early blocks the user has to keep, by what the attack reads at each depth."""
    read = [depth for depth, rate in rates.items() if rate > _SAFE]
    deeper = [depth for depth in rates if depth > max(read, default=-1)]
    return min(deeper, default=layers)


def invariant_lengths(values: Floats) -> Floats:
    """(T, kv_heads, d) -> (T, kv_heads), as shares of a row's length."""
    return unit_rows(np.linalg.norm(values, axis=-1))


def read_mixed(setting: Setting, depth: int) -> float:
    """Share of tokens read from Q, K, V of a block under fresh orthogonal matrices, one for each head.

    The attacker knows the prefix and chooses among the token and others. What it uses are lengths and the
    scores with all tokens before, in float32.
    """
    model = shortened(setting.model, depth + 1)
    rng = np.random.default_rng(depth)  # stands for the user's keys, which do not matter
    rates = []
    prompts = setting.for_control().prompts.tokens
    for number, prompt in enumerate(prompts):
        setting.progress(number, len(prompts), f"prompts at depth {depth}")
        known, found = Prefix(model, depth + 1, prompt[:_KNOWN]), []
        truth = prompt[_KNOWN : _KNOWN + _READ]
        for token in truth:
            others = rng.choice(model.config.vocab_size, _CANDIDATES - 1, replace=False)
            few = rng.permutation(np.append(others[others != token], token))
            states = known.states(few, whole=False)[-1]
            at = int(np.flatnonzero(few == token)[0])
            q, k, v = (x[at : at + 1] for x in (states.q, states.k, states.v))
            seen = _invariants(*_mixed(rng, q, k, v, known.k[-1]))
            expected = _invariants(states.q, states.k, states.v, known.k[-1])
            spread = expected.std(axis=0) + 1e-30
            found.append(int(few[np.linalg.norm((expected - seen) / spread, axis=1).argmin()]))
            known.append(token)
        rates.append(recovered(found, truth))
    return float(np.mean(rates))


def _mixed(
    rng: np.random.Generator, q: Floats, k: Floats, v: Floats, before: Floats
) -> tuple[Floats, Floats, Floats, Floats]:
    """Fresh orthogonal matrices for keys (and their queries) and for values, of every head."""
    kv_heads, d = k.shape[1:]
    turns = np.linalg.qr(rng.standard_normal((2, kv_heads, d, d)))[0].astype(np.float32)
    shared = np.repeat(turns[0], q.shape[1] // kv_heads, axis=0)
    return (
        np.einsum("thd,hde->the", q, shared),
        np.einsum("thd,hde->the", k, turns[0]),
        np.einsum("thd,hde->the", v, turns[1]),
        np.einsum("thd,hde->the", before, turns[0]),
    )


def _invariants(q: Floats, k: Floats, v: Floats, before: Floats) -> Floats:
    """Lengths, own scores, and scores with the keys before: (T, ·)."""
    scores = np.einsum("thd,nhd->thn", q, np.repeat(before, q.shape[1] // k.shape[1], axis=1))
    return np.concatenate([gram_features(q, k, v), scores.reshape(len(q), -1)], axis=1)
