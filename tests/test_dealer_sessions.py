"""Sessions whose correlations come from a dealer: over TLS, with a pool, refused unless both ask for it."""

import threading
import time

import numpy as np
import pytest

from sottovoce.engines.base import EngineOptions
from sottovoce.engines.explain import DEALER_BANNER, engine_line, what_the_server_sees
from sottovoce.engines.hybrid import HybridEngine
from sottovoce.errors import ParameterMismatchError, PeerConnectionError, PeerGoneError, ProtocolError
from sottovoce.net.tls import Certificate
from sottovoce.parties import Address, Client, Pools, Server, Welcome, Wish, server_shelf
from sottovoce.parties import dealer as dealer_module
from sottovoce.parties.dealer import Dealer, DealerAddress
from tiny_model import tiny_model

WISH = Wish(correlations="dealer")


@pytest.fixture(scope="module")
def engine():
    made = HybridEngine(EngineOptions(correlations="dealer"), tiny_model())
    made.prepare()
    return made


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    return Certificate(tmp_path_factory.mktemp("key"))


class Hosted:
    """A dealer, a server, and how a client reaches both."""

    def __init__(self, engine, certificate, path):
        self.ended, self.reports = [], []
        self.dealer = Dealer(tls=certificate.context(), on_end=self.ended.append)
        self.at_dealer = DealerAddress(
            Address("127.0.0.1", self.dealer.port), certificate.fingerprint
        ).connect
        welcome = Welcome(engine.options, engine.public(), engine.model.card)
        shelf = server_shelf(path / "server", welcome)

        def open_party():
            party = engine.session()
            party.shelf, party.dealer = shelf, self.at_dealer
            return party

        self.server = Server(open_party, welcome, tls=None, on_close=self.reports.append)
        self.address = Address("127.0.0.1", self.server.port)
        self.pools = Pools(path / "client", make=True)

    def client(self, wish=WISH, pools=None, dealer=None):
        client = Client.connect(self.address, wish, None, pools=pools, dealer=dealer or self.at_dealer)
        client.setup()
        return client


@pytest.fixture
def hosted(engine, certificate, tmp_path):
    host = Hosted(engine, certificate, tmp_path)
    with host.dealer, host.server:
        yield host


def test_an_answer(hosted):
    with hosted.client() as client:
        logits = [client.prefill([256], [5, 6]), client.decode(7)]
        counters = [row.counters for row in client.ledger.rows()]
        operations = {row.operation for row in client.ledger.rows()}
    plain = tiny_model().forward([256, 5, 6, 7])[2:]
    assert np.abs(np.array(logits) - plain).max() < 0.05
    assert "oblivious transfer" not in operations
    assert not any("cots" in c for c in counters) and any("dealer_bytes" in c for c in counters)
    deadline = time.monotonic() + 300
    while not hosted.ended and time.monotonic() < deadline:
        time.sleep(0.01)
    assert hosted.ended == ["the parties left"]


def test_a_pool_filled_by_the_dealer(hosted):
    with hosted.client(pools=hosted.pools) as client:
        client.prepare(6)
        assert client.ready(6) == 6
    with hosted.client(pools=hosted.pools) as client:
        logits = [client.prefill([256], [5, 6]), client.decode(7)]
        source = client._party._provisions.source
        assert not source.made_on_the_spot
    plain = tiny_model().forward([256, 5, 6, 7])[2:]
    assert np.abs(np.array(logits) - plain).max() < 0.05


def test_a_client_is_not_talked_into_a_dealer(hosted):
    with pytest.raises(ParameterMismatchError, match="--insecure-dealer"):
        hosted.client(wish=Wish())


def test_a_dealer_that_is_not_there(hosted):
    def nowhere():
        return DealerAddress(Address("127.0.0.1", 1), None).connect()

    with pytest.raises(PeerConnectionError, match="sottovoce dealer"):
        hosted.client(dealer=nowhere)


def test_one_party_alone_is_sent_away(certificate, monkeypatch):
    monkeypatch.setattr(dealer_module, "_PATIENCE", 0.05)
    with Dealer(tls=certificate.context()) as dealer:
        connect = DealerAddress(Address("127.0.0.1", dealer.port), certificate.fingerprint).connect
        first = connect()
        first.send(b"SVDL\x01\x00" + bytes(32))
        while not dealer._waiting:
            time.sleep(0.01)
        time.sleep(0.1)
        second = connect()
        second.send(b"SVDL\x01\x00" + b"o" * 32)
        with pytest.raises(PeerGoneError, match="did not come"):
            first.recv(32)
        second.close()


def test_two_parties_of_one_role_are_sent_away(certificate):
    with Dealer(tls=certificate.context()) as dealer:
        connect = DealerAddress(Address("127.0.0.1", dealer.port), certificate.fingerprint).connect
        errors = []

        def come():
            channel = connect()
            channel.send(b"SVDL\x01\x01" + bytes(32))
            try:
                channel.recv(32)
            except ProtocolError as error:
                errors.append(str(error))

        threads = [threading.Thread(target=come) for _ in range(2)]
        [t.start() for t in threads]
        [t.join() for t in threads]
        assert len(errors) == 2 and all("same role" in e for e in errors)


def test_words_for_users():
    options = EngineOptions(correlations="dealer")
    assert "colludes with neither" in engine_line(options)
    assert "with the help of the dealer" in what_the_server_sees(options)
    assert "dealer" not in engine_line(EngineOptions()) + what_the_server_sees(EngineOptions())
    assert "not to collude" in DEALER_BANNER
