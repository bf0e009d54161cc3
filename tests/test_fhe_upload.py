"""Uploads of evaluation keys over connections that break: what has arrived is not sent again."""

import random
import socket

import numpy as np
import pytest

from kept_sessions import Host
from sottovoce.engines.fhe import keyring
from sottovoce.errors import PeerConnectionError, RefusedError
from sottovoce.net.ledger import total
from sottovoce.parties import Client, Wish
from test_fhe_engine import engine  # noqa: F401  (fixture)


class Line:
    """Connections to a host that break after so many bytes were sent on them, the last ones never."""

    def __init__(self, host, budgets):
        self._host, self._budgets = host, list(budgets)
        self.opened = 0

    def __call__(self):
        self._host.wait_until_empty()  # has stored what arrived
        channel, identity = self._host.route()
        self.opened += 1
        if self._budgets:
            self._limit(channel, self._budgets.pop(0))
        return channel, identity

    @staticmethod
    def _limit(channel, budget):
        write, left = channel._write_all, [budget]

        def limited(data):
            write(data[: left[0]])
            left[0] -= len(data)
            if left[0] < 0:
                channel._sock.shutdown(socket.SHUT_RDWR)
                write(data)

        channel._write_all = limited


@pytest.fixture
def host(engine, tmp_path):  # noqa: F811
    engine.keep_in(tmp_path)
    with Host(engine, engine.model, tmp_path) as host:
        yield host
    engine.directory = None


@pytest.fixture
def made(monkeypatch):
    """Names of the keys that were made to be sent."""
    found, makers = [], keyring._makers

    def counting(description, keys):
        for i, (name, make) in enumerate(makers(description, keys)):

            def counted(i=i, make=make):
                found.append(i)
                return make()

            yield name, counted

    monkeypatch.setattr(keyring, "_makers", counting)
    return found


def connect(host, line, **options):
    channel, identity = line()
    return Client(channel, Wish("fhe"), identity, again=line, **options)


def uploaded(client):
    return total(client.ledger.rows()).bytes_up


def test_an_upload_goes_on_where_it_broke(engine, host, made):  # noqa: F811
    whole = host.client()
    size, number = uploaded(whole), 3 + len(engine.description.steps)
    whole.close()
    assert made == list(range(number))
    made.clear()
    drawn = random.Random(5)
    # In the first key, in handshakes, anywhere; the last connection holds.
    budgets = [size // 40, 500, *(drawn.randrange(size // 2) for _ in range(4)), 1500]
    line, seen, said = Line(host, budgets), [], []
    client = connect(host, line, patience=60.0)
    client.notify = said.append
    client.setup(lambda done, total, what: seen.append((done, total, what)))
    assert line.opened >= 3 and said and "keys that are missing" in said[0]
    # Every key was sent once, but those that were cut.
    assert sorted(set(made)) == list(range(number)) and len(made) <= number + len(said)
    assert seen[-1][:2] == (number, number) and {entry[1] for entry in seen} == {number}
    logits = client.prefill([256], [104])
    assert np.abs(logits - engine.model.forward([256, 104])[-1]).max() < 0.1
    client.close()


def test_another_process_goes_on_with_an_upload(engine, host, made):  # noqa: F811
    """A session with a name keeps its key from the beginning, so that the keys that arrived are of use."""
    client, number = host.client(setup=False), 3 + len(engine.description.steps)
    assert client.keep_early(host.mine, "talk")
    client._again = None

    def breaking(done, total, what):
        if done == number // 2:
            client.channel._sock.shutdown(socket.SHUT_RDWR)

    with pytest.raises(PeerConnectionError):
        client.setup(breaking)
    assert len(made) == number // 2 + 1 and host.mine.find("talk").facts["tokens"] == 0
    host.wait_until_empty()
    again = host.client("talk")
    assert again.is_kept and again.length == 0
    assert sorted(set(made)) == list(range(number)) and len(made) == number + 1
    again.prefill([256], [104])
    again.close()
    third = host.client("talk")
    assert third.length == 2 and len(made) == number + 1
    third.close()


def test_a_server_that_keeps_nothing_leaves_no_session_behind(engine, tmp_path):  # noqa: F811
    with Host(engine, engine.model, tmp_path) as host:
        host.server._kept = None
        client = host.client(setup=False)
        assert client.keep_early(host.mine, "talk")
        with pytest.raises(RefusedError, match="keeps no sessions"):
            client.setup()
        assert host.mine.entries() == []
