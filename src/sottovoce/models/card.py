"""The model card: everything public that a client needs, without weights.

The server sends it at the handshake. On the wire: magic, version, length of the JSON text, zlib-compressed
JSON. The client checks sizes before it decompresses, and every part before it uses it. The card's digest
identifies it, so a client that has seen a card can skip the transfer.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sottovoce.errors import CorruptFileError, SottovoceError, UnsupportedModelError, VersionMismatchError
from sottovoce.models.chat import ChatTemplate, Message, Prompt, plain_prompt
from sottovoce.models.config import Config
from sottovoce.models.tokenizer import MAX_JSON, Tokenizer

_MAGIC = b"SVMC"
_VERSION = 1
_HEADER = struct.Struct("<4sHI")
MAX_BYTES = 16 << 20  # of a serialised card
_MAX_TEXT = MAX_JSON + (1 << 20)
_ENTRIES = {"name", "model_digest", "config", "tokenizer", "template"}


@dataclass(frozen=True)
class ModelCard:
    """Name, description, digest of the weights (hex SHA-256); tokenizer and chat template, if any."""

    name: str
    config: Config
    model_digest: str
    tokenizer_or_none: Tokenizer | None = None
    template: ChatTemplate | None = None

    def __post_init__(self) -> None:
        tokenizer = self.tokenizer_or_none
        if tokenizer is not None and tokenizer.size > self.config.vocab_size:
            raise CorruptFileError(
                f"the tokenizer has {tokenizer.size} tokens, the model only {self.config.vocab_size}"
            )

    @property
    def tokenizer(self) -> Tokenizer:
        if self.tokenizer_or_none is None:
            raise UnsupportedModelError(
                f"model {self.name} comes without a tokenizer; put its tokenizer.json beside the weights"
            )
        return self.tokenizer_or_none

    def chat(
        self, messages: str | Sequence[Message], *, public_system: bool = False, public_messages: int = 0
    ) -> Prompt:
        """A chat (or one user message) as tokens; the template's constant beginning is public."""
        if self.template is None:
            raise UnsupportedModelError(f"model {self.name} has no chat template; use a plain prompt")
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        return self.template.prompt(
            self.tokenizer, messages, public_system=public_system, public_messages=public_messages
        )

    def plain(self, text: str) -> Prompt:
        """Text as it stands, behind the model's constant first token, which is public."""
        return plain_prompt(self.tokenizer, text)

    def prompt(self, text: str) -> Prompt:
        """A chat if the model has a template, otherwise the plain text."""
        return self.plain(text) if self.template is None else self.chat(text)

    @cached_property
    def digest(self) -> str:
        """Hex SHA-256 of the card's content."""
        return hashlib.sha256(self._text).hexdigest()

    @cached_property
    def _text(self) -> bytes:
        tokenizer, template = self.tokenizer_or_none, self.template
        data = {
            "name": self.name,
            "model_digest": self.model_digest,
            "config": self.config.to_json(),
            "tokenizer": None
            if tokenizer is None
            else {
                "document": tokenizer.document,
                "bos_id": tokenizer.bos_id,
                "eos_ids": list(tokenizer.eos_ids),
            },
            "template": None
            if template is None
            else {"source": template.source, "variables": template.variables},
        }
        return json.dumps(data, sort_keys=True, ensure_ascii=False).encode()

    def to_bytes(self) -> bytes:
        data = _HEADER.pack(_MAGIC, _VERSION, len(self._text)) + zlib.compress(self._text, 6)
        if len(data) > MAX_BYTES:
            raise UnsupportedModelError(f"the model card takes {len(data)} bytes, the limit is {MAX_BYTES}")
        return data

    @classmethod
    def from_bytes(cls, data: bytes | memoryview) -> ModelCard:
        """Check and load an untrusted card.

        Raises `CorruptFileError`, `UnsupportedModelError`, `VersionMismatchError`.
        """
        text = _decompress(data)
        try:
            return _parse(json.loads(text))
        except SottovoceError:
            raise
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise CorruptFileError("model card: malformed content") from error


def _decompress(data: bytes | memoryview) -> bytes:
    if not _HEADER.size < len(data) <= MAX_BYTES:
        raise CorruptFileError(f"model card: {len(data)} bytes, the limit is {MAX_BYTES}")
    magic, version, length = _HEADER.unpack_from(data)
    if magic != _MAGIC:
        raise CorruptFileError("model card: wrong magic")
    if version != _VERSION:
        raise VersionMismatchError(
            f"model card of version {version}, this program reads {_VERSION}; update the older one"
        )
    if length > _MAX_TEXT:
        raise CorruptFileError(f"model card: {length} bytes of text, the limit is {_MAX_TEXT}")
    inflater = zlib.decompressobj()
    try:
        # One byte more than announced is asked for, so that a longer stream is noticed without being
        # inflated.
        text = inflater.decompress(bytes(data[_HEADER.size :]), length + 1)
    except zlib.error as error:
        raise CorruptFileError("model card: not a zlib stream") from error
    if len(text) != length or not inflater.eof or inflater.unused_data:
        raise CorruptFileError("model card: the text has not the announced length")
    return text


def _parse(data: Any) -> ModelCard:
    if not isinstance(data, dict) or set(data) != _ENTRIES:
        raise CorruptFileError("model card: unexpected or missing entries")
    name, digest = data["name"], data["model_digest"]
    if not isinstance(name, str) or not 1 <= len(name) <= 200 or not name.isprintable():
        raise CorruptFileError("model card: malformed name")
    if not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{64}", digest):
        raise CorruptFileError("model card: malformed digest of the weights")
    tokenizer, template = data["tokenizer"], data["template"]
    return ModelCard(
        name,
        Config.from_json(data["config"]),
        digest,
        None if tokenizer is None else _tokenizer(tokenizer),
        None if template is None else _template(template),
    )


def _tokenizer(data: Any) -> Tokenizer:
    if not isinstance(data, dict) or set(data) != {"document", "bos_id", "eos_ids"}:
        raise CorruptFileError("model card: malformed tokenizer entry")
    document, bos, eos = data["document"], data["bos_id"], data["eos_ids"]
    ids = [*eos, *([] if bos is None else [bos])] if isinstance(eos, list) and len(eos) <= 64 else [None]
    if not isinstance(document, str) or not all(type(i) is int for i in ids):
        raise CorruptFileError("model card: malformed tokenizer entry")
    return Tokenizer(document, bos_id=bos, eos_ids=eos)


def _template(data: Any) -> ChatTemplate:
    if not isinstance(data, dict) or set(data) != {"source", "variables"}:
        raise CorruptFileError("model card: malformed template entry")
    source, variables = data["source"], data["variables"]
    if not isinstance(source, str) or not isinstance(variables, dict) or not set(variables) <= _VARIABLES:
        raise CorruptFileError("model card: malformed template entry")
    if not all(isinstance(value, str) for value in variables.values()):
        raise CorruptFileError("model card: malformed template entry")
    return ChatTemplate(source, variables)


_VARIABLES = {"bos_token", "eos_token"}
