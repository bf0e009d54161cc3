"""Tokens of a forward pass that share ciphertexts of matrix products, in sessions of the hybrid engine."""

import numpy as np
import pytest

from hybrid_sessions import TOLERANCE, prepared, run_session
from models_common import tiny
from sottovoce.engines.base import EngineOptions
from sottovoce.engines.hybrid import HybridDataParty, HybridEngine
from sottovoce.net import Role, memory_pair, run_pair

TOKENS = 21


def text(model, count):
    return [(3 + 37 * i) % model.config.vocab_size for i in range(count)]


def session(name, sizes=None):
    """Logits of a prefill and of a decoded token, and the client's execution after both."""
    model, clients = tiny(name), []

    def observe(party):
        if sizes is not None:
            party.execution.linears.online.put_together(sizes)
        if party.execution.channel.role is Role.CLIENT:
            clients.append(party.execution)

    tokens = text(model, TOKENS + 1)
    record = run_session(prepared(model), [], tokens[:-1], tokens[-1:], observe=observe)
    return model.forward(np.asarray(tokens))[-2:], np.stack(record.logits), clients[0]


def linear_bytes(execution):
    rows = [r for r in execution.channel.ledger.rows() if r.operation.split("/")[0] == "linear"]
    return sum(r.bytes_up for r in rows), sum(r.bytes_down for r in rows)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_logits_are_the_plaintext_models_and_cost_what_is_stated(name):
    expected, logits, client = session(name)
    assert np.abs(logits - expected).max() < TOLERANCE
    stated = np.zeros(2, int)
    for tokens in (TOKENS, 1):
        stated += client.linears.online.cost(tokens)
    assert linear_bytes(client) == tuple(stated)


def test_tokens_apart_give_the_same_logits_for_more_bytes():
    expected, logits, apart = session("llama", sizes=(1,))
    assert np.abs(logits - expected).max() < TOLERANCE
    _, _, together = session("llama")
    assert sum(linear_bytes(apart)) > 3 * sum(linear_bytes(together))


def test_a_server_encodes_what_is_multiplied_online_and_nothing_else():
    model = tiny("llama")
    engine = HybridEngine(EngineOptions(kv="masked"), model)
    seen = []
    engine.prepare(lambda done, total, what: seen.append((done, total)))
    made = lambda: sum(matrix.is_made for matrix in engine.encoded.matrices)  # noqa: E731

    def run(ready):
        def server(channel):
            party = engine.session()
            party.setup(channel)
            if ready:
                party.prepare(ready)
            party.prefill([0, 5], 2)
            party.decode()

        def client(channel):
            party = HybridDataParty(engine.options, engine.public())
            party.setup(channel)
            if ready:
                party.prepare(ready)
            return [party.prefill([0, 5], [7, 9]), party.decode(4)]

        logits, _ = run_pair(client, server, memory_pair())
        return np.stack(logits)

    expected = model.forward(np.asarray([0, 5, 7, 9, 4]))[-2:]
    assert np.abs(run(3) - expected).max() < TOLERANCE
    assert made() == 0 and not seen
    assert np.abs(run(0) - expected).max() < TOLERANCE
    assert made() == len(engine.encoded.matrices)
    assert seen == [(i + 1, made()) for i in range(made())]
