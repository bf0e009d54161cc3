"""Emulated networks: when a frame arrives is arithmetic, and the channel keeps to it."""

import socket
import time

import numpy as np
import pytest

from sottovoce.bench.shaped import LAN, LOOPBACK, WAN, Link, Network, ShapedChannel
from sottovoce.errors import UsageError
from sottovoce.net import Role, run_pair
from sottovoce.net.frame import HEADER_SIZE


def pair(network):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    return ShapedChannel(Role.CLIENT, near, network=network), ShapedChannel(Role.SERVER, far, network=network)


def test_a_lone_frame_takes_its_size_and_half_a_round_trip():
    assert Link(WAN).delivery(10.0, 125_000) == pytest.approx(10.0 + 0.01 + 0.02)
    assert Link(LAN).delivery(10.0, 125_000) == pytest.approx(10.0 + 0.001 + 0.00025)


def test_frames_queue_for_the_link_but_travel_together():
    link = Link(Network("x", rtt_ms=100.0, mbit=8.0))  # a microsecond a byte
    assert link.delivery(0.0, 1_000_000) == pytest.approx(1.05)
    assert link.delivery(0.5, 1_000_000) == pytest.approx(2.05)  # waits until the first has left
    assert link.delivery(5.0, 0) == pytest.approx(5.05)  # an idle link is free at once


def test_unlimited_bandwidth_leaves_only_the_latency():
    link = Link(Network("x", rtt_ms=30.0))
    assert link.delivery(1.0, 10**9) == link.delivery(1.0, 1) == pytest.approx(1.015)


def test_negative_networks_are_refused():
    with pytest.raises(UsageError):
        Network("x", rtt_ms=-1.0)
    with pytest.raises(UsageError):
        Network("x", mbit=-1.0)


@pytest.mark.parametrize("network", [LOOPBACK, Network("slow", rtt_ms=10.0, mbit=80.0)])
def test_frames_arrive_whole_in_order_and_never_early(network):
    big = np.arange(100_000, dtype=np.uint64)  # 0.8 MB: 80 ms at 80 Mbit/s

    def client(channel):
        start = time.monotonic()
        channel.send(b"first")
        channel.send(big)
        assert bytes(channel.recv(4)) == b"done"
        return time.monotonic() - start, channel.ledger.total()

    def server(channel):
        assert bytes(channel.recv(5)) == b"first"
        assert np.array_equal(np.frombuffer(channel.recv(big.nbytes), np.uint64), big)
        channel.send(b"done")
        return channel.ledger.total()

    (taken, mine), theirs = run_pair(client, server, pair(network))
    latency, rate = network.rtt_ms / 1e3, network.mbit * 1e6 / 8
    least = latency + (big.nbytes / rate if rate else 0.0)
    assert taken >= least
    # Stamps are not booked: the ledger is that of a plain channel.
    assert mine.bytes_up == theirs.bytes_up == 5 + big.nbytes and mine.rounds == theirs.rounds == 2
    assert mine.wire_up == 5 + big.nbytes + 2 * HEADER_SIZE


def test_both_may_send_at_once_and_the_network_may_change():
    payload = bytes(range(256)) * 4096

    def party(channel):
        for network in (LOOPBACK, Network("x", rtt_ms=2.0, mbit=1000.0), LOOPBACK):
            channel.reshape(network)
            assert bytes(channel.exchange(payload, len(payload))) == payload

    run_pair(party, party, pair(LOOPBACK))
