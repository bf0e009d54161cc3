"""Draft and verify: the same answer with any drafter, the same distribution when sampling, honest counts."""

import itertools
import threading
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from models_common import stories
from sottovoce.engines.base import EngineOptions
from sottovoce.engines.registry import make_data_party, make_engine
from sottovoce.errors import ProtocolError, UsageError
from sottovoce.models.model import greedy
from sottovoce.net import memory_pair
from sottovoce.parties import (
    Client,
    Drafter,
    DraftLength,
    GenerationOptions,
    ModelDrafter,
    NgramDrafter,
    Proposal,
    SamplingOptions,
    ServerSession,
    Speculation,
    Welcome,
    Wish,
    generate,
    make_drafter,
)
from sottovoce.parties.protocol import MAX_VERIFY, Command, Verb
from sottovoce.parties.sampling import Sampler
from sottovoce.parties.speculative import accept
from tiny_model import save_tiny_model, tiny_model

# --- the rule
# ---------------------------------------------------------------------------------------------------------

VOCAB = 4


TABLES = np.random.default_rng(7).normal(0, 1.2, (2, VOCAB, VOCAB, VOCAB))


def toy_logits(text, table=0):
    """Logits of a toy model: a fixed random table, by the last two tokens."""
    return TABLES[table, text[-2], text[-1]]


class ToyDrafter(Drafter):
    """Draws guesses from another table; `sharp`: or takes its most likely token for certain."""

    name = "toy"

    def __init__(self, certain=False, flat=1.0):
        self.certain, self.flat = certain, flat

    def propose(self, text, count, sampler):
        grown, distributions = list(text), []
        for _ in range(count):
            logits = self.flat * toy_logits(grown, table=1)
            distribution = sampler.distribution(logits)
            grown.append(int(logits.argmax()) if self.certain else sampler.draw(*distribution))
            distributions.append(None if self.certain else distribution)
        return Proposal(grown[len(text) :], distributions)


def speculate(text, count, drafter, sampler):
    """One step against the toy model."""
    proposal = drafter.propose(text, count, sampler)
    rows = [toy_logits([*text, *proposal.tokens[:i]]) for i in range(count + 1)]
    return accept(proposal, np.stack(rows), sampler)


def exact(text, length, sampler):
    """Probability of every continuation of this length under the toy model."""
    law = {(): 1.0}
    for _ in range(length):
        grown = {}
        for tail, p in law.items():
            for token, q in zip(*sampler.distribution(toy_logits([*text, *tail])), strict=True):
                grown[*tail, int(token)] = p * q
        law = grown
    return law


@pytest.mark.parametrize("drafter", [ToyDrafter(), ToyDrafter(certain=True), ToyDrafter(flat=3.0)])
@pytest.mark.parametrize(
    "options",
    [
        SamplingOptions(temperature=1.0, seed=1),
        SamplingOptions(temperature=0.6, top_p=0.9, seed=2),
        SamplingOptions(temperature=1.4, top_k=3, seed=3),
    ],
)
def test_sampled_text_is_distributed_as_without_a_draft(drafter, options):
    """χ² over all continuations of three tokens, made in steps of up to three guesses."""
    sampler, length, runs = Sampler(options), 3, 6000
    law, seen = exact([1, 2], length, sampler), Counter()
    for run in range(runs):
        text = [1, 2]
        while len(text) < 2 + length:
            text += speculate(text, 1 + run % 3, drafter, sampler)
        seen[tuple(text[2 : 2 + length])] += 1
    assert set(seen) <= set(law)
    likely = [tail for tail, p in law.items() if p * runs >= 5]
    observed = [seen[t] for t in likely] + [runs - sum(seen[t] for t in likely)]
    expected = [law[t] * runs for t in likely] + [runs * (1 - sum(law[t] for t in likely))]
    if expected[-1] < 1e-6:
        observed, expected = observed[:-1], expected[:-1]
    assert stats.chisquare(observed, expected, sum_check=False).pvalue > 1e-3


def test_the_statistical_test_notices_a_wrong_rule():
    """Keeping every guess gives the drafter's distribution, not the model's."""
    sampler = Sampler(SamplingOptions(temperature=1.0, seed=1))
    law = exact([1, 2], 1, sampler)
    seen = Counter(ToyDrafter().propose([1, 2], 1, sampler).tokens[0] for _ in range(6000))
    assert stats.chisquare([seen[t] for (t,) in law], [6000 * p for p in law.values()]).pvalue < 1e-6


@given(st.lists(st.integers(0, VOCAB - 1), max_size=5), st.integers(0, 1000))
def test_greedy_keeps_what_the_logits_say(guesses, seed):
    logits = np.random.default_rng(seed).normal(size=(len(guesses) + 1, VOCAB))
    kept = accept(Proposal.certain(guesses), logits, Sampler(SamplingOptions()))
    best = [int(row.argmax()) for row in logits]
    right = next((i for i, (g, b) in enumerate(zip(guesses, best, strict=False)) if g != b), len(guesses))
    assert kept == best[: right + 1]


# --- drafters
# -----------------------------------------------------------------------------------------------------------

GREEDY = Sampler(SamplingOptions())


def test_ngrams_come_from_the_latest_longest_match():
    drafter = NgramDrafter(longest=3, shortest=2)
    assert drafter.propose([1, 2, 3, 9, 1, 2, 4, 1, 2], 2, GREEDY).tokens == [4, 1]
    assert drafter.propose([5, 1, 2, 3, 9, 1, 2, 4, 5, 1, 2], 2, GREEDY).tokens == [3, 9]
    assert drafter.propose([1, 2, 3, 4], 3, GREEDY).tokens == ()
    assert drafter.propose([], 3, GREEDY).tokens == () == drafter.propose([1], 3, GREEDY).tokens
    assert drafter.propose([1, 2, 1, 2], 5, GREEDY).tokens == [1, 2, 1, 2, 1]  # follows a loop
    with pytest.raises(UsageError):
        NgramDrafter(1, 2)


@given(st.lists(st.integers(0, 3), max_size=40), st.integers(1, 6))
def test_ngram_guesses_are_what_followed(text, count):
    guess = NgramDrafter(4, 2).propose(text, count, GREEDY)
    assert len(guess.tokens) in (0, count)
    if guess.tokens:
        whole = [*text, *guess.tokens]
        assert any(
            whole[start : start + 2 + count] == whole[len(text) - 2 :] for start in range(len(text) - 2)
        )


def test_a_model_drafts_what_it_would_say_and_follows_corrections():
    model = tiny_model()
    drafter, text = ModelDrafter(model, model.card), [256, 10, 20, 30]
    assert drafter.propose(text, 4, GREEDY).tokens == greedy(model, text, 4)
    other = [256, 10, 99, 30, 31]
    assert drafter.propose(other, 3, GREEDY).tokens == greedy(model, other, 3)
    assert drafter.propose(other, 3, GREEDY).tokens == greedy(model, other, 3)  # nothing new: the same
    assert drafter.propose(list(range(96)), 3, GREEDY).tokens == ()  # its context is full
    assert len(drafter.propose(list(range(94)), 3, GREEDY).tokens) <= 2


def test_sampled_drafts_come_with_their_distribution():
    model = tiny_model()
    sampler = Sampler(SamplingOptions(temperature=1.0, top_k=5, seed=4))
    guess = ModelDrafter(model, model.card).propose([256, 10], 3, sampler)
    for token, distribution in zip(guess.tokens, guess.distributions, strict=True):
        assert token in distribution[0] and len(distribution[0]) == 5


def test_a_drafter_needs_the_same_tokens(tmp_path):
    model = tiny_model()
    path = save_tiny_model(tmp_path)
    assert isinstance(make_drafter(str(path), model.card), ModelDrafter)
    assert isinstance(make_drafter("ngram", model.card), NgramDrafter)
    with pytest.raises(UsageError, match="tokenizers differ.*ngram"):
        make_drafter(str(path), stories().card)
    with pytest.raises(UsageError, match="no model"):
        make_drafter("no-such-model", model.card)


# --- how many
# -----------------------------------------------------------------------------------------------------------


def settle(length, alpha, seconds, steps=60, seed=0):
    """Choices after steps in which a guess is right with probability alpha."""
    rng, choices = np.random.default_rng(seed), []
    for _ in range(steps):
        count = length.choose()
        right = next((i for i in range(count) if rng.random() >= alpha), count)
        length.record(count, right, seconds(count))
        choices.append(count)
    return choices


def test_good_guesses_and_cheap_passes_mean_long_drafts():
    assert settle(DraftLength(limit=8), 1.0, lambda n: 1 + 0.05 * n)[-1] == 8
    assert np.mean(settle(DraftLength(limit=8), 0.7, lambda n: 1 + 0.1 * n)[20:]) > 2
    assert np.mean(settle(DraftLength(limit=8), 0.05, lambda n: 1 + 0.5 * n)[20:]) < 0.5
    assert np.mean(settle(DraftLength(limit=8), 0.5, lambda n: 1.0 + n)[20:]) < 0.7


def test_a_drafter_that_failed_gets_another_chance():
    length = DraftLength()
    settle(length, 0.0, lambda n: 1 + 0.2 * n)
    assert max(settle(length, 1.0, lambda n: 1 + 0.2 * n, steps=120)) == 8


def test_fixed_and_untimed_lengths():
    assert settle(DraftLength(fixed=3), 0.0, lambda n: 1.0) == [3] * 60
    assert settle(DraftLength(timed=False), 0.8, lambda n: 9.0 * n) == settle(
        DraftLength(timed=False), 0.8, lambda n: 0.1
    )
    with pytest.raises(UsageError):
        DraftLength(fixed=MAX_VERIFY)


# --- whole answers, on the engine without cryptography
# -----------------------------------------------------------------------------------------------------------


class Session:
    """A client of the clear engine in this process; use as a context manager."""

    def __init__(self, model, arithmetic="float"):
        engine = make_engine(EngineOptions(engine="clear", arithmetic=arithmetic), model)
        engine.prepare()
        mine, theirs = memory_pair()
        self.server = ServerSession(
            theirs, engine.session, Welcome(engine.options, engine.public(), model.card)
        )
        self._thread = threading.Thread(target=self.server.run, daemon=True)
        self._thread.start()
        self.client = Client(mine, Wish("clear"))
        self.client.setup()

    def __enter__(self):
        return self.client

    def __exit__(self, *error):
        self.client.close()
        self._thread.join(300)


class Scripted(Drafter):
    """Knows the answer, and lies at some positions."""

    name = "scripted"

    def __init__(self, prompt, answer, lies=()):
        self.start, self.answer, self.lies = len(prompt), answer, lies

    def propose(self, text, count, sampler):
        at = len(text) - self.start
        guess = [(t + (at + i in self.lies)) % 258 for i, t in enumerate(self.answer[at : at + count])]
        return Proposal.certain(guess)


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("lies", [(), (3,), (1, 2, 6, 11), range(64)])
def test_greedy_answers_are_those_without_a_draft(count, lies):
    model, n = tiny_model(), 14
    prompt = model.card.plain("abc")
    wanted = greedy(model, prompt.tokens, n)
    speculation = Speculation(Scripted(prompt, wanted, lies), DraftLength(fixed=count))
    session = Session(model)
    with session as client:
        done = generate(client, prompt, GenerationOptions(max_tokens=n), speculation=speculation)
        assert client.tokens == [*prompt.tokens, *wanted][: client.length]
        assert client.length in (len(prompt) + n, len(prompt) + n - 1)
        rows = client.ledger.rows()
    assert done.token_ids == wanted and done.finish_reason == "length"
    usage = done.usage
    assert usage.drafted_tokens == speculation.drafted >= usage.accepted_tokens == speculation.accepted
    assert len(done.per_token) == n - 1
    if not lies:
        assert usage.accepted_tokens == usage.drafted_tokens
        plain = sum(row.phase == "decode" and row.operation == "command" for row in rows)
        assert usage.accepted_tokens + usage.verification_steps + plain == n - 1
        assert not [row for row in rows if row.phase == "truncate"]
    if lies == range(64):
        assert usage.accepted_tokens == 0
    for name in ("bytes_up", "bytes_down", "rounds"):  # both parties book the same
        theirs = sum(r[name] for r in session.server.report.ledger if r["phase"] in ("verify", "truncate"))
        assert theirs == sum(getattr(r, name) for r in rows if r.phase in ("verify", "truncate"))


def test_truncating_costs_no_round():
    """The new length travels with the next command."""
    model = tiny_model()
    prompt = model.card.plain("abc")
    answer = greedy(model, prompt.tokens, 12)
    for lies in ((), (2, 5, 8)):
        with Session(model) as client:
            speculation = Speculation(Scripted(prompt, answer, lies), DraftLength(fixed=1))
            done = generate(client, prompt, GenerationOptions(max_tokens=12), speculation=speculation)
            assert (speculation.accepted < speculation.drafted) == bool(lies)
            plain = 11 - speculation.accepted - speculation.steps
            assert done.usage.rounds == 2 * (1 + speculation.steps + plain)


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 500), st.integers(1, 4), st.integers(2, 20))
def test_any_lies_any_length(seed, count, n):
    model = tiny_model(3)
    rng = np.random.default_rng(seed)
    prompt = model.card.plain("xyz")
    wanted = greedy(model, prompt.tokens, n, model.card.tokenizer.eos_ids)
    lies = set(np.flatnonzero(rng.random(n) < 0.4))
    with Session(model) as client:
        speculation = Speculation(Scripted(prompt, wanted, lies), DraftLength(fixed=count))
        done = generate(client, prompt, GenerationOptions(max_tokens=n), speculation=speculation)
    assert done.token_ids == wanted


@pytest.mark.parametrize("arithmetic", ["float", "fixed"])
def test_stories_draft_for_themselves(arithmetic):
    model = stories()
    prompt = model.card.plain("Once upon a time")
    wanted = greedy(model, prompt.tokens, 24, model.card.tokenizer.eos_ids)
    speculation = Speculation(ModelDrafter(model, model.card), DraftLength(fixed=4))
    with Session(model, arithmetic) as client:
        done = generate(client, prompt, GenerationOptions(max_tokens=24), speculation=speculation)
    usage = done.usage
    if arithmetic == "float":
        assert done.token_ids == wanted
        assert usage.accepted_tokens == usage.drafted_tokens and usage.verification_steps <= 6
    else:
        assert usage.accepted_tokens >= 0.8 * usage.drafted_tokens
        assert follows_its_own_logits(model, prompt, done.token_ids, 0.1)


def follows_its_own_logits(model, prompt, answer, tolerance):
    """Each token is the plaintext model's choice for the same text, or as good as that up to rounding."""
    rows = model.forward([*prompt.tokens, *answer[:-1]])[len(prompt) - 1 :]
    return all(row.max() - row[token] <= tolerance for row, token in zip(rows, answer, strict=True))


def test_sampling_with_a_seed_repeats_with_a_draft():
    model = stories()
    options = GenerationOptions(20, SamplingOptions(temperature=1.0, seed=5))
    answers = []
    for _ in range(2):
        with Session(model) as client:
            speculation = Speculation(ModelDrafter(model, model.card), DraftLength(timed=False))
            done = generate(client, model.card.plain("One day"), options, speculation=speculation)
            answers.append(done.token_ids)
    assert answers[0] == answers[1] and speculation.accepted == speculation.drafted > 0  # p = q: all accepted


def test_endings_inside_accepted_guesses():
    """A stop string or an end token among the guesses: the answer and the cache end there."""
    model = tiny_model()
    prompt = model.card.plain("abc")
    whole = greedy(model, prompt.tokens, 12)
    text = model.card.tokenizer.decode(whole)
    speculation = Speculation(Scripted(prompt, whole), DraftLength(fixed=8))
    with Session(model) as client:
        options = GenerationOptions(max_tokens=12, stop=(text[4:6],))
        done = generate(client, prompt, options, speculation=speculation)
        assert done.finish_reason == "stop" and done.text == text[: text.find(text[4:6])]
        assert client.tokens == [*prompt.tokens, *done.token_ids][: client.length]
        again = client.decode(7)
    assert np.abs(again - model.forward([*prompt.tokens, *done.token_ids, 7])[-1]).max() < 1e-3

    class Ends(Drafter):
        name = "ends"

        def propose(self, text, count, sampler):
            return Proposal.certain([whole[1], 257, 5][:count])

    sampler = Sampler(SamplingOptions())
    with Session(model) as client:
        run = Speculation(Ends(), DraftLength(fixed=3))
        client.prefill(prompt.public, prompt.private)
        kept = run.advance(client, whole[0], 10, sampler)
        assert kept[0] == whole[1] and client.tokens == [*prompt.tokens, whole[0], *kept[:-1]]


def test_drafts_stay_within_the_context():
    model = tiny_model()
    with Session(model) as client:
        prompt = model.card.plain("y" * 60)
        wanted = greedy(model, prompt.tokens, 35)
        speculation = Speculation(Scripted(prompt, [*wanted, *wanted]), DraftLength(fixed=8))
        done = generate(client, prompt, GenerationOptions(max_tokens=35), speculation=speculation)
    assert done.token_ids == wanted and len(prompt) + 35 == 96


def test_should_stop_leaves_the_session_usable():
    model = tiny_model()
    prompt = model.card.plain("abc")
    with Session(model) as client:
        asked = itertools.count()
        done = generate(
            client, prompt, GenerationOptions(max_tokens=50), should_stop=lambda: next(asked) == 3
        )
        assert done.finish_reason == "cancelled" and len(done.token_ids) == 4
        assert client.tokens == [*prompt.tokens, *done.token_ids[:-1]]
        client.decode(done.token_ids[-1])


def test_the_server_bounds_a_verification():
    for n in (0, MAX_VERIFY + 1):
        with Session(tiny_model()) as client:
            client.prefill((256,), [1])
            client.channel.send(Command(Verb.VERIFY, n).pack())
            with pytest.raises(ProtocolError, match="verification takes"):
                client.channel.recv(1)
    with Session(tiny_model()) as client:
        with pytest.raises(UsageError):
            client.verify([])
        with pytest.raises(UsageError):
            client.verify([1] * (MAX_VERIFY + 1))
        client.prefill((), [1] * 90)
        with pytest.raises(UsageError, match="context"):
            client.verify([1] * 7)


def test_a_data_party_exists_for_every_engine():
    model = tiny_model()
    engine = make_engine(EngineOptions(engine="clear"), model)
    assert hasattr(make_data_party(engine.options, engine.public()), "verify")
