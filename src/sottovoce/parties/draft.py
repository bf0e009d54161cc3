"""Drafters: guesses of the next tokens, made at the client, that one secure pass then verifies.

A drafter never changes the answer, only its speed: see `speculative`. `ngram` looks the end of the
conversation up in the conversation itself and costs nothing; a small public model guesses better where the
text does not repeat. Neither sends anything.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..errors import UsageError
from ..models.card import ModelCard
from ..models.registry import load_model
from .sampling import Distribution, Sampler

if TYPE_CHECKING:
    from ..models import Model, Tokenizer

NGRAM = "ngram"


@dataclass(frozen=True)
class Proposal:
    """Guessed tokens, and for each the distribution it was drawn from (None: it was no matter of chance)."""

    tokens: Sequence[int] = ()
    distributions: Sequence[Distribution | None] = ()

    @classmethod
    def certain(cls, tokens: Sequence[int]) -> Proposal:
        return cls(tokens, [None] * len(tokens))


class Drafter(ABC):
    """Guesses how a text goes on."""

    name: str

    @abstractmethod
    def propose(self, text: Sequence[int], count: int, sampler: Sampler) -> Proposal:
        """At most `count` tokens that may follow `text`; fewer, or none, if there is nothing to go by.

        Draws what it draws from `sampler`, whose numbers also decide on acceptance: one stream, so that a
        seeded run stays correct.
        """


class NgramDrafter(Drafter):
    """Prompt look-up: what followed the last time the text ended like this?

    The longest ending of `longest` down to `shortest` tokens that occurred before decides, at its latest
    place. A continuation that reaches the end of the text goes on in its own copy: loops are followed.
    """

    name = NGRAM

    def __init__(self, longest: int = 5, shortest: int = 2) -> None:
        if not 1 <= shortest <= longest:
            raise UsageError(f"n-grams of {shortest} to {longest} tokens make no sense")
        self._lengths = range(longest, shortest - 1, -1)

    def propose(self, text: Sequence[int], count: int, sampler: Sampler) -> Proposal:
        for length in self._lengths:
            start = _last_occurrence(text, length)
            if start is not None:
                grown = list(text)
                for i in range(count):
                    grown.append(grown[start + length + i])
                return Proposal.certain(grown[len(text) :])
        return Proposal()


def _last_occurrence(text: Sequence[int], length: int) -> int | None:
    """Where the last `length` tokens of the text stood before, latest place first."""
    if len(text) <= length:
        return None
    array = np.asarray(text)
    windows = np.lib.stride_tricks.sliding_window_view(array[:-1], length)
    found = np.flatnonzero((windows == array[-length:]).all(axis=1))
    return int(found[-1]) if found.size else None


class ModelDrafter(Drafter):
    """A public model in the clear at the client, with a cache of its own that follows the text.

    card: of the model that will verify. UsageError unless both models have the same tokens.
    """

    def __init__(self, model: Model, card: ModelCard) -> None:
        if not same_tokens(model.card.tokenizer, card.tokenizer):
            raise UsageError(
                f"model {model.card.name} cannot draft for {card.name}: their tokenizers differ; "
                "take a smaller model of the same family, or --draft ngram"
            )
        self.name = model.card.name
        self._model = model
        self._vocab = card.config.vocab_size
        self._ends = card.tokenizer.eos_ids
        self._cache = model.new_cache()
        self._tokens: list[int] = []

    def propose(self, text: Sequence[int], count: int, sampler: Sampler) -> Proposal:
        count = min(count, self._model.config.context_length - len(text))
        if count <= 0:
            return Proposal()
        # The last token runs again even if it is cached: its logits are what is needed.
        self._forget(min(_common(self._tokens, text), len(text) - 1))
        new, tokens, distributions = list(text[len(self._tokens) :]), list[int](), list[Distribution]()
        for _ in range(count):
            distribution = sampler.distribution(self._run(new))
            tokens.append(sampler.draw(*distribution))
            distributions.append(distribution)
            if tokens[-1] in self._ends:
                break
            new = tokens[-1:]
        return Proposal(tokens, distributions)

    def _run(self, tokens: list[int]) -> np.ndarray:
        """Logits behind `tokens`, of the tokens that the other model knows too."""
        self._tokens += tokens
        logits = self._model.forward(tokens, self._cache, last_only=True)[-1]
        return np.asarray(logits[: self._vocab], np.float64)

    def _forget(self, length: int) -> None:
        self._cache.truncate(length)
        del self._tokens[length:]


def make_drafter(name: str, card: ModelCard) -> Drafter:
    """`ngram`, or the name or path of a public model that has the tokens of the model of `card`."""
    return NgramDrafter() if name == NGRAM else ModelDrafter(load_model(name), card)


def same_tokens(a: Tokenizer, b: Tokenizer) -> bool:
    """Whether both give every token the same number. How they cut text into tokens may differ."""
    return a.document == b.document or (a.size == b.size and a.vocabulary() == b.vocabulary())


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common beginning."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
