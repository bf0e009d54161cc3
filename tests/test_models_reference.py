"""The NumPy references against logits that `transformers` computed (tools/write_fixtures.py)."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

import models_common as common
from sottovoce.errors import PromptTooLongError, UsageError
from sottovoce.models import greedy, load_model
from sottovoce.models.layers import erf, rotate
from sottovoce.models.model import build
from sottovoce.models.weights import to_rotate_half


@pytest.mark.parametrize("name", common.TINY)
def test_logits_equal_transformers(name: str) -> None:
    expected = np.load(common.FIXTURES / f"tiny-{name}" / "expected.npz")
    logits = common.tiny(name).forward(expected["tokens"])
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected["logits"], atol=2e-4, rtol=1e-5)


@pytest.mark.parametrize("name", common.TINY)
def test_cache_in_pieces_equals_one_pass(name: str) -> None:
    model = common.tiny(name)
    tokens = np.arange(40) * 7 % model.config.vocab_size
    whole = model.forward(tokens)
    cache = model.new_cache()
    pieces = [model.forward(part, cache) for part in np.split(tokens, [1, 9, 10, 30])]
    assert cache.length == 40
    np.testing.assert_allclose(np.concatenate(pieces), whole, atol=2e-5)
    cache.truncate(10)
    np.testing.assert_allclose(model.forward(tokens[10:12], cache), whole[10:12], atol=2e-5)
    np.testing.assert_allclose(model.forward(tokens, last_only=True), whole[-1:], atol=2e-5)


@pytest.mark.parametrize("name", common.TINY)
@pytest.mark.parametrize("quantized", [False, True])
def test_gguf_gives_the_same_model(name: str, quantized: bool, tmp_path: Path) -> None:
    model = common.tiny(name)
    path = tmp_path / "tiny.gguf"
    common.write_gguf(path, model, quantized)
    loaded = load_model(path)
    tokens = np.arange(13)
    if not quantized:
        assert dataclasses.replace(loaded.config, eps=model.config.eps) == model.config
        np.testing.assert_allclose(loaded.forward(tokens), model.forward(tokens), atol=2e-5)
    else:  # 8-bit weights: close, and not by accident
        a, b = loaded.forward(tokens).ravel(), model.forward(tokens).ravel()
        assert np.corrcoef(a, b)[0, 1] > 0.99


def test_rotary_styles_are_the_same_function() -> None:
    model = common.stories()
    half = build("half", *to_rotate_half(model.config, model.weights))
    assert half.config.rope is not None and half.config.rope.style == "half"
    tokens = np.arange(20)
    np.testing.assert_allclose(half.forward(tokens), model.forward(tokens), atol=1e-4)


def test_rotation_keeps_lengths_and_depends_on_distance_only() -> None:
    rope = common.tiny("llama").config.rope
    assert rope is not None
    x = np.random.default_rng(1).normal(size=(2, 1, 6)).astype(np.float32)
    near, far = rotate(x, rope, 3), rotate(x, rope, 33)
    np.testing.assert_allclose(np.linalg.norm(near, axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-5)
    np.testing.assert_allclose(near[0, 0] @ near[1, 0], far[0, 0] @ far[1, 0], rtol=1e-4)


def test_hooks_see_and_replace() -> None:
    model = common.tiny("llama")
    seen: list[tuple[str, int]] = []

    def hook(name: str, layer: int, value: np.ndarray) -> np.ndarray:
        seen.append((name, layer))
        return np.zeros_like(value) if name == "mlp_out" else value

    changed = model.forward([1, 2, 3], hook=hook)
    assert ("scores", 1) in seen and ("norm_in", 2) in seen and ("logits", 2) in seen
    assert not np.allclose(changed, model.forward([1, 2, 3]))


def test_misuse_is_refused() -> None:
    model = common.tiny("llama")
    for tokens in ([], [300], [-1]):
        with pytest.raises(UsageError):
            model.forward(tokens)
    with pytest.raises(PromptTooLongError, match="65 tokens.*64"):
        model.forward([1] * 65)


def test_erf_against_scipy() -> None:
    from scipy import special

    x = np.linspace(-6, 6, 2001, dtype=np.float32)
    assert np.abs(erf(x) - special.erf(x)).max() < 4e-7


def test_digest_names_the_weights_not_the_file(tmp_path: Path) -> None:
    model = common.stories()
    same = build("other name", model.config, model.weights)
    assert same.digest == model.digest and same.card.digest != model.card.digest
    changed = dataclasses.replace(model.weights, norm=model.weights.norm + np.float32(1e-6))
    assert build("x", model.config, changed).digest != model.digest


def test_stories_tells_its_story() -> None:
    model = common.stories()
    tokenizer = model.card.tokenizer
    text = tokenizer.decode(greedy(model, [1], 40, tokenizer.eos_ids))
    assert text.startswith("Once upon a time, there was a little girl named Lily. She loved to play outside")


def test_smollm2_logits_equal_transformers() -> None:
    model = common.smollm2()
    expected = np.load(common.FIXTURES / "smollm2-logits.npz")
    for i in range(3):
        logits = model.forward(expected[f"tokens{i}"])
        top = expected[f"top{i}"].astype(np.int64)
        found = np.take_along_axis(logits, top, axis=-1)
        np.testing.assert_allclose(found, expected[f"logits{i}"], atol=2e-3)
        assert (logits.argmax(-1) == top[:, 0]).all()
