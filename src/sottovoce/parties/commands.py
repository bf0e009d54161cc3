"""The client's commands: one before each step of the engines."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from ..errors import IntegrityError

MAX_COMMAND = 1 << 20
MAX_VERIFY = 64  # tokens of one verification: bounds the server's memory for their logits
_COMMAND = struct.Struct("<BII")


class Verb(IntEnum):
    PREFILL = 1
    DECODE = 2
    TRUNCATE = 3
    END = 4
    VERIFY = 5
    PREPARE = 6
    KEEP = 7
    COLLECT = 8


@dataclass(frozen=True)
class Command:
    """One step the client asks for: n is the number of private tokens (PREFILL, VERIFY), the new length
    (TRUNCATE), or how many tokens the pool is to be filled for (PREPARE). KEEP: save the session from now on.
    COLLECT: the last step's answer once more.
    """

    verb: Verb
    n: int = 0
    public_tokens: Sequence[int] = ()

    def pack(self) -> bytes:
        head = _COMMAND.pack(self.verb, self.n, len(self.public_tokens))
        return head + struct.pack(f"<{len(self.public_tokens)}I", *self.public_tokens)

    @classmethod
    def parse(cls, raw: bytes | memoryview) -> "Command":
        """IntegrityError unless `raw` is exactly one well-formed command; its values are not checked here."""
        raw = bytes(raw)
        try:
            verb, n, count = _COMMAND.unpack_from(raw)
            if len(raw) != _COMMAND.size + 4 * count or (count and verb != Verb.PREFILL):
                raise ValueError
            return cls(Verb(verb), n, struct.unpack_from(f"<{count}I", raw, _COMMAND.size))
        except (struct.error, ValueError):
            raise IntegrityError("the client sent a malformed command; the session ends") from None
