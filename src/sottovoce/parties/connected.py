"""A client's connection to its server, replaced when it breaks, and what is saved of its session."""

from collections.abc import Callable, Sequence
from typing import Any, Self

from ..engines.base import DataParty, Progress
from ..engines.registry import make_data_party
from ..errors import PeerConnectionError
from ..net import Channel, Ledger, SocketChannel
from .address import Identity
from .keeping import Keeping, check_free
from .pools import Pools
from .protocol import Caller, CardCache, Command, Verb, Welcome, Wish, client_handshake
from .resume import Agreed
from .saved import SavedSession
from .store import SessionStore
from .tries import NobodyThereError, Tries, until_there

# Connections in a row that broke without a step having been done on them.
ATTEMPTS = 8


class Connected:
    """A session at one server, without its steps: `Client` has these."""

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
        secret, tries = self._party.secret or self._party.new_secret(), Tries(ATTEMPTS, progress)
        while True:
            try:
                self._party.secret = secret
                return self._set_up(tries.progress)
            except NobodyThereError:
                raise
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
        written. server: the address to show in lists. Cost: 2 messages. The server learns that the session
        may come back, and recognises it then; not its name.
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

    def _promise(self, public: Sequence[int] | None, private: Sequence[int]) -> None:
        """Write down what is about to be sent, if the server may end the step alone."""
        if private and self.is_kept and self._party.collects:
            with self.ledger.phase("promise"):
                digest = self._party.promise(private, public is not None)
            public = public or ()
            tokens = [*self.tokens, *public, *private]
            known = self.public_count if self.tokens else len(public)
            self.waiting = len(public) + len(private)
            self._keeping.promise(tokens, self.waiting, known, digest)

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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.close(error)

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
