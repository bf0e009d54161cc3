"""Ranges that the fixed-point form needs, measured by running the float32 reference on shipped text.

Two things are measured: the mean square (variance for LayerNorm) at the input of every norm, and the
largest attention score of every head. Position 0 is special: whatever token stands there, trained models
put an activation on it that is a hundred times larger than elsewhere, and the first token of a private
prompt is a public constant. The same size can come back at other positions after odd inputs, though, so a
norm's upper bound covers position 0 too.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sottovoce.models.calibration_text import CHATS, MIXED, PROSE
from sottovoce.models.model import Model
from sottovoce.models.static_shift import shift_errors
from sottovoce.models.weights import Array

_VERSION = 3
_WIDEN = 4.0  # a norm's range reaches this factor beyond what was seen, on both sides
# A mean square this far above its layer's median is a massive activation. It is saturated and hardly
# varies, so it is widened less: every bit spent on the range is taken from the precision of the squares.
_MASSIVE, _WIDEN_MASSIVE = 300.0, 1.6
_SPREAD = 12.0  # nats between the weakest rows and the shift, before its margin
_ODD_TOKENS = 48
_MAX_TOKENS = 256  # of each text


@dataclass(frozen=True)
class Calibration:
    """`norms`: (low, high) of each norm's input in order of execution, widened.

    `score_top`, (layers, heads): in nats, what a static softmax shift should be put above: the largest score
    of the head, unless that is so far above its ordinary rows that they would vanish. `score_low`: its
    smallest score. `score_error`: what such a shift costs (`static_shift`).
    """

    norms: tuple[tuple[float, float], ...]
    score_top: Array
    score_low: Array
    score_error: Array

    def to_json(self) -> dict[str, Any]:
        return {
            "version": _VERSION,
            "norms": [list(pair) for pair in self.norms],
            "score_top": self.score_top.tolist(),
            "score_low": self.score_low.tolist(),
            "score_error": self.score_error.tolist(),
        }


def calibrate(model: Model) -> Calibration:
    """Measure now. A few forward passes over about 1,100 tokens: seconds for a model of 135 M weights."""
    recorder = _Recorder(model)
    texts = _texts(model)
    for tokens in texts:
        model.hidden(tokens, hook=recorder.record)
    # Scores of text that nobody writes would push the shift so high that ordinary rows vanish: only norms
    # see it, unless there is nothing else.
    odd = _odd_tokens(model)
    model.hidden(odd, hook=recorder.record_norms if texts else recorder.record)
    errors = shift_errors(model, texts[:2] or [odd], recorder.score_top())
    return Calibration(recorder.norms(), recorder.score_top(), recorder.score_low, errors)


def cached_calibration(model: Model, directory: Path | None = None) -> Calibration:
    """Like `calibrate`, but remembered on disk under the model's digest.

    A damaged entry is measured again.
    """
    path = (directory or cache_directory()) / f"calibration-{model.digest[:32]}.json"
    known = _read(path, model)
    if known is not None:
        return known
    result = calibrate(model)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Softmax shifts are private to the server. Written aside and renamed, so that no reader sees half a
        # file.
        partial = path.with_suffix(f".{os.getpid()}")
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(result.to_json(), file)
        os.replace(partial, path)
    except OSError:
        pass  # a cache that cannot be written is only slower
    return result


def cache_directory() -> Path:
    """$SOTTOVOCE_CACHE, else `sottovoce` in the user's cache directory."""
    if place := os.environ.get("SOTTOVOCE_CACHE"):
        return Path(place)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "sottovoce"


class _Recorder:
    """Accumulates mean squares and extremes of scores over sequences.

    Its methods are hooks of a forward pass.
    """

    def __init__(self, model: Model) -> None:
        config = model.config
        self._model = model
        self._centred = config.norm == "layer"
        self._squares: list[list[Array]] = [[] for _ in range(2 * config.layers + 1)]
        self._row_maxima: list[list[Array]] = [[] for _ in range(config.layers)]
        self.score_low = np.full((config.layers, config.heads), np.inf, np.float32)

    def record(self, name: str, layer: int, value: Array) -> Array:
        if name == "scores":
            self._record_scores(layer, value)
        return self.record_norms(name, layer, value)

    def record_norms(self, name: str, layer: int, value: Array) -> Array:
        if name in ("norm1_in", "norm2_in", "norm_in"):
            self._squares[2 * layer + (name == "norm2_in")].append(self._mean_squares(value))
        return value

    def _mean_squares(self, x: Array) -> Array:
        x = x - x.mean(axis=-1, keepdims=True) if self._centred else x
        return np.asarray(np.einsum("ij,ij->i", x, x) / x.shape[-1], dtype=np.float32)

    def _record_scores(self, layer: int, scores: Array) -> None:
        _, new, total = scores.shape
        future = np.arange(total)[None, :] > np.arange(total - new, total)[:, None]
        # Row 0 is left out: its softmax is over one entry.
        self._row_maxima[layer].append(np.where(future, -np.inf, scores).max(axis=-1)[:, 1:])
        low = np.where(future, np.inf, scores).min(axis=(-1, -2))
        self.score_low[layer] = np.minimum(self.score_low[layer], low)

    def norms(self) -> tuple[tuple[float, float], ...]:
        pairs = [self._range(np.concatenate(squares)) for squares in self._squares]
        if self._model.config.rope is not None:
            # The first norm sees embedding rows and nothing else: its range can be computed instead of
            # estimated.
            rows = self._mean_squares(self._model.weights.embedding)
            pairs[0] = float(rows.min() / 1.1), float(rows.max() * 1.1)
        # Below eps a norm is flat.
        floor = self._model.config.eps
        return tuple((max(low, floor), max(high, _WIDEN * floor, _WIDEN * low)) for low, high in pairs)

    def score_top(self) -> Array:
        rows = np.stack([np.concatenate(layer, axis=-1) for layer in self._row_maxima])
        # A weight has 28 fractional bits below the shift: what lies 20 nats under it is lost. A few rows
        # that are far above all others (of odd tokens) are cut off instead; they still get the largest
        # weight.
        ordinary = np.quantile(rows, 0.01, axis=-1) + _SPREAD
        return np.asarray(np.minimum(rows.max(axis=-1), ordinary), dtype=np.float32)

    @staticmethod
    def _range(squares: Array) -> tuple[float, float]:
        massive = squares > _MASSIVE * np.median(squares)
        ordinary = float(squares[~massive].max()) * _WIDEN
        extreme = float(squares[massive].max(initial=0.0)) * _WIDEN_MASSIVE
        return float(squares.min()) / _WIDEN, max(ordinary, extreme)


def _texts(model: Model) -> list[list[int]]:
    card, limit = model.card, min(_MAX_TOKENS, model.config.context_length)
    if card.tokenizer_or_none is None:
        return []
    prompts = [card.plain(PROSE), card.plain(MIXED)]
    prompts += [card.chat(text) for text in CHATS] if card.template is not None else []
    return [list(prompt.tokens[:limit]) for prompt in prompts]


def _odd_tokens(model: Model) -> list[int]:
    """A fixed scramble of the vocabulary: tokens that no text would put side by side."""
    count = min(_ODD_TOKENS, model.config.context_length)
    return [(7919 * i * i + 104729 * i) % model.config.vocab_size for i in range(count)]


def _read(path: Path, model: Model) -> Calibration | None:
    """A cache entry; None if there is none that can be used."""
    try:
        return _load(json.loads(path.read_text()), model)
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None


def _load(data: Any, model: Model) -> Calibration:
    """A cache entry; anything odd raises ValueError, KeyError or TypeError."""
    config = model.config
    if data["version"] != _VERSION:
        raise ValueError("another version")
    pairs = tuple((float(low), float(high)) for low, high in data["norms"])
    tables = [np.asarray(data[key], np.float32) for key in ("score_top", "score_low", "score_error")]
    if len(pairs) != 2 * config.layers + 1 or any(t.shape != (config.layers, config.heads) for t in tables):
        raise ValueError("another shape")
    if not all(0 < low < high < math.inf for low, high in pairs) or not all(
        np.isfinite(t).all() for t in tables
    ):
        raise ValueError("not finite")
    return Calibration(pairs, *tables)
