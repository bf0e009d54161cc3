"""Nothing that one party says in the handshake writes over what stands on the other one's terminal."""

import json
from dataclasses import asdict

import pytest

from sottovoce.engines.base import EngineOptions
from sottovoce.errors import ProtocolError
from sottovoce.net import run_pair
from sottovoce.parties import Welcome, Wish
from sottovoce.parties.log import EventLog, sentence
from sottovoce.parties.protocol import MAX_HELLO, Caller, ask_offer, server_handshake
from sottovoce.parties.session import ServerSession
from tiny_model import tiny_model

WRITES_OVER = "\x1b[1A\x1b[2Ksha256:00"


def offered():
    return Welcome(EngineOptions("hybrid"), {}, tiny_model().card)


def changed(message, path, value):
    found = message
    for name in path[:-1]:
        found = found[name]
    found[path[-1]] = value
    return json.dumps(message).encode()


@pytest.mark.parametrize(
    "path",
    [("release",), *(("offer", "options", name) for name in asdict(EngineOptions()))]
    + [("offer", "model"), ("offer", "card")],
)
def test_what_a_server_offers(path):
    said = []

    def server(channel):
        def honest(side):
            return server_handshake(side, offered())

        # The honest answer to this client's hello, with one entry written anew.
        hello = bytes(channel.recv_message(MAX_HELLO))

        def relay(side):
            side.send(hello)
            said.append(json.loads(bytes(side.recv_message(1 << 20))))

        run_pair(relay, honest)
        channel.send(changed(said[0], path, WRITES_OVER))

    def client(channel):
        with pytest.raises(ProtocolError, match="malformed"):
            ask_offer(channel, Wish(), Caller("describe"))

    run_pair(client, server)


@pytest.mark.parametrize("name", asdict(Wish()))
def test_what_a_client_wishes(name):
    """Before it has shown an API key."""
    hello = []

    def client(channel):
        send = channel.send
        channel.send = lambda payload: send(changed(json.loads(payload), ("wish", name), WRITES_OVER))
        with pytest.raises(ProtocolError, match="malformed"):
            ask_offer(channel, Wish(), Caller())

    def server(channel):
        report = ServerSession(channel, lambda: None, offered(), peer="192.0.2.1:1").run()
        EventLog(lambda event, fields: hello.append(sentence(event, fields))).closed(report)

    run_pair(client, server)
    assert "ProtocolError" in hello[0] and hello[0].isprintable()


def test_events_for_people_are_one_line():
    line = sentence("failure", {"what": "checkpoint", "why": f"no room{WRITES_OVER}\n"})
    assert line.isprintable() and "no room" in line
