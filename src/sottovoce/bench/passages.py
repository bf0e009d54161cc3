"""Texts to measure quality on: running text cut into windows, or LAMBADA's passages with their last words."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sottovoce.errors import UsageError
from sottovoce.models.tokenizer import Tokenizer

_TOKEN_BYTES = 16  # a token is rarely longer
_LINE_BYTES = 1 << 20


@dataclass(frozen=True)
class Passage:
    """Tokens that are read from a fresh start; the last `word` of them are the word to guess, if any."""

    tokens: tuple[int, ...]
    word: int = 0


@dataclass(frozen=True)
class Text:
    """What a file holds before it is tokenised: running text, or (beginning, last word) of passages."""

    path: Path
    running: str = ""
    passages: tuple[tuple[str, str], ...] = ()

    def tokenize(self, tokenizer: Tokenizer, wanted: int, window: int, exact: bool) -> list[Passage]:
        """The first `wanted` tokens of running text in windows, or as many whole passages as fit into them.

        A passage longer than the window loses its beginning. exact: fewer tokens than wanted are an error.
        """
        if self.passages:
            return self._whole(tokenizer, wanted, window)
        ids = tokenizer.encode(self.running)[:wanted]
        if exact and len(ids) < wanted:
            raise UsageError(f"{self.path} holds {len(ids)} tokens, not {wanted}; use --tokens {len(ids)}")
        if len(ids) < 2:
            raise UsageError(f"{self.path} holds {len(ids)} tokens; quality needs at least 2")
        cut = [tuple(ids[i : i + window]) for i in range(0, len(ids), window)]
        return [Passage(part) for part in cut if len(part) > 1]  # nothing to predict in one token

    def _whole(self, tokenizer: Tokenizer, wanted: int, window: int) -> list[Passage]:
        out: list[Passage] = []
        total = 0
        for beginning, word in self.passages:
            tokens = tokenizer.encode(f"{beginning} {word}")
            before = _common(tokens, tokenizer.encode(beginning))
            tokens, last = tokens[-window:], len(tokens) - before
            total += len(tokens)
            if total > wanted:
                break
            out.append(Passage(tuple(tokens), min(last, len(tokens) - 1)))
        if not out:
            raise UsageError(
                f"the first passage of {self.path} has {total} tokens; use --tokens {total} or more"
            )
        return out


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common beginning."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def read(path: Path, tokens: int) -> Text:
    """A text file, or a .jsonl file of passages; about as much of it as `tokens` tokens can cover.

    Raises `UsageError` for what is no readable, non-empty UTF-8 text.
    """
    limit = _TOKEN_BYTES * tokens
    try:
        if path.suffix == ".jsonl":
            return Text(path, passages=tuple(_passages(path, limit)))
        with path.open("rb") as file:
            data = file.read(limit)
            text = _decode(path, data, whole=not file.read(1))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error
    if not text.strip():
        raise UsageError(f"{path} holds no text")
    return Text(path, running=text)


def _decode(path: Path, data: bytes, whole: bool) -> str:
    """A character that the end of the part that was read cuts in two is left out."""
    try:
        return codecs.getincrementaldecoder("utf-8-sig")().decode(data, final=whole)
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path} is not UTF-8 text (byte {error.start}); convert it, for example with iconv"
        ) from None


def _passages(path: Path, limit: int) -> Iterator[tuple[str, str]]:
    """{"text": passage} on each line: LAMBADA's format."""
    size = number = 0
    with path.open("rb") as file:
        while size < limit and (line := file.readline(_LINE_BYTES)):
            number += 1
            size += len(line)
            if line.strip():
                yield _passage(f"line {number} of {path}", _decode(path, line, whole=True))
    if not size:
        raise UsageError(f"{path} holds no text")


def _passage(where: str, line: str) -> tuple[str, str]:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        raise UsageError(f'{where} is not JSON; expected {{"text": a passage}} on every line') from None
    text = entry.get("text") if isinstance(entry, dict) else None
    if not isinstance(text, str):
        raise UsageError(f'{where} has no text; expected {{"text": a passage}} on every line')
    beginning, _, word = text.strip().rpartition(" ")
    if not beginning:
        raise UsageError(f"{where} has fewer than two words, so there is no last word to guess")
    return beginning, word


__all__ = ["Passage", "Text", "read"]
