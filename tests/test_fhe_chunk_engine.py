"""Chunks on ciphertexts of a small unchecked ring: a session's prefill, going on and going back behind it."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from sottovoce.bench import chunk as bench
from sottovoce.bench import fhe_tables
from sottovoce.engines.fhe import FheDataParty, answer
from sottovoce.engines.fhe.chunk_plaintexts import one_hot_ciphertexts
from sottovoce.errors import CorruptFileError, ProtocolError, UsageError
from sottovoce.net import memory_pair
from test_fhe_engine import OPTIONS, engine, session, total  # noqa: F401  (fixture)
from tiny_model import tiny_model


def test_a_prefill_goes_in_one_chunk(engine):  # noqa: F811
    """In a few ciphertexts. Its logits, its last token once more, and another one in its place."""
    text = [256, 104, 101, 108, 111]

    def client(party):
        shape = engine.shape
        assert len(party._encrypted(text[1:], (4,))) == one_hot_ciphertexts(shape, 4)
        assert len(party._encrypted(text[1:], ())) == 4 * shape.vocabulary_blocks
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
        assert np.abs(found - engine.model.forward(tokens)[-1]).max() < 0.1
    assert total(up, "bytes_up") == total(down, "bytes_up")


def test_a_later_prompt_goes_in_a_chunk(engine):  # noqa: F811
    """Behind a token that was computed alone: the rest of a group, and into the next one."""
    text = [256, 104, 101, 108, 111, 119, 32, 97, 98, 99, 100, 101, 102]

    def client(party):
        party.prefill(text[:1], text[1:2])
        assert party._together(11) == (7, 4)
        return party.prefill([], text[2:])

    def server(party):
        party.prefill(text[:1], 1)
        party.prefill([], 11)

    logits, _ = session(engine, client, server)
    assert np.abs(logits - engine.model.forward(text)[-1]).max() < 0.1


def test_what_goes_together(engine):  # noqa: F811
    """Groups of eight tokens; chunks of two or more, of one more for every full group before."""
    party = FheDataParty(OPTIONS, engine.public())
    assert [party._together(count) for count in (1, 2, 8, 9, 11)] == [(), (2,), (8,), (8,), (8, 3)]
    party._private = 5
    assert [party._together(count) for count in (3, 20)] == [(3,), (3, 8, 8)]
    # How many of a restored session's tokens are private is not known: at most all of them.
    party.restore([], 3)
    assert [party._together(count) for count in (1, 5, 16)] == [(), (5,), (5,)]
    party.restore([], 20)
    assert not party._together(9)
    party.truncate(2)
    assert party._together(9) == (6,)


@pytest.mark.parametrize(
    ("together", "told"), [((8,), "does not fit"), ((300,), "cannot come"), ((0,), "cannot")]
)
def test_chunks_that_do_not_fit_are_refused(engine, together, told):  # noqa: F811
    party, (mine, theirs) = engine.session(), memory_pair()
    party._channel, party._program = theirs, SimpleNamespace(private=1, length=2, check_room=lambda n: None)
    answer.send_sizes(mine, together)
    with pytest.raises(ProtocolError, match=told):
        party.prefill([], 8)


def test_chunks_in_descriptions_are_checked(engine):  # noqa: F811
    good = engine.public()
    assert good["chunk"] == 2
    config = good["config"] | {"heads": 3, "kv_heads": 3}
    for bad in ({"chunk": -1}, {"chunk": good["tokens"] + 1}, {"chunk": True}, {"config": config}):
        with pytest.raises(CorruptFileError):
            FheDataParty(OPTIONS, good | bad)


def test_the_benchmark_on_a_small_ring(engine, monkeypatch):  # noqa: F811
    """The figures are about nothing, their form is checked."""
    monkeypatch.setattr(bench, "load_model", lambda name: tiny_model())
    result = bench.run("tiny", (3,), "small")
    assert [row["tokens"] for row in result["rows"]] == [1, 3] and result["layers"] == 2
    assert all(row["largest_error"] < 0.1 and row["seconds"] > 0 for row in result["rows"])
    assert "| tiny | 3 |" in "\n".join(fhe_tables.chunk([result]))
    json.dumps(result)
    with pytest.raises(UsageError, match="room for 8"):
        bench.run("tiny", (9,), "small")
