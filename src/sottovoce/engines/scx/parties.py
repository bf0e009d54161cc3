"""The engine's two halves behind the interfaces that every engine has, for both profiles.

Setup: the server sends the user's tensors (`bundle`), unless the process has them. A prefill of an empty
session follows the profile's own protocol; later tokens go by the protocol of generation, in pieces that
bound the memory which scores take. Cost and leakage stand with the profiles (`user`, `masked`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

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
from sottovoce.engines.clear.parties import ClearDataParty
from sottovoce.engines.scx import bundle, saving
from sottovoce.engines.scx.arrays import Array, Arrays, arrays
from sottovoce.engines.scx.cloud import Observe, PaperCloud, nobody
from sottovoce.engines.scx.masked import MaskedCloud, MaskedUser, without_biases
from sottovoce.engines.scx.ops import layer_of
from sottovoce.engines.scx.profile import check_statement, profile_of
from sottovoce.engines.scx.user import PaperUser
from sottovoce.errors import ProtocolError, UnsupportedModelError
from sottovoce.models.config import Config
from sottovoce.models.model import Model
from sottovoce.net import Channel

_PIECE = 64  # tokens of one step behind a prefill
_PREPARED = 64  # tokens of one step of a preparation


class ScxEngine(Engine):
    """A model served by profile `paper` or `hardened`; `options.profile` names it."""

    def __init__(self, options: EngineOptions, model: Model, library: Arrays | None = None) -> None:
        if model.config.layers < 2:
            raise UnsupportedModelError(
                "engine scx needs a model of two blocks or more; use the engine hybrid"
            )
        self.options, self.model = options, model
        self.profile = profile_of(options.profile)
        self.arrays = library or arrays()

    def prepare(self, progress: Progress | None = None) -> None:
        """Bring the weights where they are multiplied: for `hardened` in float64, twice the memory."""
        dtype = np.float64 if self.profile.name == "hardened" else np.float32
        self.layers = [layer_of(block, self.arrays, dtype) for block in self.model.weights.blocks]
        if self.profile.name == "hardened":
            self.layers = [without_biases(layer) for layer in self.layers]
        names = bundle.shapes(self.model.config, self.profile)
        self._weights = bundle.digest(dict(self.model.weights.named()), names)

    def public(self) -> dict[str, Any]:
        return {
            "config": self.model.config.to_json(),
            "profile": self.profile.name,
            "privacy": self.profile.privacy.to_json(),
            "weights": self._weights,
            "worker": False,
        }

    def session(self, observe: Observe = nobody) -> ScxModelParty:
        """observe: sees everything the server computes with; the attack lab's place at the table."""
        c = self.model.config
        if self.profile.name == "hardened":
            return ScxModelParty(self, MaskedCloud(c, self.layers, self.arrays, observe))
        return ScxModelParty(self, PaperCloud(c, self.profile, self.layers, self.arrays, observe))


class ScxModelParty(ModelParty):
    """The server's half of one session."""

    def __init__(self, engine: ScxEngine, cloud: PaperCloud | MaskedCloud) -> None:
        self._engine, self.cloud = engine, cloud

    def setup(self, channel: Channel, progress: Progress | None = None) -> None:
        self.cloud.open(channel)
        model, profile = self._engine.model, self._engine.profile
        with channel.ledger.operation("weights"):
            bundle.send(channel, model.weights, bundle.shapes(model.config, profile))

    def prefill(self, public_tokens: Sequence[int], n_private: int) -> None:
        tokens = len(public_tokens) + n_private
        if self.cloud.length:
            self._extend(tokens)
        else:
            self.cloud.prefill(tokens)

    def decode(self) -> None:
        self.cloud.extend(1)

    def verify(self, n: int) -> None:
        self._extend(n)

    def truncate(self, length: int) -> None:
        self.cloud.truncate(length)

    def prepare_step(self, tokens: int, progress: Progress | None = None) -> bool:
        """Nothing: noise and masks are the user's affair."""
        return False

    @property
    def keeps(self) -> bool:
        return True

    def changed(self, first: int) -> dict[str, Piece]:
        return saving.changed(self.cloud, first)

    def restore(self, pieces: Pieces, length: int) -> None:
        saving.restore(self.cloud, self._engine.arrays, pieces, length)

    def _extend(self, tokens: int) -> None:
        for piece in _pieces(tokens):
            self.cloud.extend(piece)


class ScxDataParty(DataParty):
    """The user's half of one session."""

    def __init__(self, options: EngineOptions, public: dict[str, Any], library: Arrays | None = None) -> None:
        config, name = check_public(options, public)
        self.config, self.profile, self._weights = config, profile_of(name), public["weights"]
        self.arrays = library or arrays()

    def setup(self, channel: Channel, progress: Progress | None = None) -> None:
        with channel.ledger.operation("weights"):
            names = bundle.shapes(self.config, self.profile)
            own = bundle.receive(channel, names, self._weights, self.arrays)
            if self.profile.name == "hardened":
                self.user: PaperUser | MaskedUser = MaskedUser(self.config, own, self.arrays)
            else:
                self.user = PaperUser(self.config, self.profile, own, self.arrays)
        self.user.open(channel)

    def prefill(
        self, public_tokens: Sequence[int], private_tokens: Sequence[int], progress: Progress | None = None
    ) -> Logits:
        """Public tokens travel like private ones: the server knows them anyway, from the command."""
        tokens = [*public_tokens, *private_tokens]
        if self.user.length:
            last: Logits = self._extend(tokens, True)[-1]
            return last
        return self._logits(self.user.prefill(tokens))[-1]  # type: ignore[no-any-return]

    def decode(self, token: int, progress: Progress | None = None) -> Logits:
        return self._extend([token], True)[-1]  # type: ignore[no-any-return]

    def verify(self, tokens: Sequence[int], progress: Progress | None = None) -> Logits:
        return self._extend(tokens, False)

    def truncate(self, length: int) -> None:
        self.user.truncate(length)

    def prepare_step(self, tokens: int, progress: Progress | None = None) -> bool:
        """Noise or masks for the next tokens, with their images. Kept in memory: 2 MB a token of
        SmolLM2-135M under `hardened`."""
        if isinstance(self.user, PaperUser):
            self.user.prepare(tokens)
            return False
        reached = min(tokens, self.user.ready + _PREPARED)
        self.user.prepare(reached)
        if progress is not None:
            progress(reached, tokens, "masks")
        return reached < tokens

    @property
    def keeps(self) -> bool:
        return True

    def changed(self, first: int) -> dict[str, Piece]:
        """Secret: with it the server's half can be read."""
        return saving.changed(self.user, first)

    def restore(self, pieces: Pieces, length: int) -> None:
        saving.restore(self.user, self.arrays, pieces, length)

    def _extend(self, tokens: Sequence[int], last_only: bool) -> Logits:
        out, done = [], 0
        for piece in _pieces(len(tokens)):
            out.append(self._logits(self.user.extend(tokens[done : done + piece], last_only)))
            done += piece
        return np.concatenate(out)

    def _logits(self, x: Array) -> Logits:
        return self.arrays.get(x).astype(np.float64)


def data_party(options: EngineOptions, public: dict[str, Any]) -> DataParty:
    """The client's half: the user's side itself, or a connection to a worker that is the user's side."""
    config, _ = check_public(options, public)
    if public["worker"]:
        return WorkerDataParty(options, {"config": config.to_json()})
    return ScxDataParty(options, public)


class WorkerDataParty(ClearDataParty):
    """A user of a worker: sends tokens, receives logits. The worker keeps no sessions."""

    @property
    def keeps(self) -> bool:
        return False


def check_public(options: EngineOptions, public: dict[str, Any]) -> tuple[Config, str]:
    """The server's description, checked: the model, and the profile that both agreed to."""
    kinds = {"config": dict, "profile": str, "privacy": dict, "weights": str, "worker": bool}
    if set(public) != set(kinds) or not all(isinstance(public[key], kind) for key, kind in kinds.items()):
        raise ProtocolError("the server's description of the model is malformed")
    if public["profile"] != options.profile:
        raise ProtocolError("the server describes another profile than it offers")
    check_statement(options.profile, public["privacy"])
    return Config.from_json(public["config"]), options.profile


def _pieces(tokens: int) -> list[int]:
    return [min(_PIECE, tokens - i) for i in range(0, tokens, _PIECE)]
