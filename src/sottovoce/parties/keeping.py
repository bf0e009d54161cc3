"""A client's session on its own disk: what is written after every step, and what a saved one begins with."""

from collections.abc import Callable
from typing import Any

from ..engines.base import DataParty, Piece
from ..errors import ModelMismatchError, RefusedError, UsageError
from ..net import Channel
from .kept import Checkpoints
from .protocol import Welcome
from .resume import Agreed, Stamps, Ticket, ask_to_keep, come_back
from .saved import SavedSession, check_name
from .store import SessionStore


class Keeping:
    """Whether and where a client's session is saved; empty for one that is not.

    notes: whatever the caller keeps with the session. agreed: what a saved one goes on from, once the server
    has said it.
    """

    def __init__(self, saved: SavedSession | None) -> None:
        self.saved = saved
        self.notes: dict[str, Any] = {} if saved is None else saved.notes
        self.agreed: Agreed | None = None
        self.secret = ""  # of the engine's half, in hexadecimal
        self.digest: bytes | None = None if saved is None else saved.digest  # of what was last sent
        self._checkpoints: Checkpoints | None = None
        self._early = False  # begun before setup, by this process
        self._facts: dict[str, Any] = {}

    @property
    def store(self) -> SessionStore | None:
        """Where the session is saved; None if it is not."""
        return None if self._checkpoints is None else self._checkpoints.store

    def ticket(self, server: str) -> Ticket | None:
        """By which this server knows the saved session, if there is one."""
        return None if self.saved is None else self.saved.head.ticket.at(server)

    def come_back(
        self, channel: Channel, server: str, model: str, waiting: Callable[[int, int], None]
    ) -> None:
        """Hear how much of the saved session the server has. model: the server's, which must be the same.
        waiting: called while the server ends a step first, with how far it is."""
        ticket = self.ticket(server)
        if self.saved is None or ticket is None:
            return
        if self.saved.entry.facts.get("model") not in (None, model):
            raise ModelMismatchError(
                "the session was saved with another model than the server has now; remove it, or serve that"
                " model again"
            )
        self.agreed = come_back(channel, ticket, self.saved.head.stamps.astype("<u8").tobytes(), waiting)

    def pieces(self) -> list[tuple[str, Piece]]:
        """The saved state, oldest first."""
        assert self.saved is not None
        return [(name, dict(piece)) for name, piece in self.saved.store.pieces(self.saved.entry.id)]

    def go_on(self) -> None:
        """Write to the saved session again, from what was agreed on.

        Nothing is written yet: until the next step, the disk has all tokens that there ever were.
        """
        assert self.saved is not None and self.agreed is not None
        self._facts = _without_waiting(self.saved)
        self._checkpoints = self.saved.checkpoints(self.agreed.epoch, self.agreed.tokens)

    def go_on_anew(self, channel: Channel, server: str) -> None:
        """The same at a server that does not know the session; after KEEP."""
        assert self.saved is not None
        self._facts = _without_waiting(self.saved)
        try:
            self._ask(channel, self.saved.store, self.saved.head.ticket, server)
        except RefusedError:
            if self._early:  # nothing was ever in it
                self.saved.store.remove(self.saved.entry.id)
            raise

    def begin(
        self,
        channel: Channel,
        store: SessionStore,
        party: DataParty,
        name: str | None,
        where: tuple[str, str],
        welcome: Welcome,
    ) -> None:
        """A session that was not saved is from now on. After KEEP. where: the server's fingerprint (empty
        without TLS), and its address for lists."""
        fingerprint = where[0]
        ticket = Ticket.new()
        self._facts = _facts(where, welcome)
        self._ask(channel, store, ticket, fingerprint)
        assert self._checkpoints is not None
        try:
            self._checkpoints.begin(party, name, {"tokens": []}, self._facts)
        except UsageError:
            self._checkpoints = None
            raise

    def begin_early(
        self, store: SessionStore, name: str | None, secret: bytes, where: tuple[str, str], welcome: Welcome
    ) -> None:
        """The same before setup, on this disk alone: if the upload of keys breaks off, `secret` is there."""
        self.secret = secret.hex()
        checkpoints = Checkpoints(store, Ticket.new(), Stamps(0), keeps=True)
        head = self._head([], 0)
        store.create(checkpoints.id, name, {}, b"")
        checkpoints.write_head(head, _facts(where, welcome))
        self.saved = SavedSession.open(store, checkpoints.id)
        self.agreed, self._early = Agreed(False, 0, 0), True

    def promise(self, tokens: list[int], waiting: int, public: int, digest: bytes) -> None:
        """Before a step that the server may end alone. tokens: with those that it appends, `waiting`."""
        if self._checkpoints is not None:
            self.digest = digest
            head = {**self._head(tokens, public), "waiting": waiting}
            self._checkpoints.promise(len(tokens), head, self._facts)

    def opened(self) -> SavedSession:
        """What the disk has of the session now: what a new connection goes on from."""
        assert self._checkpoints is not None
        self.saved = SavedSession.open(self._checkpoints.store, self._checkpoints.id)
        return self.saved

    def write(self, party: DataParty, tokens: list[int], public: int) -> None:
        """What the last step changed. StorageError if the disk is full."""
        if self._checkpoints is not None:
            self._checkpoints.write(party, len(tokens), self._head(tokens, public), self._facts)

    def write_notes(self, tokens: list[int], public: int) -> None:
        """No step was made since the last `write`, but the notes are others."""
        if self._checkpoints is not None and len(self._checkpoints.stamps) == len(tokens):
            self._checkpoints.write_head(self._head(tokens, public), self._facts)

    def _head(self, tokens: list[int], public: int) -> dict[str, Any]:
        return {
            "tokens": tokens,
            "public": public,
            "secret": self.secret,
            "notes": self.notes,
            "digest": "" if self.digest is None else self.digest.hex(),
        }

    def _ask(self, channel: Channel, store: SessionStore, ticket: Ticket, server: str) -> None:
        try:
            epoch = ask_to_keep(channel, ticket.at(server))
        except BaseException as error:
            channel.abort(error)
            raise
        if epoch is None:
            raise RefusedError(
                "the server keeps no sessions, or has no room for another one; go on without --session"
            )
        self._checkpoints = Checkpoints(store, ticket, Stamps(epoch))


def _without_waiting(saved: SavedSession) -> dict[str, Any]:
    """Facts of a saved session that goes on: what it waits for is said anew by every step."""
    return {name: value for name, value in saved.entry.facts.items() if name != "waiting"}


def _facts(where: tuple[str, str], welcome: Welcome) -> dict[str, Any]:
    """What lists of sessions may show."""
    fingerprint, address = where
    options, card = welcome.options, welcome.card
    return {
        "server": address,
        "fingerprint": fingerprint or None,
        "model": card.model_digest,
        "model_name": card.name,
        "engine": options.engine,
        "kv": options.kv,
    }


def check_free(store: SessionStore, name: str | None) -> None:
    """UsageError if no new session can have that name."""
    if name is not None:
        check_name(name)
        if store.find(name) is not None:
            raise UsageError(f"there is already a saved session named {name!r}; choose another name")
