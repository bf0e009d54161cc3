"""Server and client over real sockets with TLS, on the engine without cryptography and a tiny model."""

# ruff: noqa: F811  (fixtures are imported)

import threading

import numpy as np
import pytest

from hosted import CLEAR, Hosted, certificate, hosted, model, open_host  # noqa: F401  (fixtures)
from sottovoce.errors import (
    PromptTooLongError,
)
from sottovoce.models.model import greedy
from sottovoce.parties import (
    CardCache,
    GenerationOptions,
    SamplingOptions,
    Wish,
    generate,
)
from tiny_model import CONFIG


def test_answer_equals_plaintext(hosted, model):
    prompt = model.card.chat("hello")
    pieces = []
    with hosted.client() as client:
        done = generate(client, prompt, GenerationOptions(max_tokens=12), pieces.append)
        rows = client.ledger.rows()
    assert done.token_ids == greedy(model, prompt.tokens, 12, model.card.tokenizer.eos_ids)
    assert "".join(pieces) == done.text == model.card.tokenizer.decode(done.token_ids)
    assert done.finish_reason in ("length", "stop")
    usage = done.usage
    assert usage.prompt_tokens == len(prompt) and usage.public_tokens == len(prompt.public) > 0
    assert usage.completion_tokens == len(done.token_ids)
    assert {r.phase for r in rows} >= {"setup", "prefill", "decode"}
    # Both ledgers tell the same story, the command frames included.
    (report,) = hosted.wait_for_reports(1)
    for name in ("bytes_up", "bytes_down", "rounds"):
        assert sum(r[name] for r in report.ledger if r["phase"] == "decode") == sum(
            getattr(r, name) for r in rows if r.phase == "decode"
        )
    assert report.private_tokens == len(prompt.private) + len(done.token_ids) - (
        done.finish_reason == "length"
    )
    assert usage.bytes_down > (usage.completion_tokens) * CONFIG.vocab_size * 4


def test_fixed_arithmetic_answers_like_plaintext(model, certificate):
    host = Hosted(model, certificate, arithmetic="fixed")
    prompt = model.card.chat("hello")
    with host.server, host.client(Wish(engine="clear", arithmetic="fixed")) as client:
        logits = client.prefill(prompt.public, prompt.private)
        plain = model.forward(prompt.tokens)[-1]
        assert np.abs(logits - plain).max() < 0.1
        client.decode(5)
        client.truncate(len(prompt))
        again = client.decode(5)
    assert np.abs(again - model.forward([*prompt.tokens, 5])[-1]).max() < 0.1


def test_sampling_with_a_seed_repeats(hosted, model):
    options = GenerationOptions(max_tokens=8, sampling=SamplingOptions(temperature=1.5, seed=3))
    answers = []
    for _ in range(2):
        with hosted.client() as client:
            answers.append(generate(client, model.card.plain("abc"), options).token_ids)
    assert answers[0] == answers[1]


def test_stop_string_and_end_token(hosted, model):
    prompt = model.card.plain("abc")
    whole = greedy(model, prompt.tokens, 12)
    text = model.card.tokenizer.decode(whole)
    with hosted.client() as client:
        done = generate(client, prompt, GenerationOptions(max_tokens=12, stop=(text[4:6],)))
    assert done.finish_reason == "stop" and done.text == text[: text.find(text[4:6])]


def test_truncate_goes_back(hosted, model):
    with hosted.client() as client:
        client.prefill((256,), [1, 2, 3])
        first = client.decode(4)
        client.truncate(4)
        assert np.array_equal(client.decode(4), first)
        assert client.length == 5


def test_sessions_are_isolated_and_parallel(hosted, model):
    prompts = [model.card.plain(text) for text in ("one", "two", "three")]
    wanted = [greedy(model, p.tokens, 6, model.card.tokenizer.eos_ids) for p in prompts]
    results = [None] * 3

    def ask(i):
        with hosted.client() as client:
            results[i] = generate(client, prompts[i], GenerationOptions(max_tokens=6)).token_ids

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(3)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert results == wanted


def test_prompt_longer_than_the_context_sends_nothing(hosted, model):
    with hosted.client() as client:
        sent = client.ledger.total().frames_up
        with pytest.raises(PromptTooLongError, match="context of 96"):
            generate(client, model.card.plain("x" * 100), GenerationOptions(max_tokens=1))
        with pytest.raises(PromptTooLongError, match="fewer new tokens"):
            generate(client, model.card.plain("x"), GenerationOptions(max_tokens=96))
        assert client.ledger.total().frames_up == sent
        generate(client, model.card.plain("x"), GenerationOptions(max_tokens=2))


def test_cards_are_cached_and_checked(hosted, tmp_path):
    cards = CardCache(tmp_path)
    hosted.client(cards=cards).close()
    (path,) = tmp_path.iterdir()
    before = len(hosted.seen)
    client = hosted.client(cards=cards)
    assert client.ledger.total("setup").bytes_down < len(path.read_bytes())
    client.close()
    path.write_bytes(b"damaged")
    client = hosted.client(cards=cards)
    assert client.card.digest == hosted.welcome.card.digest
    client.close()
    assert len(hosted.seen) > before
