"""A session that is kept: one party's checkpoints while it goes on, and the server's register of them."""

import base64
import hmac
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from threading import Condition
from typing import Any

import numpy as np
import numpy.typing as npt

from ..engines.base import DataParty, ModelParty, Piece
from ..errors import CorruptFileError, RefusedError, ServerBusyError, SottovoceError
from ..net import Channel
from .admission import Account
from .resume import ID_BYTES, KEY_BYTES, Stamps, Ticket, agree, common, parse_stamps
from .store import SessionStore
from .unattended import Unattended

DAY = 86400.0
_PATIENCE = 30.0
_TELL = 1.0  # seconds between two words to a client that waits for a step


class Checkpoints:
    """Writes a session to a store, after every step what that step changed."""

    def __init__(self, store: SessionStore, ticket: Ticket, stamps: Stamps, keeps: bool = False) -> None:
        """keeps: whether the store has state to restore, of the tokens that have stamps."""
        self.store, self.ticket, self.stamps = store, ticket, stamps
        self._saved = len(stamps)  # tokens whose state is on the disk
        self._failed = False
        self._keeps = keeps

    @property
    def id(self) -> str:
        return self.ticket.id.hex()

    def begin(
        self, party: DataParty | ModelParty, name: str | None, head: dict[str, Any], facts: dict[str, Any]
    ) -> None:
        """Make the session in the store, with no token yet. UsageError if the name is taken."""
        self._keeps = party.keeps
        self.store.create(self.id, name, facts, self._packed(head))

    def write(
        self,
        party: DataParty | ModelParty,
        length: int,
        head: dict[str, Any],
        facts: dict[str, Any],
    ) -> None:
        """The session holds `length` tokens now. head: what else this party needs. facts: what `ls` may show.

        StorageError if it cannot be written: nothing is saved from then on, what was saved before holds.
        """
        self.stamps.resize(length)
        first = min(self._saved, length)
        if self._failed:
            return
        self._keeps = party.keeps
        pieces = party.changed(first) if self._keeps and length else {}
        try:
            self.store.checkpoint(self.id, self._packed(head), pieces, {**facts, "tokens": length})
        except SottovoceError:
            # A later checkpoint could not repair it: shares are only good together with the other party's of
            # the same moment.
            self._failed = True
            raise
        party.saved()
        self._saved = length

    def promise(self, length: int, head: dict[str, Any], facts: dict[str, Any]) -> None:
        """Before a step that the other party may finish alone: the session will hold `length` tokens.

        Their stamps are the ones that `write` would give them. Cost: one small write.
        """
        if not self._failed:
            facts = {**facts, "tokens": len(self.stamps), "waiting": length - len(self.stamps)}
            self.stamps.resize(length)
            self.store.checkpoint(self.id, self._packed(head), {}, facts)

    def write_head(self, head: dict[str, Any], facts: dict[str, Any]) -> None:
        """No step was made since the last `write`, but the head is another one."""
        if not self._failed:
            facts = {**facts, "tokens": len(self.stamps)}
            self.store.checkpoint(self.id, self._packed(head), {}, facts)

    def _packed(self, head: dict[str, Any]) -> bytes:
        return json.dumps(
            {
                **head,
                "key": self.ticket.key.hex(),
                "stamps": base64.b64encode(self.stamps.to_bytes()).decode(),
                "keeps": self._keeps,
            }
        ).encode()


@dataclass(frozen=True)
class Head:
    """What a saved session begins with."""

    ticket: Ticket
    stamps: npt.NDArray[np.uint64]
    keeps: bool  # whether there is state to restore
    fields: dict[str, Any] = field(repr=False)


def read_head(id: str, raw: bytes) -> Head:
    """CorruptFileError for anything but what `Checkpoints` wrote."""
    try:
        fields = json.loads(raw)
        ticket = Ticket(bytes.fromhex(id), bytes.fromhex(fields["key"]))
        stamps = parse_stamps(base64.b64decode(fields["stamps"], validate=True))
        if len(ticket.id) != ID_BYTES or len(ticket.key) != KEY_BYTES:
            raise ValueError
        return Head(ticket, stamps, bool(fields["keeps"]), fields)
    except (ValueError, KeyError, TypeError, RecursionError, SottovoceError):
        raise CorruptFileError(
            "a saved session cannot be read; remove it with `sottovoce session rm`"
        ) from None


@dataclass(frozen=True)
class Resumed:
    """What a returning client goes on from. pieces: none if the engine computes everything again."""

    checkpoints: Checkpoints
    tokens: int
    pieces: list[tuple[str, Piece]]


@dataclass(frozen=True)
class _Claim:
    """Who has a session now."""

    channel: Channel
    attendance: Unattended


def facts_of(account: Account) -> dict[str, str]:
    """Whose a session is. owner: the API key it is bound to. client: whose share of the disk it takes."""
    return {"owner": account.owner, "client": account.name}


class KeptSessions:
    """The server's saved sessions; every session thread may use it at the same time.

    limit: bytes of all together; above it, the client that has most loses its oldest. max_idle: seconds after
    which a session that nobody came back to may go.
    """

    def __init__(self, store: SessionStore, limit: int = 16 << 30, max_idle: float = 7 * DAY) -> None:
        self.store, self.limit, self.max_idle = store, limit, max_idle
        self._changed = Condition()
        self._open: dict[str, _Claim] = {}
        self._waiting: dict[str, Channel] = {}
        self.evict()

    def __len__(self) -> int:
        return len(self.store.entries())

    def size(self) -> int:
        """Bytes of all."""
        return sum(entry.size for entry in self.store.entries())

    def evict(self) -> int:
        """Delete what is too old or too much, never what is open now; returns how many."""
        with self._changed:  # throughout: what is claimed meanwhile would be gone
            return self.store.evict(self.limit, self.max_idle, frozenset(self._open))

    @contextmanager
    def claimed(
        self,
        ticket: Ticket,
        channel: Channel,
        attendance: Unattended | None = None,
        waiting: Callable[[int, int], None] = lambda done, total: None,
    ) -> Iterator[None]:
        """The session is this connection's. One that still holds it has lost its client: it is cut off.

        attendance: of this connection's steps. waiting: called about once a second while a step of the other
        one goes on without its client, with how far it is.
        """
        id, mine = ticket.id.hex(), _Claim(channel, attendance or Unattended())
        with self._changed:
            # Of those that wait for a step, only the last one is still wanted.
            before = self._waiting.get(id)
            self._waiting[id] = channel
        if before is not None:
            before.close()
        try:
            self._claim(id, mine, waiting)
        finally:
            with self._changed:
                if self._waiting.get(id) is channel:
                    del self._waiting[id]
        try:
            yield
        finally:
            with self._changed:
                del self._open[id]
                self._changed.notify_all()
            with suppress(SottovoceError):
                self.evict()

    def _claim(self, id: str, mine: "_Claim", waiting: Callable[[int, int], None]) -> None:
        deadline = time.monotonic() + _PATIENCE
        with self._changed:
            if id in self._open:
                self._open[id].channel.close()
        while True:
            with self._changed:
                if id not in self._open:
                    self._open[id] = mine
                    return
                step = self._open[id].attendance
                done, total = step.done, step.total
                if total:
                    deadline = time.monotonic() + _PATIENCE
                left = deadline - time.monotonic()
                if left <= 0:
                    raise ServerBusyError("the session is still busy with its last step; try again", 10)
                self._changed.wait(min(left, _TELL))
            if total:
                waiting(done, total)

    def computing(self, id: str) -> bool:
        """Whether a connection is in the middle of a step of that session that may end without its client."""
        with self._changed:
            return id in self._open and self._open[id].attendance.total > 0

    def cancel(self, id: str | None = None) -> None:
        """End the steps that go on without a client: of one session, or all."""
        with self._changed:
            for at, claim in self._open.items():
                if id in (None, at):
                    claim.attendance.cancel()

    def keep(self, ticket: Ticket, account: Account, epoch: int) -> Checkpoints:
        """A new session to be kept, or one that was evicted and is kept again. StorageError, RefusedError."""
        self.check(ticket, account)
        id = ticket.id.hex()
        if self.store.find(id) is not None:
            self.store.remove(id)
        self.store.create(id, None, facts_of(account), b"{}")
        return Checkpoints(self.store, ticket, Stamps(epoch))

    def check(self, ticket: Ticket, account: Account) -> None:
        """RefusedError if there is a session of that name and whoever asks is not its client."""
        head = self.find(ticket.id.hex(), account)
        if head is not None and not hmac.compare_digest(head.ticket.key, ticket.key):
            raise RefusedError("the client does not know the key of this session")

    def find(self, id: str, account: Account) -> Head | None:
        """A saved session of this client; None if there is none that can be read."""
        entry = self.store.find(id)
        if entry is None:
            return None
        if entry.facts.get("owner") != account.owner:
            raise RefusedError("this session was saved for another API key; use the same one again")
        try:
            return read_head(entry.id, self.store.head(entry.id))
        except CorruptFileError:
            self.store.remove(entry.id)
            return None

    def resume(
        self, channel: Channel, ticket: Ticket, account: Account, theirs: npt.NDArray[np.uint64]
    ) -> Resumed:
        """Agree with the client, whose stamps are `theirs`, on what both have; the session is claimed.

        What is damaged counts as nothing: the client sends its tokens again.
        """
        id, tokens, pieces = ticket.id.hex(), 0, list[tuple[str, Piece]]()
        head = self.find(id, account)
        if head is not None and head.keeps:
            try:
                pieces = [(name, dict(piece)) for name, piece in self.store.pieces(id)]
                tokens = common(theirs, head.stamps)
            except CorruptFileError:
                self.store.remove(id)
        if self.store.find(id) is None:
            self.store.create(id, None, facts_of(account), b"{}")
        known = np.zeros(0, np.uint64) if head is None else head.stamps[:tokens]
        checkpoints = Checkpoints(self.store, ticket, Stamps(agree(channel, tokens), known))
        return Resumed(checkpoints, tokens, pieces)
