"""Model cards that a client has seen, kept so that a tokenizer is transferred once."""

import re
from pathlib import Path

from ..errors import ProtocolError, SottovoceError
from ..models.card import ModelCard
from ..net.tls import make_private_directory, write_private_file


class CardCache:
    """Cards seen before, by digest, so that a tokenizer is transferred once. The files are checked on every
    load.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def load(self, digest: str) -> ModelCard | None:
        if not re.fullmatch("[0-9a-f]{64}", digest):
            raise ProtocolError("the server's handshake is malformed")
        try:
            card = ModelCard.from_bytes(self._path(digest).read_bytes())
        except (OSError, SottovoceError):
            return None
        return card if card.digest == digest else None

    def store(self, card: ModelCard) -> None:
        """Best effort: a full disk costs the next transfer, not this session."""
        if self._path(card.digest).exists():
            return
        try:
            make_private_directory(self._directory)
            write_private_file(self._path(card.digest), card.to_bytes())
        except OSError:
            pass

    def _path(self, digest: str) -> Path:
        return self._directory / f"{digest}.card"
