"""`bench quality --engine scx`: the same text through float32 and through the engine; nothing should differ.

Windows of running text behind the token that separates documents, as for the other engines. A long text can
be read in parts (`start`); the table adds them up.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sottovoce.bench.driven import Driver, drive
from sottovoce.bench.machine import header
from sottovoce.bench.passages import read
from sottovoce.bench.quality import start_of, window_of
from sottovoce.bench.scores import Score
from sottovoce.engines.base import EngineOptions, Progress
from sottovoce.engines.registry import make_engine
from sottovoce.errors import UsageError
from sottovoce.models import Model, load_model

_TOKENS, _CHUNK = 1024, 64


def run(
    text: str | Path,
    model: str,
    profile: str,
    tokens: int | None,
    start: int,
    progress: Progress = lambda done, total, what: None,
) -> dict[str, Any]:
    """`tokens` tokens of a file from token `start` on. Both passes cost about 0.01 s a token together."""
    wanted = _TOKENS if tokens is None else tokens
    plain = load_model(model)
    content = read(Path(text), start + wanted)
    public = start_of(plain)
    ids = plain.card.tokenizer.encode(content.running)[start : start + wanted]
    if len(ids) < wanted:
        raise UsageError(f"{Path(text).name} holds {len(ids)} tokens from {start} on, not {wanted}")
    window = window_of(plain, None, len(public))
    parts = [ids[i : i + window] for i in range(0, len(ids), window)]
    engine = make_engine(EngineOptions(engine="scx", profile=profile), plain)
    engine.prepare()
    reader = _Reader(plain, public, [part for part in parts if len(part) > 1], progress)
    drive(engine, reader.read_all)
    return {
        **header(),
        "parameters": {"profile": profile},
        "model": model,
        "engine": "scx",
        "profile": profile,
        "text": Path(text).name,
        "start": start,
        "tokens": len(ids),
        **reader.summary(),
    }


class _Reader:
    """A client that reads windows along the plaintext model."""

    def __init__(
        self, plain: Model, public: Sequence[int], parts: Sequence[Sequence[int]], progress: Progress
    ) -> None:
        self.plain, self.public, self.parts, self.progress = plain, list(public), parts, progress
        self.plain_score, self.score = Score(), Score()
        self.largest = 0.0

    def read_all(self, session: Driver) -> None:
        done, total = 0, sum(map(len, self.parts))
        for part in self.parts:
            self.progress(done, total, "tokens")
            self._read(session, part)
            done += len(part)
        self.progress(total, total, "tokens")

    def summary(self) -> dict[str, Any]:
        positions = len(self.score.same)
        return {
            "positions": positions,
            "nll_plain": self.plain_score.nll,
            "nll_scx": self.score.nll,
            "ppl_plain": self.plain_score.perplexity,
            "ppl_fixed": None,
            "ppl_scx": self.score.perplexity,
            "kl": self.score.kl,
            "top1": self.score.top1,
            "largest_difference": self.largest,
            "encrypted": None,
        }

    def _read(self, session: Driver, part: Sequence[int]) -> None:
        cache = self.plain.new_cache()
        session.truncate(0)
        for inputs, logits in self._chunks(session, part):
            reference = self.plain.forward(inputs, cache)
            self.largest = max(self.largest, float(np.abs(logits - reference[-len(logits) :]).max()))
            targets = self._targets(part, cache.length, len(logits))
            self.plain_score.add(reference[-len(logits) :], targets)
            self.score.add(logits, targets, reference[-len(logits) :])

    def _chunks(self, session: Driver, part: Sequence[int]) -> Any:
        """(tokens fed, logits of the last of them): a prefill, whose last token counts, then pieces."""
        tokens = [*self.public, *part[:-1]]
        ahead = min(len(tokens), _CHUNK)
        yield tokens[:ahead], session.prefill((), tokens[:ahead])[None]
        for i in range(ahead, len(tokens), _CHUNK):
            yield tokens[i : i + _CHUNK], session.verify(tokens[i : i + _CHUNK])

    def _targets(self, part: Sequence[int], fed: int, rows: int) -> list[int]:
        """What comes behind each of the last `rows` of `fed` tokens."""
        whole = [*self.public, *part]
        return list(whole[fed - rows + 1 : fed + 1])
