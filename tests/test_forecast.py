"""The forecast of a session is the ledger of the real one, to the byte and the round."""

from dataclasses import replace

import pytest

from sottovoce.engines.base import EngineOptions
from sottovoce.engines.hybrid import HybridEngine
from sottovoce.engines.public import PublicModel
from sottovoce.net import run_pair, socket_pair
from sottovoce.parties import Client, Welcome, Wish
from sottovoce.parties.estimate import typical
from sottovoce.parties.forecast import Course, forecast
from sottovoce.parties.session import ServerSession
from tiny_model import CONFIG, tiny_model

_ENGINES = {}


def engine(kv):
    if kv not in _ENGINES:
        _ENGINES[kv] = HybridEngine(EngineOptions(kv=kv), tiny_model())
        _ENGINES[kv].prepare()
    return _ENGINES[kv]


def real(engine, course):
    """The client's ledger of such a session, between two threads."""
    welcome = Welcome(engine.options, engine.public(), engine.model.card)
    tokens = [(7 * i) % 250 for i in range(course.public + course.private + course.new)]

    def server(channel):
        return ServerSession(channel, engine.session, welcome).run()

    def client(channel):
        with Client(channel, Wish()) as session:
            session.setup()
            if course.prepared:
                session.prepare(course.prepared)
            session.prefill(tokens[: course.public], tokens[course.public : course.public + course.private])
            for token in tokens[: course.new - 1]:
                session.decode(token)
            return session.ledger.rows()

    return run_pair(client, server, socket_pair())[0]


def figures(rows):
    """What must agree, by phase and operation; the handshake, which depends on the card, is left out."""
    found = {}
    for row in rows:
        if row.phase and row.operation != "handshake":
            cost = (row.bytes_up, row.bytes_down, row.frames_up, row.frames_down, row.rounds)
            if any(cost):
                found[row.phase, row.operation] = cost
    return found


@pytest.mark.parametrize(
    ("kv", "course"),
    [
        ("ciphertext", Course(3, 5, 4)),
        ("ciphertext", Course(0, 18, 2)),
        ("masked", Course(3, 5, 4)),
        ("masked", Course(2, 4, 3, prepared=6)),
        ("none", Course(3, 3, 3)),
    ],
)
def test_a_forecast_is_the_ledger(kv, course):
    made = engine(kv)
    public = PublicModel.from_json(made.public())
    foretold = figures(forecast(public, made.options, course).ledger.rows())
    measured = figures(real(made, course))
    assert foretold == measured


def deep():
    """Five blocks, all equal but the third, whose norm has another range."""
    public = typical(replace(CONFIG, layers=5))
    norms = list(public.norms)
    norms[5] = replace(norms[5], high=8 * norms[5].high)
    return replace(public, norms=tuple(norms))


@pytest.mark.parametrize(
    ("kv", "course"),
    [
        ("ciphertext", Course(3, 70, 4)),
        ("masked", Course(3, 66, 4)),
        ("masked", Course(0, 5, 4, prepared=7)),
        ("masked", Course(2, 60, 3, prepared=80)),
        ("none", Course(2, 3, 3)),
    ],
)
def test_equal_blocks_are_run_once_and_counted_each(kv, course):
    public, options = deep(), EngineOptions(kv=kv)
    every, repeated = (
        forecast(public, options, course, repeating=choice).ledger.rows() for choice in (False, True)
    )
    assert figures(repeated) == figures(every)
    work = [
        {(row.phase, row.operation): row.counters for row in rows if row.counters}
        for rows in (every, repeated)
    ]
    assert work[0] == work[1]
