"""The user's half as a small process of its own, beside the server or anywhere: the paper's trusted worker.

To its users a worker looks like a server that reads tokens and answers with logits; to the server of the
model it is a client. Who connects to a worker trusts it with everything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from sottovoce.engines.base import Engine, EngineOptions, Logits, ModelParty, Progress
from sottovoce.engines.scx import wire
from sottovoce.errors import IntegrityError
from sottovoce.models.config import Config
from sottovoce.net import Channel


class Session(Protocol):
    """What a worker needs of its own session with the server; `parties.Client` is one."""

    def prefill(self, public_tokens: Sequence[int], private_tokens: Sequence[int]) -> Logits: ...
    def decode(self, token: int) -> Logits: ...
    def verify(self, tokens: Sequence[int]) -> Logits: ...
    def truncate(self, length: int) -> None: ...
    def prepare_step(self, tokens: int) -> bool: ...
    def close(self) -> None: ...


class WorkerEngine(Engine):
    """connect: opens a session with the server of the model, set up. public: what that server said of it."""

    def __init__(
        self, options: EngineOptions, public: dict[str, Any], connect: Callable[[], Session]
    ) -> None:
        self.options, self._public, self._connect = options, public, connect

    def prepare(self, progress: Progress | None = None) -> None:
        """Nothing: the weights come with each session."""

    def public(self) -> dict[str, Any]:
        return {**self._public, "worker": True}

    def session(self) -> RelayParty:
        return RelayParty(self._connect, Config.from_json(self._public["config"]))


class RelayParty(ModelParty):
    """One user's session at the worker: tokens in, logits out, as with engine `clear`."""

    def __init__(self, connect: Callable[[], Session], config: Config) -> None:
        self._session = connect()
        self._vocab = config.vocab_size

    def setup(self, channel: Channel, progress: Progress | None = None) -> None:
        self._channel = channel

    def prefill(self, public_tokens: Sequence[int], n_private: int) -> None:
        private = self._tokens(n_private)
        self._answer(self._session.prefill(public_tokens, private))

    def decode(self) -> None:
        (token,) = self._tokens(1)
        self._answer(self._session.decode(token))

    def verify(self, n: int) -> None:
        tokens = self._tokens(n)
        self._answer(self._session.verify(tokens))

    def truncate(self, length: int) -> None:
        self._session.truncate(length)

    def prepare_step(self, tokens: int, progress: Progress | None = None) -> bool:
        return self._session.prepare_step(tokens)

    def close(self) -> None:
        self._session.close()

    def _tokens(self, count: int) -> list[int]:
        tokens = np.frombuffer(self._channel.recv(count * wire.INDEX.itemsize), wire.INDEX)
        if tokens.max() >= self._vocab:
            raise IntegrityError("a token is outside the vocabulary")
        return [int(token) for token in tokens]

    def _answer(self, logits: Logits) -> None:
        self._channel.send(logits.astype(wire.SINGLE))
