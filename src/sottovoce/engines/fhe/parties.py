"""The server's half of the fhe engine, which does everything but encrypting tokens and decrypting logits.

A step is one round: the one-hot vectors of its tokens go up, fresh under the client's key; a byte for every
layer and the encrypted logits come down. The client may be away between steps, and where the session is saved
also during one: the server finishes it and keeps the answer. The server keeps keys and values encrypted.
Nothing that was decrypted goes back to it (IND-CPA-D): the next token travels as a fresh encryption.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sottovoce.ckks import Ciphertext, fresh_bytes, load_fresh
from sottovoce.ckks.bootstrap import Bootstrapper, BootstrapSpec
from sottovoce.engines.base import (
    Engine,
    EngineOptions,
    ModelParty,
    Piece,
    Pieces,
    Progress,
)
from sottovoce.engines.fhe.answer import Answer, digest_of, receive_sizes, send_answer
from sottovoce.engines.fhe.chunk import ChunkProgram
from sottovoce.engines.fhe.chunk_plaintexts import one_hot_ciphertexts
from sottovoce.engines.fhe.chunk_plan import plan_chunks
from sottovoce.engines.fhe.ciphertexts import CkksSlots, scales
from sottovoce.engines.fhe.costs import CostModel
from sottovoce.engines.fhe.description import PARAMETERS, Description, largest_logit
from sottovoce.engines.fhe.flow import PlannedFlow
from sottovoce.engines.fhe.functions import Functions, degrees_for
from sottovoce.engines.fhe.kept import functions_digest, kept_functions
from sottovoce.engines.fhe.keyring import forget_others, receive_keys
from sottovoce.engines.fhe.memory import Uploads, available_memory, check_engine
from sottovoce.engines.fhe.placement import (
    EMBED_LEVELS,
    Placement,
    place_bootstraps,
    record,
    rotation_levels,
)
from sottovoce.engines.fhe.program import LayerCache, Program
from sottovoce.engines.fhe.returned import Returned
from sottovoce.engines.fhe.shape import Shape, session_shape, slots_for
from sottovoce.engines.fhe.state import find_piece, load_cache, public_tokens, save_cache
from sottovoce.engines.fhe.weights import SlotWeights, slot_weights
from sottovoce.errors import (
    CorruptFileError,
    IntegrityError,
    ProtocolError,
    SottovoceError,
    UnsupportedModelError,
    UsageError,
)
from sottovoce.net import Channel

if TYPE_CHECKING:
    from sottovoce.models import Model

_KEPT_CLIENTS = 2  # whose keys stay on the server's disk: gigabytes each
_LEAST_TOKENS = 8  # of a context that is worth a session
_KEPT_STATES = 4  # earlier caches that a session can go back to; 120 MB each for stories260K
_ONLY_RECENT = (
    "the fhe engine keeps the keys of many tokens in one ciphertext; it can forget the last few tokens, or "
    "all private ones, and nothing between"
)


class FheEngine(Engine):
    """A model made ready for slots: ranges, placement of refreshes, plaintexts, the maps of a refresh."""

    def __init__(self, options: EngineOptions, model: Model, parameters: str = "engine16") -> None:
        self.options, self.model, self.name = options, model, parameters
        self.directory: Path | None = None
        self.uploads = Uploads()
        self.description: Description | None = None
        self.shape = _shape(model, PARAMETERS[parameters].slots // 8)

    def prepare(self, progress: Progress | None = None) -> None:
        """Calibrate and encode: seconds, and about a gigabyte for the maps of a refresh at N = 2^16."""
        report = progress if progress is not None else (lambda done, total, what: None)
        parameters, shape = PARAMETERS[self.name], self.shape
        check_engine(parameters.degree, available_memory())
        degrees = degrees_for(shape.tokens)
        report(0, 3, "measuring ranges")
        functions = kept_functions(self.model, shape.tokens)
        self.functions: Functions = replace(functions, polish=degrees.polish)
        report(1, 3, "placing refreshes")
        # Depth, so placement and keys, does not depend on how many tokens are public.
        public, cost = shape.tokens - shape.heads.t if shape.split else 0, CostModel(3.0)
        segments = record(shape, degrees, shape.tokens - 1, public)
        self.placement: Placement = place_bootstraps(segments, parameters.working_top, cost)
        self.chunks = plan_chunks(self.shape, degrees, self.placement, parameters.working_top, cost)
        self.weights: SlotWeights = slot_weights(self.model.weights, self.shape, self.functions)
        report(2, 3, "encoding the maps of a refresh")
        self.bootstrapper = Bootstrapper(parameters, BootstrapSpec(self.shape.n))
        steps = rotation_levels(shape, degrees, self.placement, parameters.working_top, public)
        for more in (self.bootstrapper.steps, {} if self.chunks is None else self.chunks.steps()):
            for step, level in more.items():
                steps[step] = max(steps.get(step, 0), level)
        entry, least = self.placement.entry + EMBED_LEVELS, 0
        if self.chunks is not None:
            entry, least = self.chunks.entry, self.chunks.least
        largest = largest_logit(self.model.weights)
        self.description = Description(self.name, self.shape, entry, steps, least, largest)
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
    n = slots_for(config, most)
    shape = session_shape(config, n)
    if min(shape.heads.t, shape.tokens) < _LEAST_TOKENS:
        raise UnsupportedModelError(
            f"the fhe engine keeps keys in groups of {n} slots (64 tokens of width 64, for example); of "
            f"width {config.width} that is {shape.heads.t}. `sottovoce estimate MODEL --engine fhe` says "
            "what this model would cost"
        )
    return shape


class FheModelParty(ModelParty):
    """The server's half of a session: sees evaluation keys and ciphertexts under the client's key."""

    def __init__(self, engine: FheEngine) -> None:
        self.engine = engine
        self._public: list[int] = []
        self._history: dict[int, list[LayerCache[Ciphertext]]] = {}
        self._answer: Answer | None = None

    def setup(self, channel: Channel, progress: Progress | None = None) -> None:
        engine, self._channel = self.engine, channel
        assert engine.description is not None
        described = engine.description
        uploading = engine.uploads.one(described.key_bytes, described.parameters.degree)
        with channel.ledger.operation("keys"), uploading:
            try:
                evaluator, answers = receive_keys(channel, described, engine.directory)
            finally:  # also after uploads that broke off: gigabytes under any name a client likes
                if engine.directory is not None and engine.directory.is_dir():
                    forget_others(engine.directory, _KEPT_CLIENTS)
        self._key_id = evaluator.key_id
        self._slots = CkksSlots(evaluator, engine.shape.n, engine.bootstrapper, channel.ledger.operation)
        self._returned = Returned(evaluator, answers, engine.shape)
        self._program = self._fresh()

    def prefill(self, public_tokens: Sequence[int], n_private: int) -> None:
        if public_tokens:
            self._public = list(public_tokens)
            self._append_public()
        if not self._program.length:
            raise UsageError("the fhe engine takes sessions whose first token is public; it is a constant")
        self._program.check_room(n_private)
        together = receive_sizes(self._channel, n_private)
        self._step([i == n_private - 1 for i in range(n_private)], together)

    def decode(self) -> None:
        self._step([True])

    def verify(self, n: int) -> None:
        self._step([True] * n)

    def collect(self) -> None:
        send_answer(self._channel, self._answer)

    def truncate(self, length: int) -> None:
        """A few tokens back, or to the public tokens: then the cache starts again."""
        if length == self._program.length:
            return
        self._answer = None
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
        if not self._program.caches[0].keys:
            return {}
        answer = {} if self._answer is None else self._answer.to_piece()
        return save_cache(self._program, self._public, functions_digest(self.engine.functions)) | answer

    def restore(self, pieces: Pieces, length: int) -> None:
        piece = find_piece(pieces, length)
        self._public = public_tokens(piece)
        if not len(self._public) < length <= self.engine.shape.tokens:
            raise CorruptFileError("the saved session's cache is malformed")
        program = self._fresh()
        self._program = program
        self._append_public()
        functions = functions_digest(self.engine.functions)
        for tokens in (length - 1, length):  # going on may begin one token back
            try:
                saved = find_piece(pieces, tokens)
            except CorruptFileError:
                continue
            for cache in program.caches:
                cache.keys, cache.values = [], []
            parameters = self._slots.evaluator.parameters
            load_cache(program, saved, parameters, self._key_id, functions)
            self._remember()
        self._answer = Answer.from_pieces(pieces, length)

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

    def _step(self, heads: Sequence[bool], together: Sequence[int] = ()) -> None:
        """Append as many tokens; those whose logits are wanted are marked. The first come in chunks,
        `together`. What the client sends for all of them is there before the first is computed, so that it
        may leave."""
        shape, layers = self.engine.shape, self.engine.shape.config.layers
        chunks = self._chunks(together) if together else None
        sizes = [*together, *[0] * (len(heads) - sum(together))]  # 0: a step
        blocks = [one_hot_ciphertexts(shape, size) if size else shape.vocabulary_blocks for size in sizes]
        # All of it is held before the first is looked at: no more than tokens take.
        assert self.engine.description is not None
        most = fresh_bytes(self.engine.description.parameters, self.engine.description.entry)
        raw = [[self._channel.recv_message(most) for _ in range(count)] for count in blocks]
        digest = digest_of(frame for unit in raw for frame in unit)
        frames, left = list[bytes](), list(heads)
        self.attendance.progress(0, len(sizes) * layers)
        for i, size in enumerate(sizes):
            one_hot = [self._token(frame) for frame in raw[i]]
            raw[i] = []
            head, left = any(left[: size or 1]), left[size or 1 :]

            def progress(layer: int, before: int = i * layers) -> None:
                self.attendance.progress(before + layer, len(sizes) * layers)
                self._tell(b"\x01")

            if size and chunks is not None:
                logits = chunks.run(one_hot, size, head, progress)
                if size > 1 and chunks.before:
                    self._history[self._program.length - 1] = chunks.before
            else:
                logits = self._program.step(one_hot, head, progress)
            frames += self._protected(logits)
            self._remember()
        self._answer = Answer(self._program.length, digest, tuple(frames))
        for frame in frames:
            self._tell(frame)

    def _chunks(self, sizes: Sequence[int]) -> ChunkProgram[Ciphertext]:
        """For chunks of as many tokens. ProtocolError if they do not end with groups of keys."""
        plan, private, t = self.engine.chunks, self._program.private, self.engine.shape.heads.t
        if plan is None:
            raise ProtocolError("this model takes private tokens one by one")
        for size in sizes:
            if size > t - private % t:
                raise ProtocolError(f"a chunk of {size} private tokens does not fit behind {private} others")
            private += size
        flow = PlannedFlow[Ciphertext](plan.placement.decisions)
        return ChunkProgram(self._program, flow, plan.value_level)

    def _protected(self, logits: Sequence[Ciphertext]) -> list[bytes]:
        """As they go back, block by block of the vocabulary."""
        with self._channel.ledger.operation("answer"):
            return [self._returned(x, block).to_bytes() for block, x in enumerate(logits)]

    def _tell(self, payload: bytes) -> None:
        """Unless the client has left, and the step goes on without it."""
        try:
            self._channel.send(payload)
        except SottovoceError as error:  # a client that leaves may say why
            self.attendance.left(error)

    def _token(self, raw: memoryview) -> Ciphertext:
        """IntegrityError unless a token's ciphertext is what was agreed on."""
        x = load_fresh(self._slots.evaluator.parameters, raw)
        self._check(x)
        return x

    def _check(self, x: Ciphertext) -> None:
        assert self.engine.description is not None
        level = self.engine.description.entry
        if x.key_id != self._key_id:
            raise IntegrityError("a token's ciphertext belongs to another key, or to another session")
        if x.level != level:
            raise IntegrityError(f"a token's ciphertext has level {x.level}; {level} was agreed")
        if x.slots != self._slots.n or abs(x.scale / scales(x.parameters)[level] - 1) > 2.0**-40:
            raise IntegrityError("a token's ciphertext has another period or scale than was agreed")
