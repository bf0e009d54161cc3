"""What an engine is: two halves that meet only through a Channel.

The *model party* (server) holds weights, the *data party* (client) holds tokens. Both halves are driven by
the client: for each call of a DataParty method the server runs the ModelParty method of the same name, and
the two execute the protocol in lockstep. Logits appear at the data party only.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sottovoce.errors import SottovoceError, UsageError
from sottovoce.net import Channel

if TYPE_CHECKING:
    from sottovoce.correlations.shelf import Shelf

Logits = npt.NDArray[np.float64]
# progress(done, total, what): called by an engine while a long step runs, at most a few times a second.
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class EngineOptions:
    """What both parties must agree on before anything else is sent; part of the handshake.

    engine: 'hybrid', 'scx' or 'clear'; kv: 'ciphertext', 'masked' or 'none' (hybrid only); arithmetic:
    'float' or 'fixed' (clear only). correlations (hybrid only): 'pair' makes them between the two parties,
    'dealer' has a third one that both must trust not to collude. profile: 'paper' or 'hardened' (scx only).
    """

    engine: str = "hybrid"
    kv: str = "ciphertext"
    arithmetic: str = "float"
    correlations: str = "pair"
    profile: str = "none"


# Named arrays of a session's state. Their names say what a later piece replaces; see `kvcache.saved`.
Piece = dict[str, npt.NDArray[Any]]
Pieces = Sequence[tuple[str, Piece]]

_NOTHING_TO_KEEP = "this engine keeps no state that could be saved"
_NOTHING_TO_COLLECT = "this engine's steps end with their client; there is nothing to collect"
_NOTHING_TO_PREPARE = "this engine has nothing to prepare; serve with the engine hybrid"


class Half(ABC):
    """What both halves of a session can do: prepare ahead, and be kept."""

    def prepare(self, tokens: int, progress: Progress | None = None) -> None:
        """Make ahead what `tokens` tokens take that does not depend on them; kept in the pool, if there is
        one."""
        raise UsageError(_NOTHING_TO_PREPARE)

    def prepare_step(self, tokens: int, progress: Progress | None = None) -> bool:
        """A part of `prepare`, some seconds long; whether more is left."""
        self.prepare(tokens, progress)
        return False

    @property
    def keeps(self) -> bool:
        """Whether the session's state can be saved; otherwise a session goes on by computing it again."""
        return False

    def changed(self, first: int) -> dict[str, Piece]:
        """This party's half of what tokens from `first` on have changed, by name. Local; after a step."""
        raise UsageError(_NOTHING_TO_KEEP)

    def saved(self) -> None:  # noqa: B027  (a hook)
        """What `changed` returned last is safe."""

    def restore(self, pieces: Pieces, length: int) -> None:
        """Go on from saved pieces, oldest first, and `length` tokens of them. After `setup`, in lockstep.

        CorruptFileError if they are not what this engine saved.
        """
        raise UsageError(_NOTHING_TO_KEEP)

    @abstractmethod
    def setup(self, channel: Channel, progress: Progress | None = None) -> None:
        """Exchange what a session needs once: keys, base OTs. Called first, after the handshake."""

    @abstractmethod
    def truncate(self, length: int) -> None:
        """Forget all tokens from position `length` on."""


class Attendance:
    """What a model party with long steps tells while one runs. This one: a step ends with its client."""

    def progress(self, done: int, total: int) -> None:  # noqa: B027  (a hook)
        """How far the step is. Raises what ends it."""

    def left(self, error: SottovoceError) -> None:
        """The client is gone in the middle of a step. Returns if the step goes on, and its answer is kept for
        `collect`; raises `error` otherwise."""
        raise error


class ModelParty(Half):
    """The server's half of a session: isolated state, one per connection.

    shelf: where its half of the client's pool of prepared material is; set before `setup`, None for none.
    dealer: connects to the dealer, where the options name one; set before `setup`. attendance: asked by
    engines whose steps can go on without the client.
    """

    shelf: Shelf | None = None
    dealer: Callable[[], Channel] | None = None
    attendance: Attendance = Attendance()

    @abstractmethod
    def prefill(self, public_tokens: Sequence[int], n_private: int) -> None:
        """Append a public prefix (only in an empty session) and n_private tokens that only the client
        knows."""

    @abstractmethod
    def decode(self) -> None:
        """Append one private token."""

    @abstractmethod
    def verify(self, n: int) -> None:
        """Append n private tokens in one pass; the client gets the logits of each."""

    def collect(self) -> None:
        """Send the answer of the last step once more, or that it is not there."""
        raise UsageError(_NOTHING_TO_COLLECT)

    def close(self) -> None:  # noqa: B027  (a hook: not every engine holds something)
        """Release the session's keys and cache."""


class DataParty(Half):
    """The client's half of a session.

    shelf: where its pool of prepared material is; set before `setup`, None for none.
    dealer: connects to the dealer, where the options name one; set before `setup`.
    secret: key of the session that goes on, as `secret_key` gave it; set before `setup`, None for a new one.
    """

    shelf: Shelf | None = None
    dealer: Callable[[], Channel] | None = None
    secret: bytes | None = None

    def secret_key(self) -> bytes:
        """What decrypts the session's state, to be kept with it; empty if there is no such key."""
        return b""

    def new_secret(self) -> bytes | None:
        """A key for a new session, to be kept before `setup` sends what is made with it; None if that is not
        worth it."""
        return None

    @abstractmethod
    def prefill(
        self, public_tokens: Sequence[int], private_tokens: Sequence[int], progress: Progress | None = None
    ) -> Logits:
        """Append public_tokens (only in an empty session) and private_tokens (at least one).

        Returns the logits (vocab,) of the last position.
        """

    @abstractmethod
    def decode(self, token: int, progress: Progress | None = None) -> Logits:
        """Append one private token and return the logits (vocab,) of its position."""

    @abstractmethod
    def verify(self, tokens: Sequence[int], progress: Progress | None = None) -> Logits:
        """Append private tokens (at least one) in one pass and return the logits of each, (T, vocab).

        What `decode` would return token by token, up to the engine's rounding. The server learns T.
        """

    @property
    def collects(self) -> bool:
        """Whether the server keeps the last step's answer, encrypted, and can end a step without this
        party."""
        return False

    def promise(self, tokens: Sequence[int], prefill: bool) -> bytes:
        """Encrypt what the next step appends, a prefill or another one; a digest of what will be sent."""
        raise UsageError(_NOTHING_TO_COLLECT)

    def collect(self, digest: bytes | None) -> Logits | None:
        """The last step's logits (T, vocab) from what the server kept; None if it has nothing.

        digest: of what was sent for them; IntegrityError if the server answered something else.
        """
        raise UsageError(_NOTHING_TO_COLLECT)

    @property
    def has_pool(self) -> bool:
        """Whether this session takes prepared material from a pool that outlives it."""
        return False

    def ready(self, most: int) -> int:
        """For how many tokens to come the pool has everything, counted to `most`."""
        return 0

    def close(self) -> None:  # noqa: B027  (a hook)
        """Forget keys and one-time material."""


class Engine(ABC):
    """A model made ready for one kind of execution: built once per server process, shared by its sessions."""

    options: EngineOptions

    @abstractmethod
    def prepare(self, progress: Progress | None = None) -> None:
        """Do what every session shares: quantise, encode weights, prefill the template's constant prefix."""

    def keep_in(self, directory: Path) -> None:  # noqa: B027  (a hook)
        """Where the engine may keep files that make a restart cheaper; before the first session."""

    @abstractmethod
    def public(self) -> dict[str, Any]:
        """What the client's half needs to know, as JSON values; sent in the handshake, nothing about
        weights."""

    @property
    def context(self) -> int | None:
        """Tokens that a session may hold, None for the model's own bound."""
        return None

    @abstractmethod
    def session(self) -> ModelParty:
        """The server's half of a new session."""
