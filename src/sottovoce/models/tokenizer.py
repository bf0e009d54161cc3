"""Text to token ids and back, at the client. A thin, validated wrapper of the `tokenizers` package.

Whatever file a tokenizer came from, it ends as one JSON document (the `tokenizer.json` format) plus the ids
of the special tokens, so that a server can send it and a client can check it before use.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

from tokenizers import Tokenizer as Backend

from sottovoce.errors import CorruptFileError, UnsupportedModelError, UsageError
from sottovoce.models.patterns import MAX_PATTERN, check_pattern

MAX_JSON = 32 << 20
_MAX_PARTS = 32
_MODELS = ("BPE",)
_NORMALIZERS = ("Sequence", "NFC", "NFKC", "NFD", "NFKD", "Prepend", "Replace")
_PRE_TOKENIZERS = ("Sequence", "ByteLevel", "Digits", "Split", "Metaspace")
_DECODERS = ("Sequence", "ByteLevel", "ByteFallback", "Fuse", "Strip", "Replace", "Metaspace")
_POST_PROCESSORS = ("Sequence", "ByteLevel", "TemplateProcessing")


class Tokenizer:
    """Encode and decode.

    `bos_id`: the constant first token, if the model has one; `eos_ids`: tokens that end a text.
    """

    def __init__(self, document: str, *, bos_id: int | None, eos_ids: Sequence[int]) -> None:
        self.document = document
        _check_document(document)
        try:
            self._backend = Backend.from_str(document)
        except Exception as error:  # the binding raises bare Exception
            raise CorruptFileError(f"tokenizer: {error}") from error
        self._backend.no_truncation()
        self._backend.no_padding()
        self.bos_id = bos_id
        self.eos_ids = tuple(eos_ids)
        for token in (*self.eos_ids, *(() if bos_id is None else (bos_id,))):
            if not 0 <= token < self.size or self._backend.id_to_token(token) is None:
                raise CorruptFileError(f"tokenizer: special token id {token} is not in the vocabulary")

    @cached_property
    def size(self) -> int:
        """One more than the largest token id."""
        return 1 + max(self.vocabulary().values(), default=-1)

    def vocabulary(self) -> dict[str, int]:
        """Every token's spelling and id, special ones included."""
        return dict(self._backend.get_vocab(with_added_tokens=True))

    def encode(self, text: str) -> list[int]:
        """Token ids. Special tokens written out in the text are recognised; none is added."""
        try:
            return list(self._backend.encode(text, add_special_tokens=False).ids)
        except BaseException as error:
            if type(error).__name__ != "PanicException":  # the backend's own, which is no Exception
                raise
        raise UsageError("tokenizer: this text cannot be cut into tokens by the model's patterns")

    def decode(self, tokens: Iterable[int], *, keep_special: bool = False) -> str:
        return str(self._backend.decode(list(tokens), skip_special_tokens=not keep_special))

    def token(self, token: int) -> str:
        """The vocabulary's own spelling of a token, for display."""
        text = self._backend.id_to_token(token)
        if text is None:
            raise UsageError(f"token {token} is not in the vocabulary of {self.size}")
        return str(text)

    def id_of(self, token: str) -> int | None:
        found = self._backend.token_to_id(token)
        return None if found is None else int(found)

    def stream(self) -> StreamDecoder:
        return StreamDecoder(self)


class StreamDecoder:
    """Text piece by piece as tokens arrive.

    Never half a UTF-8 character, and the pieces join to the whole text.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        self._context = (
            0  # start of the tokens that are decoded together, so that spaces come out as in the whole
        )
        self._emitted = 0  # tokens whose text has been returned

    def push(self, token: int) -> str:
        """The text that this token completes; empty while a character is incomplete."""
        self._tokens.append(token)
        text = self._pending()
        # An incomplete character decodes to U+FFFD at the end. Four bytes is the longest, so do not wait
        # for ever.
        if text.endswith("\ufffd") and len(self._tokens) - self._emitted < 4:
            return ""
        return self._emit(text)

    def finish(self) -> str:
        """What is left, with U+FFFD for a character that never became complete."""
        return self._emit(self._pending())

    def _pending(self) -> str:
        window = self._tokens[self._context :]
        known = self._tokenizer.decode(self._tokens[self._context : self._emitted])
        return self._tokenizer.decode(window)[len(known) :]

    def _emit(self, text: str) -> str:
        self._context, self._emitted = self._emitted, len(self._tokens)
        return text


def _check_document(document: str) -> None:
    """Refuse a tokenizer.json with parts other than the ones listed above, or patterns that may take long."""
    if len(document) > MAX_JSON:
        raise CorruptFileError(f"tokenizer: {len(document)} characters, the limit is {MAX_JSON}")
    try:
        data = json.loads(document)
    except (ValueError, RecursionError) as error:
        raise CorruptFileError("tokenizer: not JSON") from error
    if not isinstance(data, dict) or not isinstance(data.get("model"), dict):
        raise CorruptFileError("tokenizer: not a tokenizer.json document")
    kind = data["model"].get("type", "BPE")
    if kind not in _MODELS:
        raise UnsupportedModelError(
            f"tokenizer: model {kind!r} is not implemented; supported: {', '.join(_MODELS)}"
        )
    _check_part(data.get("normalizer"), _NORMALIZERS, "normalizer")
    _check_part(data.get("pre_tokenizer"), _PRE_TOKENIZERS, "pre-tokenizer")
    _check_part(data.get("decoder"), _DECODERS, "decoder")
    _check_part(data.get("post_processor"), _POST_PROCESSORS, "post-processor")


def _check_part(part: Any, known: tuple[str, ...], what: str, depth: int = 0) -> None:
    if part is None:
        return
    if not isinstance(part, dict) or depth > 4:
        raise CorruptFileError(f"tokenizer: malformed {what}")
    kind = part.get("type")
    if kind not in known:
        raise UnsupportedModelError(
            f"tokenizer: {what} {kind!r} is not implemented; supported: {', '.join(known)}"
        )
    if part.get("pattern") is not None:
        _check_pattern(part["pattern"], what)
    if kind == "Sequence":
        children = next((v for v in part.values() if isinstance(v, list)), [])
        if len(children) > _MAX_PARTS:
            raise CorruptFileError(f"tokenizer: a {what} with {len(children)} parts")
        for child in children:
            _check_part(child, known, what, depth + 1)


def _check_pattern(pattern: Any, what: str) -> None:
    """{"String": …} is looked for as it is, {"Regex": …} is an expression."""
    if not isinstance(pattern, dict) or len(pattern) != 1:
        raise CorruptFileError(f"tokenizer: {what} with a malformed pattern")
    ((kind, text),) = pattern.items()
    if kind not in ("String", "Regex") or not isinstance(text, str) or len(text) > MAX_PATTERN:
        raise CorruptFileError(f"tokenizer: {what} with a malformed pattern")
    if kind == "Regex":
        check_pattern(text)
