"""The two halves of the hybrid engine: what each party brings to a session, and what it gets out of it."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sottovoce.bgv import SecretKey
from sottovoce.correlations import PairSource
from sottovoce.correlations.dealer import DealerSource, new_token
from sottovoce.correlations.hints import HintShelf, ModelHints
from sottovoce.correlations.shelf import ClientShelf, NoShelf, Shelf
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
from sottovoce.engines.hybrid.execution import PARAMETERS, Execution, Prefix
from sottovoce.engines.hybrid.linears import EncodedModel, HomomorphicLinears, matrix_shapes
from sottovoce.engines.hybrid.prepared import PreparedLinears, model_hints
from sottovoce.engines.hybrid.provisions import Provisions
from sottovoce.engines.hybrid.rehearsal import Rehearsal
from sottovoce.engines.public import PublicModel
from sottovoce.errors import UsageError
from sottovoce.models.quantize import public_keys_values, quantize
from sottovoce.mpc.executor import OnlineProducts
from sottovoce.mpc.linear import rotation_steps
from sottovoce.net import Channel, Role
from sottovoce.packing import DataSide, exchange_keys

if TYPE_CHECKING:
    from sottovoce.models import Model
    from sottovoce.models.fixed import FixedModel


# Longer prefixes are somebody's own document: kept, they would take memory, and a client that is served
# sooner would learn that somebody else has the same one.
_KEPT_PREFIX = 64


class HybridEngine(Engine):
    """A model quantised and encoded once; sessions share it and nothing else."""

    def __init__(self, options: EngineOptions, model: Model) -> None:
        self.options = options
        self.model = model
        self.fixed: FixedModel | None = None
        self.encoded: EncodedModel | None = None
        self.elsewhere: OnlineProducts | None = None  # who makes online products; named before `prepare`
        self._prefixes: dict[tuple[int, ...], Prefix] = {}
        self._directory: Path | None = None
        self._hints: ModelHints | None = None
        self._lock = threading.Lock()  # sessions run in threads

    def prepare(self, progress: Progress | None = None) -> None:
        """Quantise, and encode all matrices: seconds, and 24 bytes of memory per weight.

        With the masked cache, whose sessions can prepare everything, matrices are encoded when a product is
        first made online, if one ever is.
        """
        self.fixed = quantize(self.model)
        report = None if progress is None else lambda done, total: progress(done, total, "encoding weights")
        self.encoded = EncodedModel.of(self.fixed, report)
        if self.elsewhere is not None:
            self.elsewhere.attach(self.encoded.matrices, now=self.options.kv != "masked")
        elif self.options.kv != "masked":
            self.encoded.make()

    def keep_in(self, directory: Path) -> None:
        """Keep hints, 2.1 GB for SmolLM2: clients that have them need not receive them again."""
        self._directory = directory

    def public(self) -> dict[str, Any]:
        assert self.fixed is not None, "prepare() comes first"
        return PublicModel.of(self.fixed).to_json()

    def session(self) -> HybridModelParty:
        assert self.fixed is not None and self.encoded is not None, "prepare() comes first"
        return HybridModelParty(self)

    @property
    def hints(self) -> ModelHints:
        """The fixed halves of prepared products, for all sessions; the rows are made on first use."""
        assert self.fixed is not None and self.encoded is not None, "prepare() comes first"
        with self._lock:
            if self._hints is None:
                self._hints = model_hints(self.fixed.config, self.encoded, self._directory)
            return self._hints

    @functools.cached_property
    def rehearsal(self) -> Rehearsal:
        """What tokens take of every kind of correlation, found once for all sessions."""
        assert self.fixed is not None, "prepare() comes first"
        return Rehearsal(PublicModel.of(self.fixed), Role.SERVER)

    def prefix(self, tokens: Sequence[int]) -> Prefix:
        """Keys and values of a public prefix; the last few are kept, most sessions share the template's."""
        key = tuple(tokens)
        with self._lock:
            found = self._prefixes.get(key)
        if found is None:
            found = public_keys_values(self.model, tokens)
            if len(tokens) <= _KEPT_PREFIX:
                with self._lock:
                    while len(self._prefixes) >= 8:
                        self._prefixes.pop(next(iter(self._prefixes)))
                    self._prefixes[key] = found
        return found


def _open(
    channel: Channel,
    public: PublicModel,
    options: EngineOptions,
    engine: HybridEngine | None,
    shelf: Shelf | None,
    dealer: Callable[[], Channel] | None,
    secret: SecretKey | None = None,
) -> tuple[Execution, Provisions | None]:
    """Setup of a session, in lockstep: keys, base OTs, pool. `engine` at the server only, `secret` at a
    client that goes on."""
    ledger = channel.ledger
    with ledger.operation("keys"):
        steps = rotation_steps(matrix_shapes(public.config).values())
        side = exchange_keys(channel, steps, PARAMETERS, secret)
    live: PairSource | DealerSource
    if options.correlations == "dealer":
        live = _dealt(channel, dealer)
    else:
        with ledger.operation("oblivious transfer"):
            live = PairSource(channel, side)
    fixed = None if engine is None else engine.fixed
    encoded = None if engine is None else engine.encoded
    hints = _hints(shelf) if engine is None else engine.hints
    online = HomomorphicLinears(public, side, encoded)
    linears = PreparedLinears(channel, public.config, online, encoded, hints)
    with ledger.operation("pool"):
        pool = (shelf or NoShelf()).borrow(channel)
    provisions: Provisions | None = None
    if pool is not None:
        profile = Rehearsal(public, channel.role) if engine is None else engine.rehearsal
        provisions = Provisions(channel, live, pool, profile, linears)
    execution = Execution(
        channel,
        public,
        side,
        live if provisions is None else provisions.source,
        linears,
        None if fixed is None else [block.softmax_shift for block in fixed.blocks],
        None if fixed is None else fixed.positions,
        options.kv,
    )
    if provisions is not None:
        provisions.attach(execution.caches)
    return execution, provisions


def _dealt(channel: Channel, dealer: Callable[[], Channel] | None) -> DealerSource:
    if dealer is None:
        raise UsageError("this session needs a dealer, and none was named; see --insecure-dealer")
    with channel.ledger.operation("dealer"):
        return DealerSource(channel, dealer(), new_token(channel))


def _hints(shelf: Shelf | None) -> HintShelf | None:
    """The client keeps a server's hints beside the pool that it shares with it."""
    return HintShelf(shelf.hints()) if isinstance(shelf, ClientShelf) else None


class HybridModelParty(ModelParty):
    """The server's half of a session. Sees ciphertexts under the client's key and uniformly random shares."""

    def __init__(self, engine: HybridEngine) -> None:
        self.engine = engine
        self._execution: Execution | None = None
        self._provisions: Provisions | None = None

    def setup(self, channel: Channel, progress: Progress | None = None) -> None:
        assert self.engine.fixed is not None
        public = PublicModel.of(self.engine.fixed)
        self._execution, self._provisions = _open(
            channel, public, self.engine.options, self.engine, self.shelf, self.dealer
        )

    def prepare(self, tokens: int, progress: Progress | None = None) -> None:
        while self.prepare_step(tokens, progress):
            pass

    def prepare_step(self, tokens: int, progress: Progress | None = None) -> bool:
        if self._provisions is None:
            self.execution.prepare(tokens, progress)
            return False
        return self._provisions.step(tokens, self.execution.length, progress)

    def prefill(self, public_tokens: Sequence[int], n_private: int) -> None:
        if public_tokens:
            prefix = self.engine.prefix(public_tokens)
            self.execution.append_public(len(public_tokens), prefix)
        self.execution.forward([None] * n_private)

    def decode(self) -> None:
        self.execution.forward([None])

    def verify(self, n: int) -> None:
        self.execution.forward([None] * n, rows=n)

    def truncate(self, length: int) -> None:
        self.execution.truncate(length)

    @property
    def keeps(self) -> bool:
        return self.execution.keeper.keeps

    def changed(self, first: int) -> dict[str, Piece]:
        return self.execution.keeper.changed(first)

    def saved(self) -> None:
        self.execution.keeper.saved()

    def restore(self, pieces: Pieces, length: int) -> None:
        self.execution.restore(pieces, length)

    def close(self) -> None:
        if self._execution is not None:
            self._execution.source.close()
        self._execution = None

    @property
    def execution(self) -> Execution:
        assert self._execution is not None, "setup() comes first"
        return self._execution


class HybridDataParty(DataParty):
    """The client's half of a session: holds the secret key, the tokens and the logits."""

    def __init__(self, options: EngineOptions, public: dict[str, Any]) -> None:
        self.options = options
        self.public = PublicModel.from_json(public)
        self._execution: Execution | None = None
        self._provisions: Provisions | None = None

    def setup(self, channel: Channel, progress: Progress | None = None) -> None:
        secret = None if self.secret is None else SecretKey.from_bytes(PARAMETERS, self.secret)
        self._execution, self._provisions = _open(
            channel, self.public, self.options, None, self.shelf, self.dealer, secret
        )

    def secret_key(self) -> bytes:
        side = self.execution.side
        assert isinstance(side, DataSide)
        return side.secret.to_bytes()

    def prepare(self, tokens: int, progress: Progress | None = None) -> None:
        while self.prepare_step(tokens, progress):
            pass

    def prepare_step(self, tokens: int, progress: Progress | None = None) -> bool:
        if self._provisions is None:
            self.execution.prepare(tokens, progress)
            return False
        return self._provisions.step(tokens, self.execution.length, progress)

    @property
    def has_pool(self) -> bool:
        return self._provisions is not None

    def ready(self, most: int) -> int:
        if self._provisions is None:
            return 0
        return self._provisions.source.ready(most, self.execution.length)

    def prefill(
        self, public_tokens: Sequence[int], private_tokens: Sequence[int], progress: Progress | None = None
    ) -> Logits:
        if public_tokens:
            self.execution.append_public(len(public_tokens), None)
        last: Logits = self._forward(private_tokens, progress)[0]
        return last

    def decode(self, token: int, progress: Progress | None = None) -> Logits:
        last: Logits = self._forward([token], progress)[0]
        return last

    def verify(self, tokens: Sequence[int], progress: Progress | None = None) -> Logits:
        return self._forward(tokens, progress, len(tokens))

    def truncate(self, length: int) -> None:
        self.execution.truncate(length)

    @property
    def keeps(self) -> bool:
        return self.execution.keeper.keeps

    def changed(self, first: int) -> dict[str, Piece]:
        return self.execution.keeper.changed(first)

    def saved(self) -> None:
        self.execution.keeper.saved()

    def restore(self, pieces: Pieces, length: int) -> None:
        self.execution.restore(pieces, length)

    def close(self) -> None:
        if self._execution is not None:
            self._execution.source.close()
        self._execution = None

    @property
    def execution(self) -> Execution:
        assert self._execution is not None, "setup() comes first"
        return self._execution

    def _forward(self, tokens: Sequence[int], progress: Progress | None, rows: int = 1) -> Logits:
        logits = self.execution.forward(list(tokens), progress, rows)
        assert logits is not None
        return np.asarray(logits * 2.0**-self.public.residual_bits, dtype=np.float64)
