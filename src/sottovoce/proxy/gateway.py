"""Behind the web server: a few sessions with one model server, and a short queue of answers before them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from queue import SimpleQueue
from threading import Lock, Thread
from time import monotonic
from typing import Any

from ..errors import PeerConnectionError, PromptTooLongError
from ..models.card import ModelCard
from ..models.chat import Prompt
from ..parties import CardCache, Client, Completion, GenerationOptions, IdleFiller, LiveSessions, Speculation
from ..parties import generate as run
from ..parties.reuse import Lease
from .compose import Histories, compose
from .fields import Asked
from .jobs import Answer, Happening, Job
from .metrics import Metrics
from .problems import Problem, busy
from .statement import Statement, StatementFile
from .wire import Wire

_LATE = (
    "a message behind a private one was marked public; only a beginning can be public, so it was sent "
    "privately"
)


@dataclass(frozen=True)
class Plan:
    """How answers are made. sessions: at the same time; waiting: requests that may queue for one.

    keep_ready: tokens to keep prepared while nothing is asked (one session only). defaults: for what a
    request leaves open.
    """

    sessions: int = 1
    waiting: int = 4
    keep_ready: int = 0
    defaults: GenerationOptions = GenerationOptions(max_tokens=256)


class Gateway:
    """Answers requests through sessions with `server`. Thread-safe.

    connect: opens a session, handshake done, setup not. statements, cards: where public things about the
    model are kept between runs. speculation: makes the drafter of a session. opened: is called with every
    session after its setup, for example to have it saved; one that holds tokens then is gone on with. failed:
    is called with what kept the first connection, made ahead, from coming about.
    """

    def __init__(
        self,
        server: str,
        connect: Callable[[], Client],
        plan: Plan | None = None,
        *,
        statements: StatementFile | None = None,
        cards: CardCache | None = None,
        speculation: Callable[[ModelCard], Speculation | None] = lambda card: None,
        opened: Callable[[Client], None] = lambda client: None,
        failed: Callable[[Exception], None] = lambda error: None,
    ) -> None:
        self.server, self.plan = server, plan or Plan()
        self.wire, self.metrics = Wire(), Metrics()
        self._connect, self._speculation = connect, speculation
        self._on_opened, self._on_failed = opened, failed
        self._statements, self._cards = statements, cards
        self.statement: Statement | None = None if statements is None else statements.load()
        self._card: ModelCard | None = None
        self._spare: list[Client] = []
        self._live = LiveSessions(self._open, self.plan.sessions)
        self._histories = Histories()
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._lock = Lock()
        self._connecting = Lock()  # held while a session is opened
        self._accepted: set[int] = set()
        self._running: dict[int, Job] = {}
        self._last: Client | None = None
        self._mean_seconds = 10.0
        self._stopping = False
        self.connected = False
        self._threads = [
            Thread(target=self._work, name=f"answers-{i}", daemon=True) for i in range(self.plan.sessions)
        ]

    def start(self, warm: bool = True) -> None:
        """Begin to take requests; warm: connect at once instead of with the first one."""
        for thread in self._threads:
            thread.start()
        if warm:
            Thread(target=self._warm, name="warm", daemon=True).start()

    def stop(self, grace: float = 10.0) -> None:
        """Take nothing more, end answers after the token they are at, then the sessions."""
        with self._lock:
            self._stopping = True
            running = list(self._running.values())
        for job in running:
            job.cancel()
        for _ in self._threads:
            self._jobs.put(None)
        deadline = monotonic() + grace
        for thread in self._threads:
            if thread.is_alive():
                thread.join(max(0.0, deadline - monotonic()))
        self._live.close()
        for client in self._spare:
            client.close()

    def submit(self, asked: Asked, on_event: Callable[[Happening], None]) -> Job:
        """Queue a request; Problem 429 if too many wait already, 404 for another model's name."""
        if self.statement is not None and asked.model != self.statement.name:
            raise no_such_model(asked.model, self.statement.name)
        job = Job(asked, on_event)
        with self._lock:
            if self._stopping:
                raise Problem(503, "the proxy is shutting down", kind="api_error", code="shutting_down")
            if len(self._accepted) >= self.plan.sessions + self.plan.waiting:
                self.metrics.refused.add()
                raise busy(max(1, min(600, round(self._mean_seconds))))
            self._accepted.add(id(job))
        self._jobs.put(job)
        return job

    @property
    def load(self) -> tuple[int, int]:
        """(answers being made, requests waiting)."""
        with self._lock:
            return len(self._running), len(self._accepted) - len(self._running)

    def card(self) -> ModelCard:
        """The model's card: from memory, from disk, or from the server."""
        with self._connecting:
            if self._card is None and self.statement is not None and self._cards is not None:
                self._card = self._cards.load(self.statement.card)
            if self._card is None:
                self._add(self._opened())
            assert self._card is not None
            return self._card

    def _warm(self) -> None:
        """Connect ahead; what goes wrong here is said again, and heard, with the first request."""
        try:
            with self._connecting:
                if not self._spare and not self.connected:
                    self._add(self._opened())
        except Exception as error:  # noqa: BLE001
            self.connected = False
            self._on_failed(error)

    def _add(self, client: Client) -> None:
        """A session for later: one that goes on, or a new one for whoever asks first."""
        if not client.begun:
            self._spare.append(client)
            return
        self._live.adopt(client)
        last = client.notes.get("proxy")
        if last is not None:
            self._histories.remember(last["messages"], last["public"], last["answer"], tuple(last["tokens"]))

    def _open(self) -> Client:
        """A session for `LiveSessions`."""
        with self._connecting:
            return self._spare.pop() if self._spare else self._opened()

    def _opened(self) -> Client:
        try:
            client = self._connect()
        except BaseException:
            self.connected = False
            raise
        self.connected = True
        statement = Statement.of(client.welcome)
        known = self.statement
        if known is not None and (known.commitment, known.name) == (statement.commitment, statement.name):
            statement = replace(statement, created=known.created)
        self.statement, self._card = statement, client.card
        if self._statements is not None and statement != known:
            self._statements.store(statement)
        self.wire.watch(client)
        try:
            client.setup()
            self._on_opened(client)
        except BaseException as error:
            client.close(error)
            raise
        return client

    def _work(self) -> None:
        """The life of one thread: it owns a session for as long as an answer takes."""
        while True:
            with self._idle():
                job = self._jobs.get()
            if job is None:
                return
            with self._lock:
                self._running[id(job)] = job
                if self._stopping:
                    job.cancel()
            start = monotonic()
            try:
                happening: Happening = self._answer(job)
            except Exception as error:  # noqa: BLE001  (one request's fault must not end the proxy)
                happening = error
            finally:
                with self._lock:
                    del self._running[id(job)]
                    self._accepted.discard(id(job))
            self._mean_seconds += 0.3 * (monotonic() - start - self._mean_seconds)
            self.metrics.ended(happening)
            job.on_event(happening)

    def _idle(self) -> Any:
        """Fills the pool while nothing is asked. Only one thread may use a session, so only with one."""
        client, self._last = self._last, None
        ready = self.plan.keep_ready
        if client is None or not ready or self.plan.sessions != 1 or not client.has_pool:
            return nullcontext()
        return _Quiet(IdleFiller(client, ready))

    def _answer(self, job: Job) -> Answer:
        if job.cancelled.is_set():
            raise Problem(499, "the request was given up before its turn came", code="cancelled")
        job.stage = "connecting"
        card = self.card()
        if job.asked.model != card.name:
            raise no_such_model(job.asked.model, card.name)
        prompt = compose(card, job.asked, self._histories)
        options = self._options(job.asked, card, prompt)
        try:
            return self._attempt(job, prompt, options)
        except _SessionGone as gone:
            # One that lay idle may have ended meanwhile. Nothing was said yet, so it is begun anew.
            if job.started or job.cancelled.is_set():
                raise gone.error from None
        try:
            return self._attempt(job, prompt, options)
        except _SessionGone as gone:
            raise gone.error from None

    def _attempt(self, job: Job, prompt: Prompt, options: GenerationOptions) -> Answer:
        with self._live.lease(prompt.tokens, len(prompt.public)) as lease:
            self.metrics.sessions_opened.add(int(lease.fresh))
            try:
                done, prepared = self._generate(job, lease, options)
            except PeerConnectionError as error:
                self.connected = False  # until another session could be opened
                raise _SessionGone(error) from error
            self._remember(job.asked, lease.client, done, (*prompt.tokens, *done.token_ids))
            self._last = lease.client
        asked = job.asked
        return Answer(
            done,
            len(prompt),
            len(prompt.public),
            lease.cached_tokens,
            lease.client.welcome.options,
            prepared,
            (_LATE,) if asked.late else (),
        )

    def _remember(self, asked: Asked, client: Client, done: Completion, tokens: tuple[int, ...]) -> None:
        """The chat with its own token ids; a saved session keeps them with it."""
        if asked.chat:
            self._histories.remember(asked.messages, asked.public, done.text, tokens)
            client.notes["proxy"] = {
                "messages": [dict(message) for message in asked.messages],
                "public": asked.public,
                "answer": done.text,
                "tokens": list(tokens),
            }
            client.checkpoint()

    def _generate(self, job: Job, lease: Lease, options: GenerationOptions) -> tuple[Completion, int | None]:
        client = lease.client
        self.wire.watch(client)  # its channel is another one after a lost connection
        expected = len(lease.prompt.private) + options.max_tokens
        ready = client.ready(expected) if client.has_pool else None
        job.stage = "prefill"
        done = run(
            client,
            lease.prompt,
            options,
            job.text,
            job.progress,
            self._speculation(client.card),
            job.cancelled.is_set,
        )
        spent = len(lease.prompt.private) + max(0, done.usage.completion_tokens - 1)
        return done, None if ready is None else min(ready, spent)

    def _options(self, asked: Asked, card: ModelCard, prompt: Prompt) -> GenerationOptions:
        context = card.config.context_length
        if self.statement is not None:
            context = min(context, self.statement.context_length)  # a server may allow less than the model
        room = context - len(prompt)
        wanted = asked.max_tokens
        if room < (wanted or 1):
            raise PromptTooLongError(
                f"this model's context is {context} tokens; {len(prompt)} of the prompt "
                f"and {wanted or 1} new ones do not fit, shorten one of them"
            )
        most = min(self.plan.defaults.max_tokens, room) if wanted is None else wanted
        return GenerationOptions(
            most, asked.sampling, asked.stop or self.plan.defaults.stop, asked.ignore_eos
        )


class _SessionGone(Exception):
    """A session that was open has ended: unlike a server that cannot be reached, worth another try."""

    def __init__(self, error: PeerConnectionError) -> None:
        super().__init__(str(error))
        self.error = error


class _Quiet:
    """An idle filler whose failure is not the next request's: the session shows it by itself."""

    def __init__(self, filler: IdleFiller) -> None:
        self._filler = filler

    def __enter__(self) -> None:
        self._filler.__enter__()

    def __exit__(self, *exc: object) -> None:
        try:
            self._filler.__exit__(None, None, None)
        except Exception:  # noqa: BLE001
            pass


def no_such_model(wanted: str, there: str) -> Problem:
    return Problem(
        404,
        f"the model {wanted[:100]!r} is not here; the server behind this proxy has {there!r}",
        param="model",
        code="model_not_found",
    )
