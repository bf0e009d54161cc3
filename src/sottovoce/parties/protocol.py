"""What the parties say to each other outside the engines: the handshake, and the client's commands.

    client                                   server
    hello    protocol, wanted engine,   -->  refuses, or
             wanted model, API key      <--  welcome  options, public description, model card
    accept   digest of what was agreed  -->  compares
                                        <--  model card (tokenizer, chat template), if the client has not
                                        got it

A client that only wants to see the offer, `verify`, leaves after the welcome. The others may come back to a
saved session (`resume.py`); then, as often as the client likes, one command before each engine call; the
engines' own messages follow it.

Everything the handshake carries but the API key is public. A peer that wants something else is refused with
the reason, on both sides; nothing falls back to a weaker choice.
"""

import hashlib
import json
import re
import struct
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from .. import __version__
from ..engines.base import EngineOptions
from ..errors import (
    ModelMismatchError,
    ParameterMismatchError,
    ProtocolError,
    UsageError,
    VersionMismatchError,
)
from ..models.card import MAX_BYTES as MAX_CARD
from ..models.card import ModelCard
from ..net import Channel
from ..ring import primes
from .cards import CardCache as CardCache
from .commands import MAX_COMMAND as MAX_COMMAND
from .commands import MAX_VERIFY as MAX_VERIFY
from .commands import Command as Command
from .commands import Verb as Verb

# Counts changes of the handshake, the commands, and the engines' messages: two releases with the same
# number work together.
PROTOCOL = 2

MAX_HELLO = 1 << 14
MAX_WELCOME = 1 << 20
_ACCEPT = struct.Struct("<32s?")
# A shorter beginning could be met by searching for another model.
_COMMITMENT = re.compile("[0-9a-fA-F]{32,64}")
# What both parties say ends up on the other one's terminal, where other characters could write over what
# stands there: over a fingerprint that a user compares, for example.
_WORD = re.compile("[A-Za-z0-9._+-]{1,40}")
_DIGEST = re.compile("[0-9a-f]{64}")


def parameters_digest() -> str:
    """A digest of the cryptographic constants compiled into this release."""
    constants = {name: getattr(primes, name) for name in ("P_FIELD", "P_SMALL", "SIMD_PRIMES")}
    return hashlib.sha256(json.dumps(constants, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Wish:
    """What a client accepts; None means that any value is fine.

    The engine has no "any" ("hybrid" takes "fhe" too, which is encrypted as well), nor have the correlations:
    a server must not be able to talk a client into going without cryptography, or into trusting a third
    party.
    """

    engine: str = "hybrid"
    kv: str | None = None
    arithmetic: str | None = None
    correlations: str = "pair"
    profile: str | None = None
    model: str | None = None  # commitment (hex SHA-256), or at least its first 32 digits


@dataclass(frozen=True)
class Caller:
    """Who asks the server, and for what.

    purpose: 'session'; 'resume' or 'forget' the saved session of that name; 'describe' for the offer alone.
    """

    purpose: str = "session"
    session: str | None = None  # 32 hexadecimal digits
    api_key: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Welcome:
    """What the server offers: the options, the engine's public description, the model's card.

    context: tokens that a session may hold, None for the model's own bound.
    """

    options: EngineOptions
    public: dict[str, Any]
    card: ModelCard
    context: int | None = None

    @property
    def context_length(self) -> int:
        """Tokens that a session may hold."""
        own = self.card.config.context_length
        return own if self.context is None else min(own, self.context)

    def digest(self) -> bytes:
        return _agreement(self.options, self.public, self.card.digest)


@dataclass(frozen=True)
class Offer:
    """A server's welcome before its model card is there: what `sottovoce verify` shows."""

    options: EngineOptions
    public: dict[str, Any]
    model: str  # commitment to the weights
    card: str  # digest of the card
    context: int | None
    release: str


def ask_offer(channel: Channel, wish: Wish, caller: Caller) -> Offer:
    """The client's first message and the server's answer. Nothing is accepted by it. Cost: 2 messages."""
    hello = {
        "protocol": PROTOCOL,
        "release": __version__,
        "parameters": parameters_digest(),
        "wish": asdict(wish),
        "caller": asdict(caller),
    }
    channel.send(json.dumps(hello).encode())
    fields = _load(channel.recv_message(MAX_WELCOME), {"protocol", "release", "parameters", "offer"})
    _check_peer(fields)
    offer = _entries(fields["offer"], {"options", "public", "model", "card", "context"})
    options = _entries(offer["options"], {"engine", "kv", "arithmetic", "correlations", "profile"})
    context, release = offer["context"], fields["release"]
    words, digests = (release, *options.values()), (offer["model"], offer["card"])
    if not (all(_is(_WORD, word) for word in words) and all(_is(_DIGEST, digest) for digest in digests)):
        raise ProtocolError("the server's handshake is malformed")
    if not (context is None or (type(context) is int and context >= 1)):
        raise ProtocolError("the server's handshake is malformed")
    public = _object(offer["public"])
    return Offer(EngineOptions(**options), public, offer["model"], offer["card"], context, release)


def check_commitment(text: str | None) -> None:
    """UsageError unless it is one, or the beginning of one, long enough that no other model has it."""
    if text is not None and not _COMMITMENT.fullmatch(text):
        raise UsageError(
            f"{text!r:.80} is no commitment to a model: give the 64 hexadecimal digits that"
            " `sottovoce serve` prints, or at least the first 32 of them"
        )


def is_model(commitment: str, expected: str) -> bool:
    """Whether a model's commitment is the one expected."""
    return _COMMITMENT.fullmatch(expected) is not None and commitment.startswith(expected.lower())


def client_handshake(
    channel: Channel, wish: Wish, cards: CardCache | None = None, caller: Caller | None = None
) -> Welcome:
    """The client's side. Raises the RefusedError that fits; the server gets the same reason. Cost: 4
    messages.
    """
    try:
        check_commitment(wish.model)
        offer = ask_offer(channel, wish, caller or Caller())
        _check_wish(wish, offer.options, offer.model)
        card = None if cards is None else cards.load(offer.card)
        agreed = _agreement(offer.options, offer.public, offer.card)
        channel.send(_ACCEPT.pack(agreed, card is None))
        if card is None:
            card = ModelCard.from_bytes(channel.recv_message(MAX_CARD))
        if card.digest != offer.card or card.model_digest != offer.model:
            raise ModelMismatchError(
                "the server sent another model card than it announced; do not trust this server"
            )
        if cards is not None:
            cards.store(card)
    except Exception as error:
        channel.abort(error)
        raise
    channel.establish(agreed)
    return Welcome(offer.options, offer.public, card, offer.context)


def server_handshake(
    channel: Channel, welcome: Welcome, admit: Callable[[Caller], int | None] = lambda caller: None
) -> Caller:
    """The server's side; on a mismatch both sides get the reason. Who asks: 'describe' leaves now.

    admit: called with who asks before anything is offered; raises a RefusedError, or returns how many tokens
    the session may hold (None: the model's bound).
    """
    keys = {"protocol", "release", "parameters", "wish", "caller"}
    fields = _load(channel.recv_message(MAX_HELLO), keys)
    _check_peer(fields)
    caller = _caller(fields["caller"])
    wish = _entries(fields["wish"], {"engine", "kv", "arithmetic", "correlations", "profile", "model"})
    model = wish["model"]
    words = [wish["engine"], wish["correlations"]]
    words += [wish[name] for name in ("kv", "arithmetic", "profile") if wish[name] is not None]
    if not (all(_is(_WORD, word) for word in words) and (model is None or _is(_COMMITMENT, model))):
        raise ProtocolError("the client's handshake is malformed")
    card = welcome.card
    if caller.purpose != "describe":
        _check_wish(Wish(**wish), welcome.options, card.model_digest)
    offer = {
        "options": asdict(welcome.options),
        "public": welcome.public,
        "model": card.model_digest,
        "card": card.digest,
        "context": admit(caller),
    }
    mine = {"protocol": PROTOCOL, "release": __version__, "parameters": parameters_digest(), "offer": offer}
    channel.send(json.dumps(mine).encode())
    if caller.purpose == "describe":
        return caller
    agreed, wants_card = _ACCEPT.unpack(channel.recv(_ACCEPT.size))
    if agreed != welcome.digest():
        raise ParameterMismatchError(
            "the client agreed to another offer than the one that was made; try again"
        )
    if wants_card:
        channel.send(card.to_bytes())
    channel.establish(agreed)
    return caller


def _caller(value: Any) -> Caller:
    fields = _entries(value, {"purpose", "session", "api_key"})
    purpose, session, api_key = fields["purpose"], fields["session"], fields["api_key"]
    named = isinstance(session, str) and re.fullmatch("[0-9a-f]{32}", session) is not None
    purposes = ("resume", "forget") if named else ("session", "describe")
    if purpose not in purposes or not (named or session is None):
        raise ProtocolError("the client's handshake is malformed")
    if not (api_key is None or isinstance(api_key, str)):
        raise ProtocolError("the client's handshake is malformed")
    return Caller(purpose, session, api_key)


def _agreement(options: EngineOptions, public: dict[str, Any], card_digest: str) -> bytes:
    text = json.dumps([PROTOCOL, parameters_digest(), asdict(options), public, card_digest], sort_keys=True)
    return hashlib.sha256(text.encode()).digest()


def _check_peer(fields: dict[str, Any]) -> None:
    if fields["protocol"] != PROTOCOL:
        raise VersionMismatchError(
            f"one side speaks protocol version {PROTOCOL} (release {__version__}), the other "
            f"{fields['protocol']!r:.40} (release {fields['release']!r:.40}); "
            "install the same release on both"
        )
    if fields["parameters"] != parameters_digest():
        raise ParameterMismatchError(
            "the two releases were built with different cryptographic parameters; "
            "install the same release on both"
        )


# Where the flag has another name than what it chooses.
_FLAGS = {"correlations": "--insecure-dealer"}


def _check_wish(wish: Wish, options: EngineOptions, commitment: str) -> None:
    for name in ("engine", "kv", "arithmetic", "correlations", "profile"):
        wanted, offered = getattr(wish, name), getattr(options, name)
        if wanted is not None and wanted != offered:
            if name == "engine" and (wanted, offered) == ("hybrid", "fhe"):
                continue  # encrypted as well, and without shares: a client of the one may have the other
            if name == "engine" and "scx" in (wanted, offered):
                raise ParameterMismatchError(
                    f"the client accepts engine {wanted!r:.40}, the server runs {offered!r:.40}; the engine "
                    "'scx' hides prompts at best statistically: a client that wants it says "
                    "--accept-statistical-privacy"
                )
            raise ParameterMismatchError(
                f"the client wants {name} {wanted!r:.40}, the server runs {offered!r:.40}; "
                f"start the client or the server with the other {_FLAGS.get(name, '--' + name)}"
            )
    if wish.model is not None and not is_model(commitment, wish.model):
        raise ModelMismatchError(
            f"the server's model has commitment {commitment:.64}, the client expects {wish.model:.64}; "
            "connect to a server of the expected model or drop --model-commitment"
        )


def _load(raw: memoryview, keys: set[str]) -> dict[str, Any]:
    try:
        value = json.loads(bytes(raw))
    except (ValueError, RecursionError):
        raise ProtocolError(
            "the other side's handshake is malformed; is it a sottovoce of this version?"
        ) from None
    return _entries(value, keys)


def _entries(value: Any, keys: set[str]) -> dict[str, Any]:
    """A JSON object with at least the protocol number we can complain about, at best exactly `keys`."""
    fields = _object(value)
    if set(fields) != keys:
        if "protocol" in keys and "protocol" in fields and fields["protocol"] != PROTOCOL:
            _check_peer({"release": "unknown", **fields})
        raise ProtocolError("the other side's handshake has unexpected or missing entries")
    return fields


def _is(pattern: re.Pattern[str], value: Any) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ProtocolError("the other side's handshake is malformed")
    return value
