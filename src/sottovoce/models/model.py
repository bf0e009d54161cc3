"""A model in the clear: description, float32 weights, card. What loaders return and what the server holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from sottovoce.errors import UsageError
from sottovoce.models import gpt2, llama, qwen2
from sottovoce.models.card import ModelCard
from sottovoce.models.chat import ChatTemplate
from sottovoce.models.config import Config
from sottovoce.models.layers import Hook, PlainCache, linear, no_hook
from sottovoce.models.tokenizer import Tokenizer
from sottovoce.models.weights import Array, Weights, check_weights, commitment

_FORWARD: dict[str, Callable[[Config, Weights, np.ndarray, PlainCache, Hook], Array]] = {
    "gpt2": gpt2.forward,
    "llama": llama.forward,
    "qwen2": qwen2.forward,
}


@dataclass(frozen=True)
class Model:
    """Weights that match the description (`build` checks), and the card that names both."""

    config: Config
    weights: Weights
    card: ModelCard

    @property
    def digest(self) -> str:
        """Commitment to description and weights (hex SHA-256)."""
        return self.card.model_digest

    def new_cache(self) -> PlainCache:
        return PlainCache(self.config)

    def hidden(
        self, tokens: Sequence[int] | np.ndarray, cache: PlainCache | None = None, hook: Hook = no_hook
    ) -> Array:
        """The residual stream after the final norm, (T, width), for T new tokens behind the cached ones."""
        ids = np.asarray(tokens, dtype=np.int64)
        if ids.ndim != 1 or not len(ids):
            raise UsageError("a forward pass needs a non-empty list of tokens")
        if ids.min() < 0 or ids.max() >= self.config.vocab_size:
            raise UsageError(f"a token id is outside the vocabulary of {self.config.vocab_size}")
        cache = self.new_cache() if cache is None else cache
        cache.require(len(ids))
        return _FORWARD[self.config.model_type](self.config, self.weights, ids, cache, hook)

    def forward(
        self,
        tokens: Sequence[int] | np.ndarray,
        cache: PlainCache | None = None,
        hook: Hook = no_hook,
        last_only: bool = False,
    ) -> Array:
        """Float32 logits (T, vocab_size) of T new tokens behind the cached ones; of the last token with
        `last_only`.

        `cache` is appended to; without one the tokens start at position 0. `hook(name, layer, value)` sees
        every intermediate and may replace it.
        """
        hidden = self.hidden(tokens, cache, hook)
        return hook(
            "logits", self.config.layers, linear(hidden[-1:] if last_only else hidden, self.weights.output)
        )


def build(
    name: str,
    config: Config,
    weights: Weights,
    tokenizer: Tokenizer | None = None,
    template: ChatTemplate | None = None,
) -> Model:
    """Check weights against the description and seal both into a `Model`."""
    check_weights(config, weights)
    card = ModelCard(name, config, commitment(config, weights), tokenizer, template)
    return Model(config, weights, card)


def greedy(model: Model, prompt: Sequence[int], new_tokens: int, stop: Sequence[int] = ()) -> list[int]:
    """Reference generation.

    The most likely token each time, until a stop token (not returned) or the count.
    """
    cache, out = model.new_cache(), []
    logits = model.forward(prompt, cache, last_only=True)
    for _ in range(new_tokens):
        token = int(np.argmax(logits[-1]))
        if token in stop:
            break
        out.append(token)
        if len(out) < new_tokens:
            logits = model.forward([token], cache)
    return out
