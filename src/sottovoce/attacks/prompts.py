"""The prompts that attacks try to read: paragraphs of a text file, or text that ships with the package."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from sottovoce.errors import UsageError
from sottovoce.models import Model
from sottovoce.models.calibration_text import MIXED, PROSE


@dataclass(frozen=True)
class Prompts:
    """source: name of the file, or what stands for it. tokens: one tuple a prompt, all of one length."""

    source: str
    tokens: tuple[tuple[int, ...], ...]


def read_prompts(model: Model, path: str | None, count: int, length: int) -> Prompts:
    """`count` beginnings of paragraphs, `length` tokens each, spread over the file.

    Headings (lines that begin with =) and short paragraphs are left out. UsageError if there are too few.
    """
    if path is None:
        source, text = "built-in text", PROSE + "\n" + MIXED
        paragraphs = [p for p in re.split(r"(?<=[.!?;])\s+|\n", text) if p.strip()]
    else:
        try:
            text = Path(path).read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise UsageError(f"cannot read {path}: {error.strerror or error}") from error
        source = Path(path).name
        paragraphs = [p.strip() for p in text.splitlines() if p.strip() and not p.strip().startswith("=")]
    found = []
    step = max(1, len(paragraphs) // (2 * count)) if path else 1
    for paragraph in [*paragraphs[::step], *paragraphs]:
        tokens = tuple(model.card.tokenizer.encode(paragraph)[:length])
        if len(tokens) == length and tokens not in found:
            found.append(tokens)
        if len(found) == count:
            return Prompts(source, tuple(found))
    raise UsageError(
        f"{source} has {len(found)} paragraphs of {length} tokens, not {count}; use --samples {len(found)}, "
        "a smaller --length, or --text with a longer file such as WikiText-2's test.txt"
    )
