"""Draft and verify under real parameters: one secure pass over several tokens, and the cache afterwards."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from hybrid_sessions import TOLERANCE, prepared
from models_common import stories, tiny
from sottovoce.engines.base import EngineOptions
from sottovoce.engines.hybrid import HybridDataParty
from sottovoce.engines.registry import KV_STRATEGIES
from sottovoce.models import Prompt
from sottovoce.net import memory_pair, run_pair
from sottovoce.parties import (
    Client,
    Drafter,
    DraftLength,
    GenerationOptions,
    ModelDrafter,
    Proposal,
    ServerSession,
    Speculation,
    Welcome,
    Wish,
    generate,
)


@pytest.mark.parametrize(
    ("kv", "ahead"), [*((kv, 0) for kv in KV_STRATEGIES), ("ciphertext", 8), ("masked", 16)]
)
def test_verified_logits_are_the_plaintext_models_and_rejected_tokens_leave_no_trace(kv, ahead):
    """ahead: tokens whose matrix products are prepared; the last ones of 8 are not enough for the session."""
    model = tiny("llama")
    engine = prepared(model, kv)
    public, private, guesses, accepted, then = [0, 5], [7, 250, 31], [4, 9, 17, 3], 2, [22, 8]

    def server(channel):
        party = engine.session()
        party.setup(channel)
        if ahead:
            party.prepare(ahead)
        party.prefill(public, len(private))
        party.verify(len(guesses))
        party.truncate(len(public) + len(private) + accepted)
        party.verify(len(then))
        party.decode()

    def client(channel):
        party = HybridDataParty(EngineOptions(kv=kv), engine.public())
        party.setup(channel)
        if ahead:
            party.prepare(ahead)
        party.prefill(public, private)
        first = party.verify(guesses)
        party.truncate(len(public) + len(private) + accepted)
        return first, party.verify(then), party.decode(1)

    (first, second, last), _ = run_pair(client, server, memory_pair())
    text = public + private + guesses
    assert first.shape == (len(guesses), model.config.vocab_size)
    assert np.abs(first - model.forward(text)[-len(guesses) :]).max() < TOLERANCE
    text = text[: len(public) + len(private) + accepted] + then
    assert np.abs(second - model.forward(text)[-len(then) :]).max() < TOLERANCE
    assert np.abs(last - model.forward([*text, 1])[-1]).max() < TOLERANCE


def test_more_tokens_than_travel_together(monkeypatch):
    """A verification longer than a chunk of the prefill: logits of every token all the same."""
    from sottovoce.engines.hybrid import execution

    monkeypatch.setattr(execution, "CHUNK", 16)
    model = tiny("llama")
    engine = prepared(model)
    # A text on which this random model's fixed-point noise is small (0.03).
    tokens = [(3 + 37 * i) % model.config.vocab_size for i in range(execution.CHUNK + 3)]

    def server(channel):
        party = engine.session()
        party.setup(channel)
        party.verify(len(tokens))

    def client(channel):
        party = HybridDataParty(EngineOptions(), engine.public())
        party.setup(channel)
        return party.verify(tokens)

    logits, _ = run_pair(client, server, memory_pair())
    assert np.abs(logits - model.forward(tokens)).max() < TOLERANCE


def session(engine, model):
    """A client of a hybrid session in this process, and the thread that serves it."""
    mine, theirs = memory_pair()
    server = ServerSession(theirs, engine.session, Welcome(engine.options, engine.public(), model.card))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    client = Client(mine, Wish("hybrid"))
    client.setup()
    return client, thread


class Forgetful(Drafter):
    """The model's own guesses, every third one spoilt."""

    name = "forgetful"

    def __init__(self, model):
        self.inner, self.vocab = ModelDrafter(model, model.card), model.config.vocab_size

    def propose(self, text, count, sampler):
        tokens = self.inner.propose(text, count, sampler).tokens
        return Proposal.certain([(t + ((len(text) + i) % 3 == 0)) % self.vocab for i, t in enumerate(tokens)])


def test_stories_draft_for_themselves_privately():
    """Tokens are the plaintext model's for the same text, up to ties, with good guesses and with bad ones."""
    model = stories()
    prompt = model.card.plain("Once upon a time")
    client, thread = session(prepared(model), model)
    with client:
        good = Speculation(ModelDrafter(model, model.card), DraftLength(fixed=3))
        done = generate(client, prompt, GenerationOptions(max_tokens=9), speculation=good)
        text = [*prompt.tokens, *done.token_ids]
        assert client.tokens == text[: client.length]
        # Go on in the same session with a drafter that is often wrong.
        bad = Speculation(Forgetful(model), DraftLength(fixed=3))
        more = generate(
            client, Prompt((), tuple(text[client.length :])), GenerationOptions(max_tokens=6), speculation=bad
        )
        text += more.token_ids
        assert client.tokens == text[: client.length]
    thread.join(300)
    assert good.accepted >= 0.8 * good.drafted and good.steps == done.usage.verification_steps <= 4
    assert bad.accepted < bad.drafted
    rows = model.forward(text[:-1])[len(prompt) - 1 :]
    chosen = [*done.token_ids, *more.token_ids]
    assert all(row.max() - row[t] < TOLERANCE for row, t in zip(rows, chosen, strict=True))
