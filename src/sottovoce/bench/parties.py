"""The two parties of a benchmark session: each does its half of every step, in lockstep with the other.

The tokens of the steps are in the server's process too, which no real server's are, because `Fill` computes
keys and values from them.
"""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sottovoce.bench.shaped import ShapedChannel
from sottovoce.bench.steps import (
    Call,
    Fill,
    Forward,
    Generate,
    Hints,
    Job,
    Open,
    Outcome,
    Pass,
    Prepare,
    Shape,
    Step,
    Truncate,
)
from sottovoce.engines.hybrid import HybridDataParty, HybridEngine, HybridModelParty
from sottovoce.engines.hybrid.execution import Execution
from sottovoce.engines.hybrid.prepared import PreparedLinears
from sottovoce.errors import UsageError
from sottovoce.kvcache import MaskedCache
from sottovoce.models import load_model
from sottovoce.models.quantize import public_keys_values
from sottovoce.mpc import field as residues
from sottovoce.net import Channel, LedgerRow, SocketChannel
from sottovoce.ring.primes import P_FIELD

_MAX_DESCRIPTION = 1 << 24


class Party:
    """One party's half of every step."""

    def __init__(self, channel: SocketChannel) -> None:
        self.channel = channel
        self.outcome = Outcome()
        self.generator = np.random.default_rng(0)  # shares of what Fill appends, the same at both parties

    def run(self, step: Step) -> list[Pass]:
        _barrier(self.channel)
        match step:
            case Open():
                before = self.channel.ledger.snapshot()
                self.open(step.public)
                _barrier(self.channel)
                rows = self.channel.ledger.since(before)
                self.outcome.setup = LedgerRow("setup", "")
                for row in rows:
                    self.outcome.setup.add(row)
                return []
            case Fill():
                self.fill(step.tokens)
                return []
            case Hints():
                return self.hinted()
            case Prepare():
                return self.prepared(step)
            case Forward():
                return [self.measured(lambda: self.forward(step.tokens), step.tokens[-1])]
            case Generate():
                return [self._generated() for _ in range(step.count)]
            case Call():
                return [self.measured(lambda: step.action(self))]
            case Truncate():
                self.truncate(step.length)
                return []
            case Shape():
                assert isinstance(self.channel, ShapedChannel), "the job is not shaped"
                self.channel.reshape(step.network)
                return []

    def _generated(self) -> Pass:
        token = self.choose()
        return self.measured(lambda: self.forward((token,)), token)

    def measured(self, action: Callable[[], npt.NDArray[Any] | None], token: int = -1) -> Pass:
        _barrier(self.channel)
        self.outcome.peak_memory_bytes = max(self.outcome.peak_memory_bytes, peak_memory())
        _forget_peak_memory()
        before = self.channel.ledger.snapshot()
        start, busy = time.perf_counter(), time.process_time()
        with self.channel.ledger.phase("decode"):
            logits = action()
        taken = Pass(time.perf_counter() - start, time.process_time() - busy, peak_memory())
        taken.rows = self.channel.ledger.since(before)
        if logits is not None:
            taken.token, taken.logits = token, logits.astype(np.float32)
        return taken

    def prepared(self, step: Prepare) -> list[Pass]:
        """The batches that were made, each with the number of tokens that it is for."""
        made = []
        cache, linears = self.execution.caches[0], self.execution.linears
        if isinstance(cache, MaskedCache) and cache.source.ready < step.needed:
            before = cache.source.ready
            batch = self.measured(lambda: cache.source.prepare(step.attention))
            batch.kind, batch.tokens = "attention", cache.source.ready - before
            made.append(batch)
        if step.matrices and isinstance(linears, PreparedLinears):
            keys = list(linears.stock.shapes) if step.keys is None else list(step.keys)
            if min(linears.stock.available(key) for key in keys) < step.needed:
                tokens = max(step.matrices, step.needed)
                batch = self.measured(lambda: linears.prepare(tokens, keys))
                batch.kind, batch.tokens = "matrices", tokens
                made.append(batch)
        return made

    def hinted(self) -> list[Pass]:
        linears = self.execution.linears
        return [self.measured(linears.maker.open)] if isinstance(linears, PreparedLinears) else []

    def open(self, public: tuple[int, ...]) -> None:
        raise NotImplementedError

    def fill(self, tokens: tuple[int, ...]) -> None:
        raise NotImplementedError

    def forward(self, tokens: tuple[int, ...]) -> npt.NDArray[np.float64] | None:
        raise NotImplementedError

    def truncate(self, length: int) -> None:
        self.execution.truncate(length)

    def choose(self) -> int:
        """The token that `Generate` passes next; the server knows only that there is one."""
        return -1

    @property
    def execution(self) -> Execution:
        """This party's state in the engine."""
        raise NotImplementedError


class Server(Party):
    def __init__(self, channel: SocketChannel, job: Job) -> None:
        super().__init__(channel)
        model = load_model(job.model) if isinstance(job.model, str) else job.model()
        self.engine = HybridEngine(job.options, model)
        self.engine.prepare()
        self.text: list[int] = []
        channel.send(json.dumps(self.engine.public()).encode())

    def open(self, public: tuple[int, ...]) -> None:
        party = self.engine.session()
        assert isinstance(party, HybridModelParty)
        self.party = party
        party.setup(self.channel)
        if public:
            self.execution.append_public(len(public), self.engine.prefix(public))
        self.text = list(public)

    def truncate(self, length: int) -> None:
        super().truncate(length)
        del self.text[length:]

    def fill(self, tokens: tuple[int, ...]) -> None:
        if -1 in self.text:
            raise UsageError(
                "tokens that the client chose are unknown to the server: Fill cannot follow them"
            )
        known = len(self.text)
        self.text += tokens
        keys, values = public_keys_values(self.engine.model, self.text)
        for cache, k, v in zip(self.execution.caches, keys[:, known:], values[:, known:], strict=True):
            if isinstance(cache, MaskedCache):
                cache.append_public(len(tokens), k, v)
            else:
                cache.append(self._share(k), self._share(v))
        self.execution.length += len(tokens)

    def forward(self, tokens: tuple[int, ...]) -> None:
        self.text += tokens
        if len(tokens) == 1:
            self.party.decode()
        else:
            self.party.prefill([], len(tokens))

    @property
    def execution(self) -> Execution:
        return self.party.execution

    def _share(self, values: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
        client = self.generator.integers(0, P_FIELD, values.shape, dtype=np.uint64)
        return residues.sub(residues.from_signed(values, P_FIELD), client, P_FIELD)


class Client(Party):
    def __init__(self, channel: SocketChannel, job: Job) -> None:
        super().__init__(channel)
        self.options = job.options
        self.description = json.loads(bytes(channel.recv_message(_MAX_DESCRIPTION)))
        self.logits: npt.NDArray[np.float64] | None = None

    def open(self, public: tuple[int, ...]) -> None:
        self.party = HybridDataParty(self.options, self.description)
        self.party.setup(self.channel)
        if public:
            self.execution.append_public(len(public), None)

    def fill(self, tokens: tuple[int, ...]) -> None:
        config = self.party.public.config
        shape = (len(tokens), config.kv_heads, config.head_dim)
        for cache in self.execution.caches:
            if isinstance(cache, MaskedCache):
                cache.append_public(len(tokens), None, None)
                continue
            k = self.generator.integers(0, P_FIELD, shape, dtype=np.uint64)
            cache.append(k, self.generator.integers(0, P_FIELD, shape, dtype=np.uint64))
        self.execution.length += len(tokens)

    def forward(self, tokens: tuple[int, ...]) -> npt.NDArray[np.float64]:
        if len(tokens) == 1:
            self.logits = self.party.decode(tokens[0])
        else:
            self.logits = self.party.prefill([], tokens)
        return self.logits

    def choose(self) -> int:
        assert self.logits is not None, "a pass comes before Generate"
        return int(np.argmax(self.logits))

    @property
    def execution(self) -> Execution:
        return self.party.execution


def _barrier(channel: Channel) -> None:
    """Both parties have done everything before this point."""
    with channel.ledger.phase("barrier"):
        channel.exchange(b"\0", 1)


def peak_memory() -> int:
    """Largest resident memory, in bytes, since the process began or since it was last forgotten."""
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError, ValueError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _forget_peak_memory() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass  # elsewhere than on Linux a peak is that of the whole process
