"""The client: connects, checks what the server offers, and drives the engine's client half step by step."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..engines.base import DataParty, Logits, Progress
from ..engines.registry import make_data_party
from ..errors import PeerConnectionError, PoolFullError, PromptTooLongError, UsageError
from ..net import Channel, Ledger, SocketChannel
from ..net.tls import KnownHosts
from .address import CONNECT_TIMEOUT, DEFAULT_PORT, Address, Identity, Route, open_socket
from .keeping import Keeping, check_free
from .pools import Pools
from .protocol import MAX_VERIFY, Caller, CardCache, Command, Verb, Welcome, Wish, client_handshake
from .resume import Agreed
from .saved import SavedSession
from .store import SessionStore
from .tries import Tries, until_there

__all__ = ["DEFAULT_PORT", "Address", "Client", "Identity", "open_socket"]

# Connections in a row that broke without a step having been done on them.
_ATTEMPTS = 8


class Client:
    """One session with one server. Steps: `connect` (handshake), `setup`, `prefill`, `decode`…, `close`.

    Not thread-safe. After any error the session is over: its one-time material is thrown away with it. A
    session that is kept (`keep`, or opened with `saved`) survives a broken connection: the step is done again
    on a new one, with new one-time material.
    """

    def __init__(
        self,
        channel: Channel,
        wish: Wish,
        identity: Identity | None = None,
        cards: CardCache | None = None,
        pools: Pools | None = None,
        dealer: Callable[[], Channel] | None = None,
        *,
        api_key: str | None = None,
        saved: SavedSession | None = None,
        forget: bool = False,
        again: Callable[[], tuple[Channel, Identity | None]] | None = None,
        patience: float = 60.0,
        waiting: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        """Handshake over an open channel.

        pools: where prepared material is kept, None to go without. dealer: connects to the dealer, for a wish
        with its correlations. saved: the session to go on with, or, with `forget`, to delete at the server
        (nothing else can be done then). again: connects once more, for a session that
        is kept and whose connection broke; tried for `patience` seconds. waiting: called about once a second
        while the server ends a step of the session first, with how far it is.
        """
        self.channel = channel
        self.identity = identity
        self.patience = patience
        self.resumed = 0  # how often the session came back by itself
        self.notify: Callable[[str], None] = lambda line: None  # what a user may want to know meanwhile
        self._wish, self._cards, self._pools, self._dealer = wish, cards, pools, dealer
        self._api_key, self._again, self._forget, self._waiting = api_key, again, forget, waiting
        self._keeping = Keeping(saved)
        self.tokens: list[int] = []  # public and private ones that the session's cache holds
        self.begun = False  # anything was ever sent: public tokens can only come first
        self.public_count = 0  # of the tokens that the session began with
        self.waiting = 0  # tokens that were sent, whose answer is not here; the server may have it
        self._begin()

    def _begin(self) -> None:
        """Handshake and agreement on the saved session, on a new channel."""
        with self.ledger.phase("setup"), self.ledger.operation("handshake"):
            caller = Caller(api_key=self._api_key)
            ticket = self._keeping.ticket(self._server)
            if ticket is not None:
                caller = Caller("forget" if self._forget else "resume", ticket.id.hex(), self._api_key)
            self.welcome: Welcome = client_handshake(self.channel, self._wish, self._cards, caller)
            self.card = self.welcome.card
            try:
                self._party: DataParty = make_data_party(self.welcome.options, self.welcome.public)
                self._keeping.come_back(self.channel, self._server, self.card.model_digest, self._waiting)
            except BaseException as error:
                self.channel.abort(error)
                raise
        self._party.dealer = self._dealer
        if self._pools is not None:
            self._party.shelf = self._pools.shelf(self._server or "no certificate", self.welcome)

    @property
    def _server(self) -> str:
        """What the server is recognised by, its certificate; empty without TLS."""
        return "" if self.identity is None else self.identity.fingerprint

    @classmethod
    def connect(
        cls,
        address: Address,
        wish: Wish,
        pin: KnownHosts | str | None,
        cards: CardCache | None = None,
        timeout: float = CONNECT_TIMEOUT,
        pools: Pools | None = None,
        dealer: Callable[[], Channel] | None = None,
        *,
        api_key: str | None = None,
        client_certificate: Path | None = None,
        saved: SavedSession | None = None,
        forget: bool = False,
        patience: float = 60.0,
        waiting: Callable[[int, int], None] = lambda done, total: None,
    ) -> "Client":
        """Connect, check the certificate, shake hands.

        pin: known hosts, a fingerprint, or None for no TLS at all. cards: where model cards are kept.
        api_key: for a server that wants one; it travels inside TLS, after the certificate was checked.
        client_certificate: PEM file, for a server that asks for one.
        """
        route = Route(address, pin, client_certificate, timeout)
        channel, identity = route.open()
        return cls(
            channel, wish, identity, cards, pools, dealer,
            api_key=api_key, saved=saved, forget=forget, again=route.open, patience=patience, waiting=waiting,
        )  # fmt: skip

    @property
    def ledger(self) -> Ledger:
        return self.channel.ledger

    @property
    def length(self) -> int:
        """Tokens in the session's cache."""
        return len(self.tokens)

    @property
    def context_length(self) -> int:
        """Tokens that the session may hold: the model's bound, or the server's."""
        return self.welcome.context_length

    def setup(self, progress: Progress | None = None) -> None:
        """Exchange keys and base OTs, once a session; `tokens` is then what a saved session holds.

        Where keys are gigabytes, a broken connection is replaced, and what has arrived is not sent again.
        """
        secret, tries = self._party.secret or self._party.new_secret(), Tries(_ATTEMPTS, progress)
        while True:
            try:
                self._party.secret = secret
                return self._set_up(tries.progress)
            except PeerConnectionError as error:
                if secret is None or self._again is None or not tries.failed():
                    raise
                self.notify(f"the connection broke ({error}); going on with the keys that are missing …")
                self._connect_again()

    def _set_up(self, progress: Progress) -> None:
        with self.ledger.phase("setup"):
            saved, agreed = self._keeping.saved, self._keeping.agreed
            # Where keys are gigabytes, a session that lost everything else keeps them.
            if saved is not None and agreed is not None and (agreed.tokens or self._party.collects):
                self._party.secret = saved.secret
            self._guarded(self._party.setup, self.channel, progress)
            self._keeping.secret = self._party.secret_key().hex()
            if saved is not None and agreed is not None:
                self._go_on(saved, agreed)
        if isinstance(self.channel, SocketChannel):
            # The server may compute for minutes between two frames; keepalive notices a dead host.
            self.channel.timeout = None

    def _go_on(self, saved: SavedSession, agreed: Agreed) -> None:
        count = agreed.tokens
        if count:
            self._guarded(self._party.restore, self._keeping.pieces(), count)
        self.tokens = saved.tokens[:count]
        self.begun, self.public_count = count > 0, min(saved.public_count, count)
        if agreed.known:
            self._keeping.go_on()
        else:
            with self.ledger.phase("keep"):
                self._order(Command(Verb.KEEP))
                self._keeping.go_on_anew(self.channel, self._server)

    @property
    def notes(self) -> dict[str, Any]:
        """Whatever the caller wants to be saved with the session, by `checkpoint`."""
        return self._keeping.notes

    @property
    def is_kept(self) -> bool:
        """Whether the session survives this connection and this process."""
        return self._keeping.store is not None

    def keep(self, store: SessionStore, name: str | None = None, server: str = "") -> None:
        """Save the session at both parties from now on, after every step.

        RefusedError if the server keeps none, UsageError if the name is taken, StorageError if it cannot be
        written. server: the address to show in lists. Cost: 2 messages.
        """
        check_free(store, name)
        with self.ledger.phase("keep"):
            self._order(Command(Verb.KEEP))
            self._keeping.begin(self.channel, store, self._party, name, (self._server, server), self.welcome)
        self._checkpoint()
        self._keeping.opened()

    @property
    def saved_tokens(self) -> int:
        """Of the saved session: how many the server has; known before `setup`."""
        return 0 if self._keeping.agreed is None else self._keeping.agreed.tokens

    def keep_early(self, store: SessionStore, name: str | None = None, server: str = "") -> bool:
        """Like `keep`, before `setup`, where keys are worth it: an upload that breaks off goes on
        later. Whether it was done; otherwise `keep` is called after setup.
        """
        secret = self._party.new_secret()
        if secret is None:
            return False
        check_free(store, name)
        self._keeping.begin_early(store, name, secret, (self._server, server), self.welcome)
        return True

    def checkpoint(self) -> None:
        """Save `notes`; what a step changes is saved by itself. After `close`, too."""
        self._keeping.write_notes(self.tokens, self.public_count)

    def _checkpoint(self) -> None:
        self.waiting = 0
        self._keeping.write(self._party, self.tokens, self.public_count)

    def _step(
        self, run: Callable[[], Logits], public: Sequence[int] = (), private: Sequence[int] = ()
    ) -> Logits:
        """Do a step that appends these tokens, and save it; its logits (T, vocab).

        If the connection of a kept session breaks, the step is done on another one; if the server has ended
        it meanwhile, its answer is collected.
        """
        wanted, result = list(self.tokens), None
        for attempt in range(_ATTEMPTS):
            try:
                if attempt:
                    result = self._reconnect(wanted, [*public, *private])
                if result is None:
                    self._promise(public, private)
                    result = run()
                break
            except PeerConnectionError:
                if self._again is None or not self.is_kept or attempt + 1 == _ATTEMPTS:
                    raise
        assert result is not None
        self._checkpoint()
        return result

    def _promise(self, public: Sequence[int], private: Sequence[int]) -> None:
        """Write down what is about to be sent, if the server may end the step alone."""
        if private and self.is_kept and self._party.collects:
            with self.ledger.phase("promise"):
                digest = self._party.promise(private)
            tokens = [*self.tokens, *public, *private]
            known = self.public_count if self.tokens else len(public)
            self.waiting = len(public) + len(private)
            self._keeping.promise(tokens, self.waiting, known, digest)

    def last(self) -> Logits:
        """Logits (vocab,) behind the session's last token: what the server kept, or computed once more."""
        if self._party.collects:
            found = self._step(lambda: _or_nothing(self._collect()))
            if len(found):
                return _row(found)
        token = self.tokens[-1]
        self.truncate(self.length - 1)
        return self.decode(token)

    def _collect(self) -> Logits | None:
        with self.ledger.phase("collect"):
            self._order(Command(Verb.COLLECT))
            found: Logits | None = self._guarded(self._party.collect, self._keeping.digest)
        return found

    def _reconnect(self, wanted: list[int], appended: list[int]) -> Logits | None:
        """Come back to the session on a new connection, and append what the server has not got.

        appended: by the step that broke off. Its logits, if the server has ended it.
        """
        public = self.public_count
        self.notify("the connection broke; coming back to the session …")
        self._connect_again()
        self.setup()
        self.resumed += 1
        if self.length < len(wanted):
            # Public tokens go first, and at least one goes as a private one.
            start = self.length if self.begun else min(public, len(wanted) - 1)
            self._append(wanted[self.length : start], wanted[start:])
            self._checkpoint()
        elif self.length > len(wanted):
            if appended and self.tokens == wanted + appended:
                found = self._collect()
                if found is not None:
                    return found
            self._cut(len(wanted))
            self._checkpoint()
        return None

    def _connect_again(self) -> None:
        """A new connection and a handshake on it; tried for `patience` seconds."""
        ledger = self.ledger
        self._party.close()
        self.channel.close()

        def connect() -> None:
            assert self._again is not None
            channel, self.identity = self._again()
            channel.ledger = ledger
            self.channel = channel
            if self.is_kept:
                self._keeping.opened()
            self._begin()

        saved = self._keeping.saved is not None
        hint = "; the session is saved, and goes on when the server is there again" if saved else ""
        until_there(connect, self.patience, hint)

    def prepare(self, tokens: int, progress: Progress | None = None) -> None:
        """Fill the pool for the next `tokens` tokens, or make that much ahead for this session.

        UsageError if the engine has nothing to prepare, or a pool has no room. The server learns the number.
        """
        while self.prepare_step(tokens, progress):
            pass

    def prepare_step(self, tokens: int, progress: Progress | None = None) -> bool:
        """A part of it, some seconds long; whether more is left."""
        limit = self.context_length
        if not 1 <= tokens <= limit:
            raise UsageError(f"tokens are prepared for up to the session's context of {limit}, not {tokens}")
        with self.ledger.phase("prepare"):
            self._order(Command(Verb.PREPARE, tokens))
            try:
                return self._party.prepare_step(tokens, progress)
            except PoolFullError:
                raise  # at both parties, between two steps
            except BaseException as error:
                self.channel.abort(error)
                raise

    @property
    def has_pool(self) -> bool:
        """Whether the session spends what was prepared before; known after `setup`."""
        return self._party.has_pool

    def ready(self, most: int) -> int:
        """For how many tokens to come everything is prepared, counted to `most`."""
        return self._party.ready(most)

    def prefill(
        self, public_tokens: Sequence[int], private_tokens: Sequence[int], progress: Progress | None = None
    ) -> Logits:
        """Append tokens; logits (vocab,) after the last. The server learns public_tokens and how many are
        private.
        """
        self._check_room(len(public_tokens) + len(private_tokens))
        run = lambda: self._append(public_tokens, private_tokens, progress)  # noqa: E731
        return _row(self._step(run, public_tokens, private_tokens))

    def _append(
        self, public_tokens: Sequence[int], private_tokens: Sequence[int], progress: Progress | None = None
    ) -> Logits:
        command = Command(Verb.PREFILL, len(private_tokens), tuple(public_tokens))
        with self.ledger.phase("prefill"):
            self._order(command)
            logits: Logits = self._guarded(self._party.prefill, public_tokens, private_tokens, progress)
        if not self.tokens:
            self.begun, self.public_count = True, len(public_tokens)
        self.tokens += [*public_tokens, *private_tokens]
        return logits[None]

    def decode(self, token: int, progress: Progress | None = None) -> Logits:
        """Append one private token; logits (vocab,) after it."""
        self._check_room(1)

        def run() -> Logits:
            with self.ledger.phase("decode"):
                self._order(Command(Verb.DECODE))
                logits: Logits = self._guarded(self._party.decode, token, progress)
            self.tokens.append(token)
            return logits[None]

        return _row(self._step(run, (), [token]))

    def verify(self, tokens: Sequence[int], progress: Progress | None = None) -> Logits:
        """Append private tokens in one pass; logits (T, vocab) after each. The server learns T."""
        if not 1 <= len(tokens) <= MAX_VERIFY:
            raise UsageError(f"a verification takes 1 to {MAX_VERIFY} tokens, not {len(tokens)}")
        self._check_room(len(tokens))

        def run() -> Logits:
            with self.ledger.phase("verify"):
                self._order(Command(Verb.VERIFY, len(tokens)))
                logits: Logits = self._guarded(self._party.verify, tokens, progress)
            self.tokens += tokens
            return logits

        return self._step(run, (), tokens)

    def truncate(self, length: int) -> None:
        """Forget all tokens from position `length` on."""

        def run() -> Logits:
            self._cut(length)
            return _or_nothing(None)

        self._step(run)

    def _cut(self, length: int) -> None:
        with self.ledger.phase("truncate"):
            self._order(Command(Verb.TRUNCATE, length))
            self._guarded(self._party.truncate, length)
        del self.tokens[length:]
        # What comes next is private, also when it is appended again to a server that has lost the session.
        self.public_count = min(self.public_count, length)

    def close(self, error: BaseException | None = None) -> None:
        """End the session: politely, or with the reason why it cannot go on. Idempotent."""
        try:
            if error is not None:
                self.channel.abort(error)
            else:
                self.channel.send(Command(Verb.END).pack())
        except PeerConnectionError:
            pass
        finally:
            self._party.close()
            self.channel.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.close(error)

    def _check_room(self, tokens: int) -> None:
        if self.length + tokens > self.context_length:
            raise PromptTooLongError(
                f"{self.length + tokens} tokens do not fit the model's context of "
                f"{self.context_length} at this server; use a shorter prompt or ask for fewer new tokens"
            )

    def _order(self, command: Command) -> None:
        with self.ledger.operation("command"):
            self.channel.send(command.pack())

    def _guarded(self, step: Any, *args: Any) -> Any:
        """Run an engine step; if it fails in the middle, the two parties are out of step and the session
        ends.
        """
        try:
            return step(*args)
        except BaseException as error:
            self.channel.abort(error)
            raise


def _or_nothing(logits: Logits | None) -> Logits:
    return np.zeros((0, 0)) if logits is None else logits


def _row(logits: Logits) -> Logits:
    """The last position's."""
    row: Logits = logits[-1]
    return row
