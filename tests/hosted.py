"""A server with a tiny model and no cryptography on a port of the system's choice, and what it reported."""

import time

import pytest

from sottovoce.engines.base import EngineOptions
from sottovoce.engines.registry import make_engine
from sottovoce.errors import (
    RefusedError,
)
from sottovoce.net.tls import Certificate
from sottovoce.parties import (
    Address,
    Client,
    Server,
    Welcome,
    Wish,
)
from tiny_model import tiny_model

CLEAR = Wish(engine="clear")


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    return Certificate(tmp_path_factory.mktemp("key"))


class Hosted:
    """A running server and what it reported."""

    def __init__(self, model, certificate, arithmetic="float", **options):
        engine = make_engine(EngineOptions(engine="clear", arithmetic=arithmetic), model)
        engine.prepare()
        self.reports, self.seen = [], []
        self.welcome = Welcome(engine.options, engine.public(), model.card)
        self.server = Server(
            engine.session,
            self.welcome,
            tls=certificate.context() if certificate else None,
            on_close=self.reports.append,
            tap=lambda session, view: self.seen.append(bytes(view)),
            **options,
        )
        self.address = Address("127.0.0.1", self.server.port)
        self.pin = certificate.fingerprint if certificate else None

    def client(self, wish=CLEAR, **options):
        client = Client.connect(self.address, wish, self.pin, **options)
        client.setup()
        return client

    def client_when_free(self):
        """The place of a session is free a moment after its report."""
        deadline = time.monotonic() + 300
        while True:
            try:
                return self.client()
            except RefusedError:
                assert time.monotonic() < deadline
                time.sleep(0.02)

    def wait_for_reports(self, count):
        deadline = time.monotonic() + 300
        while len(self.reports) < count and time.monotonic() < deadline:
            time.sleep(0.01)
        return self.reports


@pytest.fixture
def hosted(model, certificate):
    host = Hosted(model, certificate)
    with host.server:
        yield host


@pytest.fixture
def open_host(model):
    """Without TLS: for tests that send raw bytes."""
    host = Hosted(model, None)
    with host.server:
        yield host
