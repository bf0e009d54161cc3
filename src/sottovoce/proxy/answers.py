"""The objects that answers consist of: whole ones and chunks, for chats and for texts."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping
from typing import Any

from .fields import Asked
from .jobs import Answer

_REASONS = {"cancelled": "stop"}


class Shape:
    """The outer form of one answer."""

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._id = ("chatcmpl-" if asked.chat else "cmpl-") + secrets.token_hex(12)
        self._created = int(time.time())

    def whole(self, answer: Answer) -> dict[str, Any]:
        """The answer in one piece."""
        done = answer.completion
        choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": _reason(done.finish_reason)}
        if self._asked.chat:
            choice["message"] = {"role": "assistant", "content": done.text, "refusal": None}
        else:
            choice["text"] = done.text
        kind = "chat.completion" if self._asked.chat else "text_completion"
        return {**self._head(kind), "choices": [choice], "usage": answer.usage()}

    def role(self) -> bytes:
        """The first event of a chat; nothing for a text."""
        return self._chunk({"role": "assistant", "content": ""}, None) if self._asked.chat else b""

    def piece(self, text: str) -> bytes:
        return self._chunk({"content": text} if self._asked.chat else text, None)

    def end(self, answer: Answer) -> bytes:
        """The events after the last piece."""
        last = self._chunk({} if self._asked.chat else "", _reason(answer.completion.finish_reason))
        usage = b""
        if self._asked.include_usage:
            usage = event({**self._head(self._kind), "choices": [], "usage": answer.usage()})
        return last + usage + DONE

    @property
    def _kind(self) -> str:
        return "chat.completion.chunk" if self._asked.chat else "text_completion"

    def _chunk(self, content: Any, reason: str | None) -> bytes:
        choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": reason}
        choice["delta" if self._asked.chat else "text"] = content
        usage = {"usage": None} if self._asked.include_usage else {}
        return event({**self._head(self._kind), "choices": [choice], **usage})

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._asked.model}


DONE = b"data: [DONE]\n\n"


def event(data: Mapping[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(data, ensure_ascii=False).encode() + b"\n\n"


def comment(text: str) -> bytes:
    """A line that clients skip; it keeps connections from timing out."""
    return b": " + " ".join(text.split()).encode() + b"\n\n"


def _reason(reason: str) -> str:
    return _REASONS.get(reason, reason)
