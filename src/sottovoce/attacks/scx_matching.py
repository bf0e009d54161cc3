"""Reading tokens one by one from what the server of scx computes with.

- `vocabulary-matching`: queries, keys and values of the first block are permuted inside a head and carry no
  noise. Each is a function of one token (and its position, which is known), so the sorted features are
  compared with those of the whole vocabulary. The rate is of the values; details have the others.
- `greedy-matching`: behind the first block's attention un-noised activations reach the server for every
  generated token. With the prefix known, each candidate predicts them exactly.
- `kv-inversion`: after key sharing the server holds plain values of the middle blocks; candidates are tried
  token by token (a collision: several fit).

Against `hardened` the same code gets vectors under masks; it is told the true prefix, more than it could
know.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sottovoce.attacks.base import Control, Outcome, Setting
from sottovoce.attacks.candidates import Prefix
from sottovoce.attacks.scx_session import CuriousServer, Seen, recovered, rouge_l, shortened
from sottovoce.attacks.vocabulary import Vocabulary, features_sorted, nearest, nearest_l1, unit_rows
from sottovoce.engines.scx.masked import MASK_BITS, on_grid
from sottovoce.models import Model

Floats = npt.NDArray[Any]
PROFILES = ("paper", "hardened")
_DECODED = 8  # tokens that count as generated
_BLIND = 4  # times that an attack under masks is run on masks alone, for what is found by chance
_EXACT = 64  # candidates that are computed exactly
_DEPTH = 4  # blocks that the likelihood of a candidate is taken from
_SAME = 1e-3  # relative distance within which two candidates cannot be told apart


def read_values(vocabulary: Vocabulary, values: Floats) -> list[int]:
    """Tokens of rows of values (T, kv_heads, head_dim) with permuted features, by sorted L1."""
    rows = features_sorted(values)
    if vocabulary.model.weights.positions is None:
        return [int(t) for t in nearest_l1(rows, vocabulary.sorted_values)]
    return [int(nearest_l1(rows[i : i + 1], vocabulary.at(i).sorted_values)[0]) for i in range(len(rows))]


def read_rotated(vocabulary: Vocabulary, name: str, rows: Floats) -> npt.NDArray[np.int64]:
    """Tokens (P, T) of P prompts' queries or keys (P, T, heads, head_dim) with permuted features: positions
    are known, so the vocabulary's are rotated to each of them before both are sorted."""
    found = []
    for position in range(rows.shape[1]):
        table = features_sorted(vocabulary.at(position).rotated(name, position))
        found.append(nearest_l1(features_sorted(rows[:, position]), table))
    return np.stack(found, axis=1)


def values_under_masks(model: Model, layer: int, seen: Floats) -> Floats:
    """What the server makes of masked inputs: W_v·(x + mask), (T, kv_heads, head_dim)."""
    weight = model.weights.blocks[layer].v
    y = unit_rows(seen) @ weight.T.astype(np.float64)
    return np.asarray(y.reshape(len(seen), model.config.kv_heads, -1))


def over_prompts(
    setting: Setting,
    server: CuriousServer,
    read: Callable[[Seen, Sequence[int]], Sequence[int]],
    decoded: int = 0,
) -> tuple[float, float]:
    """(share of tokens, ROUGE-L) that `read` gets right, mean over the prompts; the last `decoded` of a
    prompt's tokens are decoded one by one, and with `decoded` only these are to be read."""
    rates, rouge = [], []
    prompts = setting.prompts.tokens
    for number, prompt in enumerate(prompts):
        setting.progress(number, len(prompts), "prompts")
        cut = len(prompt) - decoded
        found = read(server.watch(prompt[:cut], prompt[cut:]), prompt)
        truth = prompt[cut:] if decoded else prompt
        rates.append(recovered(found, truth))
        rouge.append(rouge_l([int(t) for t in found], list(truth)))
    setting.progress(len(prompts), len(prompts), "prompts")
    return float(np.mean(rates)), float(np.mean(rouge))


class VocabularyMatching:
    name, target, profiles, samples = "vocabulary-matching", "scx", PROFILES, 100
    says = "sorted values of the first block against those of every token"

    def run(self, setting: Setting) -> Outcome:
        model = shortened(setting.model, 2)
        vocabulary = Vocabulary(model)
        details: dict[str, Any] = {}
        if setting.profile == "paper":
            rows: dict[str, list[Floats]] = {"queries": [], "keys": []}

            def read_seen(seen: Seen, _: Sequence[int]) -> list[int]:
                for name, kept in rows.items():
                    kept.append(seen.first(name, 0))
                return read_values(vocabulary, seen.first("values", 0))

            with CuriousServer(model, "paper") as server:
                rate, rouge = over_prompts(setting, server, read_seen)
            truth = setting.prompts.tokens
            for name, kept in rows.items():
                found = read_rotated(vocabulary, name, np.stack(kept))
                details[f"from_{name}"] = float(np.mean(found == np.array(truth)))
            bare = [read_values(vocabulary, vocabulary.values[list(p)]) for p in truth]
            open_rate = float(np.mean([recovered(a, b) for a, b in zip(bare, truth, strict=True)]))
            controls: tuple[Control, ...] = (Control("values in the clear", open_rate),)
        else:
            table = features_sorted(values_under_masks(model, 0, vocabulary.inputs))

            def read(seen: Seen, _: Sequence[int]) -> list[int]:
                rows = features_sorted(values_under_masks(model, 0, seen.first("qkv", 0)))
                return [int(t) for t in nearest_l1(rows, table)]

            rate, rouge, controls = masked_rates(setting, model, read)
        details |= {"rouge_l": rouge, "text": setting.prompts.source}
        return Outcome(rate, controls, len(setting.prompts.tokens), details)


class GreedyMatching:
    name, target, profiles, samples = "greedy-matching", "scx", PROFILES, 100
    says = "exact activations of generated tokens against those of candidates behind the known prefix"

    def run(self, setting: Setting) -> Outcome:
        if setting.profile == "hardened":
            model = shortened(setting.model, _DEPTH)
            blind: list[float] = []
            reader = likelihood_reader(model, blind)
            rate, rouge, controls = masked_rates(setting, model, reader, decoded=_DECODED)
            chance = float(np.mean(blind))
            details: dict[str, Any] = {"candidates": _EXACT, "by_chance": chance, "blocks": _DEPTH}
        else:
            model = shortened(setting.model, 2)
            vocabulary = Vocabulary(model)

            def read(seen: Seen, prompt: Sequence[int], prefix: Sequence[int] | None = None) -> list[int]:
                start = read_values(vocabulary, seen.first("values", 0)) if prefix is None else prefix
                exact = np.concatenate(seen.all("exact residual", 0))
                return continue_from(model, vocabulary, start, exact)

            with CuriousServer(model, "paper") as server:
                rate, rouge = over_prompts(setting, server, read, _DECODED)
                told_rate, _ = over_prompts(
                    setting.for_control(), server, lambda s, p: read(s, p, p[: len(p) - _DECODED]), _DECODED
                )
            controls, details = (
                (Control("prefix known instead of recovered", told_rate),),
                {"candidates": _EXACT},
            )
        details |= {"rouge_l": rouge, "text": setting.prompts.source}
        return Outcome(rate, controls, len(setting.prompts.tokens), details)


def continue_from(
    model: Model, vocabulary: Vocabulary, prefix: Sequence[int], residuals: Floats
) -> list[int]:
    """Tokens behind a prefix from what is left of them behind the first block's attention, (T, width)."""
    known, found = Prefix(model, 1, prefix), []
    count = min(_EXACT, len(vocabulary.embedded))
    if model.weights.positions is None:
        ranked = list(nearest(residuals, vocabulary.embedded, count))
    else:
        tables = (vocabulary.at(len(prefix) + i).embedded for i in range(len(residuals)))
        ranked = [nearest(row[None], t, count)[0] for row, t in zip(residuals, tables, strict=True)]
    for row, few in zip(residuals, ranked, strict=True):
        distances = np.linalg.norm(known.states(few, residual=True)[0].residual - row, axis=1)
        token = int(few[distances.argmin()])
        found.append(token)
        known.append(token)
    return found


class KvInversion:
    name, target, profiles, samples = "kv-inversion", "scx", PROFILES, 100
    says = "plain values of a middle block, inverted token by token"

    def run(self, setting: Setting) -> Outcome:
        model = shortened(setting.model, 3)
        guesses = _Guesses(model)
        collisions: list[int] = []
        if setting.profile == "paper":

            def read(seen: Seen, _: Sequence[int]) -> list[int]:
                return guesses.invert(seen.first("values", 1), collisions)

            with CuriousServer(model, "paper") as server:
                rate, rouge = over_prompts(setting, server, read)
                told, _ = over_prompts(
                    setting.for_control(), server, lambda s, p: guesses.invert(s.first("values", 1), [], p)
                )
            controls: tuple[Control, ...] = (Control("prefix known instead of recovered", told),)
        else:

            def read_masked(seen: Seen, prompt: Sequence[int]) -> list[int]:
                rows = values_under_masks(model, 1, seen.first("qkv", 1))
                return guesses.invert(rows, [], prompt, directions=True)

            rate, rouge, controls = masked_rates(setting, model, read_masked)
        most = guesses.most if setting.profile == "paper" else guesses.masked
        details = {"rouge_l": rouge, "text": setting.prompts.source, "block": 1, "candidates": most}
        if collisions:
            details["candidates_that_fit"] = float(np.mean(collisions))
        return Outcome(rate, controls, len(setting.prompts.tokens), details)


class _Guesses:
    """Values of the second block for every token without its context, to choose candidates from."""

    # Candidates that are computed exactly: more if none fits. Under masks none ever fits exactly.
    first, most, masked = 32, 256, 64

    def __init__(self, model: Model) -> None:
        self._model = model
        vocab = model.config.vocab_size
        parts = [
            Prefix(model, 2).states(np.arange(i, min(i + 2048, vocab)), whole=False)[1].v
            for i in range(0, vocab, 2048)
        ]
        self._table = np.concatenate(parts).reshape(vocab, -1)
        self._directions = unit_rows(self._table)

    def invert(
        self,
        values: Floats,
        collisions: list[int],
        prefix: Sequence[int] | None = None,
        directions: bool = False,
    ) -> list[int]:
        """Tokens of values (T, kv_heads, head_dim). prefix: the true tokens, if the attacker knows those
        before. directions: the rows' lengths mean nothing."""
        known, found = Prefix(self._model, 2), []
        rows = values.reshape(len(values), -1)
        rows = unit_rows(rows) if directions else rows
        table = self._directions if directions else self._table
        best = nearest(rows, table, min(self.most, len(table)))
        for i, (row, ranked) in enumerate(zip(rows, best, strict=True)):
            close = _SAME * np.linalg.norm(row)
            for few in (ranked[: self.masked],) if directions else (ranked[: self.first], ranked):
                exact = known.states(few, whole=False)[1].v.reshape(len(few), -1)
                exact = unit_rows(exact) if directions else exact
                distances = np.linalg.norm(exact - row, axis=1)
                if distances.min() < close:
                    break
            collisions.append(int((distances < distances.min() + close).sum()))
            found.append(int(few[distances.argmin()]))
            known.append(found[-1] if prefix is None else int(prefix[i]))
        return found


def masked_rates(
    setting: Setting,
    model: Model,
    read: Callable[[Seen, Sequence[int]], Sequence[int]],
    decoded: int = 0,
) -> tuple[float, float, tuple[Control, ...]]:
    """Rates against `hardened`, and against a user whose masks are a tenth of what they hide."""
    with CuriousServer(model, "hardened") as server:
        rate, rouge = over_prompts(setting, server, read, decoded)
    with CuriousServer(model, "hardened", weak=True) as server:
        weak, _ = over_prompts(setting.for_control(), server, read, decoded)
    return rate, rouge, (Control("masks a tenth of what they hide", weak),)


def likelihood_reader(
    model: Model, blind: list[float] | None = None
) -> Callable[[Seen, Sequence[int]], list[int]]:
    """The best test there is: for the true token and random others, the likelihood of everything that the
    server saw in the first blocks, behind the true prefix.

    blind: gets, for each token, how often it is chosen when all that was seen are masks that hide nothing.
    That is more than one in so many candidates: noise chooses what is unlike the others, and words of a text
    are unlike random tokens.
    """
    rng = np.random.default_rng(0)  # chooses the other candidates; nothing secret

    def read(seen: Seen, prompt: Sequence[int]) -> list[int]:
        start = len(prompt) - _DECODED
        known, found = Prefix(model, _DEPTH, prompt[:start]), []
        for i in range(_DECODED):
            truth = int(prompt[start + i])
            others = rng.choice(model.config.vocab_size, _EXACT, replace=False)
            others = others[others != truth][: _EXACT - 1]
            few = rng.permutation(np.append(others, truth))
            score, noise = np.zeros(len(few)), np.zeros((_BLIND, len(few)))
            for layer, states in enumerate(known.states(few)):
                for name, inputs in states.inputs.items():
                    row = seen.all(name, layer)[1 + i][0]
                    score += _log_likelihood(row, inputs)
                    if blind is not None:
                        masks = rng.normal(0.0, 2.0**MASK_BITS, (_BLIND, len(row)))
                        noise += [_log_likelihood(mask, inputs) for mask in masks]
            found.append(int(few[score.argmax()]))
            if blind is not None:
                blind.append(float(np.mean(few[noise.argmax(axis=1)] == truth)))
            known.append(truth)
        return found

    return read


def _log_likelihood(row: Floats, inputs: Floats) -> Floats:
    """Of a masked row, for each of the inputs (C, d) that it may hide; up to a constant and a factor."""
    expected, _ = on_grid(inputs.astype(np.float64))
    return np.asarray(expected @ row - 0.5 * np.einsum("cd,cd->c", expected, expected))
