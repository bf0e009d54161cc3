"""`bench agreement`: does the private model choose the same tokens as the float32 one?

The hybrid engine answers every prompt greedily, prefill and decode under encryption. Then the reference reads
the same text, the engine's own tokens included, so every position is judged on the same beginning and one
difference does not count again and again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sottovoce.bench.cost import agreement
from sottovoce.bench.e2e import BATCH
from sottovoce.bench.machine import header
from sottovoce.bench.prompts import PROMPTS
from sottovoce.bench.session import run_job
from sottovoce.bench.steps import (
    Forward,
    Generate,
    Hints,
    Job,
    Open,
    Pass,
    Prepare,
    Step,
    Truncate,
)
from sottovoce.engines.base import EngineOptions, Progress
from sottovoce.errors import UsageError
from sottovoce.models import Model, load_model
from sottovoce.models.chat import Prompt

PROMPT = "prompt"


def run(
    prompts: int = len(PROMPTS),
    new_tokens: int = 16,
    model: str = "smollm2-135m",
    kv: str = "ciphertext",
    prepared: int = 0,
    progress: Progress = lambda done, total, what: None,
) -> dict[str, Any]:
    """Share of positions with equal greedy tokens, KL(float32 || engine) and the text of every answer.

    The token after the last one counts too: a prompt gives `new_tokens` positions. prepared: products of
    matrices are made ahead for so many tokens at a time, and one session answers all prompts, truncated
    between them; without, every prompt is a session with fresh keys.
    """
    if not 1 <= prompts <= len(PROMPTS):
        raise UsageError(f"there are {len(PROMPTS)} prompts; ask for 1 to {len(PROMPTS)}")
    plain = load_model(model)
    chosen = [plain.card.prompt(text) for text in PROMPTS[:prompts]]
    steps: list[Step] = []
    for prompt in chosen:
        steps += _opening(prompt, new_tokens, prepared, first=not steps)
        steps += [Forward(prompt.private, PROMPT), Generate(new_tokens - 1)]
    job = Job(EngineOptions(kv=kv), model, tuple(steps))
    client, _ = run_job(job, progress)
    answers: list[list[Pass]] = []
    for step, passes in zip(job.steps, client.passes, strict=True):
        if isinstance(step, Forward):
            answers.append(list(passes))
        elif isinstance(step, Generate):
            answers[-1] += passes
    rows, reference, private = [], [], []
    for prompt, passes in zip(chosen, answers, strict=True):
        ours, theirs = _logits(passes), _reference(plain, prompt, passes)
        rows.append(_row(plain, prompt, ours, theirs))
        private.append(ours)
        reference.append(theirs)
    return {
        **header(),
        "model": model,
        "kv": kv,
        "prompts": prompts,
        "new_tokens": new_tokens,
        "prepared": prepared,
        "positions": prompts * new_tokens,
        **agreement(np.concatenate(reference), np.concatenate(private)),
        "rows": rows,
    }


def _opening(prompt: Prompt, new_tokens: int, prepared: int, first: bool) -> list[Step]:
    """Steps that bring a session to the end of the prompt's public tokens."""
    if not prepared:
        return [Open(prompt.public)]
    needed = len(prompt.private) + new_tokens
    start = [Open(prompt.public), Hints()] if first else [Truncate(len(prompt.public))]
    return [*start, Prepare(max(needed, BATCH), prepared, needed)]


def _logits(passes: Sequence[Pass]) -> np.ndarray[Any, Any]:
    return np.stack([one.logits for one in passes if one.logits is not None])


def _reference(model: Model, prompt: Prompt, passes: Sequence[Pass]) -> np.ndarray[Any, Any]:
    """Float32 logits at the same positions, behind the engine's own tokens."""
    tokens = [*prompt.tokens, *(one.token for one in passes[1:])]
    return model.forward(tokens)[len(prompt) - 1 :]


def _row(
    model: Model, prompt: Prompt, ours: np.ndarray[Any, Any], theirs: np.ndarray[Any, Any]
) -> dict[str, Any]:
    scores = agreement(theirs, ours)
    decode = model.card.tokenizer.decode
    return {
        "prompt": decode(list(prompt.private)),
        "private_tokens": len(prompt.private),
        "answer": decode([int(token) for token in ours.argmax(-1)]),
        "equal": int((ours.argmax(-1) == theirs.argmax(-1)).sum()),
        "first_difference": _first_difference(ours, theirs),
        "mean_kl": scores["mean_kl"],
        "max_kl": scores["max_kl"],
    }


def _first_difference(ours: np.ndarray[Any, Any], theirs: np.ndarray[Any, Any]) -> dict[str, Any] | None:
    """Position, and how far apart the reference's logits of the two tokens are."""
    places = np.flatnonzero(ours.argmax(-1) != theirs.argmax(-1))
    if not len(places):
        return None
    row = int(places[0])
    mine, plain = int(ours[row].argmax()), int(theirs[row].argmax())
    return {
        "position": row,
        "token": mine,
        "reference_token": plain,
        "reference_margin": float(theirs[row, plain] - theirs[row, mine]),
    }
