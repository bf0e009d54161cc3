"""Sessions of the hybrid engine on a pool: prepared in one session, spent in others."""

import numpy as np
import pytest

from sottovoce.correlations.pooled import PooledSource
from sottovoce.correlations.shelf import ClientShelf, ServerShelf
from sottovoce.engines.base import EngineOptions
from sottovoce.engines.hybrid import HybridDataParty, HybridEngine
from sottovoce.engines.hybrid.rehearsal import Rehearsal
from sottovoce.net import Role, memory_pair, run_pair
from tiny_model import tiny_model

PUBLIC, PRIVATE = [256, 3], [7, 8, 9]


@pytest.fixture(scope="module")
def engine():
    made = HybridEngine(EngineOptions(), tiny_model())
    made.prepare()
    return made


@pytest.fixture
def session(engine, tmp_path):
    """session(client_fn, server_fn) over pools in tmp_path -> (client's result, its ledger)."""
    return sessions(engine, tmp_path)


def sessions(engine, tmp_path):
    def run(client_fn, server_fn):
        channels = memory_pair()

        def client(channel):
            party = HybridDataParty(engine.options, engine.public())
            party.shelf = ClientShelf(tmp_path / "client", make=True)
            party.setup(channel)
            try:
                return client_fn(party)
            finally:
                party.close()

        def server(channel):
            party = engine.session()
            party.shelf = ServerShelf(tmp_path / "server")
            party.setup(channel)
            try:
                return server_fn(party)
            finally:
                party.close()

        return run_pair(client, server, channels)[0], channels[0].ledger

    return run


def prepare(tokens):
    return lambda party: party.prepare(tokens)


def answer(tokens):
    """(logits of the prompt and of every token, kinds made on the spot)."""

    def client(party):
        logits = [party.prefill(PUBLIC, PRIVATE)]
        logits += [party.decode(token) for token in tokens]
        return logits, dict(party._provisions.source.made_on_the_spot), party.ready(99)

    def server(party):
        party.prefill(PUBLIC, len(PRIVATE))
        for _ in tokens:
            party.decode()

    return client, server


@pytest.fixture(scope="module")
def masked_engine():
    made = HybridEngine(EngineOptions(kv="masked"), tiny_model())
    made.prepare()
    return made


def test_attention_of_a_masked_cache_comes_from_the_pool(masked_engine, tmp_path):
    run = sessions(masked_engine, tmp_path)
    run(prepare(14), prepare(14))
    for number in range(2):
        (logits, on_the_spot, _), ledger = run(*answer([5, 6]))
        assert np.abs(np.array(logits) - plain([5, 6])).max() < 0.05
        made = [row for row in ledger.rows() if row.operation.endswith("correlations/attention")]
        assert on_the_spot == {}
        # One block was prepared: the second session makes its own.
        assert bool(made and made[0].bytes_up) == (number == 1)


def plain(tokens):
    logits = tiny_model().forward([*PUBLIC, *PRIVATE, *tokens])
    return logits[len(PUBLIC) + len(PRIVATE) - 1 :]


def test_prepared_tokens_are_spent_in_later_sessions(session):
    counted = []

    def client(party):
        party.prepare(14, lambda done, total, what: counted.append((done, total, what)))
        return party.ready(99)

    assert session(client, prepare(14))[0] == 14
    assert ("preparing tokens" in {what for _, _, what in counted}) and counted[-1][:2] == (14, 14)
    for _ in range(2):
        (logits, on_the_spot, _), ledger = session(*answer([5, 6]))
        assert np.abs(np.array(logits) - plain([5, 6])).max() < 0.05
        assert on_the_spot == {}
        rows = [row for row in ledger.rows() if row.operation.startswith("correlations")]
        assert not any(row.bytes_up or row.bytes_down for row in rows)
    # Two sessions of 5 private tokens each, and a few items of each kind that they did not use.
    assert session(lambda party: party.ready(99), lambda party: None)[0] in (2, 3, 4)


def test_a_pool_that_runs_dry_in_the_middle_of_an_answer(session):
    session(prepare(4), prepare(4))
    (logits, on_the_spot, ready), _ = session(*answer([5, 6, 7]))
    assert np.abs(np.array(logits) - plain([5, 6, 7])).max() < 0.05
    assert on_the_spot and ready == 0


def test_an_empty_pool_changes_nothing(session):
    (logits, _, ready), _ = session(*answer([5]))
    assert np.abs(np.array(logits) - plain([5])).max() < 0.05
    assert ready == 0


def test_the_rehearsal_is_the_same_at_both_parties_and_covers_a_session(engine, session):
    profiles = [Rehearsal(engine.rehearsal.public, role) for role in Role]
    for tokens, length in ((1, 0), (1, 30), (1, 40), (5, 60), (1, 130)):
        assert profiles[0](tokens, length) == profiles[1](tokens, length)
    assert dict(profiles[0](3, 30)) == {key: 3 * n for key, n in profiles[0](1, 50).items()}


def test_contexts_are_rounded_to_one_that_takes_the_same_kinds(engine):
    """Otherwise something would be made on the spot for every token of a context in between."""
    profile = engine.rehearsal

    def kinds(demand):
        return {key if key[0] != "scalars" else PooledSource._rounded(key[1]) for key in demand}

    for context in (*range(1, 18), 31, 32, 63, 64, 100, 127, 128, 255, 256, 300, 383, 384, 511, 512, 600):
        exact, rounded = profile._run(context), profile(1, context - 1)
        assert kinds(exact) <= kinds(rounded), context
        assert all(n <= rounded[key] for key, n in exact.items() if key[0] != "scalars")


def test_longer_contexts_take_no_less(engine):
    profile = engine.rehearsal
    sizes = [sum(profile(1, length).values()) for length in (0, 8, 31, 32, 64, 128, 256)]
    assert sizes == sorted(sizes)
