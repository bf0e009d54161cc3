"""The client: connects, checks what the server offers, and drives the engine's client half step by step."""

import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..engines.base import DataParty, Logits, Progress
from ..engines.registry import make_data_party
from ..errors import PeerConnectionError, PoolFullError, PromptTooLongError, UsageError
from ..net import Channel, Ledger, Role, SocketChannel
from ..net.tls import KnownHosts, wrap_client
from .pools import Pools
from .protocol import MAX_VERIFY, CardCache, Command, Verb, Welcome, Wish, client_handshake

DEFAULT_PORT = 7443
_CONNECT_TIMEOUT = 10.0
_HANDSHAKE_TIMEOUT = 30.0


@dataclass(frozen=True)
class Address:
    host: str
    port: int = DEFAULT_PORT

    @classmethod
    def parse(cls, text: str) -> "Address":
        """`host`, `host:port`, `[v6]:port`. UsageError for anything else."""
        host, _, port = text.rpartition(":") if ":" in text and not text.endswith("]") else (text, "", "")
        host = host.strip("[]")
        try:
            number = int(port) if port else DEFAULT_PORT
        except ValueError:
            number = -1
        if not host or not 0 < number < 65536:
            raise UsageError(
                f"{text!r} is not a server address; write host:port, for example localhost:{DEFAULT_PORT}"
            )
        return cls(host, number)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Identity:
    """The certificate a connection was made to, and whether it was seen for the first time."""

    fingerprint: str
    first_use: bool


class Client:
    """One session with one server. Steps: `connect` (handshake), `setup`, `prefill`, `decode`…, `close`.

    Not thread-safe. After any error the session is over: its one-time material is thrown away with it.
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
    ) -> None:
        """Handshake over an open channel.

        pools: where prepared material is kept, None to go without. dealer: connects to the dealer, for a wish
        with its correlations.
        """
        self.channel = channel
        self.identity = identity
        with self.ledger.phase("setup"), self.ledger.operation("handshake"):
            self.welcome: Welcome = client_handshake(channel, wish, cards, api_key)
            self.card = self.welcome.card
            try:
                self._party: DataParty = make_data_party(self.welcome.options, self.welcome.public)
            except BaseException as error:
                channel.abort(error)
                raise
        self._party.dealer = dealer
        if pools is not None:
            server = "no certificate" if identity is None else identity.fingerprint
            self._party.shelf = pools.shelf(server, self.welcome)
        self.tokens: list[int] = []  # public and private ones that the session's cache holds
        self.begun = False  # anything was ever sent: public tokens can only come first
        self.public_count = 0  # of the tokens that the session began with

    @classmethod
    def connect(
        cls,
        address: Address,
        wish: Wish,
        pin: KnownHosts | str | None,
        cards: CardCache | None = None,
        timeout: float = _CONNECT_TIMEOUT,
        pools: Pools | None = None,
        dealer: Callable[[], Channel] | None = None,
        *,
        api_key: str | None = None,
    ) -> "Client":
        """Connect, check the certificate, shake hands.

        pin: known hosts, a fingerprint, or None for no TLS at all. cards: where model cards are kept.
        api_key: for a server that wants one; it travels inside TLS, after the certificate was checked.
        """
        sock = open_socket(address, timeout)
        identity = None
        if pin is not None:
            sock, fingerprint, first_use = wrap_client(sock, address.host, address.port, pin, timeout)
            identity = Identity(fingerprint, first_use)
        channel = SocketChannel(Role.CLIENT, sock, timeout=_HANDSHAKE_TIMEOUT)
        client = cls(channel, wish, identity, cards, pools, dealer, api_key=api_key)
        # From here on the server may compute for minutes between two frames; keepalive notices a dead host.
        channel.timeout = None
        return client

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
        """Exchange keys and base OTs: once a session."""
        with self.ledger.phase("setup"):
            self._guarded(self._party.setup, self.channel, progress)

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
        command = Command(Verb.PREFILL, len(private_tokens), tuple(public_tokens))
        with self.ledger.phase("prefill"):
            self._order(command)
            logits: Logits = self._guarded(self._party.prefill, public_tokens, private_tokens, progress)
        if not self.begun:
            self.begun, self.public_count = True, len(public_tokens)
        self.tokens += [*public_tokens, *private_tokens]
        return logits

    def decode(self, token: int, progress: Progress | None = None) -> Logits:
        """Append one private token; logits (vocab,) after it."""
        self._check_room(1)
        with self.ledger.phase("decode"):
            self._order(Command(Verb.DECODE))
            logits: Logits = self._guarded(self._party.decode, token, progress)
        self.tokens.append(token)
        return logits

    def verify(self, tokens: Sequence[int], progress: Progress | None = None) -> Logits:
        """Append private tokens in one pass; logits (T, vocab) after each. The server learns T."""
        if not 1 <= len(tokens) <= MAX_VERIFY:
            raise UsageError(f"a verification takes 1 to {MAX_VERIFY} tokens, not {len(tokens)}")
        self._check_room(len(tokens))
        with self.ledger.phase("verify"):
            self._order(Command(Verb.VERIFY, len(tokens)))
            logits: Logits = self._guarded(self._party.verify, tokens, progress)
        self.tokens += tokens
        return logits

    def truncate(self, length: int) -> None:
        """Forget all tokens from position `length` on."""
        with self.ledger.phase("truncate"):
            self._order(Command(Verb.TRUNCATE, length))
            self._guarded(self._party.truncate, length)
        del self.tokens[length:]

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


def open_socket(address: Address, timeout: float, program: str = "sottovoce serve") -> socket.socket:
    """A TCP connection; PeerConnectionError says why there is none. program: what should listen there."""
    try:
        return socket.create_connection((address.host, address.port), timeout)
    except TimeoutError:
        why = f"no answer within {timeout:g} seconds"
    except ConnectionRefusedError:
        why = "nothing listens there"
    except socket.gaierror:
        why = "the name is unknown"
    except OSError as error:
        why = error.strerror or "it cannot be reached"
    raise PeerConnectionError(
        f"cannot connect to {address}: {why}; check the address, and that `{program}` is running there"
    )
