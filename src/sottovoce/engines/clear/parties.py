"""The `clear` engine: the client sends its tokens, the server answers with logits.

It exists to compare with: everything around an engine (parties, handshake, streaming, sampling) runs on it
in seconds, and its tokens are the plaintext model's. Cost of a step: 1 round, 4 bytes a token up, 4 bytes a
logit down. With fixed arithmetic it computes what the hybrid engine would, share for share, but in one
process. Leakage: everything. The handshake lets a client have it only if it asks for it by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sottovoce.engines.base import (
    DataParty,
    Engine,
    EngineOptions,
    Logits,
    ModelParty,
    Piece,
    Pieces,
    Progress,
)
from sottovoce.engines.clear.fixed import FixedExecutor
from sottovoce.errors import IntegrityError, ProtocolError
from sottovoce.kvcache.saved import joined_rows, rows_name
from sottovoce.models.config import Config
from sottovoce.models.fixed import FixedModel
from sottovoce.models.model import Model
from sottovoce.models.quantize import quantize
from sottovoce.net import Channel

Rows = npt.NDArray[Any]

_Tokens = np.dtype("<u4")
_Logit = np.dtype("<f4")


class ClearEngine(Engine):
    """A model in float32, or in the hybrid engine's fixed-point arithmetic."""

    def __init__(self, options: EngineOptions, model: Model) -> None:
        self.options = options
        self._model = model
        self._fixed: FixedModel | None = None

    def prepare(self, progress: Progress | None = None) -> None:
        """Quantise, for fixed arithmetic; nothing for floats."""
        if self.options.arithmetic == "fixed":
            self._fixed = quantize(self._model)

    def public(self) -> dict[str, Any]:
        return {"config": self._model.config.to_json()}

    def session(self) -> ClearModelParty:
        if self.options.arithmetic == "fixed":
            assert self._fixed is not None, "prepare() comes first"
            return ClearModelParty(_FixedRun(FixedExecutor(self._model, self._fixed)), self._model.config)
        return ClearModelParty(_FloatRun(self._model), self._model.config)


class _FloatRun:
    """The plaintext reference with its cache."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._cache = model.new_cache()

    def forward(self, public: Sequence[int], private: Sequence[int], rows: int) -> Logits:
        logits = self._model.forward([*public, *private], self._cache, last_only=rows == 1)
        return np.asarray(logits[-rows:], np.float64)

    def truncate(self, length: int) -> None:
        self._cache.truncate(length)

    def rows(self, first: int) -> dict[str, Rows]:
        layers = range(self._model.config.layers)
        cache = self._cache
        return {
            "k": np.stack([cache.k(layer)[first:] for layer in layers]),
            "v": np.stack([cache.v(layer)[first:] for layer in layers]),
        }

    def adopt(self, rows: dict[str, Rows]) -> None:
        for layer, (k, v) in enumerate(zip(rows["k"], rows["v"], strict=True)):
            self._cache.append(layer, k, v)
        self._cache.advance(rows["k"].shape[1])


class _FixedRun:
    """The fixed-point simulation."""

    def __init__(self, executor: FixedExecutor) -> None:
        self._executor = executor

    def forward(self, public: Sequence[int], private: Sequence[int], rows: int) -> Logits:
        if public:
            self._executor.prefill_public(public)
        return np.asarray(self._executor.forward(private)[-rows:], np.float64)

    def truncate(self, length: int) -> None:
        self._executor.truncate(length)

    def rows(self, first: int) -> dict[str, Rows]:
        caches = self._executor.caches
        return {
            "k": np.stack([cache.k[first:] for cache in caches]),
            "v": np.stack([cache.v[first:] for cache in caches]),
        }

    def adopt(self, rows: dict[str, Rows]) -> None:
        for cache, k, v in zip(self._executor.caches, rows["k"], rows["v"], strict=True):
            cache.append_public(k, v)
        self._executor.length = rows["k"].shape[1]


class ClearModelParty(ModelParty):
    """One session's plaintext cache."""

    def __init__(self, run: _FloatRun | _FixedRun, config: Config) -> None:
        self._run = run
        self._vocab = config.vocab_size

    def setup(self, channel: Channel, progress: Progress | None = None) -> None:
        self._channel = channel

    def prefill(self, public_tokens: Sequence[int], n_private: int) -> None:
        self._answer(public_tokens, n_private)

    def decode(self) -> None:
        self._answer((), 1)

    def verify(self, n: int) -> None:
        self._answer((), n, rows=n)

    def truncate(self, length: int) -> None:
        self._run.truncate(length)

    @property
    def keeps(self) -> bool:
        return True

    def changed(self, first: int) -> dict[str, Piece]:
        return {rows_name(first): self._run.rows(first)}

    def restore(self, pieces: Pieces, length: int) -> None:
        self._run.adopt(joined_rows(pieces, length, self._run.rows(0)))

    def _answer(self, public: Sequence[int], count: int, rows: int = 1) -> None:
        private = np.frombuffer(self._channel.recv(count * _Tokens.itemsize), _Tokens)
        if private.max() >= self._vocab:
            raise IntegrityError("a token is outside the vocabulary")
        with self._channel.ledger.operation("forward"):
            logits = self._run.forward(public, [int(token) for token in private], rows)
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
        last: Logits = self._run(private_tokens)[0]
        return last

    def decode(self, token: int, progress: Progress | None = None) -> Logits:
        last: Logits = self._run([token])[0]
        return last

    def verify(self, tokens: Sequence[int], progress: Progress | None = None) -> Logits:
        return self._run(tokens, len(tokens))

    def truncate(self, length: int) -> None:
        """The server's cache forgets; there is nothing on this side."""

    @property
    def keeps(self) -> bool:
        return True

    def changed(self, first: int) -> dict[str, Piece]:
        """Nothing: the server has it all."""
        return {}

    def restore(self, pieces: Pieces, length: int) -> None:
        """The server's cache is restored; there is nothing on this side."""

    def _run(self, tokens: Sequence[int], rows: int = 1) -> Logits:
        self._channel.send(np.asarray(tokens, _Tokens))
        raw = self._channel.recv(rows * self._vocab * _Logit.itemsize)
        logits = np.frombuffer(raw, _Logit).astype(np.float64).reshape(rows, self._vocab)
        if not np.isfinite(logits).all():
            raise IntegrityError("the server sent logits that are not finite")
        return logits
