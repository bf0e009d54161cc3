"""The quality benchmark on models small enough for every run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import models_common as common
from sottovoce.bench import quality
from sottovoce.errors import UsageError

TEXT = "Once upon a time there was a girl who liked to play in the park with her dog. " * 3


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path / "text.txt"


def test_scores_of_equal_and_different_distributions() -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(7, 11))
    score = quality.Score()
    score.add(logits, [1, 2, 3, 4, 5, 6, 7], logits)
    assert score.kl == 0.0 and score.top1 == 1.0
    p = np.exp(quality.log_softmax(logits))
    assert score.perplexity == pytest.approx(np.exp(-np.log(p[np.arange(7), np.arange(1, 8)]).mean()))
    score.add(-logits, [0] * 7, logits)
    assert score.kl > 0 and score.top1 < 1


def test_keys_and_agreement(text: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SOTTOVOCE_CACHE", str(tmp_path))
    common.stories()
    seen: list[tuple[int, int, str]] = []
    result = quality.run(
        text, 60, str(common.STORIES), "clear", progress=lambda *s: seen.append(s), window=30, sample=10
    )
    assert {
        "machine",
        "version",
        "parameters",
        "text",
        "tokens",
        "ppl_plain",
        "ppl_fixed",
        "kl",
        "top1",
    } <= set(result)
    assert json.loads(json.dumps(result)) == result
    assert result["tokens"] == 60 and result["kl"] < 5e-3 and result["top1"] > 0.9
    assert result["ppl_fixed"] == pytest.approx(result["ppl_plain"], rel=0.02)
    assert result["encrypted"]["tokens"] == 3
    assert result["encrypted"]["kl"] < 1e-6 and result["encrypted"]["top1"] == 1.0  # the float engine
    assert seen[-1][:2] == (2, 2)


def test_perplexity_is_the_reference_models(
    text: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SOTTOVOCE_CACHE", str(tmp_path))
    model = common.stories()
    result = quality.run(text, 40, str(common.STORIES), window=40, sample=0)
    ids = model.card.tokenizer.encode(TEXT)[:40]
    log_p = quality.log_softmax(model.forward([1, *ids]))[1:-1]
    assert result["ppl_plain"] == pytest.approx(np.exp(-log_p[np.arange(39), ids[1:]].mean()), rel=1e-4)
    assert result["encrypted"] is None


def test_bad_input(text: Path, tmp_path: Path) -> None:
    common.stories()
    with pytest.raises(UsageError, match="window"):
        quality.run(text, 10, str(common.STORIES), window=512)
    with pytest.raises(UsageError, match="cannot read"):
        quality.run(tmp_path / "none.txt", 10, str(common.STORIES))
    (tmp_path / "short.txt").write_text("")
    with pytest.raises(UsageError, match="at least 2"):
        quality.run(tmp_path / "short.txt", 10, str(common.STORIES))
