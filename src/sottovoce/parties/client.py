"""The client: connects, checks what the server offers, and drives the engine's client half step by step."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ..engines.base import Logits, Progress
from ..errors import PeerConnectionError, PoolFullError, PromptTooLongError, UsageError
from ..net import Channel
from ..net.tls import KnownHosts
from .address import CONNECT_TIMEOUT, DEFAULT_PORT, Address, Identity, Route, open_socket
from .connected import ATTEMPTS, Connected
from .pools import Pools
from .protocol import MAX_VERIFY, CardCache, Command, Verb, Wish
from .saved import SavedSession
from .tries import NobodyThereError

__all__ = ["DEFAULT_PORT", "Address", "Client", "Identity", "open_socket"]


class Client(Connected):
    """One session with one server. Steps: `connect` (handshake), `setup`, `prefill`, `decode`…, `close`.

    Not thread-safe. After any error the session is over: its one-time material is thrown away with it. A
    session that is kept (`keep`, or opened with `saved`) survives a broken connection: the step is done again
    on a new one, with new one-time material.
    """

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

    def _step(
        self, run: Callable[[], Logits], public: Sequence[int] | None = None, private: Sequence[int] = ()
    ) -> Logits:
        """Do a step that appends these tokens, and save it; its logits (T, vocab). public: of a prefill.

        If the connection of a kept session breaks, the step is done on another one; if the server has ended
        it meanwhile, its answer is collected.
        """
        wanted, result = list(self.tokens), None
        for attempt in range(ATTEMPTS):
            try:
                if attempt:
                    result = self._reconnect(wanted, [*(public or ()), *private])
                if result is None:
                    self._promise(public, private)
                    result = run()
                break
            except NobodyThereError:
                raise
            except PeerConnectionError:
                if self._again is None or not self.is_kept or attempt + 1 == ATTEMPTS:
                    raise
        assert result is not None
        self._checkpoint()
        return result

    def last(self) -> Logits:
        """Logits (vocab,) behind the session's last token: what the server kept, or computed once more. The
        server learns that they were asked for again."""
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
        """Append one private token; logits (vocab,) after it. The server learns when."""
        self._check_room(1)

        def run() -> Logits:
            with self.ledger.phase("decode"):
                self._order(Command(Verb.DECODE))
                logits: Logits = self._guarded(self._party.decode, token, progress)
            self.tokens.append(token)
            return logits[None]

        return _row(self._step(run, None, [token]))

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

        return self._step(run, None, tokens)

    def truncate(self, length: int) -> None:
        """Forget all tokens from position `length` on. The server learns the length."""

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

    def _check_room(self, tokens: int) -> None:
        if self.length + tokens > self.context_length:
            raise PromptTooLongError(
                f"{self.length + tokens} tokens do not fit the model's context of "
                f"{self.context_length} at this server; use a shorter prompt or ask for fewer new tokens"
            )


def _or_nothing(logits: Logits | None) -> Logits:
    return np.zeros((0, 0)) if logits is None else logits


def _row(logits: Logits) -> Logits:
    """The last position's."""
    row: Logits = logits[-1]
    return row
