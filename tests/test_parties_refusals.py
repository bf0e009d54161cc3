"""What is refused before a session: other offers, versions, certificates, ports; a full server."""

# ruff: noqa: F811  (fixtures are imported)

import json
import socket
import threading
import time
from dataclasses import replace

import pytest

from hosted import CLEAR, Hosted, certificate, hosted, model, open_host  # noqa: F401  (fixtures)
from sottovoce.errors import (
    CertificateChangedError,
    FrameError,
    ModelMismatchError,
    ParameterMismatchError,
    PeerConnectionError,
    ProtocolError,
    RefusedError,
    UsageError,
    VersionMismatchError,
)
from sottovoce.net import Role, SocketChannel, run_pair, socket_pair
from sottovoce.net.tls import KnownHosts
from sottovoce.parties import (
    Address,
    Client,
    Server,
    Wish,
)
from sottovoce.parties import protocol as protocol_module


def test_a_private_client_refuses_the_clear_engine(hosted):
    with pytest.raises(ParameterMismatchError, match="wants engine 'hybrid', the server runs 'clear'"):
        hosted.client(Wish())
    (report,) = hosted.wait_for_reports(1)
    assert report.ended.startswith("ParameterMismatchError")


def test_other_model(hosted, model):
    with pytest.raises(ModelMismatchError):
        hosted.client(Wish(engine="clear", model="0" * 64))
    hosted.client(Wish(engine="clear", model=model.digest[:32].upper())).close()
    for short in (model.digest[:31], "", "x" * 64, model.digest + "0"):
        with pytest.raises(UsageError, match="no commitment"):
            hosted.client(Wish(engine="clear", model=short))


def test_both_sides_hold_a_digest_of_what_was_agreed(open_host, model):
    channel = raw_channel(open_host)
    welcome = protocol_module.client_handshake(channel, CLEAR)
    assert channel.agreed == welcome.digest() and len(channel.agreed) == 32
    other = replace(welcome, options=replace(welcome.options, arithmetic="fixed"))
    assert other.digest() != channel.agreed
    channel.close()


def test_other_arithmetic(hosted):
    with pytest.raises(ParameterMismatchError, match="arithmetic"):
        hosted.client(Wish(engine="clear", arithmetic="fixed"))


WISH = {
    "engine": "clear",
    "kv": None,
    "arithmetic": None,
    "correlations": "pair",
    "profile": None,
    "model": None,
}


def hello(channel, **changes):
    fields = {
        "protocol": protocol_module.PROTOCOL,
        "release": "9.9",
        "parameters": protocol_module.parameters_digest(),
        "wish": WISH,
        "caller": {"purpose": "session", "session": None, "api_key": None},
    }
    channel.send(json.dumps({**fields, **changes}).encode())


def raw_channel(host):
    return SocketChannel(Role.CLIENT, socket.create_connection(("127.0.0.1", host.server.port)), timeout=300)


@pytest.mark.parametrize(
    "changes, error",
    [
        ({"protocol": 99}, VersionMismatchError),
        ({"protocol": 99, "wish": None}, VersionMismatchError),
        ({"parameters": "0" * 64}, ParameterMismatchError),
        ({"wish": {"engine": "clear"}}, ProtocolError),
        ({"wish": {**WISH, "engine": 3}}, ProtocolError),
        ({"wish": {**WISH, "correlations": None}}, ProtocolError),
        ({"wish": {**WISH, "correlations": "dealer"}}, ParameterMismatchError),
        ({"wish": []}, ProtocolError),
        ({"more": 1}, ProtocolError),
    ],
)
def test_refused_hello(open_host, changes, error):
    channel = raw_channel(open_host)
    hello(channel, **changes)
    with pytest.raises(error):
        channel.recv_message(1 << 20)
    assert open_host.wait_for_reports(1)[0].ended.startswith(error.__name__)


def test_client_refuses_a_server_of_another_version():
    """The server, too, is told why."""
    client_end, server_end = socket_pair()
    answer = {"protocol": 99, "release": "2.0", "parameters": "", "offer": {}}
    server_end.send(json.dumps(answer).encode())

    def server(channel):
        channel.recv_message(1 << 14)
        with pytest.raises(VersionMismatchError, match=f"protocol version {protocol_module.PROTOCOL}"):
            channel.recv(33)

    def client(channel):
        with pytest.raises(VersionMismatchError):
            Client(channel, CLEAR)

    run_pair(client, server, (client_end, server_end))


def test_disagreement_about_the_offer(open_host):
    channel = raw_channel(open_host)
    hello(channel)
    channel.recv_message(1 << 20)
    channel.send(bytes(33))
    with pytest.raises(ParameterMismatchError):
        channel.recv_message(1 << 20)


def test_changed_certificate(hosted, model, tmp_path):
    pins = KnownHosts(tmp_path / "known_hosts")
    client = Client.connect(hosted.address, CLEAR, pins)
    assert client.identity.first_use
    client.close()
    pins.path.write_text(f"{hosted.address} sha256:{'0' * 64}\n")
    with pytest.raises(CertificateChangedError):
        Client.connect(hosted.address, CLEAR, pins)


def test_nothing_listens():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody else gets it
        with pytest.raises(PeerConnectionError, match="nothing listens there"):
            Client.connect(Address("127.0.0.1", taken.getsockname()[1]), CLEAR, None)
    with pytest.raises(PeerConnectionError, match="name is unknown"):
        Client.connect(Address("no-such-host.invalid", 1), CLEAR, None)


def test_wrong_port_that_speaks_something_else():
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer():
            peer, _ = listener.accept()
            peer.sendall(b"220 mail.example ESMTP ready\r\n")
            peer.recv(1000)
            time.sleep(0.2)
            peer.close()

        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(FrameError, match="does not speak the Sottovoce protocol"):
            Client.connect(Address("127.0.0.1", listener.getsockname()[1]), CLEAR, None)


def test_port_in_use(hosted, model):
    with pytest.raises(UsageError, match="cannot listen"):
        Server(lambda: None, hosted.welcome, port=hosted.server.port, tls=None)


def test_full_server(model, certificate):
    host = Hosted(model, certificate, max_sessions=1)
    with host.server:
        client = host.client()
        with pytest.raises(RefusedError, match="full"):
            host.client()
        client.close()
        host.wait_for_reports(1)
        host.client_when_free().close()
