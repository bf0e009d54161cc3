"""Choosing the next token from the logits, at the client. The server never learns the choice."""

import random
import secrets
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import UsageError

Floats = npt.NDArray[np.float64]
# Tokens that may be chosen, most likely first, and their probabilities (sum 1).
Distribution = tuple[npt.NDArray[np.int64], Floats]


@dataclass(frozen=True)
class SamplingOptions:
    """temperature 0 is greedy. top_k 0 and top_p 1 keep every token.

    seed: reproducible choices from an ordinary generator; without one every choice is fresh from the
    operating system.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature <= 100.0:
            raise UsageError(f"temperature {self.temperature} is not between 0 (greedy) and 100")
        if not 0.0 < self.top_p <= 1.0:
            raise UsageError(f"top-p {self.top_p} is not above 0 and at most 1")
        if self.top_k < 0:
            raise UsageError(f"top-k {self.top_k} is negative; 0 keeps every token")


class Sampler:
    """Draws tokens one after the other."""

    def __init__(self, options: SamplingOptions) -> None:
        self.options = options
        self._random: random.Random = (
            secrets.SystemRandom() if options.seed is None else random.Random(options.seed)
        )

    def choose(self, logits: Floats) -> int:
        """logits (vocab,) -> token id. Among equal logits the lowest id wins."""
        if self.options.temperature == 0.0:
            return int(np.argmax(logits))
        return self.draw(*self.distribution(logits))

    def draw(self, tokens: npt.NDArray[np.int64], weights: Floats) -> int:
        """One of `tokens` with these probabilities."""
        place = np.searchsorted(np.cumsum(weights), self.uniform(), side="right")
        return int(tokens[min(int(place), len(tokens) - 1)])

    def skip(self) -> None:
        """A token was chosen earlier with the same options: a seed goes on behind it."""
        if self.options.temperature:
            self.uniform()

    def uniform(self) -> float:
        """A number in [0, 1)."""
        return self._random.random()

    def distribution(self, logits: Floats) -> Distribution:
        """What may be chosen. Greedy is one token with probability 1."""
        if self.options.temperature == 0.0:
            return np.array([np.argmax(logits)], dtype=np.int64), np.ones(1)
        order = np.argsort(-logits, kind="stable")
        if self.options.top_k:
            order = order[: self.options.top_k]
        scaled = logits[order] / max(self.options.temperature, 1e-6)
        weights = np.exp(scaled - scaled[0])
        weights /= weights.sum()
        if self.options.top_p < 1.0:
            # The smallest set that reaches top_p; the most likely token always stays.
            keep = int(np.searchsorted(np.cumsum(weights), self.options.top_p)) + 1
            order, weights = order[:keep], weights[:keep]
            weights = weights / weights.sum()
        return order, weights
