"""The state of a session, saved by both parties after some tokens, goes on in another session."""

import numpy as np
import pytest

import models_common as common
from hybrid_sessions import TOLERANCE, prepared
from sottovoce.engines.base import EngineOptions
from sottovoce.engines.hybrid import HybridDataParty
from sottovoce.engines.registry import make_data_party, make_engine
from sottovoce.errors import CorruptFileError
from sottovoce.kvcache.saved import joined_rows
from sottovoce.net import run_pair

PUBLIC, PRIVATE, MORE = [5, 9, 7], [3, 31, 8, 12], [17, 4, 33]


def run_both(engine, data_party, steps, secret=None):
    """The same steps at both parties: (client's results, server's results, the parties)."""
    client, server = data_party, engine.session()
    client.secret = secret

    def at(party, side):
        def run(channel):
            party.setup(channel)
            return [step(party, side) for step in steps]

        return run

    return run_pair(at(client, 0), at(server, 1))


def prefill(public, private):
    return lambda party, side: party.prefill(public, private if side == 0 else len(private))


def decode(token):
    return lambda party, side: party.decode(token) if side == 0 else party.decode()


def changed(first):
    def save(party, side):
        pieces = party.changed(first)
        party.saved()
        return pieces, b"" if side else party.secret_key()

    return save


def test_hybrid_sessions_go_on(kv):
    model = common.tiny("llama")
    engine = prepared(model, kv)
    new = lambda: HybridDataParty(engine.options, engine.public())  # noqa: E731
    count = len(PUBLIC) + len(PRIVATE)
    steps = [prefill(PUBLIC, PRIVATE), changed(0), decode(MORE[0]), changed(count), decode(MORE[1])]
    first, server = run_both(engine, new(), [*steps, decode(MORE[2])])
    logs = [[*result[1][0].items(), *result[3][0].items()] for result in (first, server)]
    secret = first[3][1]
    # The second token decoded was not saved by anybody; the first one is to be forgotten again.
    restore = lambda party, side: party.restore(logs[side], count)  # noqa: E731
    again, _ = run_both(engine, new(), [restore, *map(decode, MORE)], secret)
    for got, expected in zip(again[1:], (first[2], first[4], first[5]), strict=True):
        assert np.abs(got - expected).max() < TOLERANCE


@pytest.fixture(params=["ciphertext", "masked"])
def kv(request):
    return request.param


def test_two_saved_states_never_share_an_opened_value():
    """What the masked cache opens again after a restore is hidden by other masks."""
    model = common.tiny("llama")
    engine = prepared(model, "masked")
    new = lambda: HybridDataParty(engine.options, engine.public())  # noqa: E731
    first, server = run_both(engine, new(), [prefill((), PRIVATE), changed(0)])
    logs = [list(result[1][0].items()) for result in (first, server)]

    def opened(party, side):
        party.restore(logs[side], len(PRIVATE))
        decode(MORE[0])(party, side)
        return party.execution.caches[0]._opened.opened()[0][: len(PRIVATE)]

    views = [run_both(engine, new(), [opened], first[1][1])[0][0] for _ in range(2)]
    assert (views[0] == views[1]).mean() < 0.01
    key = logs[0][0][1]["k"][0].astype(object) + logs[1][0][1]["k"][0]
    assert not (views[0] == (key % 8796092858369).astype(np.uint64)).any()


@pytest.mark.parametrize("arithmetic", ["float", "fixed"])
def test_clear_sessions_go_on(arithmetic):
    engine = make_engine(EngineOptions("clear", arithmetic=arithmetic), common.tiny("llama"))
    engine.prepare()
    new = lambda: make_data_party(engine.options, engine.public())  # noqa: E731
    count = len(PUBLIC) + len(PRIVATE)
    steps = [prefill(PUBLIC, PRIVATE), changed(0), decode(MORE[0])]
    first, server = run_both(engine, new(), [*steps, decode(MORE[1])])
    pieces = list(server[1][0].items())
    restore = lambda party, side: party.restore(pieces if side else [], count)  # noqa: E731
    again, _ = run_both(engine, new(), [restore, decode(MORE[0]), decode(MORE[1])])
    for got, expected in ((again[1], first[2]), (again[2], first[3])):  # rounding is random in "fixed"
        assert np.abs(got - expected).max() < TOLERANCE


def rows(first, count, value):
    return f"tokens.{first}", {"k": np.full((2, count, 3), value, np.float32)}


def test_rows_are_joined_as_they_were_written():
    like = {"k": np.zeros((2, 0, 3), np.float32)}
    log = [rows(0, 4, 1), rows(4, 2, 2), rows(3, 2, 3), ("table", {}), rows(5, 1, 4)]
    joined = joined_rows(log, 6, like)["k"]
    assert joined[0, :, 0].tolist() == [1, 1, 1, 3, 3, 4] and joined.shape == (2, 6, 3)
    assert joined_rows(log, 2, like)["k"].shape == (2, 2, 3)
    assert joined_rows([], 0, like)["k"].shape == (2, 0, 3)


@pytest.mark.parametrize(
    "log",
    [
        [rows(0, 3, 1)],
        [rows(0, 2, 1), rows(3, 2, 1)],
        [("tokens.x", rows(0, 9, 1)[1])],
        [("tokens.0", {"k": np.zeros((2, 9, 4), np.float32)})],
        [("tokens.0", {"k": np.zeros((2, 9, 3), np.float64)})],
        [("tokens.0", {"v": np.zeros((2, 9, 3), np.float32)})],
    ],
)
def test_rows_that_do_not_fit_are_refused(log):
    with pytest.raises(CorruptFileError):
        joined_rows(log, 5, {"k": np.zeros((2, 0, 3), np.float32)})


def test_shares_of_the_last_tokens_are_the_last_shares():
    engine = prepared(common.tiny("llama"), "masked")

    def compare(party, side):
        cache = party.execution.caches[1]
        whole = cache.shares()
        for first in (0, 2, len(cache) - 1, len(cache)):
            for all_of_them, some in zip(whole, cache.shares(first), strict=True):
                assert (all_of_them[first:] == some).all()
        return len(cache)

    steps = [prefill(PUBLIC, PRIVATE), decode(MORE[0]), compare]
    client, server = run_both(engine, HybridDataParty(engine.options, engine.public()), steps)
    assert client[2] == server[2] == 8
