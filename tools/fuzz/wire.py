"""What arrives over a connection: frames, handshakes, commands, requests to the dealer."""

from __future__ import annotations

import json
import struct
import zlib
from dataclasses import asdict
from functools import cache
from typing import Any

from target import JSON_WORDS, Target, card, model

from sottovoce import __version__
from sottovoce.correlations import dealer
from sottovoce.correlations.marks import EPOCH_BYTES, ID_BYTES, State
from sottovoce.engines.base import EngineOptions
from sottovoce.engines.fhe.description import Description
from sottovoce.engines.fhe.shape import Shape
from sottovoce.engines.public import PublicModel
from sottovoce.engines.registry import make_engine
from sottovoce.errors import FrameError, PeerConnectionError, PeerGoneError
from sottovoce.models.card import ModelCard
from sottovoce.models.shapes import SHAPES
from sottovoce.net import Channel, Role
from sottovoce.net.frame import Kind, pack_error, pack_header, parse_error, parse_header
from sottovoce.parties import Welcome, Wish
from sottovoce.parties.protocol import (
    PROTOCOL,
    Caller,
    Command,
    Verb,
    ask_offer,
    parameters_digest,
    server_handshake,
)
from sottovoce.parties.resume import parse_stamps


class OneMessage(Channel):
    """A connection on which one message comes, whatever is sent."""

    def __init__(self, role: Role, message: bytes) -> None:
        super().__init__(role)
        self._left: bytes | None = message

    def _read(self, minimum: int, maximum: int) -> memoryview:
        message, self._left = self._left, None
        if message is None:
            raise PeerGoneError("that was all")
        if not minimum <= len(message) <= maximum:
            raise FrameError("a frame of another size was expected")
        return memoryview(message)

    def _write(self, payload: memoryview) -> None:
        pass

    def wait(self, timeout: float) -> bool:
        return self._left is not None

    def close(self) -> None:
        self._left = None

    def abort(self, error: BaseException) -> None:
        self.close()


def _frame(data: bytes) -> None:
    if len(data) >= 8:
        header = parse_header(data[:8])
        if header.kind is Kind.ERROR:
            parse_error(data[8:])
    else:
        parse_header(data)


def _card_text(data: bytes) -> None:
    """A card's text, behind the checks of its compression."""
    ModelCard.from_bytes(struct.pack("<4sHI", b"SVMC", 1, len(data)) + zlib.compress(data, 0))


@cache
def _welcome() -> Welcome:
    engine = make_engine(EngineOptions("clear"), model())
    engine.prepare()
    return Welcome(engine.options, engine.public(), card())


def _hello(data: bytes) -> None:
    try:
        server_handshake(OneMessage(Role.SERVER, data), _welcome())
    except PeerGoneError:
        pass  # accepted: the client's agreement would be next


def _hellos() -> list[bytes]:
    head = {"protocol": PROTOCOL, "release": __version__, "parameters": parameters_digest()}
    callers = Caller(), Caller("describe", None, "key"), Caller("resume", "0" * 32)
    return [
        json.dumps({**head, "wish": asdict(Wish("clear")), "caller": asdict(caller)}).encode()
        for caller in callers
    ]


def _offer(data: bytes) -> None:
    ask_offer(OneMessage(Role.CLIENT, data), Wish("clear"), Caller())


def _offers() -> list[bytes]:
    welcome = _welcome()
    offer = {
        "options": asdict(welcome.options),
        "public": {"config": {}},
        "model": welcome.card.model_digest,
        "card": welcome.card.digest,
        "context": 96,
    }
    head = {"protocol": PROTOCOL, "release": __version__, "parameters": parameters_digest()}
    return [json.dumps({**head, "offer": offer}).encode()]


def _description(data: bytes) -> None:
    """What an engine's server says of its model: both kinds."""
    value = _json(data)
    if isinstance(value, dict) and "slots" in value:
        Description.from_json(value)
    else:
        PublicModel.from_json(value)


def _descriptions() -> list[bytes]:
    config = card().config
    norm = {"kind": config.norm, "eps": 1e-5, "low": 0.1, "high": 20.0, "square_bits": 3}
    hybrid = {
        "config": config.to_json(),
        "weight_bits": 11,
        "score_shift": 2,
        "score_range_bits": 8,
        "norms": [norm] * (2 * config.layers + 1),
    }
    fhe = Description("engine16", Shape(SHAPES["gpt2"], 1 << 15, 8), 9, {1: 3}, largest=50.0).to_json()
    return [json.dumps(hybrid).encode(), json.dumps(fhe).encode()]


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def _dealer(data: bytes) -> None:
    dealer._parse(data)


def _dealer_seeds() -> list[bytes]:
    keys = (["ands"], ["triples"], ["bit_values", 257], ["ots", 0, 2, 3], ["wraps", [[1, 257]]])
    return [struct.pack("<I", 5) + json.dumps(key).encode() for key in keys]


def _states() -> list[bytes]:
    return [State(3, bytes(EPOCH_BYTES), None, 7, {"ands": (5, 9)}, (bytes(ID_BYTES),)).to_bytes()]


TARGETS = {
    "frame": Target(
        _frame,
        lambda: [
            pack_header(Kind.DATA, 1000),
            pack_header(Kind.ERROR, 30) + pack_error(PeerConnectionError("x")),
        ],
        (b'"error"', b'"reason"', b"null", b"{"),
    ),
    "command": Target(
        lambda data: Command.parse(data),
        lambda: [Command(Verb.PREFILL, 3, (1, 2, 3)).pack(), Command(Verb.DECODE).pack()],
    ),
    "hello": Target(_hello, _hellos, JSON_WORDS, json=True, made=True),
    "offer": Target(_offer, _offers, JSON_WORDS, json=True, made=True),
    "description": Target(_description, _descriptions, JSON_WORDS, json=True, made=True),
    "card": Target(lambda data: ModelCard.from_bytes(data), lambda: [card().to_bytes()]),
    "card-text": Target(_card_text, lambda: [zlib.decompress(card().to_bytes()[10:])], JSON_WORDS, json=True),
    "pool-state": Target(lambda data: State.from_bytes(data), _states, JSON_WORDS),
    "stamps": Target(lambda data: parse_stamps(data), lambda: [bytes(range(24))]),
    "dealer": Target(_dealer, _dealer_seeds, JSON_WORDS),
}
