"""How far one execution of a model is from the text, and from another execution of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Logits = npt.NDArray[Any]


@dataclass
class Score:
    """Sums over positions: log-likelihood of the text, divergence from and agreement with the reference.

    hits: for every token of the text whether it was the most likely one. same, divergence: for every
    position with a reference.
    """

    nll: float = 0.0
    hits: list[bool] = field(default_factory=list)
    same: list[bool] = field(default_factory=list)
    divergence: list[float] = field(default_factory=list)

    def add(self, logits: Logits, targets: Sequence[int], reference: Logits | None = None) -> None:
        """logits, reference: (T, vocab). targets: the tokens that really come next; fewer than T where the
        text ends, and the rows behind them count for divergence and agreement only.
        """
        log_q, best = log_softmax(logits), logits.argmax(-1)
        self.nll -= float(log_q[np.arange(len(targets)), targets].sum())
        self.hits += [int(token) == target for token, target in zip(best, targets, strict=False)]
        if reference is not None:
            log_p = log_softmax(reference)
            self.divergence += np.sum(np.exp(log_p) * (log_p - log_q), axis=-1).tolist()
            self.same += (reference.argmax(-1) == best).tolist()

    @property
    def perplexity(self) -> float | None:
        return math.exp(self.nll / len(self.hits)) if self.hits else None

    @property
    def kl(self) -> float:
        """Mean of KL(reference || this), in nats."""
        return float(np.mean(self.divergence)) if self.divergence else 0.0

    @property
    def top1(self) -> float:
        """Share of positions whose most likely token is the reference's."""
        return sum(self.same) / max(len(self.same), 1)


def log_softmax(logits: Logits) -> npt.NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))
