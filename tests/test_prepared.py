"""Sessions of the hybrid engine whose matrix products are prepared.

The same answers, one message a matrix.
"""

from pathlib import Path

import numpy as np
import pytest

from hybrid_sessions import TOLERANCE
from hybrid_sessions import prepared as prepared_engine
from sottovoce.engines.hybrid import HybridDataParty
from sottovoce.engines.hybrid.prepared import EMBEDDING, HEAD, model_shapes
from sottovoce.models import load_model
from sottovoce.net import Channel, memory_pair, run_pair

FIXTURES = Path(__file__).parent / "fixtures"
PUBLIC, PRIVATE, DECODED = [1, 5], [7, 3, 9], [4, 11]


def run(engine, tokens, kv="ciphertext"):
    """Logits of a session that prepared `tokens` slots, and both ledgers."""

    def server(channel: Channel):
        party = engine.session()
        party.setup(channel)
        if tokens:
            party.prepare(tokens)
        party.prefill(PUBLIC, len(PRIVATE))
        for _ in DECODED:
            party.decode()
        return party.execution.linears, channel.ledger.rows()

    def client(channel: Channel):
        party = HybridDataParty(engine.options, engine.public())
        party.setup(channel)
        if tokens:
            party.prepare(tokens)
        logits = [party.prefill(PUBLIC, PRIVATE)] + [party.decode(token) for token in DECODED]
        return logits, party.execution.linears, channel.ledger.rows()

    (logits, at_client, rows), (at_server, others) = run_pair(client, server, memory_pair())
    for mine, theirs in zip(rows, others, strict=True):
        for name in ("phase", "operation", "bytes_up", "bytes_down", "rounds"):
            assert getattr(mine, name) == getattr(theirs, name)
    return logits, at_client, at_server, rows


@pytest.mark.slow
@pytest.mark.parametrize(("model", "tokens"), [("tiny-llama", 5), ("tiny-llama", 4), ("tiny-gpt2", 8)])
def test_answers_are_those_of_the_plain_model(model, tokens):
    loaded = load_model(FIXTURES / model)
    logits, client, server, rows = run(prepared_engine(loaded), tokens)
    plain = loaded.forward([*PUBLIC, *PRIVATE, *DECODED])
    for i, row in enumerate(logits):
        assert np.abs(row - plain[len(PUBLIC) + len(PRIVATE) - 1 + i]).max() < TOLERANCE
    missing = max(0, len(PRIVATE) + len(DECODED) - tokens)
    made = len(PRIVATE) + len(DECODED) - missing
    for key in client.stock.shapes:
        used = min(tokens, 1 + len(DECODED)) if key == HEAD else made
        assert client.stock.consumed[key] == server.stock.consumed[key] == used
        assert client.stock.available(key) == tokens - used
    unprepared = sum(r.counters.get("products_not_prepared", 0) for r in rows)
    assert unprepared == missing * (len(client.stock.shapes) - 1)
    assert {r.operation for r in rows if r.phase == "offline"} >= {"matrix hints", "matrix products"}


def test_shapes_name_every_matrix_once():
    config = load_model(FIXTURES / "tiny-llama").config
    shapes = model_shapes(config)
    assert len(shapes) == 4 * config.layers + 2
    assert shapes[HEAD] == shapes[EMBEDDING][::-1] == (config.vocab_size, config.width)
