"""The pool grows while nobody needs the connection, and the connection is whole afterwards."""

import time

import numpy as np
import pytest

from sottovoce.engines.base import EngineOptions
from sottovoce.engines.hybrid import HybridEngine
from sottovoce.errors import PeerConnectionError, PoolFullError
from sottovoce.parties import Address, Client, IdleFiller, Pools, Server, Welcome, Wish, server_shelf
from tiny_model import tiny_model


@pytest.fixture(scope="module")
def engine():
    made = HybridEngine(EngineOptions(kv="masked"), tiny_model())
    made.prepare()
    return made


@pytest.fixture
def hosted(engine, tmp_path):
    """connect(limit) -> a client that has set up, of a running server with pools."""
    welcome = Welcome(engine.options, engine.public(), engine.model.card)

    def open_party():
        party = engine.session()
        party.shelf = server_shelf(tmp_path / "server", welcome)
        return party

    def connect(limit=1 << 30, pools=True):
        shelf = Pools(tmp_path / "client", limit, make=True) if pools else None
        client = Client.connect(Address("127.0.0.1", server.port), Wish(), None, pools=shelf)
        client.setup()
        return client

    with Server(open_party, welcome, tls=None) as server:
        yield connect


def wait_until(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def answer_is_right(client, tokens):
    logits = [client.prefill([256], tokens[:-1]), client.decode(tokens[-1])]
    plain = tiny_model().forward([256, *tokens])[-2:]
    return np.abs(np.array(logits) - plain).max() < 0.05


def test_the_pool_grows_while_idle_and_the_session_goes_on(hosted):
    with hosted() as client:
        with IdleFiller(client, 10) as filler:
            wait_until(lambda: not filler._thread.is_alive())
        assert client.ready(10) == 10
        assert answer_is_right(client, [5, 6, 7])
        before = client.ready(10)
        with IdleFiller(client, 10) as filler:
            wait_until(lambda: not filler._thread.is_alive())
        assert client.ready(10) == 10 > before
        client.truncate(1)
        assert client.decode(5).shape == (258,)


def test_leaving_waits_for_one_step_only(hosted):
    with hosted() as client:
        with IdleFiller(client, 80):
            time.sleep(0.05)
        assert client.ready(80) < 80
        assert answer_is_right(client, [5, 6, 7])


def test_nothing_happens_without_a_pool(hosted):
    with hosted(pools=False) as client:
        sent = client.ledger.total().frames_up
        with IdleFiller(client, 10) as filler:
            assert filler._thread is None
        assert client.ledger.total().frames_up == sent


def test_a_full_pool_ends_the_filling_and_not_the_session(hosted):
    with hosted(limit=200_000) as client:
        with IdleFiller(client, 60) as filler:
            wait_until(lambda: not filler._thread.is_alive())
        with pytest.raises(PoolFullError, match="is full"):
            client.prepare(60)
        assert answer_is_right(client, [5, 6, 7])


def test_a_lost_connection_is_raised_where_the_caller_comes_back(hosted):
    client = hosted()
    with pytest.raises(PeerConnectionError):
        with IdleFiller(client, 60) as filler:
            client.channel.close()
            wait_until(lambda: not filler._thread.is_alive())
    client.close()
