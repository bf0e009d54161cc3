"""A server gives back what sessions took, and survives that there is no more to take."""

import contextlib
import gc
import multiprocessing
import os
import resource
import socket
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from kept_sessions import Host, greedy_tokens
from sottovoce.engines.base import EngineOptions
from sottovoce.engines.clear.parties import ClearEngine
from sottovoce.errors import PeerConnectionError, ServerBusyError
from sottovoce.net import Channel, Role, SocketChannel
from sottovoce.parties import Address, Client, Server, ServerSession, Welcome, Wish
from sottovoce.parties import server as server_module
from tiny_model import tiny_model

PROMPT = [3, 31, 8, 12]
CLEAR = Wish("clear")


class GreedyEngine(ClearEngine):
    """A prefill of more than ten tokens wants more memory than the process may have."""

    def session(self):
        party = super().session()
        prefill = party.prefill

        def greedy(public_tokens, n_private):
            if n_private > 10:
                np.ones(1 << 33, np.uint8)
            prefill(public_tokens, n_private)

        party.prefill = greedy
        return party


@pytest.fixture(scope="module")
def engine():
    return ClearEngine(EngineOptions(engine="clear"), tiny_model())


def held():
    """What there is of sessions in this process: objects, threads, open files."""
    gc.collect()
    sessions = sum(isinstance(thing, ServerSession | Client | Channel) for thing in gc.get_objects())
    return sessions, threading.active_count(), len(os.listdir("/proc/self/fd"))


def grown(before):
    return any(now > then for now, then in zip(held(), before, strict=True))


def ended(host, count):
    while len(host.reports) < count or host.server.sessions:
        time.sleep(0.005)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files of Linux")
def test_fifty_sessions_leave_nothing_behind(engine, tmp_path):
    """Polite ones, ones that break off, saved ones that come back. Memory in pages is `bench load`'s."""
    with Host(engine, tiny_model(), tmp_path) as host:

        def sessions(count, name):
            before = len(host.reports)
            for number in range(count):
                client = host.client()
                if number == 0:
                    client.keep(host.mine, name)
                greedy_tokens(client, PROMPT, 2)
                if number % 3:
                    client.close()
                else:
                    client.channel.close()
            host.client(name).close()
            ended(host, before + count + 1)
            host.reports.clear()

        sessions(5, "first")  # what is made once
        before = held()
        sessions(50, "second")
        # The last threads may be on their way out still; other tests' leave fewer, never more.
        deadline = time.monotonic() + 300
        while grown(before) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not grown(before), (before, held())


def serve_in_little(pipe):
    """A server's process whose memory is bounded."""
    engine = GreedyEngine(EngineOptions(engine="clear"), tiny_model())
    server = Server(
        engine.session,
        Welcome(engine.options, engine.public(), tiny_model().card),
        tls=None,
    )
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + (1 << 32), resource.RLIM_INFINITY))
    with server:
        pipe.send(server.port)
        pipe.recv()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the memory of a process of Linux")
def test_a_server_that_runs_out_of_memory_ends_one_session_and_says_why():
    """Memory that is really not there: the operating system refuses it."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve_in_little, args=(theirs,), daemon=True)
    process.start()
    try:
        assert ours.poll(300)
        address = Address("127.0.0.1", ours.recv())
        with Client.connect(address, CLEAR, None) as modest:
            modest.setup()
            modest.prefill((), PROMPT)
            with Client.connect(address, CLEAR, None) as greedy:
                greedy.setup()
                with pytest.raises(ServerBusyError, match="out of memory"):
                    greedy.prefill((), [1] * 20)
            assert len(modest.decode(5)) == tiny_model().config.vocab_size
        with Client.connect(address, CLEAR, None) as another:
            another.setup()
            another.prefill((), PROMPT)
        ours.send("end")
        process.join(300)
    finally:
        process.kill()
        process.join()


@pytest.mark.skipif(sys.platform != "linux", reason="has the whole of 127.0.0.0/8 on its loopback interface")
def test_one_client_cannot_take_every_connection(engine, tmp_path, monkeypatch):
    """Even where it only connects, says nothing, and connects again."""
    monkeypatch.setattr(server_module, "_HANDSHAKE_TIMEOUT", 600.0)
    with Host(engine, tiny_model(), tmp_path, max_sessions=2) as host:
        address = ("127.0.0.1", host.server.port)
        with contextlib.ExitStack() as held:
            silent = [held.enter_context(socket.create_connection(address)) for _ in range(20)]
            while sum(host.server._from.values()) < 6 or any(not closed(sock) for sock in silent[6:]):
                time.sleep(0.01)
            assert not any(closed(sock) for sock in silent[:6])
            sock = socket.create_connection(address, source_address=("127.0.0.2", 0))
            client = Client(SocketChannel(Role.CLIENT, sock), CLEAR)
            client.setup()
            assert len(greedy_tokens(client, PROMPT, 3)) == 3
            client.close()
        ended(host, 7)
        assert not host.server._from


def closed(sock):
    """Whether the other side has hung up."""
    sock.setblocking(False)
    try:
        return sock.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def test_no_thread_for_another_connection(engine, tmp_path, monkeypatch):
    """The one that would need it is closed; the others and the next ones are served."""
    with Host(engine, tiny_model(), tmp_path) as host:
        client, original = host.client(), threading.Thread.start

        def refuse(thread):
            if thread.name.startswith("session-"):
                raise RuntimeError("can't start new thread")
            original(thread)

        monkeypatch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(PeerConnectionError):
            host.client()
        monkeypatch.undo()
        assert len(greedy_tokens(client, PROMPT, 3)) == 3
        client.close()
        host.client().close()
