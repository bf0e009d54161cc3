"""A hybrid session for benchmarks: two processes over TLS on this machine that follow one list of steps.

One server process loads and encodes the model once for all steps, so several contexts, prompts or networks
cost one start-up. The steps stand for what a client would order; the tokens in them are in the server's
process too, which no real server's are, because `Fill` computes keys and values from them.
"""

from __future__ import annotations

import json
import multiprocessing
import queue
import resource
import socket
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sottovoce.bench.shaped import Network, ShapedChannel
from sottovoce.correlations.hints import MatrixKey
from sottovoce.engines.base import EngineOptions, Progress
from sottovoce.engines.hybrid import HybridDataParty, HybridEngine, HybridModelParty
from sottovoce.engines.hybrid.execution import Execution
from sottovoce.engines.hybrid.prepared import PreparedLinears
from sottovoce.errors import PeerConnectionError, ProtocolError, SottovoceError, UsageError
from sottovoce.kvcache import MaskedCache
from sottovoce.models import Model, load_model
from sottovoce.models.quantize import public_keys_values
from sottovoce.mpc import field as residues
from sottovoce.net import Channel, LedgerRow, Role, SocketChannel
from sottovoce.net.tls import Certificate, wrap_client, wrap_server
from sottovoce.ring.primes import P_FIELD

_MAX_DESCRIPTION = 1 << 24
_LINGER = 3.0  # seconds that a party's error waits for the other's
_PATIENCE = 600.0  # seconds for the two processes to find each other


@dataclass(frozen=True)
class Open:
    """A new session, with fresh keys, that begins with `public` tokens."""

    public: tuple[int, ...]


@dataclass(frozen=True)
class Fill:
    """Cache private tokens without computing them: real keys and values of the text so far, freshly shared.

    They go through the cache's own `append`, encryption included, as those of a prefill would. The masked
    cache takes them without material for queries, which they never ask: once opened, tokens are all alike.
    """

    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Hints:
    """The server's hints for prepared matrix products, which a client gets once and keeps; measured."""


@dataclass(frozen=True)
class Prepare:
    """Make one-time material ahead, each kind in one batch, measured; none is made while there is enough.

    attention: products of masks for so many tokens or more, where the cache is masked. matrices: products of
    matrices for so many tokens (0: none), of `keys` or all. needed: tokens that there must be at least.
    """

    attention: int
    matrices: int = 0
    needed: int = 1
    keys: tuple[MatrixKey, ...] | None = None
    point: str = ""


@dataclass(frozen=True)
class Forward:
    """One pass over private tokens: one token is a decode step, several are a prefill.

    point: the name of the measurement that the pass belongs to; empty if it is none of them.
    """

    tokens: tuple[int, ...]
    point: str = ""


@dataclass(frozen=True)
class Generate:
    """Pass the most likely token after the pass before, `count` times."""

    count: int


@dataclass(frozen=True)
class Truncate:
    """Forget all tokens from a position on."""

    length: int


@dataclass(frozen=True)
class Shape:
    """Another network from here on; only in a job that is `shaped`."""

    network: Network


@dataclass(frozen=True)
class Call:
    """Something else that both parties do in lockstep, measured. `action` is a function of an importable
    module; what it returns at the client becomes the logits of the pass.
    """

    action: Callable[[Party], npt.NDArray[Any] | None]
    point: str = ""


Step = Open | Fill | Hints | Prepare | Forward | Generate | Truncate | Shape | Call


@dataclass(frozen=True)
class Job:
    """What both processes are told. model: as for `load_model`, or a function of an importable module.

    shaped: the channel can emulate networks (`Shape`).
    """

    options: EngineOptions
    model: str | Callable[[], Model]
    steps: tuple[Step, ...]
    shaped: bool = False


@dataclass
class Pass:
    """One measured pass at one party.

    seconds: wall clock at this party, between two moments at which both were idle. cpu_seconds: all threads
    of its process. memory_bytes: largest resident memory during the pass. rows: the ledger. token (the last
    one passed) and logits (float32): the client's. kind, tokens: of a batch of material, and for how many
    tokens it is.
    """

    seconds: float
    cpu_seconds: float
    memory_bytes: int
    rows: list[LedgerRow] = field(default_factory=list)
    token: int = -1
    kind: str = ""
    tokens: int = 1
    logits: npt.NDArray[np.float32] | None = None


@dataclass
class Outcome:
    """What a party reports: for every step its passes; its largest memory; what the last Open cost."""

    passes: list[list[Pass]] = field(default_factory=list)
    peak_memory_bytes: int = 0
    setup: LedgerRow | None = None


def passes_of(job: Job, outcome: Outcome, point: str) -> list[Pass]:
    """All passes of one measurement, in order."""
    return [
        one
        for step, passes in zip(job.steps, outcome.passes, strict=True)
        if isinstance(step, Forward | Call) and step.point == point
        for one in passes
    ]


OnStep = Callable[[int, list[Pass]], None]


def run_job(
    job: Job, progress: Progress = lambda done, total, what: None, on_step: OnStep = lambda step, passes: None
) -> tuple[Outcome, Outcome]:
    """Run a job in two fresh processes: (client's outcome, server's outcome).

    on_step: called with each of the client's steps as soon as it is done. Raises what a party raised.
    """
    context = multiprocessing.get_context("spawn")
    results: Any = context.Queue()
    outcomes: dict[Role, Outcome] = {}
    with tempfile.TemporaryDirectory(prefix="sottovoce-bench-") as directory:
        parties = [
            context.Process(target=_process, args=(role, job, directory, results), daemon=True)
            for role in Role
        ]
        for process in parties:
            process.start()
        try:
            while len(outcomes) < len(Role):
                role, kind, value = _next(results, parties)
                if kind == "error":
                    raise _reason(results, value)
                if kind == "outcome":
                    outcomes[role] = value
                elif role is Role.CLIENT and kind == "step":
                    on_step(*value)
                elif role is Role.CLIENT and kind == "progress":
                    progress(*value)
            for process in parties:
                process.join(10.0)
        finally:
            for process in parties:
                process.terminate()
    return outcomes[Role.CLIENT], outcomes[Role.SERVER]


def _reason(results: Any, first: Exception) -> Exception:
    """A party's error, unless it only says that the other one gave up: then the other one's."""
    deadline = time.monotonic() + _LINGER
    while isinstance(first, ProtocolError | PeerConnectionError) and time.monotonic() < deadline:
        try:
            _, kind, value = results.get(timeout=0.1)
        except queue.Empty:
            continue
        if kind == "error":
            return value if isinstance(value, Exception) else first
    return first


def _next(results: Any, parties: list[Any]) -> tuple[Role, str, Any]:
    while True:
        try:
            role, kind, value = results.get(timeout=1.0)
            return Role(role), kind, value
        except queue.Empty:
            if any(process.exitcode not in (None, 0) for process in parties):
                raise UsageError("a benchmark's process died; its own message is above") from None


def _process(role: Role, job: Job, directory: str, results: Any) -> None:
    def tell(kind: str, value: object) -> None:
        results.put((int(role), kind, value))

    try:
        channel = _connect(role, job, Path(directory))
        with channel:
            outcome = _follow(channel, job, tell)
        tell("outcome", outcome)
    except SottovoceError as error:
        tell("error", error)
    except Exception:
        tell("error", UsageError(f"the benchmark's {role.name.lower()} failed:\n{traceback.format_exc()}"))


def _follow(channel: SocketChannel, job: Job, tell: Callable[[str, object], None]) -> Outcome:
    party = _Server(channel, job) if channel.role is Role.SERVER else _Client(channel, job)
    for number, step in enumerate(job.steps):
        tell("progress", (number, len(job.steps), "benchmark steps"))
        passes = party.run(step)
        party.outcome.passes.append(passes)
        tell("step", (number, passes))
    tell("progress", (len(job.steps), len(job.steps), "benchmark steps"))
    party.outcome.peak_memory_bytes = max(party.outcome.peak_memory_bytes, _peak_memory())
    return party.outcome


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
        self.outcome.peak_memory_bytes = max(self.outcome.peak_memory_bytes, _peak_memory())
        _forget_peak_memory()
        before = self.channel.ledger.snapshot()
        start, busy = time.perf_counter(), time.process_time()
        with self.channel.ledger.phase("decode"):
            logits = action()
        taken = Pass(time.perf_counter() - start, time.process_time() - busy, _peak_memory())
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


class _Server(Party):
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


class _Client(Party):
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


def _connect(role: Role, job: Job, directory: Path) -> SocketChannel:
    """TLS over TCP on the loopback interface; port and fingerprint travel in a file."""
    note = directory / "port"
    kind = ShapedChannel if job.shaped else SocketChannel
    if role is Role.SERVER:
        certificate = Certificate(directory)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.settimeout(_PATIENCE)
            partial = note.with_suffix(".part")
            partial.write_text(f"{listener.getsockname()[1]} {certificate.fingerprint}")
            partial.rename(note)
            accepted, _ = listener.accept()
        return kind(role, wrap_server(accepted, certificate.context()))
    deadline = time.monotonic() + _PATIENCE
    while not note.exists():
        if time.monotonic() > deadline:
            raise UsageError("the benchmark's server did not come up")
        time.sleep(0.05)
    port, fingerprint = note.read_text().split()
    address = ("127.0.0.1", int(port))
    sock, _, _ = wrap_client(socket.create_connection(address), *address, fingerprint, _PATIENCE)
    return kind(role, sock)


def _barrier(channel: Channel) -> None:
    """Both parties have done everything before this point."""
    with channel.ledger.phase("barrier"):
        channel.exchange(b"\0", 1)


def _peak_memory() -> int:
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


__all__ = [
    "Call",
    "Fill",
    "Forward",
    "Generate",
    "Hints",
    "Job",
    "Open",
    "Outcome",
    "Party",
    "Pass",
    "Prepare",
    "Shape",
    "Step",
    "Truncate",
    "passes_of",
    "run_job",
]
