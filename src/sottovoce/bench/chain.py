"""Free-running greedy chains: an execution writes on its own, and float32 is asked at every position.

The reference reads the prompt and what the execution has written so far, so a position is judged given the
same text and one difference does not count again at all later ones. What does feed on itself along a chain
is the cache: its keys and values are the execution's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sottovoce.bench.scores import Logits, Score
from sottovoce.models import Model
from sottovoce.models.chat import Prompt

# Written for this package: questions whose answers are long.
PROMPTS = (
    "Tell me a long story about a lighthouse keeper who finds a letter in a bottle.",
    "Explain step by step how a bicycle stays upright, and what happens when it slows down.",
    "Write a Python program that prints the prime numbers below 100, and explain each line.",
    "Describe a whole day at the fish market of Lisbon, from four in the morning until noon.",
    "Write a letter to a friend about moving to a new city in autumn.",
    "Compare trains, ships and lorries for moving goods across a continent.",
)
_FIRST_BUCKET = 16


@dataclass
class Chain:
    """tokens: what was written. logits: (len(tokens), vocab), those that each token was chosen from."""

    tokens: list[int]
    logits: Logits


def write(first: Logits, step: Callable[[int], Logits], length: int, never: Sequence[int]) -> Chain:
    """The most likely token each time, `length` times.

    first: logits (vocab,) behind the prompt. step: appends a token, returns the logits behind it. never:
    tokens that are not chosen, because a chain would end with them; agreement still counts them.
    """
    rows, tokens = [first], [_choose(first, never)]
    while len(tokens) < length:
        rows.append(step(tokens[-1]))
        tokens.append(_choose(rows[-1], never))
    return Chain(tokens, np.stack(rows))


def reference(model: Model, prompt: Prompt, chain: Chain) -> Logits:
    """Float32 logits at the positions of a chain, given the chain's own text."""
    return model.forward([*prompt.tokens, *chain.tokens[:-1]])[len(prompt) - 1 :]


def write_plain(model: Model, prompt: Prompt, length: int) -> Chain:
    """What float32 writes on its own."""
    cache = model.new_cache()
    first = model.forward(prompt.tokens, cache, last_only=True)[-1]
    return write(first, lambda token: model.forward([token], cache)[-1], length, model.card.tokenizer.eos_ids)


@dataclass
class Comparison:
    """Chains beside the reference; `add` each, then `summary`."""

    model: Model
    scores: list[Score]
    rows: list[dict[str, Any]]

    @classmethod
    def empty(cls, model: Model) -> Comparison:
        return cls(model, [], [])

    def add(self, prompt: Prompt, text: str, chain: Chain) -> Chain:
        """Compare a chain; returns what float32 writes on its own."""
        theirs, score = reference(self.model, prompt, chain), Score()
        score.add(chain.logits, [], theirs)
        own = write_plain(self.model, prompt, len(chain.tokens))
        apart = np.flatnonzero(np.asarray(own.tokens) != np.asarray(chain.tokens))
        self.scores.append(score)
        self.rows.append(
            {
                "prompt": text,
                "text": self.model.card.tokenizer.decode(chain.tokens, keep_special=True),
                "equal": sum(score.same),
                "differences": [
                    _difference(theirs, chain.logits, i) for i, ok in enumerate(score.same) if not ok
                ],
                "leaves_plain_text_at": int(apart[0]) + 1 if len(apart) else None,
            }
        )
        return own

    def summary(self) -> dict[str, Any]:
        """Agreement and KL, in all and by position (from 1, both ends included)."""
        same = np.stack([score.same for score in self.scores])
        kl = np.stack([score.divergence for score in self.scores])
        return {
            "prompts": len(self.scores),
            "tokens": int(same.size),
            **_figures(same, kl),
            "by_position": [
                {"from": a + 1, "to": b, **_figures(same[:, a:b], kl[:, a:b])}
                for a, b in _buckets(same.shape[1])
            ],
            "rows": self.rows,
        }


def _choose(logits: Logits, never: Sequence[int]) -> int:
    allowed = logits.astype(np.float64)
    allowed[list(never)] = -np.inf
    return int(allowed.argmax())


def _difference(plain: Logits, other: Logits, i: int) -> dict[str, Any]:
    """Where (from 1), and how far apart the reference's logits of the two tokens are."""
    margin = plain[i].max() - plain[i, other[i].argmax()]
    return {"position": i + 1, "reference_margin": float(margin)}


def _figures(same: npt.NDArray[np.bool_], kl: npt.NDArray[np.float64]) -> dict[str, Any]:
    return {
        "positions": int(same.size),
        "top1": float(same.mean()),
        "kl": float(kl.mean()),
        "kl_max": float(kl.max()),
    }


def _buckets(length: int) -> Iterator[tuple[int, int]]:
    """(0, 16), (16, 32), (32, 64), (64, 128) …: each as long as all before it."""
    start, end = 0, min(_FIRST_BUCKET, length)
    while start < length:
        yield start, end
        start, end = end, min(2 * end, length)


__all__ = ["PROMPTS", "Chain", "Comparison", "reference", "write", "write_plain"]
