"""The quality benchmark on models small enough for every run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import models_common as common
from sottovoce.bench import chain, passages, quality
from sottovoce.bench.driven import drive
from sottovoce.bench.scores import Score, log_softmax
from sottovoce.engines.base import EngineOptions
from sottovoce.engines.registry import make_engine
from sottovoce.errors import UsageError
from sottovoce.models.model import greedy

TEXT = "Once upon a time there was a girl who liked to play in the park with her dog. " * 3
LINES = [
    "Once upon a time there was a little girl named Lily",
    "Tom had a big red ball. He liked to play with the ball in the park. One day he lost the ball",
    "The cat sat",
]


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SOTTOVOCE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path / "text.txt"


@pytest.fixture
def lambada(tmp_path: Path) -> Path:
    path = tmp_path / "lambada.jsonl"
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in LINES))
    return path


def run(path: Path | None, tokens: int | None = None, **settings: object) -> dict[str, object]:
    common.stories()
    return quality.run(path, tokens, str(common.STORIES), **{"engine": "clear", **settings})  # type: ignore[arg-type]


def test_scores_of_equal_and_different_distributions() -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(7, 11))
    score = Score()
    score.add(logits, [1, 2, 3, 4, 5, 6, 7], logits)
    assert score.kl == 0.0 and score.top1 == 1.0
    assert score.hits == [int(row.argmax()) == i + 1 for i, row in enumerate(logits)]
    p = np.exp(log_softmax(logits))
    assert score.perplexity == pytest.approx(np.exp(-np.log(p[np.arange(7), np.arange(1, 8)]).mean()))
    score.add(-logits, [0] * 7, logits)
    assert score.kl > 0 and score.top1 < 1
    assert Score().perplexity is None


def test_keys_and_agreement(text: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    result = run(text, 60, window=30, sample=3, progress=lambda *s: seen.append(s))
    assert json.loads(json.dumps(result)) == result
    keys = {"machine", "version", "parameters", "text", "tokens", "ppl_plain", "ppl_fixed", "kl", "top1"}
    assert keys <= set(result)
    assert result["tokens"] == 60 and result["positions"] == 58
    assert result["kl"] < 5e-3 and result["top1"] > 0.9
    assert result["ppl_fixed"] == pytest.approx(result["ppl_plain"], rel=0.02)
    sample = result["encrypted"]
    assert sample["tokens"] == 3 and sample["kl"] < 1e-6 and sample["top1"] == 1.0  # the float engine
    assert sample["ppl"] == pytest.approx(sample["ppl_plain"], rel=1e-4)
    assert 0 < sample["kl_fixed"] < 5e-3
    assert seen[-1] == (10, 10, "encrypted tokens")
    assert all(0 <= done <= total for done, total, _ in seen)


def test_perplexity_is_the_reference_models(text: Path) -> None:
    model = common.stories()
    result = run(text, 40, window=40, sample=0)
    ids = model.card.tokenizer.encode(TEXT)[:40]
    log_p = log_softmax(model.forward([1, *ids]))[1:-1]
    assert result["ppl_plain"] == pytest.approx(np.exp(-log_p[np.arange(39), ids[1:]].mean()), rel=1e-4)
    assert result["encrypted"] is None


def test_text_starts_behind_what_separated_documents_in_training() -> None:
    assert quality.start_of(common.stories()) == (1,)
    model = common.smollm2()
    (first,) = quality.start_of(model)
    assert model.card.tokenizer.token(first) == "<|endoftext|>"


def test_a_short_text_is_used_whole_unless_more_is_asked_for(text: Path) -> None:
    whole = len(common.stories().card.tokenizer.encode(TEXT))
    assert run(text, sample=0)["tokens"] == whole
    with pytest.raises(UsageError, match=f"holds {whole} tokens, not 500; use --tokens {whole}"):
        run(text, 500, sample=0)


def test_last_words_are_guessed_as_greedy_decoding_writes_them(lambada: Path) -> None:
    model = common.stories()
    result = run(lambada, sample=0)
    tokenizer = model.card.tokenizer
    expected = []
    for line in LINES:
        beginning, word = line.rsplit(" ", 1)
        ids, before = tokenizer.encode(line), len(tokenizer.encode(beginning))
        assert tokenizer.decode(ids[before:]).strip() == word
        expected.append(greedy(model, [1, *ids[:before]], len(ids) - before) == ids[before:])
    assert result["passages"] == 3
    assert result["accuracy_plain"] == pytest.approx(np.mean(expected))
    assert abs(result["accuracy_fixed"] - result["accuracy_plain"]) <= result["words_changed"] / 3
    assert result["tokens"] == result["positions"] + 3


def test_an_encrypted_sample_takes_the_shortest_passages(lambada: Path) -> None:
    tokenizer = common.stories().card.tokenizer
    lengths = [len(tokenizer.encode(line)) for line in LINES]
    one = run(lambada, sample=2)["encrypted"]
    assert one["passages"] == 1 and one["tokens"] == lengths[2] - 1
    two = run(lambada, sample=lengths[2])["encrypted"]
    assert two["passages"] == 2 and two["tokens"] == lengths[0] + lengths[2] - 2
    assert two["kl"] < 1e-6 and two["accuracy"] in (0.0, 0.5, 1.0)


@pytest.mark.parametrize("kv", ["ciphertext", "masked"])
def test_the_hybrid_engine_is_sampled(text: Path, lambada: Path, kv: str) -> None:
    sample = run(text, 20, engine="hybrid", kv=kv, sample=2)["encrypted"]
    assert (sample["engine"], sample["kv"], sample["tokens"]) == ("hybrid", kv, 2)
    assert sample["ppl"] == pytest.approx(sample["ppl_plain"], rel=0.05) and 0 < sample["kl"] < 0.02
    if kv == "masked":  # several tokens with logits in one pass
        sample = run(lambada, engine="hybrid", kv=kv, sample=1)["encrypted"]
        assert sample["passages"] == 1 and 0 < sample["kl"] < 0.05


def test_as_many_whole_passages_as_fit(lambada: Path) -> None:
    tokenizer = common.stories().card.tokenizer
    content = passages.read(lambada, 1000)
    sizes = [len(p.tokens) for p in content.tokenize(tokenizer, 1000, 512, exact=True)]
    assert len(sizes) == 3
    assert len(content.tokenize(tokenizer, sizes[0] + sizes[1], 512, exact=True)) == 2
    assert len(content.tokenize(tokenizer, sum(sizes) - 1, 512, exact=True)) == 2
    with pytest.raises(UsageError, match=f"use --tokens {sizes[0]}"):
        content.tokenize(tokenizer, sizes[0] - 1, 512, exact=False)
    assert [len(p.tokens) for p in content.tokenize(tokenizer, 1000, 10, exact=True)][1] == 10
    cut = content.tokenize(tokenizer, 1000, 10, exact=True)[1]
    assert tokenizer.decode(cut.tokens[-cut.word :]).strip() == "ball"


def test_chains_are_judged_position_by_position() -> None:
    seen: list[tuple[int, int, str]] = []
    result = run(None, chain=40, sample=5, progress=lambda *s: seen.append(s))
    found = result["chain"]
    count = len(chain.PROMPTS)
    assert found["tokens"] == result["tokens"] == 40 * count
    assert [(b["from"], b["to"], b["positions"]) for b in found["by_position"]] == [
        (1, 16, 16 * count),
        (17, 32, 16 * count),
        (33, 40, 8 * count),
    ]
    assert found["top1"] > 0.9 and 0 < found["kl"] < 5e-3 <= found["kl_max"] * 1e3
    for row in found["rows"]:
        assert row["equal"] + len(row["differences"]) == 40
        assert all(1 <= d["position"] <= 40 and d["reference_margin"] > 0 for d in row["differences"])
        first = row["leaves_plain_text_at"]
        assert first is None or first in [d["position"] for d in row["differences"]]
    private = result["encrypted"]
    assert (
        private["tokens"] == 5
        and private["top1"] == 1.0
        and private["rows"][0]["leaves_plain_text_at"] is None
    )
    assert json.loads(json.dumps(result)) == result
    assert seen[-1] == (5, 5, "encrypted tokens")


def test_a_chain_never_ends_early() -> None:
    first, second = np.array([0.0, 3.0, 1.0]), np.array([5.0, 9.0, 1.0])
    written = chain.write(first, lambda token: second, 3, never=(1,))
    assert written.tokens == [2, 0, 0]
    assert written.logits.argmax(-1).tolist() == [1, 1, 1]  # the comparison sees what would have been chosen


def test_both_parties_follow_the_script_and_errors_reach_the_caller() -> None:
    model = common.stories()
    engine = make_engine(EngineOptions(engine="clear"), model)
    engine.prepare()
    tokens = model.card.tokenizer.encode(TEXT)[:6]
    rows = drive(engine, lambda s: [s.prefill([1], tokens[:2]), s.decode(tokens[2]), *s.verify(tokens[3:])])
    np.testing.assert_allclose(np.stack(rows), model.forward([1, *tokens])[2:], atol=1e-4)
    with pytest.raises(ZeroDivisionError):
        drive(engine, lambda s: [1 // 0])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "holds no text"),
        ("a.txt", b" \n\n", "holds no text"),
        ("a.txt", "für".encode("latin-1"), r"not UTF-8 text \(byte 1\)"),
        ("a.txt", b"\xff\xfeh\0i\0", "not UTF-8"),
        ("a.txt", b"\xc3", "not UTF-8"),
        ("a.jsonl", b"", "holds no text"),
        ("a.jsonl", b'{"text": "two words"}\nplain words\n', "line 2 of .* is not JSON"),
        ("a.jsonl", b'{"txt": "two words"}\n', "line 1 of .* has no text"),
        ("a.jsonl", b"[1]\n", "has no text"),
        ("a.jsonl", b'{"text": "word"}\n', "fewer than two words"),
        ("a.jsonl", b'{"text": "\xff x"}\n', "not UTF-8"),
    ],
)
def test_bad_files_fail_before_the_model_is_loaded(
    name: str, content: bytes, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quality, "load_model", lambda name: pytest.fail("the model was loaded"))
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=message):
        quality.run(tmp_path / name, 10)


def test_a_character_cut_by_the_limit_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("x" + "é" * 100)
    assert passages.read(path, 2).running == "x" + "é" * 15
    path.write_bytes(b"\xef\xbb\xbf" + b"after a mark")
    assert passages.read(path, 10).running == "after a mark"


def test_bad_settings(text: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="window"):
        run(text, 10, window=512)
    with pytest.raises(UsageError, match="cannot read"):
        run(tmp_path / "none.txt", 10)
    with pytest.raises(UsageError, match="cannot read"):
        run(tmp_path, 10)
    (tmp_path / "short.txt").write_text("a")
    with pytest.raises(UsageError, match="tokens"):
        run(tmp_path / "short.txt", 1)
    with pytest.raises(UsageError, match="--text"):
        run(None)
    with pytest.raises(UsageError, match="--text"):
        run(text, chain=3)
    with pytest.raises(UsageError, match="use --chain 1 to"):
        run(None, chain=10_000)
