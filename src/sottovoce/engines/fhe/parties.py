"""The two halves of the fhe engine: the client encrypts tokens and decrypts logits, the server does the rest.

A step is one round: the token's one-hot vector goes up, fresh under the client's key; a byte for every layer
and the encrypted logits come down. Between steps the client may be away. The server keeps keys and values
encrypted. Nothing that was decrypted goes back to the server (IND-CPA-D): the next token travels as a fresh
encryption.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sottovoce.ckks import Ciphertext, Decryptor, Encoder, Encryptor, KeyGenerator, SecretKey, load_fresh
from sottovoce.ckks.bootstrap import Bootstrapper, BootstrapSpec
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
from sottovoce.engines.fhe.ciphertexts import CkksSlots, scales
from sottovoce.engines.fhe.costs import CostModel
from sottovoce.engines.fhe.description import PARAMETERS, Description
from sottovoce.engines.fhe.flow import PlannedFlow
from sottovoce.engines.fhe.functions import Degrees, Functions
from sottovoce.engines.fhe.kept import kept_functions
from sottovoce.engines.fhe.keyring import forget_others, receive_keys, send_keys
from sottovoce.engines.fhe.placement import (
    EMBED_LEVELS,
    Placement,
    place_bootstraps,
    record,
    rotation_levels,
)
from sottovoce.engines.fhe.program import LayerCache, Program
from sottovoce.engines.fhe.shape import Shape, slots_for
from sottovoce.engines.fhe.state import find_piece, load_cache, public_tokens, save_cache
from sottovoce.engines.fhe.weights import SlotWeights, slot_weights
from sottovoce.errors import CorruptFileError, IntegrityError, UnsupportedModelError, UsageError
from sottovoce.net import Channel

if TYPE_CHECKING:
    from sottovoce.models import Model

_KEPT_CLIENTS = 2  # whose keys stay on the server's disk: gigabytes each
_MAX_CIPHERTEXT = 1 << 27
_LEAST_TOKENS = 8  # of a context that is worth a session
_KEPT_STATES = 4  # earlier caches that a session can go back to; 80 MB each for stories260K
_ONLY_RECENT = (
    "the fhe engine keeps the keys of many tokens in one ciphertext; it can forget the last few tokens, or "
    "all private ones, and nothing between"
)


class FheEngine(Engine):
    """A model made ready for slots: ranges, placement of refreshes, plaintexts, the maps of a refresh."""

    def __init__(self, options: EngineOptions, model: Model, parameters: str = "engine16") -> None:
        self.options, self.model, self.name = options, model, parameters
        self.directory: Path | None = None
        self.description: Description | None = None
        self.shape = _shape(model, PARAMETERS[parameters].slots // 8)

    def prepare(self, progress: Progress | None = None) -> None:
        """Calibrate and encode: seconds, and about a gigabyte for the maps of a refresh at N = 2^16."""
        report = progress if progress is not None else (lambda done, total, what: None)
        parameters, degrees = PARAMETERS[self.name], Degrees()
        report(0, 3, "measuring ranges")
        self.functions: Functions = kept_functions(self.model, self.shape.tokens)
        report(1, 3, "placing refreshes")
        segments = record(self.shape, degrees, self.shape.tokens - 1)
        self.placement: Placement = place_bootstraps(segments, parameters.working_top, CostModel(3.0))
        self.weights: SlotWeights = slot_weights(self.model.weights, self.shape, self.functions)
        report(2, 3, "encoding the maps of a refresh")
        self.bootstrapper = Bootstrapper(parameters, BootstrapSpec(self.shape.n))
        steps = rotation_levels(self.shape, degrees, self.placement, parameters.working_top)
        for step, level in self.bootstrapper.steps.items():
            steps[step] = max(steps.get(step, 0), level)
        self.description = Description(self.name, self.shape, self.placement.entry + EMBED_LEVELS, steps)
        report(3, 3, "ready")

    def keep_in(self, directory: Path) -> None:
        """Keep the evaluation keys of the last clients: their next session need not upload them again."""
        self.directory = directory / "fhe-keys"

    def public(self) -> dict[str, Any]:
        assert self.description is not None, "prepare() comes first"
        return self.description.to_json()

    @property
    def context(self) -> int:
        return self.shape.tokens

    def session(self) -> FheModelParty:
        assert self.description is not None, "prepare() comes first"
        return FheModelParty(self)


def _shape(model: Model, most: int) -> Shape:
    config = model.config
    if config.norm != "rms" or config.rope is None or not config.gated:
        raise UnsupportedModelError(
            f"the fhe engine runs models of the Llama family, not {config.model_type}; "
            "`sottovoce estimate MODEL --engine fhe` says what one would cost"
        )
    # Public tokens share the one group of keys with private ones, so a context ends with the group.
    n = slots_for(config, most)
    shape = Shape(config, n, 1)
    tokens = min(shape.heads.t, config.context_length)
    if tokens < _LEAST_TOKENS:
        raise UnsupportedModelError(
            f"the fhe engine keeps keys of {n} slots (width 64 and a context of 64 tokens, for example); of "
            f"width {config.width} that is {tokens} tokens. `sottovoce estimate MODEL --engine fhe` says "
            "what this model would cost"
        )
    return Shape(config, n, tokens)


class FheModelParty(ModelParty):
    """The server's half of a session: sees evaluation keys and ciphertexts under the client's key."""

    def __init__(self, engine: FheEngine) -> None:
        self.engine = engine
        self._public: list[int] = []
        self._history: dict[int, list[LayerCache[Ciphertext]]] = {}

    def setup(self, channel: Channel, progress: Progress | None = None) -> None:
        engine, self._channel = self.engine, channel
        assert engine.description is not None
        with channel.ledger.operation("keys"):
            try:
                evaluator = receive_keys(channel, engine.description, engine.directory)
            finally:  # also after uploads that broke off: gigabytes under any name a client likes
                if engine.directory is not None and engine.directory.is_dir():
                    forget_others(engine.directory, _KEPT_CLIENTS)
        self._key_id = evaluator.key_id
        self._slots = CkksSlots(evaluator, engine.shape.n, engine.bootstrapper, channel.ledger.operation)
        self._program = self._fresh()

    def prefill(self, public_tokens: Sequence[int], n_private: int) -> None:
        if public_tokens:
            self._public = list(public_tokens)
            self._append_public()
        if not self._program.length:
            raise UsageError("the fhe engine takes sessions whose first token is public; it is a constant")
        for i in range(n_private):
            self._step(head=i == n_private - 1)

    def decode(self) -> None:
        self._step(head=True)

    def verify(self, n: int) -> None:
        for _ in range(n):
            self._step(head=True)

    def truncate(self, length: int) -> None:
        """A few tokens back, or to the public tokens: then the cache starts again."""
        if length == self._program.length:
            return
        if length in self._history:
            self._go_back(length)
        elif length <= len(self._public):
            self._public = self._public[:length]
            self._program = self._fresh()
            self._append_public()
            self._history.clear()
        else:
            raise UsageError(_ONLY_RECENT)

    @property
    def keeps(self) -> bool:
        return True

    def changed(self, first: int) -> dict[str, Piece]:
        return save_cache(self._program, self._public) if self._program.caches[0].keys else {}

    def restore(self, pieces: Pieces, length: int) -> None:
        piece = find_piece(pieces, length)
        self._public = public_tokens(piece)
        if not len(self._public) < length <= self.engine.shape.tokens:
            raise CorruptFileError("the saved session's cache is malformed")
        program = self._fresh()
        self._program = program
        self._append_public()
        for tokens in (length - 1, length):  # going on may begin one token back
            try:
                saved = find_piece(pieces, tokens)
            except CorruptFileError:
                continue
            for cache in program.caches:
                cache.keys, cache.values = [], []
            load_cache(program, saved, self._slots.evaluator.parameters, self._key_id)
            self._remember()

    def _remember(self) -> None:
        """The state after a token. Ciphertexts are never changed in place, so it is a list of references."""
        program = self._program
        self._history[program.length] = [
            LayerCache(list(cache.keys), list(cache.values), cache.public) for cache in program.caches
        ]
        for length in sorted(self._history)[:-_KEPT_STATES]:
            del self._history[length]

    def _go_back(self, length: int) -> None:
        self._program.length = length
        self._program.caches = [
            LayerCache(list(cache.keys), list(cache.values), cache.public) for cache in self._history[length]
        ]
        self._history = {at: state for at, state in self._history.items() if at <= length}

    def _fresh(self) -> Program[Ciphertext]:
        engine = self.engine
        flow = PlannedFlow[Ciphertext](engine.placement.decisions)
        return Program(self._slots, engine.shape, engine.weights, engine.functions, flow)

    def _append_public(self) -> None:
        if not self._public:
            return
        model, layers = self.engine.model, range(self.engine.shape.config.layers)
        cache = model.new_cache()
        model.hidden(self._public, cache)
        self._program.append_public([cache.k(i) for i in layers], [cache.v(i) for i in layers])

    def _step(self, head: bool) -> None:
        channel, parameters = self._channel, self._slots.evaluator.parameters
        one_hot = []
        for _ in range(self.engine.shape.vocabulary_blocks):
            x = load_fresh(parameters, channel.recv_message(_MAX_CIPHERTEXT))
            self._check(x)
            one_hot.append(x)
        for x in self._program.step(one_hot, head, lambda layer: channel.send(b"\x01")):
            channel.send(x.to_bytes())
        self._remember()

    def _check(self, x: Ciphertext) -> None:
        assert self.engine.description is not None
        level = self.engine.description.entry
        right = x.level == level and x.slots == self._slots.n and x.key_id == self._key_id
        if not right or abs(x.scale / scales(x.parameters)[level] - 1) > 2.0**-40:
            raise IntegrityError("a token's ciphertext is of another level, scale or key than was agreed")


class FheDataParty(DataParty):
    """The client's half: holds the secret key. The server learns how many tokens there are."""

    def __init__(self, options: EngineOptions, public: dict[str, Any]) -> None:
        self.description = Description.from_json(public)

    def setup(self, channel: Channel, progress: Progress | None = None) -> None:
        self._channel, parameters = channel, self.description.parameters
        secret = None if self.secret is None else SecretKey.from_bytes(parameters, self.secret)
        keys = KeyGenerator(parameters, secret)
        self._secret = keys.secret_key
        with channel.ledger.operation("keys"):
            send_keys(channel, self.description, keys, progress)
        self._encryptor, self._encoder = Encryptor(parameters, self._secret), Encoder(parameters)
        self._decryptor = Decryptor(parameters, self._secret)

    def secret_key(self) -> bytes:
        return self._secret.to_bytes()

    @property
    def keeps(self) -> bool:
        return True

    def changed(self, first: int) -> dict[str, Piece]:
        """Nothing: the cache is the server's, encrypted."""
        return {}

    def restore(self, pieces: Pieces, length: int) -> None:
        """Nothing: the secret key is all."""

    def prefill(
        self, public_tokens: Sequence[int], private_tokens: Sequence[int], progress: Progress | None = None
    ) -> Logits:
        for token in private_tokens[:-1]:
            self._send(token)
            self._wait(progress)
        return self.decode(private_tokens[-1], progress)

    def decode(self, token: int, progress: Progress | None = None) -> Logits:
        self._send(token)
        self._wait(progress)
        return self._logits()

    def verify(self, tokens: Sequence[int], progress: Progress | None = None) -> Logits:
        return np.stack([self.decode(token, progress) for token in tokens])

    def truncate(self, length: int) -> None:
        """The server's cache forgets; there is nothing on this side."""

    def _send(self, token: int) -> None:
        shape, level = self.description.shape, self.description.entry
        with self._channel.ledger.operation("encrypt"):
            for block in range(shape.vocabulary_blocks):
                one_hot = np.zeros(shape.vocabulary)
                if token // shape.vocabulary == block:
                    one_hot[token % shape.vocabulary] = 1.0
                scale = scales(self.description.parameters)[level]
                plaintext = self._encoder.encode(shape.embed.place(one_hot), level, scale)
                self._channel.send(self._encryptor.encrypt_bytes(plaintext))

    def _wait(self, progress: Progress | None) -> None:
        layers = self.description.shape.config.layers
        for layer in range(layers):
            self._channel.recv(1)
            if progress is not None:
                progress(layer, layers, "layers")

    def _logits(self) -> Logits:
        shape, found = self.description.shape, []
        for _ in range(shape.vocabulary_blocks):
            raw = self._channel.recv_message(_MAX_CIPHERTEXT)
            x = Ciphertext.from_bytes(self.description.parameters, raw)
            with self._channel.ledger.operation("decrypt"):
                found.append(shape.head.read(self._decryptor.decrypt_slots(x, shape.n)).real)
        logits: Logits = np.concatenate(found)[: shape.config.vocab_size]
        if not np.isfinite(logits).all():
            raise IntegrityError("the server sent logits that are not finite")
        return logits
