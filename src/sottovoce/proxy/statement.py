"""What the proxy says about its model without asking the server: kept on disk, so that it can be said while
the server is down."""

from __future__ import annotations

import json
import re
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..engines.base import EngineOptions
from ..engines.explain import engine_line, what_the_server_sees, who_learns_what
from ..net.tls import make_private_directory, write_private_file
from ..parties import Welcome

_LONGEST = 200


@dataclass(frozen=True)
class Statement:
    """A model as its server described it at the last connection. Nothing here is secret."""

    name: str
    commitment: str
    card: str
    context_length: int
    options: EngineOptions
    created: int

    @classmethod
    def of(cls, welcome: Welcome) -> Statement:
        card = welcome.card
        return cls(
            card.name,
            card.model_digest,
            card.digest,
            welcome.context_length,
            welcome.options,
            int(time.time()),
        )

    def privacy(self) -> dict[str, Any]:
        """Who learns what, in words, for programs that show it to people."""
        rows = who_learns_what(self.options, 0, 0, 0)
        return {
            "protection": engine_line(self.options),
            "server": what_the_server_sees(self.options),
            "learns": [
                {"what": re.sub(r" \(0 tokens\)", "", what), "you": you, "server": server}
                for what, you, server in rows
            ],
        }

    def model_entry(self, server: str, connected: bool) -> dict[str, Any]:
        """An entry of /v1/models."""
        return {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "sottovoce",
            "max_model_len": self.context_length,
            "sottovoce": {
                "server": server,
                "connected": connected,
                "commitment": self.commitment,
                "engine": self.options.engine,
                "kv": self.options.kv,
                "privacy": self.privacy(),
            },
        }


class StatementFile:
    """The last statement of one server, in a file that is checked when it is read."""

    def __init__(self, directory: Path, server: str) -> None:
        self._path = directory / (re.sub(r"[^A-Za-z0-9.]+", "_", server) + ".json")

    def load(self) -> Statement | None:
        """None if there is none, or none that can be used."""
        try:
            fields = json.loads(self._path.read_bytes()[: 1 << 16])
            statement = Statement(**{**fields, "options": EngineOptions(**fields["options"])})
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return None
        return statement if _sound(statement) else None

    def store(self, statement: Statement) -> None:
        """Best effort: without it /v1/models needs the server after the next start."""
        try:
            make_private_directory(self._path.parent)
            write_private_file(self._path, json.dumps(asdict(statement)).encode())
        except OSError:
            pass


def _sound(statement: Statement) -> bool:
    """Whether a statement read from a file is made of what it should be."""
    texts = [statement.name, statement.commitment, statement.card, *asdict(statement.options).values()]
    numbers = (statement.context_length, statement.created)
    return all(isinstance(t, str) and 0 < len(t) <= _LONGEST and t.isprintable() for t in texts) and all(
        type(n) is int and n >= 0 for n in numbers
    )
