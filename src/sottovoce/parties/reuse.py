"""Sessions that outlive one answer: a history that is sent again is not computed again.

What the server learns from it: how much of a history it keeps, i.e. the length at which a session is cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from threading import Lock

from ..errors import PeerConnectionError, ServerBusyError, UsageError
from ..models.chat import Prompt
from .client import Client

_RETRY_SECONDS = 10


def common_beginning(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two histories share."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


def continue_from(client: Client, tokens: Sequence[int], public_count: int) -> Prompt:
    """What is left to send of a history so that the session holds all but its last token's answer.

    tokens: all of the history, of which the first public_count are public. The session is cut to the longest
    common beginning, and the server learns where. UsageError if the session's public beginning is another
    one: that takes a new session.
    """
    if len(tokens) <= public_count:
        raise UsageError("the prompt is empty: there must be at least one private token")
    kept = _kept(client, tokens, public_count)
    if kept is None:
        raise UsageError("the session has another public beginning; start a new session")
    if kept < client.length:
        client.truncate(kept)
    public = max(kept, public_count)
    return Prompt(tuple(tokens[kept:public]), tuple(tokens[public:]))


def _kept(client: Client, tokens: Sequence[int], public_count: int) -> int | None:
    """How many tokens can stay in the session; None if its public ones are not exactly those wanted."""
    if not client.begun:
        return 0
    if client.public_count != public_count:
        return None
    same = common_beginning(client.tokens, tokens)
    if same < public_count:
        return None
    return min(same, len(tokens) - 1)


@dataclass(frozen=True)
class Lease:
    """A session for one answer, cut to the history's beginning; prompt is what is left to send."""

    client: Client
    prompt: Prompt
    cached_tokens: int
    fresh: bool  # opened for this answer


class LiveSessions:
    """Up to `most` open sessions, each used by one answer at a time. Thread-safe.

    open: connects and sets up one more.
    """

    def __init__(self, open: Callable[[], Client], most: int = 1) -> None:
        self._open, self.most = open, most
        self._idle: list[Client] = []  # the one used last stands last
        self._used = 0
        self._lock = Lock()

    @contextmanager
    def lease(self, tokens: Sequence[int], public_count: int) -> Iterator[Lease]:
        """The idle session that holds most of `tokens`, else a new one in place of the oldest idle one.

        A session that has ended meanwhile is replaced, as far as that shows before the answer.

        ServerBusyError if all are in use. After an error in the block the session is closed, unless it was a
        UsageError, which leaves both parties in step.
        """
        client, fresh = self._take(tokens, public_count)
        broken: BaseException | None = None
        try:
            try:
                prompt = continue_from(client, tokens, public_count)
            except PeerConnectionError as error:  # it ended while it lay idle
                client.close(error)
                client, fresh = self._open(), True
                prompt = continue_from(client, tokens, public_count)
            yield Lease(client, prompt, len(tokens) - len(prompt), fresh)
        except UsageError:
            raise
        except BaseException as error:
            broken = error
            raise
        finally:
            self._give_back(client, broken)

    def adopt(self, client: Client) -> None:
        """Take in a session that was opened elsewhere: one that was saved, and holds a history already."""
        with self._lock:
            self._idle.append(client)

    def close(self) -> None:
        """End all idle sessions; those in use end with their answer."""
        with self._lock:
            self.most = 0
            idle, self._idle = self._idle, []
        for client in idle:
            client.close()

    def _take(self, tokens: Sequence[int], public_count: int) -> tuple[Client, bool]:
        with self._lock:
            if self._used >= self.most:
                raise ServerBusyError("all sessions are in use; try again later", _RETRY_SECONDS)
            self._used += 1
            fits = [(_kept(c, tokens, public_count), c) for c in self._idle]
            usable = [(kept, -i) for i, (kept, _) in enumerate(fits) if kept is not None]
            best = max(usable, default=None)
            full = self._used + len(self._idle) > self.most
            # What holds little of this history is another conversation's: cut only if there is no more room.
            if best is not None and (full or 2 * (best[0] - public_count) > len(tokens) - public_count):
                return self._idle.pop(-best[1]), False
            oldest = self._idle.pop(0) if full and self._idle else None
        try:
            if oldest is not None:
                oldest.close()
            return self._open(), True
        except BaseException:
            with self._lock:
                self._used -= 1
            raise

    def _give_back(self, client: Client, broken: BaseException | None) -> None:
        with self._lock:
            self._used -= 1
            keep = broken is None and self.most > 0
            if keep:
                self._idle.append(client)
        if not keep:
            client.close(broken)
