"""The server's half of one connection: handshake, setup, then the client's commands until it leaves."""

import math
import resource
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from threading import Event
from typing import Any

from ..engines.base import ModelParty
from ..errors import (
    CorruptFileError,
    PeerGoneError,
    PoolFullError,
    ProtocolError,
    ServerBusyError,
    SottovoceError,
    StorageError,
    UsageError,
)
from ..net import Channel, Role, SocketChannel
from ..net.channel import Turn
from .admission import Account, Admission
from .kept import Checkpoints, KeptSessions, Resumed, facts_of
from .observer import Observer
from .protocol import MAX_COMMAND, MAX_VERIFY, Caller, Command, Verb, Welcome, server_handshake
from .resume import agree, answer_keep, new_epoch, read_keep, recognise, tell_busy, unknown
from .unattended import Unattended

_POLL = 0.25
# A client that is silent this long inside a protocol step is taken for dead.
_STEP_TIMEOUT = 600.0
# Seconds that a place takes at most to get from a connection whose client left to the one that goes on.
_HANDOVER = 5.0


@dataclass
class SessionReport:
    """What may be known about a session after its end: sizes, times, counts. Never tokens or text."""

    id: str
    peer: str
    account: str = ""  # name of the API key, else the client's certificate, else its address
    ended: str = "client left"
    private_tokens: int = 0
    public_tokens: int = 0
    resumed_tokens: int = 0  # of a saved session that went on
    seconds: float = 0.0
    cpu_seconds: float = 0.0  # of this session's thread; native worker threads count in the process only
    peak_memory_bytes: int = 0  # of the whole server process so far
    ledger: list[dict[str, Any]] = field(default_factory=list)


class ServerSession:
    """Runs in a thread of its own; shares nothing with other sessions but the engine's read-only weights."""

    def __init__(
        self,
        channel: Channel,
        open_party: Callable[[], ModelParty],
        welcome: Welcome,
        *,
        peer: str = "",
        certificate: str | None = None,
        idle_timeout: float = 1800.0,
        stopping: Event | None = None,
        admission: Admission | None = None,
        observer: Observer | None = None,
        turn: Turn | None = None,
        kept: KeptSessions | None = None,
        evict_after: float = math.inf,
    ) -> None:
        """certificate: fingerprint of the client's own, if it showed one. admission: who gets a place, None
        for everybody. turn: this session's on the processors. kept: where sessions are saved, None to save
        none. evict_after: seconds after which a session that is saved is dropped from memory."""
        self.channel = channel
        self._admission, self._observer, self._turn = admission, observer or Observer(), turn
        self._kept, self._evict_after = kept, evict_after
        self._checkpoints: Checkpoints | None = None
        self._certificate = certificate
        self._attendance = Unattended(turn)
        self._take_place: Callable[[], None] = lambda: None
        self._account = Account("")
        self.report = SessionReport(id=secrets.token_hex(4), peer=peer)
        self._open_party = open_party
        self._welcome = welcome
        self._idle_timeout = idle_timeout
        self._stopping = stopping or Event()
        self._length = 0
        self._limit, self._vocab = welcome.context_length, welcome.card.config.vocab_size

    def run(self, on_ready: Callable[["ServerSession"], None] = lambda session: None) -> SessionReport:
        """Serve until the client ends the session or something fails; never raises. `on_ready`: after
        setup.
        """
        start, cpu = time.monotonic(), time.thread_time()
        try:
            with ExitStack() as held:
                self._serve(held, on_ready)
        except SottovoceError as error:
            self.report.ended = f"{type(error).__name__}: {error}"
            self.channel.abort(error)
        except MemoryError:
            busy = ServerBusyError("the server has run out of memory; try again later", 30)
            self.report.ended = f"{type(busy).__name__}: {busy}"
            self.channel.abort(busy)
        except Exception as error:  # noqa: BLE001  (one session's fault must not end the server)
            # Only the type: the text of a foreign exception may quote data.
            self.report.ended = f"internal error ({type(error).__name__} in {_where(error)})"
            self.channel.abort(error)
        finally:
            self.channel.close()
            self.report.seconds = time.monotonic() - start
            self.report.cpu_seconds = time.thread_time() - cpu
            self.report.peak_memory_bytes = peak_memory_bytes()
            self.report.ledger = self.channel.ledger.to_json()
        return self.report

    def _serve(self, held: ExitStack, on_ready: Callable[["ServerSession"], None]) -> None:
        """All of it. held: what is given back at the end, the last thing first."""
        ledger = self.channel.ledger
        with ledger.phase("setup"), ledger.operation("handshake"):
            caller = server_handshake(self.channel, self._welcome, lambda caller: self._admit(held, caller))
            if caller.purpose == "describe":
                self.report.ended = "described"
                return
            resumed = None if caller.session is None else self._returned(held, caller)
        if caller.purpose == "forget":
            self.report.ended = "forgotten"
            return
        self._take_turns(held)
        party = self._open_party()
        party.attendance = self._attendance
        # Closed before a place or a claim is given back: who gets them may want the same pool.
        with closing(party):
            with ledger.phase("setup"):
                party.setup(self.channel)
                if resumed is not None:
                    self._go_on(party, resumed)
            on_ready(self)
            self._observer.opened(self)
            self._obey(party, held)

    def _admit(self, held: ExitStack, caller: Caller) -> int | None:
        """A place for this client, held to the end; tokens that its session may hold."""
        if self._admission is None:
            return self._welcome.context
        address = self.report.peer.rpartition(":")[0]
        account = self._account = self._admission.account(caller.api_key, address, self._certificate)
        self.report.account = account.name
        if caller.purpose != "describe":
            admission = self._admission
            if self._kept is not None and caller.session and self._kept.computing(caller.session):
                # A step of this session has its place. Its client may wait for it without another one.
                self._take_place = lambda: _place_in_time(held, admission, account)
            else:
                held.enter_context(admission.place(account))
        return self._bounded(self._admission, account)

    def _returned(self, held: ExitStack, caller: Caller) -> Resumed | None:
        """What a client that comes back goes on from; None if there is nothing."""
        assert caller.session is not None
        head = None if self._kept is None else self._kept.find(caller.session, self._account)
        if self._kept is None or head is None:
            self._take_place()
            unknown(self.channel)
            return None
        theirs = recognise(self.channel, head.ticket, self._limit)
        if caller.purpose == "forget":
            self._kept.cancel(caller.session)
        held.enter_context(self._kept.claimed(head.ticket, self.channel, self._attendance, self._tell_busy))
        self._take_place()
        if caller.purpose == "forget":
            self._kept.store.remove(caller.session)
            agree(self.channel, 0)
            return None
        return self._kept.resume(self.channel, head.ticket, self._account, theirs)

    def _tell_busy(self, done: int, total: int) -> None:
        """A step of this session goes on that began on another connection; the client hears how far it is."""
        if isinstance(self.channel, SocketChannel):
            self.channel.deadline = None
        if self._stopping.is_set():
            raise PeerGoneError("the server is shutting down; connect again later")
        tell_busy(self.channel, done, total)

    def _go_on(self, party: ModelParty, resumed: Resumed) -> None:
        if resumed.tokens:
            try:
                party.restore(resumed.pieces, resumed.tokens)
            except CorruptFileError:
                # The client comes back, hears that there is no such session, and computes it again.
                resumed.checkpoints.store.remove(resumed.checkpoints.id)
                raise PeerGoneError("the server's half of the session is damaged; connect again") from None
        self._length = resumed.tokens
        self.report.resumed_tokens = resumed.tokens
        self._checkpoints = resumed.checkpoints
        self._attendance.allowed = True

    def _keep(self, party: ModelParty, held: ExitStack) -> None:
        """The client wants the session saved from now on."""
        ticket, epoch = read_keep(self.channel), new_epoch()
        if self._kept is None or self._checkpoints is not None:
            return answer_keep(self.channel, None)
        self._kept.check(ticket, self._account)  # before the connection that holds it is cut off
        held.enter_context(self._kept.claimed(ticket, self.channel, self._attendance))
        try:
            self._checkpoints = self._kept.keep(ticket, self._account, epoch)
        except StorageError:
            return answer_keep(self.channel, None)
        self._attendance.allowed = True
        answer_keep(self.channel, epoch)

    def _checkpoint(self, party: ModelParty) -> None:
        """After a step. A full disk costs the session its resumption from here on, not its answer."""
        if self._checkpoints is not None:
            try:
                self._checkpoints.write(party, self._length, {}, facts_of(self._account))
            except (StorageError, UsageError) as error:  # a full disk, or the session was removed meanwhile
                self._attendance.allowed = False
                self._observer.failed(self, "checkpoint", str(error))

    def _bounded(self, admission: Admission, account: Account) -> int:
        self._limit = admission.context_for(account, self._limit)
        return self._limit

    def _take_turns(self, held: ExitStack) -> None:
        if isinstance(self.channel, SocketChannel):
            self.channel.timeout, self.channel.deadline = _STEP_TIMEOUT, None
        if self._turn is not None:
            self._turn.resume()
            held.callback(self._turn.pause)
            self.channel.turn = self._turn

    def _obey(self, party: ModelParty, held: ExitStack) -> None:
        while True:
            with self.channel.ledger.operation("idle"):
                self._wait()
                raw = self.channel.recv_message(MAX_COMMAND, booked=False)
            command = Command.parse(raw)
            if command.verb == Verb.END:
                return
            self._check(command)
            before, start, length = self.channel.ledger.total(), time.perf_counter(), self._length
            with self._phase(command, len(raw)), self._attendance.step():
                if command.verb == Verb.KEEP:
                    self._keep(party, held)
                else:
                    self._execute(party, command)
            if command.verb != Verb.COLLECT:  # which changes nothing
                self._checkpoint(party)
            cost = self.channel.ledger.total()
            cost.add(before, -1)
            grown = max(0, self._length - length)
            self._observer.step(self, command.verb, grown, time.perf_counter() - start, cost)

    def _wait(self) -> None:
        """Until the client wants something. A stopping server or a silent client ends the session here."""
        patience = self._idle_timeout
        if self._checkpoints is not None:
            patience = min(patience, self._evict_after)
        if self._turn is not None:
            self._turn.pause()
        try:
            self._wait_for(patience)
        finally:
            if self._turn is not None:
                self._turn.resume()

    def _wait_for(self, patience: float) -> None:
        deadline = time.monotonic() + patience
        while not self.channel.wait(_POLL):
            if self._stopping.is_set():
                raise PeerGoneError("the server is shutting down; connect again later")
            if time.monotonic() > deadline:
                raise PeerGoneError(f"the session was idle for {patience:.0f} seconds; connect again")
        if self._stopping.is_set():
            raise PeerGoneError("the server is shutting down; connect again later")

    def _check(self, command: Command) -> None:
        """The server's own bounds: a client cannot make it index outside anything."""
        public = command.public_tokens
        if command.verb == Verb.PREFILL:
            if public and self._length:
                raise ProtocolError("public tokens are allowed only at the beginning of a session")
            if any(token >= self._vocab for token in public):
                raise ProtocolError("a public token is outside the vocabulary")
            if command.n < 1:
                raise ProtocolError("a prefill needs at least one private token")
        if command.verb == Verb.VERIFY and not 1 <= command.n <= MAX_VERIFY:
            raise ProtocolError(f"a verification takes 1 to {MAX_VERIFY} tokens, not {command.n}")
        grown = {Verb.PREFILL: command.n + len(public), Verb.DECODE: 1, Verb.VERIFY: command.n}
        grows = grown.get(command.verb, 0)
        if self._length + grows > self._limit:
            raise ProtocolError(
                f"{self._length + grows} tokens exceed this session's context of {self._limit}"
            )
        if command.verb == Verb.PREPARE and not 1 <= command.n <= self._limit:
            raise ProtocolError(f"tokens are prepared for up to the model's context of {self._limit}")
        if command.verb == Verb.TRUNCATE and command.n > self._length:
            raise ProtocolError(f"cannot truncate {self._length} tokens to {command.n}")

    def _execute(self, party: ModelParty, command: Command) -> None:
        if command.verb == Verb.PREFILL:
            party.prefill(list(command.public_tokens), command.n)
            self._length += command.n + len(command.public_tokens)
            self.report.private_tokens += command.n
            self.report.public_tokens += len(command.public_tokens)
        elif command.verb == Verb.DECODE:
            party.decode()
            self._length += 1
            self.report.private_tokens += 1
        elif command.verb == Verb.VERIFY:
            party.verify(command.n)
            self._length += command.n
            self.report.private_tokens += command.n
        elif command.verb == Verb.PREPARE:
            with suppress(PoolFullError):  # the client has heard it as well
                party.prepare_step(command.n)
        elif command.verb == Verb.COLLECT:
            party.collect()
        else:
            party.truncate(command.n)
            self._length = command.n

    @contextmanager
    def _phase(self, command: Command, size: int) -> Iterator[None]:
        """The command's phase; the frame that carried it is booked there, as the client books it."""
        with self.channel.ledger.phase(command.verb.name.lower()):
            with self.channel.ledger.operation("command"):
                self.channel.ledger.message(Role.CLIENT, size)
            yield


def _place_in_time(held: ExitStack, admission: Admission, account: Account) -> None:
    """A place that another connection of the same session is about to give back."""
    deadline = time.monotonic() + _HANDOVER
    while True:
        try:
            held.enter_context(admission.place(account))
            return
        except ServerBusyError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_HANDOVER / 100)


def peak_memory_bytes() -> int:
    """The most resident memory this process has used."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _where(error: BaseException) -> str:
    """File and line of the innermost frame of our package: enough to find a bug, nothing about data."""
    place, trace = "unknown place", error.__traceback__
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if "sottovoce" in name:
            place = f"{name.rsplit('sottovoce/', 1)[-1]}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place
