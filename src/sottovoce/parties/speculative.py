"""Draft and verify: several guessed tokens in one secure pass, in an answer that does not depend on guesses.

A secure pass over a few tokens takes little longer than over one. So the client guesses γ tokens (`draft`),
lets the engine append them behind the last chosen token, and gets the logits of all γ + 1 positions. It
accepts guesses from the left as long as the rule below allows, draws one more token itself, and truncates
the cache to what was accepted. The server learns γ and how many guesses were accepted, at each step.

The rule (Leviathan, Kalman, Matias: Fast Inference from Transformers via Speculative Decoding, ICML 2023,
Algorithm 1): a guess x drawn from q is accepted with probability min(1, p(x) / q(x)); after a rejection the
token is drawn from max(0, p − q), normalised. The result is distributed as p, whatever q is. Here p is what
the sampling options make of the logits; greedy decoding is the case of a p that is certain.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..engines.base import Logits, Progress
from ..errors import UsageError
from .client import Client
from .draft import Drafter, Proposal
from .protocol import MAX_VERIFY
from .sampling import Distribution, Sampler


def accept(proposal: Proposal, logits: Logits, sampler: Sampler) -> list[int]:
    """Tokens to keep: the accepted guesses, then one that the sampler chose; between 1 and γ + 1 of them.

    logits: (γ + 1, vocab), row i those behind which guess i stands.
    """
    chosen: list[int] = []
    for token, drawn_from, row in zip(proposal.tokens, proposal.distributions, logits[:-1], strict=True):
        target = sampler.distribution(row)
        ratio = _probability(target, token)
        if drawn_from is not None:
            ratio /= _probability(drawn_from, token)
        if sampler.uniform() >= ratio:
            return [*chosen, sampler.draw(*_residual(target, drawn_from, token))]
        chosen.append(token)
    return [*chosen, sampler.choose(logits[-1])]


def _probability(distribution: Distribution, token: int) -> float:
    tokens, weights = distribution
    return float(weights[tokens == token].sum())


def _residual(target: Distribution, drawn_from: Distribution | None, token: int) -> Distribution:
    """max(0, p − q), normalised; q is certain of `token` if drawn_from is None."""
    tokens, weights = target
    other = np.zeros(1 + max(int(tokens.max()), token))
    if drawn_from is None:
        other[token] = 1.0
    else:
        known = drawn_from[0] < len(other)
        other[drawn_from[0][known]] = drawn_from[1][known]
    rest = np.maximum(weights - other[tokens], 0.0)
    # Nothing is left only if p = q, and then a guess is rejected by rounding at most.
    return (tokens, rest / rest.sum()) if rest.sum() > 0 else target


class DraftLength:
    """How many tokens to guess: always `fixed`, or from 0 to `limit` what promises most tokens a second.

    With each guess right with probability α, γ guesses give (1 − α^(γ+1)) / (1 − α) tokens in
    the time of a pass over γ + 1 tokens, a line fitted to the passes so far. Both estimates forget, so a
    drafter that failed gets another chance. timed=False leaves the clock out, for answers that repeat.
    """

    _PRIOR = (1.0, 2.0)  # accepted of tried, before anything was tried
    _SLOPE = 0.4  # of the time of one token, for each further one; counts as much as _DOUBT timed passes
    _DOUBT = 2.0
    _MEMORY = 0.93  # of a step's counts, one step later

    def __init__(self, fixed: int | None = None, limit: int = 8, timed: bool = True) -> None:
        if not 0 <= (limit if fixed is None else fixed) < MAX_VERIFY:
            raise UsageError(f"a draft has at most {MAX_VERIFY - 1} tokens")
        self.fixed = fixed
        self.limit = limit
        self.timed = timed
        self._right = self._tried = 0.0
        self._seconds: dict[int, float] = {}  # of a pass, by its guesses; a moving mean
        self._timed = 0.0  # passes with guesses that were timed

    def choose(self) -> int:
        """γ for the next step."""
        if self.fixed is not None:
            return self.fixed
        if self.timed and not self._seconds:
            return 0  # the time of one token is what all others are compared with
        expected = np.cumsum(self.acceptance ** np.arange(self.limit + 1))  # Σ α^i tokens
        best = int(np.argmax(expected / self._expected_seconds()))
        if best == 0:
            self._forget()
        return best

    def record(self, guessed: int, accepted: int, seconds: float) -> None:
        """A step with this many guesses took `seconds`, guessing included."""
        if guessed:
            self._forget()
            self._right += accepted
            self._tried += accepted + (accepted < guessed)
        if self.timed:
            before = self._seconds.get(guessed, seconds)
            self._seconds[guessed] = before + 0.3 * (seconds - before)
            self._timed += guessed > 0

    @property
    def acceptance(self) -> float:
        """α, the estimated probability that a guess is right if those before it were."""
        return (self._right + self._PRIOR[0]) / (self._tried + self._PRIOR[1])

    def _forget(self) -> None:
        self._right *= self._MEMORY
        self._tried *= self._MEMORY
        self._timed *= self._MEMORY

    def _expected_seconds(self) -> np.ndarray:
        """Of a pass with 0 to `limit` guesses, relative to one without."""
        guesses = np.arange(self.limit + 1)
        if len(self._seconds) < 2:
            return 1 + self._SLOPE * guesses
        x, y = (
            np.array(column, dtype=np.float64) for column in (list(self._seconds), [*self._seconds.values()])
        )
        slope, start = np.polyfit(x, y, 1)
        measured = min(1.0, max(0.0, float(slope / max(start, 1e-9))))
        weighed = (self._DOUBT * self._SLOPE + self._timed * measured) / (self._DOUBT + self._timed)
        return 1 + weighed * guesses


@dataclass
class Speculation:
    """A drafter at work, and what came of it. One for a session or for one answer, as the caller likes.

    drafted, accepted: guesses in all; steps: secure passes that verified at least one.
    """

    drafter: Drafter
    length: DraftLength
    drafted: int = 0
    accepted: int = 0
    steps: int = 0

    def advance(
        self, client: Client, pending: int, room: int, sampler: Sampler, progress: Progress | None = None
    ) -> list[int]:
        """Append `pending`, the last chosen token, and return the next ones: at least one, at most `room`.

        Afterwards the cache holds `pending` and all of the returned tokens but the last.
        """
        start = time.perf_counter()
        count = min(self.length.choose(), room - 1, client.card.config.context_length - client.length - 1)
        proposal = self.drafter.propose([*client.tokens, pending], max(0, count), sampler)
        if not proposal.tokens:
            chosen = [sampler.choose(client.decode(pending, progress))]
        else:
            chosen = self._verify(client, [pending, *proposal.tokens], proposal, sampler, progress)
        self.length.record(len(proposal.tokens), len(chosen) - 1, time.perf_counter() - start)
        return chosen

    def _verify(
        self,
        client: Client,
        tokens: Sequence[int],
        proposal: Proposal,
        sampler: Sampler,
        progress: Progress | None,
    ) -> list[int]:
        logits = client.verify(tokens, progress)
        chosen = accept(proposal, logits, sampler)
        rejected = len(tokens) - len(chosen)
        if rejected:
            client.truncate(client.length - rejected)
        self.drafted += len(proposal.tokens)
        self.accepted += len(chosen) - 1
        self.steps += 1
        return chosen
