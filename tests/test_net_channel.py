"""Channels: both transports behave alike, count alike, and fail with the right error."""

import threading

import numpy as np
import pytest

from sottovoce.errors import (
    FrameError,
    ModelMismatchError,
    PeerGoneError,
    ProtocolError,
    VersionMismatchError,
)
from sottovoce.net import Channel, Ledger, Role, SocketChannel, memory_pair, run_pair, socket_pair
from sottovoce.net.frame import HEADER_SIZE, MAX_PAYLOAD, Kind, pack_header, parse_header
from sottovoce.net.sockets import HANDSHAKE_EARLY


@pytest.fixture(params=[memory_pair, socket_pair], ids=["memory", "socket"])
def pair(request):
    client, server = request.param()
    yield client, server
    client.close()
    server.close()


def test_roles_and_round_trip(pair):
    data = np.arange(5, dtype=np.uint64)

    def client(ch: Channel):
        assert ch.role == Role.CLIENT
        ch.send(data)
        ch.send(b"xyz")
        return bytes(ch.recv(4))

    def server(ch: Channel):
        got = np.frombuffer(ch.recv(40), np.uint64)
        rest = bytes(ch.recv(3))
        ch.send(b"done")
        return got, rest

    said, (got, rest) = run_pair(client, server, pair)
    assert said == b"done" and rest == b"xyz" and np.array_equal(got, data)


def test_received_memory_is_writable_and_private(pair):
    buffer = bytearray(b"abcd")

    def client(ch):
        ch.send(buffer)
        buffer[0] = 0
        ch.recv(1)

    def server(ch):
        view = ch.recv(4)
        ch.send(b"!")
        view[1] = 7
        return bytes(view)

    assert run_pair(client, server, pair)[1] == b"a\x07cd"


@pytest.mark.parametrize("size", [1, 65536, 65537, 40_000_000])
def test_exchange_of_large_frames_does_not_deadlock(pair, size):
    def party(ch):
        mine = np.full(size, ch.role + 1, np.uint8)
        theirs = np.frombuffer(ch.exchange(mine, size), np.uint8)
        return bool((theirs == 2 - ch.role).all())

    assert run_pair(party, party, pair) == (True, True)


def test_simultaneous_one_way_sends_do_not_deadlock():
    """Even protocol code that sends on both sides before it receives gets through."""

    def party(ch):
        for _ in range(20):
            ch.send(bytes(1 << 20))
        return sum(len(ch.recv(1 << 20)) for _ in range(20))

    assert run_pair(party, party, socket_pair()) == (20 << 20, 20 << 20)


def test_little_is_taken_in_early_before_a_session_begins():
    client, server = socket_pair()
    client._sock.setblocking(False)
    server.most_early = HANDSHAKE_EARLY

    def flood():
        sent = 0
        try:
            while True:
                sent += client._sock.send(bytes(1 << 16))
        except BlockingIOError:
            return sent

    def take():
        assert server._readable.poll(30_000)
        server._take_early()

    sent = flood()
    while len(server._early) < HANDSHAKE_EARLY:
        take()
        sent += flood()
    for _ in range(4):
        server._take_early()
        assert len(server._early) < 3 * HANDSHAKE_EARLY
        sent += flood()
    server.establish(b"agreed")
    while len(server._early) < sent:
        take()
    assert server.agreed == b"agreed" and len(server._early) == sent > HANDSHAKE_EARLY
    client.close()
    server.close()


def test_empty_sides_of_an_exchange(pair):
    def client(ch):
        return len(ch.exchange(b"abc", 0)), len(ch.exchange(b"", 2)), len(ch.exchange(b"", 0))

    def server(ch):
        return len(ch.exchange(b"", 3)), len(ch.exchange(b"de", 0)), len(ch.exchange(b"", 0))

    assert run_pair(client, server, pair) == ((0, 2, 0), (3, 0, 0))
    assert pair[0].ledger.total().rounds == pair[1].ledger.total().rounds == 2


def test_wrong_size_is_a_frame_error_before_the_payload(pair):
    client, server = pair
    client.send(b"12345")
    with pytest.raises(FrameError, match="5 bytes where the protocol requires 4"):
        server.recv(4)


def test_message_larger_than_the_cap(pair):
    client, server = pair
    client.send(bytes(100))
    with pytest.raises(FrameError, match="0 to 99"):
        server.recv_message(99)


def test_peer_gone(pair):
    client, server = pair
    client.close()
    with pytest.raises(PeerGoneError):
        server.recv(4)


def test_close_from_another_thread_wakes_a_waiting_receiver():
    client, server = socket_pair()
    threading.Timer(0.1, server.close).start()
    with pytest.raises(PeerGoneError):
        server.recv(1)
    client.close()


def test_abort_carries_the_reason(pair):
    def server(ch):
        ch.abort(ModelMismatchError("the server has another model"))

    def client(ch):
        ch.send(b"unread by the server")
        return ch.recv(100)

    with pytest.raises(ModelMismatchError, match="another model"):
        run_pair(client, server, pair)


def test_abort_reason_reaches_a_peer_that_is_sending():
    def server(ch):
        ch.abort(ModelMismatchError("another model"))

    def client(ch):
        for _ in range(2000):
            ch.send(bytes(1 << 16))

    with pytest.raises(ModelMismatchError):
        run_pair(client, server, socket_pair())


def test_foreign_exceptions_do_not_leak_their_text(pair):
    with pytest.raises(ProtocolError) as caught:
        run_pair(lambda ch: ch.recv(1), lambda ch: ch.abort(ValueError("the prompt was 'secret'")), pair)
    assert "secret" not in str(caught.value)


def test_truncated_frame_is_peer_gone():
    client, server = socket_pair()
    client._sock.send(pack_header(Kind.DATA, 10) + b"abc")
    client.close()
    with pytest.raises(PeerGoneError):
        server.recv(10)


@pytest.mark.parametrize("numbers", [(0, 0), (0, 2), (1,)])
def test_a_frame_that_comes_twice_or_not_at_all(numbers):
    client, server = socket_pair()
    for number in numbers:
        client._sock.send(pack_header(Kind.DATA, 1, number) + b"x")
    with pytest.raises(FrameError, match="twice"):
        for _ in numbers:
            server.recv(1)
    client.close()
    server.close()


def test_the_number_of_a_frame_goes_round(pair):
    def both(channel):
        return [bytes(channel.exchange(bytes([n]), 1)) for n in range(200)]

    assert run_pair(both, both, pair)[0] == [bytes([n]) for n in range(200)]


def test_other_version_and_garbage():
    for raw, error in (
        (b"SV\x01\x00\x01\x00\x00\x00x", VersionMismatchError),
        (b"HTTP/1.1 200 OK", FrameError),
    ):
        client, server = socket_pair()
        client._sock.send(raw)
        with pytest.raises(error):
            server.recv(1)
        client.close()
        server.close()


def test_silence_times_out():
    client, server = socket_pair()
    server.timeout = 0.05
    with pytest.raises(PeerGoneError, match="sent nothing"):
        server.recv(1)
    client.close()


def test_oversized_payload_is_refused_locally():
    with pytest.raises(FrameError):
        pack_header(Kind.DATA, MAX_PAYLOAD + 1)
    assert parse_header(pack_header(Kind.DATA, 7)).length == 7
    assert len(pack_header(Kind.DATA, 7)) == HEADER_SIZE


def test_rounds_and_bytes_agree(pair):
    def client(ch):
        with ch.ledger.phase("setup"):
            ch.send(b"a" * 10)
            ch.send(b"b" * 10)  # travels with the one before
            ch.recv(5)
            with ch.ledger.operation("outer"), ch.ledger.operation("inner"):
                ch.exchange(b"c" * 3, 4)
                ch.ledger.count("ots", 12)
            ch.recv(1)  # after an exchange a message is a round of its own

    def server(ch):
        with ch.ledger.phase("setup"):
            ch.recv(10)
            ch.recv(10)
            ch.send(b"d" * 5)
            with ch.ledger.operation("outer"), ch.ledger.operation("inner"):
                ch.exchange(b"e" * 4, 3)
                ch.ledger.count("ots", 12)
            ch.send(b"f")

    run_pair(client, server, pair)
    views = []
    for ch in pair:
        rows = {r.operation: r for r in ch.ledger.rows() if r.phase == "setup"}
        views.append(
            {k: (r.bytes_up, r.bytes_down, r.rounds, r.counters) for k, r in rows.items() if r.rounds}
        )
    assert views[0] == views[1] == {"": (20, 6, 3, {}), "outer/inner": (3, 4, 1, {"ots": 12})}
    total = pair[0].ledger.total("setup")
    assert total.wire_up == 23 + 3 * HEADER_SIZE


def test_ledger_diff_and_time():
    ledger = Ledger()
    with ledger.phase("decode"), ledger.operation("a"):
        ledger.message(0, 7)
        before = ledger.snapshot()
        ledger.message(0, 5)
        ledger.count("n")
        with ledger.operation("b"):
            ledger.message(1, 1)
    rows = {r.operation: r for r in ledger.since(before) if r.phase == "decode"}
    assert (rows["a"].bytes_up, rows["a"].rounds, rows["a"].counters) == (5, 0, {"n": 1})
    assert (rows["a/b"].bytes_down, rows["a/b"].rounds) == (1, 1)
    assert all(r.seconds >= 0 for r in ledger.rows())
    assert ledger.to_json()[0].keys() >= {"phase", "operation", "bytes_up", "bytes_down", "rounds", "seconds"}


def test_run_pair_raises_the_first_error_and_hangs_nobody():
    def client(ch):
        return ch.recv(1)

    def server(ch):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        run_pair(client, server)


def test_tap_sees_what_is_received(pair):
    client, server = pair
    seen = []
    server.tap = lambda view: seen.append(bytes(view))
    client.send(b"hello")
    server.recv(5)
    assert seen == [b"hello"]


def test_network_flag():
    memory, tcp = memory_pair(), socket_pair()
    assert not memory[0].is_network and isinstance(tcp[0], SocketChannel) and tcp[0].is_network


def test_wait(pair):
    client, server = pair
    assert not server.wait(0.01)
    client.send(b"ab")
    client.send(b"c")
    assert server.wait(60) and bytes(server.recv(2)) == b"ab"
    assert server.wait(60) and bytes(server.recv(1)) == b"c"
    assert not server.wait(0.01)
    client.close()
    assert server.wait(60)
    with pytest.raises(PeerGoneError):
        server.recv(1)


def test_a_closed_channel_does_not_wait_for_another_connection():
    """Its descriptor may have been given to the next one."""
    near, far = socket_pair()
    near.close()
    others = [socket_pair() for _ in range(2)]  # most likely with the same number
    assert near.wait(0.0)
    for use in (lambda: near.recv(1), lambda: near.send(bytes(1 << 24))):
        with pytest.raises(PeerGoneError, match="on this side"):
            use()
    for channel in (far, *others[0], *others[1]):
        channel.close()
