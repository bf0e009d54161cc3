"""The `clear` engine in float32: the client sends its tokens, the server answers with logits.

It exists to compare with: everything around an engine (parties, handshake, streaming, sampling) runs on it
in seconds, and its tokens are the plaintext model's. Cost of a step: 1 round, 4 bytes a token up, 4 bytes a
logit down. Leakage: everything. The handshake lets a client have it only if it asks for it by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sottovoce.engines.base import DataParty, Engine, EngineOptions, Logits, ModelParty, Progress
from sottovoce.errors import IntegrityError, ProtocolError
from sottovoce.models.config import Config
from sottovoce.models.model import Model
from sottovoce.net import Channel

_Tokens = np.dtype("<u4")
_Logit = np.dtype("<f4")


class ClearEngine(Engine):
    """The server's side: a model and nothing else."""

    def __init__(self, options: EngineOptions, model: Model) -> None:
        self.options = options
        self._model = model

    def prepare(self, progress: Progress | None = None) -> None:
        """Nothing is shared between sessions but the weights."""

    def public(self) -> dict[str, Any]:
        return {"config": self._model.config.to_json()}

    def session(self) -> ClearModelParty:
        return ClearModelParty(self._model)


class ClearModelParty(ModelParty):
    """One session's plaintext cache."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._cache = model.new_cache()

    def setup(self, channel: Channel, progress: Progress | None = None) -> None:
        self._channel = channel

    def prefill(self, public_tokens: Sequence[int], n_private: int) -> None:
        self._run(public_tokens, n_private)

    def decode(self) -> None:
        self._run((), 1)

    def truncate(self, length: int) -> None:
        self._cache.truncate(length)

    def _run(self, public: Sequence[int], count: int) -> None:
        raw = self._channel.recv(count * _Tokens.itemsize)
        private = np.frombuffer(raw, _Tokens).astype(np.int64)
        if private.max() >= self._model.config.vocab_size:
            raise IntegrityError("a token is outside the vocabulary")
        tokens = np.concatenate([np.asarray(public, np.int64), private])
        with self._channel.ledger.operation("forward"):
            logits = self._model.forward(tokens, self._cache, last_only=True)[-1]
        self._channel.send(logits.astype(_Logit))


class ClearDataParty(DataParty):
    """The client's half: sends tokens, receives logits."""

    def __init__(self, options: EngineOptions, public: dict[str, Any]) -> None:
        if set(public) != {"config"}:
            raise ProtocolError("the server's description of the model is malformed")
        self._vocab = Config.from_json(public["config"]).vocab_size

    def setup(self, channel: Channel, progress: Progress | None = None) -> None:
        self._channel = channel

    def prefill(
        self, public_tokens: Sequence[int], private_tokens: Sequence[int], progress: Progress | None = None
    ) -> Logits:
        return self._run(private_tokens)

    def decode(self, token: int, progress: Progress | None = None) -> Logits:
        return self._run([token])

    def truncate(self, length: int) -> None:
        """The server's cache forgets; there is nothing on this side."""

    def _run(self, tokens: Sequence[int]) -> Logits:
        self._channel.send(np.asarray(tokens, _Tokens))
        raw = self._channel.recv(self._vocab * _Logit.itemsize)
        logits = np.frombuffer(raw, _Logit).astype(np.float64)
        if not np.isfinite(logits).all():
            raise IntegrityError("the server sent logits that are not finite")
        return logits
