"""How much text quality private arithmetic costs: the same text through three executions of one model.

`plain` is the float32 reference, `fixed` the hybrid engine's arithmetic without its cryptography,
`encrypted` the engine itself on a short sample. The text is cut into windows; each starts behind the
model's constant first token and every token of it is predicted from those before. KL is of the plain
distribution from the other, in nats; top-1 the share of positions whose most likely token is the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sottovoce.bench.machine import header
from sottovoce.engines.base import EngineOptions
from sottovoce.engines.clear.fixed import FixedExecutor
from sottovoce.engines.registry import make_data_party, make_engine
from sottovoce.errors import UsageError
from sottovoce.models import Model, load_model, quantize
from sottovoce.net import Channel, run_pair

Progress = Callable[[int, int, str], None]
Logits = npt.NDArray[Any]

_CHUNK = 32  # tokens that go through a model at a time: bounds the memory that logits take
_SAMPLE_PREFILL = 8


@dataclass
class Score:
    """Sums over positions: log-likelihood of the text, divergence from and agreement with the reference."""

    tokens: int = 0
    nll: float = 0.0
    divergence: list[float] = field(default_factory=list)
    same: int = 0

    def add(self, logits: Logits, targets: Sequence[int], reference: Logits | None = None) -> None:
        """logits, reference.

        (T, vocab); targets: the tokens that really come next, fewer at the text's end.
        """
        log_q = log_softmax(logits)
        self.nll -= float(log_q[np.arange(len(targets)), targets].sum())
        self.tokens += len(targets)
        if reference is not None:
            log_p = log_softmax(reference)
            self.divergence += np.sum(np.exp(log_p) * (log_p - log_q), axis=-1).tolist()
            self.same += int((reference.argmax(-1) == logits.argmax(-1)).sum())

    @property
    def perplexity(self) -> float:
        return math.exp(self.nll / max(self.tokens, 1))

    @property
    def kl(self) -> float:
        return float(np.mean(self.divergence)) if self.divergence else 0.0

    @property
    def top1(self) -> float:
        return self.same / max(len(self.divergence), 1)


def run(
    text: str | Path,
    tokens: int = 1024,
    model: str = "smollm2-135m",
    engine: str = "hybrid",
    progress: Progress = lambda done, total, what: None,
    window: int = 512,
    sample: int = 12,
) -> dict[str, Any]:
    """Perplexities, KL and top-1 agreement on the first `tokens` tokens of a file.

    `sample` tokens go through `engine` for real (0: none). Costs about 0.1 s (plain), 0.3 s (fixed) and,
    encrypted, a decode step per token of SmolLM2-135M.
    """
    plain = load_model(model)
    ids = _read(plain, Path(text), tokens)
    first = plain.card.plain("a").public
    windows = [ids[i : i + window] for i in range(0, len(ids), _window(plain, window, len(first)))]
    fixed = quantize(plain)
    scores = {"plain": Score(), "fixed": Score()}
    done = 0
    for part in windows:
        executor = FixedExecutor(plain, fixed)
        executor.prefill_public(first)
        for inputs, targets, reference in _plain_steps(plain, first, part):
            progress(done, len(ids), "fixed-point tokens")
            scores["plain"].add(reference, targets)
            scores["fixed"].add(executor.forward(inputs), targets, reference)
            done += len(inputs)
    progress(len(ids), len(ids), "fixed-point tokens")
    divergence = np.asarray(scores["fixed"].divergence)
    return {
        **header(),
        "model": model,
        "text": Path(text).name,
        "tokens": len(ids),
        "window": window,
        "ppl_plain": scores["plain"].perplexity,
        "ppl_fixed": scores["fixed"].perplexity,
        "kl": scores["fixed"].kl,
        "kl_99": float(np.quantile(divergence, 0.99)),
        "top1": scores["fixed"].top1,
        "encrypted": encrypted(plain, first, windows[0][:sample], engine, progress) if sample > 1 else None,
    }


def encrypted(
    model: Model, public: Sequence[int], private: Sequence[int], engine: str, progress: Progress
) -> dict[str, Any]:
    """Teacher-forced run of the engine: prefill a few private tokens, decode the rest of them one by one."""
    options = EngineOptions(engine=engine)
    served = make_engine(options, model)
    served.prepare(progress)
    ahead = min(_SAMPLE_PREFILL, len(private) - 1)
    steps = private[ahead:]

    def server(channel: Channel) -> None:
        party = served.session()
        party.setup(channel)
        party.prefill(public, ahead)
        for _ in steps:
            party.decode()

    def client(channel: Channel) -> list[Logits]:
        party = make_data_party(options, served.public())
        party.setup(channel)
        rows = [party.prefill(public, private[:ahead])]
        for i, token in enumerate(steps):
            progress(i, len(steps), "encrypted tokens")
            rows.append(party.decode(token))
        progress(len(steps), len(steps), "encrypted tokens")
        return rows

    rows, _ = run_pair(client, server)
    logits = np.stack(rows)
    reference = model.forward([*public, *private])[len(public) + ahead - 1 :]
    score = Score()
    score.add(logits[:-1], steps, reference[:-1])
    last = Score()
    last.add(logits[-1:], [], reference[-1:])
    return {
        "engine": engine,
        "tokens": len(logits),
        "ppl": score.perplexity,
        "kl": float(np.mean(score.divergence + last.divergence)),
        "top1": (score.same + last.same) / len(logits),
    }


def log_softmax(logits: Logits) -> npt.NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def _plain_steps(
    model: Model, first: Sequence[int], part: Sequence[int]
) -> Iterator[tuple[list[int], list[int], Logits]]:
    """(tokens fed, tokens that come next, float32 logits behind each fed token), a chunk at a time.

    The first private token is predicted by the public one alone, which says nothing about private
    arithmetic: it is not scored. Neither is what follows the window.
    """
    cache = model.new_cache()
    model.hidden(first, cache)
    for i in range(0, len(part) - 1, _CHUNK):
        inputs, targets = list(part[:-1][i : i + _CHUNK]), list(part[i + 1 : i + 1 + _CHUNK])
        yield inputs, targets, model.forward(inputs, cache)


def _window(model: Model, window: int, public: int) -> int:
    room = model.config.context_length - public
    if not 2 <= window <= room:
        raise UsageError(f"a window of {window} tokens does not fit the model's context; use 2 to {room}")
    return window


def _read(model: Model, path: Path, tokens: int) -> list[int]:
    try:
        # A token is rarely shorter than a byte or longer than sixteen.
        with path.open("rb") as file:
            text = file.read(16 * tokens).decode("utf-8", errors="ignore")
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error
    ids = model.card.tokenizer.encode(text)[:tokens]
    if len(ids) < 2:
        raise UsageError(f"{path} holds {len(ids)} tokens; quality needs at least 2")
    return ids


__all__ = ["Score", "encrypted", "log_softmax", "run"]
