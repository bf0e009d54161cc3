"""A token that programs and the chat page must show: for machines that other people have accounts on."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from pathlib import Path

from ..errors import UsageError
from ..net.tls import write_private_file

_SOUND = re.compile(r"[!-~]{16,200}")  # it travels in a header


class Token:
    """What `Authorization: Bearer …` is compared with, in the same time for every answer."""

    def __init__(self, text: str) -> None:
        """UsageError for one that is too short to withstand guessing, or cannot be sent."""
        if not _SOUND.fullmatch(text):
            raise UsageError("a proxy's token has 16 to 200 printable characters without spaces")
        self._digest = _digest(text)

    @classmethod
    def of_file(cls, path: Path) -> Token:
        """The token in a file; where there is none, one of 256 random bits is written (mode 0600).

        UsageError if the file cannot be read or made.
        """
        try:
            if not path.exists():
                write_private_file(path, secrets.token_urlsafe(32).encode() + b"\n")
            return cls(path.read_text().strip())
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"the token in {path} cannot be read ({error}); check --token-file") from None

    def opens(self, authorization: str | None) -> bool:
        """Whether a request's Authorization header carries this token."""
        kind, _, text = (authorization or "").partition(" ")
        return hmac.compare_digest(self._digest, _digest(text.strip())) and kind.lower() == "bearer"


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()
