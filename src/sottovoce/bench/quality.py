"""How much text quality private arithmetic costs: the same text through three executions of one model.

`plain` is the float32 reference, `fixed` the hybrid engine's arithmetic without its cryptography,
`encrypted` the engine itself on a short sample. Running text is cut into windows; each starts behind the
token that separates documents and every token of it is predicted from those before. A passage of LAMBADA is a
window of its own, and its last word counts as guessed if each of its tokens is the most likely one, which
is when greedy decoding writes that word. Instead of reading a text the model can also write one (`chain`).
KL is of the plain distribution from the other, in nats; top-1 the share of positions whose most likely token
is the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sottovoce.bench import chain as chains
from sottovoce.bench.driven import Driver, drive
from sottovoce.bench.machine import header
from sottovoce.bench.passages import Passage, read
from sottovoce.bench.scores import Logits, Score, log_softmax
from sottovoce.engines.base import Engine, EngineOptions, Progress
from sottovoce.engines.clear.fixed import FixedExecutor
from sottovoce.engines.registry import make_engine
from sottovoce.errors import UsageError
from sottovoce.models import Model, load_model, quantize
from sottovoce.models.chat import Prompt

CHAINS = "free-running answers"  # what stands for the name of a text when there is none
_TOKENS, _WINDOW = 1024, 512
_CHUNK = 64  # tokens that go through a model at a time: bounds the memory that logits take
_ENCRYPTED_CHUNK = 16
_SEPARATOR = "<|endoftext|>"
_SAMPLE_PREFILL = 8


def _silent(done: int, total: int, what: str) -> None:
    pass


def run(
    text: str | Path | None = None,
    tokens: int | None = None,
    model: str = "smollm2-135m",
    engine: str = "hybrid",
    progress: Progress = _silent,
    window: int | None = None,
    sample: int = 12,
    kv: str = "ciphertext",
    chain: int | None = None,
) -> dict[str, Any]:
    """Perplexities, KL and top-1 agreement on the first `tokens` tokens of a file (1,024, or all it has), or
    along free-running answers of `chain` tokens.

    `sample` positions go through `engine` for real (0: none). A token of SmolLM2-135M costs about 0.01 s
    (plain), 0.05 s (fixed; 0.2 s in a chain) and, encrypted, a decode step.
    """
    if (text is None) == (chain is None):
        raise UsageError("name a text with --text, or the length of free-running answers with --chain")
    options = EngineOptions(engine=engine, kv=kv)
    if text is None:
        return _run_chains(load_model(model), model, chain or 0, options, sample, progress)
    wanted = _TOKENS if tokens is None else tokens
    content = read(Path(text), wanted)
    plain = load_model(model)
    public = start_of(plain)
    window = window_of(plain, window, len(public))
    parts = content.tokenize(plain.card.tokenizer, wanted, window, exact=tokens is not None)
    scores = _Scores(plain, public, progress).read(parts)
    return {
        **header(),
        "model": model,
        "text": Path(text).name,
        "tokens": sum(len(part.tokens) for part in parts),
        "window": window,
        "behind": plain.card.tokenizer.decode(public, keep_special=True),
        **scores,
        "encrypted": _sample(plain, public, parts, options, sample, progress) if sample else None,
    }


class _Scores:
    """Float32 and fixed point side by side over a text."""

    def __init__(self, model: Model, public: Sequence[int], progress: Progress) -> None:
        self.model, self.public, self.progress = model, public, progress
        self.fixed = quantize(model)
        self.plain_score, self.fixed_score = Score(), Score()
        self.guessed: dict[str, list[bool]] = {"plain": [], "fixed": []}

    def read(self, parts: Sequence[Passage]) -> dict[str, Any]:
        done, total = 0, sum(len(part.tokens) for part in parts)
        for number, part in enumerate(parts):
            self.progress(done, total, "fixed-point tokens")
            self._read(part, seed=number)
            done += len(part.tokens)
        self.progress(total, total, "fixed-point tokens")
        return self._summary(sum(part.word > 0 for part in parts))

    def _read(self, part: Passage, seed: int) -> None:
        """seed: of the shares, whose rounding the result depends on in its last digits."""
        executor = FixedExecutor(self.model, self.fixed, seed)
        executor.prefill_public(self.public)
        for inputs, targets, reference in _plain_steps(self.model, self.public, part.tokens):
            self.plain_score.add(reference, targets)
            self.fixed_score.add(executor.forward(inputs), targets, reference)
        if part.word:
            self.guessed["plain"].append(all(self.plain_score.hits[-part.word :]))
            self.guessed["fixed"].append(all(self.fixed_score.hits[-part.word :]))

    def _summary(self, passages: int) -> dict[str, Any]:
        divergence = self.fixed_score.divergence
        figures = {
            "positions": len(divergence),
            "ppl_plain": self.plain_score.perplexity,
            "ppl_fixed": self.fixed_score.perplexity,
            "kl": self.fixed_score.kl,
            "kl_99": float(np.quantile(divergence, 0.99)),
            "top1": self.fixed_score.top1,
        }
        if passages:
            plain, fixed = self.guessed["plain"], self.guessed["fixed"]
            figures |= {
                "passages": passages,
                "accuracy_plain": sum(plain) / passages,
                "accuracy_fixed": sum(fixed) / passages,
                "words_changed": sum(a != b for a, b in zip(plain, fixed, strict=True)),
            }
        return figures


def _sample(
    model: Model,
    public: Sequence[int],
    parts: Sequence[Passage],
    options: EngineOptions,
    positions: int,
    progress: Progress,
) -> dict[str, Any]:
    """The first `positions` positions that the engine can be asked for, or whole passages, shortest first."""
    if parts[0].word:
        chosen, room = [], positions
        for part in sorted(parts, key=lambda part: len(part.tokens)):
            if room > 0:
                chosen.append(part)
                room -= len(part.tokens) - 1
    else:
        ahead = min(_SAMPLE_PREFILL, len(parts[0].tokens) - 1)
        chosen = [Passage(parts[0].tokens[: ahead + positions])]
    return encrypted(model, public, chosen, options, progress)


def encrypted(
    model: Model, public: Sequence[int], parts: Sequence[Passage], options: EngineOptions, progress: Progress
) -> dict[str, Any]:
    """Teacher-forced runs of the engine, a session each, and fixed point at the same positions.

    Running text: prefill a few private tokens, decode the rest of them one by one. Passages: all tokens in a
    few passes that return the logits of each.
    """
    engine = make_engine(options, model)
    engine.prepare(progress)
    score, fixed_score, plain_score = Score(), Score(), Score()
    guessed: list[bool] = []
    fixed = quantize(model)
    total = sum(len(part.tokens) - 1 for part in parts)
    for number, part in enumerate(parts):
        done = sum(len(before.tokens) - 1 for before in parts[:number])
        reader = _Reader(public, part, progress, done, total)
        rows = drive(engine, reader.by_chunks if part.word else reader.token_by_token)
        targets = part.tokens[-len(rows) :]
        reference = model.forward([*public, *part.tokens[:-1]])[-len(rows) :]
        executor = FixedExecutor(model, fixed, seed=number)
        executor.prefill_public(public)
        plain_score.add(reference, targets)
        score.add(rows, targets, reference)
        fixed_score.add(executor.forward(part.tokens[:-1])[-len(rows) :], targets, reference)
        if part.word:
            guessed.append(all(score.hits[-part.word :]))
    progress(total, total, "encrypted tokens")
    return {
        "engine": options.engine,
        "kv": options.kv,
        "tokens": len(score.same),
        "ppl": score.perplexity,
        "kl": score.kl,
        "top1": score.top1,
        "ppl_plain": plain_score.perplexity,
        "ppl_fixed": fixed_score.perplexity,
        "kl_fixed": fixed_score.kl,
        **({"passages": len(guessed), "accuracy": sum(guessed) / len(guessed)} if guessed else {}),
    }


@dataclass
class _Reader:
    """Scripts of a client that reads a passage but for its last token; logits (T, vocab) of the last T."""

    public: Sequence[int]
    part: Passage
    progress: Progress
    done: int
    total: int
    rows: list[Logits] = field(default_factory=list)

    def token_by_token(self, session: Driver) -> Logits:
        tokens = self.part.tokens[:-1]
        ahead = min(_SAMPLE_PREFILL, len(tokens))
        self._take(session.prefill(self.public, tokens[:ahead])[None], ahead)
        for token in tokens[ahead:]:
            self._take(session.decode(token)[None], 1)
        return np.concatenate(self.rows)

    def by_chunks(self, session: Driver) -> Logits:
        first, rest = self.part.tokens[:1], self.part.tokens[1:-1]
        self._take(session.prefill(self.public, first)[None], 1)
        for i in range(0, len(rest), _ENCRYPTED_CHUNK):
            chunk = rest[i : i + _ENCRYPTED_CHUNK]
            self._take(session.verify(chunk), len(chunk))
        return np.concatenate(self.rows)

    def _take(self, logits: Logits, tokens: int) -> None:
        self.rows.append(logits)
        self.done += tokens
        self.progress(self.done, self.total, "encrypted tokens")


def _run_chains(
    model: Model, name: str, length: int, options: EngineOptions, sample: int, progress: Progress
) -> dict[str, Any]:
    prompts = [model.card.prompt(text) for text in chains.PROMPTS]
    if length < 1 or max(map(len, prompts)) + length > model.config.context_length:
        most = model.config.context_length - max(map(len, prompts))
        raise UsageError(
            f"answers of {length} tokens do not fit the model's context; use --chain 1 to {most}"
        )
    fixed = quantize(model)
    found = chains.Comparison.empty(model)
    for number, (prompt, text) in enumerate(zip(prompts, chains.PROMPTS, strict=True)):
        progress(number, len(prompts), "fixed-point answers")
        found.add(prompt, text, _fixed_chain(FixedExecutor(model, fixed, number), prompt, length))
    progress(len(prompts), len(prompts), "fixed-point answers")
    summary = found.summary()
    private = None
    if sample:
        private = _encrypted_chain(model, prompts[0], options, min(sample, length), progress)
    return {
        **header(),
        "model": name,
        "text": CHAINS,
        "tokens": summary["tokens"],
        "ppl_plain": None,  # the text is the execution's own
        "ppl_fixed": None,
        "kl": summary["kl"],
        "top1": summary["top1"],
        "chain": summary,
        "encrypted": private,
    }


def _fixed_chain(executor: FixedExecutor, prompt: Prompt, length: int) -> chains.Chain:
    executor.prefill_public(prompt.public)
    first = executor.forward(prompt.private)[-1]
    never = executor.model.card.tokenizer.eos_ids
    return chains.write(first, lambda token: executor.forward([token])[-1], length, never)


def _encrypted_chain(
    model: Model, prompt: Prompt, options: EngineOptions, length: int, progress: Progress
) -> dict[str, Any]:
    engine: Engine = make_engine(options, model)
    engine.prepare(progress)

    def script(session: Driver) -> chains.Chain:
        progress(0, length, "encrypted tokens")
        first = session.prefill(prompt.public, prompt.private)
        steps = iter(range(1, length))

        def step(token: int) -> Logits:
            progress(next(steps), length, "encrypted tokens")
            return session.decode(token)

        return chains.write(first, step, length, model.card.tokenizer.eos_ids)

    found = chains.Comparison.empty(model)
    found.add(prompt, chains.PROMPTS[0], drive(engine, script))
    progress(length, length, "encrypted tokens")
    return {"engine": options.engine, "kv": options.kv, "ppl": None, **found.summary()}


def _plain_steps(
    model: Model, public: Sequence[int], part: Sequence[int]
) -> Iterator[tuple[list[int], list[int], Logits]]:
    """(tokens fed, tokens that come next, float32 logits behind each fed token), a chunk at a time.

    The first private token is predicted by the public one alone, which says nothing about private
    arithmetic: it is not scored. Neither is what follows the window.
    """
    cache = model.new_cache()
    if len(public):
        model.hidden(public, cache)
    for i in range(0, len(part) - 1, _CHUNK):
        inputs, targets = list(part[:-1][i : i + _CHUNK]), list(part[i + 1 : i + 1 + _CHUNK])
        yield inputs, targets, model.forward(inputs, cache)


def start_of(model: Model) -> tuple[int, ...]:
    """The public token that text begins behind: what stood between documents in training, if it is known.

    A chat model's own first token is followed by a role and by nothing else. Behind it, every eighth
    beginning of a text is so odd to SmolLM2 that attention scores leave the range of the static shift.
    """
    separator = model.card.tokenizer.id_of(_SEPARATOR)
    return model.card.plain("a").public if separator is None else (separator,)


def window_of(model: Model, asked: int | None, public: int) -> int:
    room = model.config.context_length - public
    window = min(_WINDOW, room) if asked is None else asked
    if not 2 <= window <= room:
        raise UsageError(f"a window of {window} tokens does not fit the model's context; use 2 to {room}")
    return window


__all__ = ["CHAINS", "Score", "encrypted", "log_softmax", "run"]
