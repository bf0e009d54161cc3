"""Who gets a session: API keys, quotas, a fixed number of places, and a short queue before them."""

import hashlib
import hmac
import re
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Network, ip_address
from pathlib import Path
from threading import Condition

from ..errors import CorruptFileError, RefusedError, ServerBusyError

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_HASHED = re.compile(r"sha256:[0-9a-f]{64}")
_MAX_KEY = 256


@dataclass(frozen=True)
class Account:
    """A client as the server knows it. sessions, context: its quotas, None for the server's own.

    owner: whose saved sessions are its own; empty where clients have no names, and a session's key decides.
    """

    name: str
    sessions: int | None = None
    context: int | None = None
    owner: str = ""


class ApiKeys:
    """The keys that a server accepts, one line each:

        NAME KEY [sessions=N] [context=N]

    KEY is `sha256:` and the hash of the key in hexadecimal, as `sottovoce keys gen` writes it, or the key
    itself. The file is read once, and again by `read`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.read()

    def read(self) -> int:
        """What the file says now holds for who connects from now on; returns the number of keys. A file that
        cannot be read, or has a line that makes no sense, changes nothing.
        """
        accounts, path = [], self._path
        try:
            lines = path.read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise CorruptFileError(f"the file of API keys {path} cannot be read ({error}); fix it") from None
        for number, line in enumerate(lines, 1):
            if line.strip() and not line.startswith("#"):
                accounts.append(_parse(line.split(), f"{path}, line {number}"))
        self._accounts: list[tuple[bytes, Account]] = accounts
        return len(accounts)

    def account(self, key: str | None) -> Account:
        """Whose key it is. RefusedError if nobody's; takes the same time for every key."""
        digest = hash_key(key or "")
        found = [account for known, account in self._accounts if hmac.compare_digest(known, digest)]
        if key is None or not found:
            raise RefusedError(
                "this server wants an API key"
                + ("" if key is None else ", and does not know this one")
                + "; ask its operator for one and give it with --api-key"
            )
        return found[0]


def hash_key(key: str) -> bytes:
    """What the server keeps of a key: keys are 256 random bits, so that a plain hash is enough."""
    return hashlib.sha256(key.encode()).digest()


def _parse(fields: list[str], where: str) -> tuple[bytes, Account]:
    if len(fields) < 2 or not _NAME.fullmatch(fields[0]) or len(fields[1]) > _MAX_KEY:
        raise CorruptFileError(f"{where}: expected 'NAME KEY [sessions=N] [context=N]'; fix the line")
    quotas: dict[str, int] = {}
    for field in fields[2:]:
        name, _, value = field.partition("=")
        if name not in ("sessions", "context") or not value.isdecimal() or int(value) < 1:
            raise CorruptFileError(f"{where}: {field!r} is not a quota such as sessions=2; fix the line")
        quotas[name] = int(value)
    hashed = _HASHED.fullmatch(fields[1])
    digest = bytes.fromhex(fields[1].removeprefix("sha256:")) if hashed else hash_key(fields[1])
    return digest, Account(fields[0], quotas.get("sessions"), quotas.get("context"), fields[0])


def network_of(address: str) -> str:
    """An address, or of IPv6 the network of 64 bits: what one client has many of counts once."""
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, IPv4Address):
        return address
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(IPv6Network((parsed, 64), strict=False))


class Admission:
    """Places for sessions. Used by all session threads.

    places: sessions at the same time. waiting: clients that may wait for a place, `patience` seconds each;
    whoever comes then is told to come back. per_client: sessions of one client (API key, or address) at the
    same time. context: tokens of one session.
    """

    def __init__(
        self,
        places: int,
        waiting: int = 0,
        patience: float = 20.0,
        keys: ApiKeys | None = None,
        per_client: int | None = None,
        context: int | None = None,
    ) -> None:
        self.places, self.waiting, self.patience = places, waiting, patience
        self.keys, self.per_client, self.context = keys, per_client, context
        self._changed = Condition()
        self._held: Counter[str] = Counter()
        self._queue: list[object] = []
        self._closed = False

    def account(self, api_key: str | None, address: str, certificate: str | None = None) -> Account:
        """Who asks. Without a file of keys a client is known by the fingerprint of its certificate, if the
        server asks for one, else by its address: of IPv6 the 64 bits that one customer has."""
        if self.keys is not None:
            return self.keys.account(api_key)
        return Account(network_of(address) if certificate is None else certificate)

    def context_for(self, account: Account, limit: int) -> int:
        """Tokens that a session of this client may hold, of the model's `limit`."""
        return min(limit, *(n for n in (self.context, account.context) if n is not None), limit)

    @property
    def running(self) -> int:
        with self._changed:
            return self._held.total()

    @property
    def queued(self) -> int:
        with self._changed:
            return len(self._queue)

    @contextmanager
    def place(self, account: Account) -> Iterator[None]:
        """A place, perhaps after waiting for one. ServerBusyError says when to come back."""
        self._enter(account)
        try:
            yield
        finally:
            with self._changed:
                self._held[account.name] -= 1
                self._held += Counter()  # forget clients without sessions
                self._changed.notify_all()

    def close(self) -> None:
        """Let nobody wait any longer."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _enter(self, account: Account) -> None:
        me, deadline = object(), time.monotonic() + self.patience
        with self._changed:
            quota = account.sessions or self.per_client
            if quota is not None and self._held[account.name] >= quota:
                raise ServerBusyError(
                    f"you have {quota} sessions at this server, and may not have more at the same time; "
                    "end one, or try again later", self._retry_after,
                )  # fmt: skip
            if (self._held.total() >= self.places or self._queue) and len(self._queue) >= self.waiting:
                raise self._full()
            self._queue.append(me)
            try:
                while self._queue[0] is not me or self._held.total() >= self.places:
                    left = deadline - time.monotonic()
                    if left <= 0 or self._closed:
                        raise self._full()
                    self._changed.wait(left)
                self._held[account.name] += 1
            finally:
                self._queue.remove(me)
                self._changed.notify_all()

    @property
    def _retry_after(self) -> int:
        return max(1, round(self.patience))

    def _full(self) -> ServerBusyError:
        after = self._retry_after
        return ServerBusyError(
            f"the server is full ({self.places} sessions, {len(self._queue)} waiting); "
            f"try again in {after} seconds", after,
        )  # fmt: skip
