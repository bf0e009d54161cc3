"""Chunks on ciphertexts of a small unchecked ring: a session's prefill, going on and going back behind it."""

import json

import numpy as np
import pytest

from sottovoce.bench import chunk as bench
from sottovoce.bench import fhe_tables
from sottovoce.engines.fhe import FheDataParty
from sottovoce.engines.fhe.chunk_plaintexts import one_hot_ciphertexts
from sottovoce.errors import CorruptFileError, ProtocolError, UsageError
from test_fhe_engine import OPTIONS, engine, session, total  # noqa: F401  (fixture)
from tiny_model import tiny_model


def test_a_prefill_goes_in_one_chunk(engine):  # noqa: F811
    """In a few ciphertexts. Its logits, its last token once more, and another one in its place."""
    text = [256, 104, 101, 108, 111]

    def client(party):
        shape = engine.shape
        assert len(party._encrypted(text[1:], True)) == one_hot_ciphertexts(shape, 4)
        assert len(party._encrypted(text[1:], False)) == 4 * shape.vocabulary_blocks
        first, again = party.prefill(text[:1], text[1:]), party.decode(111)
        party.truncate(1)
        return [first, again, party.prefill([], [104, 101])]

    def server(party):
        party.prefill(text[:1], 4)
        with pytest.raises(UsageError, match="last few tokens"):
            party.truncate(3)
        party.truncate(4)
        party.decode()
        party.truncate(1)
        party.prefill([], 2)

    logits, (up, down) = session(engine, client, server)
    for found, tokens in zip(logits, (text, text, text[:3]), strict=True):
        assert np.abs(found - engine.model.forward(tokens)[-1]).max() < 0.05
    assert total(up, "bytes_up") == total(down, "bytes_up")


def test_a_chunk_out_of_place_is_refused(engine):  # noqa: F811
    def client(party):
        party.prefill([256], [104])
        party._held = False
        party.prefill([], [101, 108])

    def server(party):
        party.prefill([256], 1)
        party.prefill([], 2)

    with pytest.raises(ProtocolError, match="comes first"):
        session(engine, client, server)


def test_a_client_that_came_back_sends_tokens_one_by_one(engine):  # noqa: F811
    party = FheDataParty(OPTIONS, engine.public())
    assert party._chunked(2) and not party._chunked(1)
    party.restore([], 3)
    assert not party._chunked(2)
    party.truncate(0)
    assert party._chunked(2)


def test_chunks_in_descriptions_are_checked(engine):  # noqa: F811
    good = engine.public()
    assert good["chunk"] == 2
    config = good["config"] | {"heads": 3, "kv_heads": 3}
    for bad in ({"chunk": -1}, {"chunk": 9}, {"chunk": True}, {"config": config}):
        with pytest.raises(CorruptFileError):
            FheDataParty(OPTIONS, good | bad)


def test_the_benchmark_on_a_small_ring(engine, monkeypatch):  # noqa: F811
    """The figures are about nothing, their form is checked."""
    monkeypatch.setattr(bench, "load_model", lambda name: tiny_model())
    result = bench.run("tiny", (3,), "small")
    assert [row["tokens"] for row in result["rows"]] == [1, 3] and result["layers"] == 2
    assert all(row["largest_error"] < 0.05 and row["seconds"] > 0 for row in result["rows"])
    assert "| tiny | 3 |" in "\n".join(fhe_tables.chunk([result]))
    json.dumps(result)
    with pytest.raises(UsageError, match="room for 7"):
        bench.run("tiny", (8,), "small")
