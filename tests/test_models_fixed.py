"""The fixed-point form: undoing its scales gives the model back, constants are safe, ranges remembered."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from pathlib import Path

import numpy as np
import pytest

import models_common as common
from sottovoce.errors import UnsupportedModelError
from sottovoce.models import FixedModel, Model, public_keys_values, quantize
from sottovoce.models.calibrate import Calibration, cached_calibration, calibrate
from sottovoce.models.layers import PlainCache, activate, softmax
from sottovoce.models.model import build
from sottovoce.ring.primes import P_FIELD

MODELS = (*common.TINY, "stories")


@functools.cache
def measured(name: str) -> tuple[Model, Calibration, FixedModel]:
    model = common.stories() if name == "stories" else common.tiny(name)
    calibration = calibrate(model)
    return model, calibration, quantize(model, calibration)


def rotate_half(x: np.ndarray, fixed: FixedModel, start: int) -> np.ndarray:
    if fixed.rope_cos is None or fixed.rope_sin is None:
        return x
    rows = slice(start, start + len(x))
    cos, sin = fixed.rope_cos[rows, None] / 2**11, fixed.rope_sin[rows, None] / 2**11
    a, b = np.split(x, 2, axis=-1)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def run(fixed: FixedModel, tokens: list[int]) -> np.ndarray:
    """The graph that an engine executes on a `FixedModel`, with real numbers in place of fixed-point ones."""
    c, w = fixed.config, 2.0**-fixed.weight_bits
    unit = 2.0**-fixed.residual_bits

    def linear(x: np.ndarray, matrix: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
        return x @ (matrix.T * w) + (0 if bias is None else bias * unit)

    def norm(x: np.ndarray) -> np.ndarray:
        x = x - x.mean(axis=-1, keepdims=True) if c.norm == "layer" else x
        return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + c.eps)

    x = fixed.embedding[tokens] * w
    if fixed.positions is not None:
        x = x + fixed.positions[: len(tokens)] * unit
    future = np.triu(np.ones((len(tokens), len(tokens)), bool), 1)
    for block in fixed.blocks:
        qkv = linear(norm(x), block.qkv, block.qkv_bias)
        q, k, v = np.split(qkv, [c.q_width, c.q_width + c.kv_width], axis=-1)
        q, k = (rotate_half(part.reshape(len(x), -1, c.head_dim), fixed, 0) for part in (q, k))
        k, v = (
            np.repeat(part.reshape(len(x), c.kv_heads, -1), c.heads // c.kv_heads, axis=1) for part in (k, v)
        )
        scores = np.einsum("thj,nhj->htn", q, k) * 2.0**-fixed.score_shift
        y = block.softmax_shift[:, None, None] * 2.0**-10 - scores
        e = np.where(future, 0.0, np.exp2(-y))
        mixed = np.einsum("htn,nhj->thj", e / e.sum(axis=-1, keepdims=True), v).reshape(len(x), -1)
        x = x + linear(mixed, block.o, block.o_bias)
        h = linear(norm(x), block.gate_up, block.gate_up_bias)
        if c.gated:
            gate, up = np.split(h, 2, axis=-1)
            h = activate(gate, c.activation) * up
        else:
            h = activate(h, c.activation)
        x = x + linear(h, block.down, block.down_bias)
    return linear(norm(x), fixed.head, fixed.head_bias)


@pytest.mark.parametrize("name", MODELS)
def test_folded_model_is_the_model(name: str) -> None:
    model, _, fixed = measured(name)
    tokens = [int(t) for t in np.arange(1, 14) * 11 % model.config.vocab_size]
    expected, found = model.forward(tokens), run(fixed, tokens)
    scale = np.abs(expected).max()
    assert np.abs(found - expected).max() < 0.01 * scale
    assert (found.argmax(-1) == expected.argmax(-1)).mean() > 0.9


@pytest.mark.parametrize("name", MODELS)
def test_shapes_and_constants(name: str) -> None:
    model, calibration, fixed = measured(name)
    c = fixed.config
    assert fixed.digest == model.digest and fixed.residual_bits == 23
    for block in fixed.blocks:
        assert block.qkv.shape == (c.q_width + 2 * c.kv_width, c.width) and block.qkv.dtype == np.int16
        assert block.o.shape == (c.width, c.q_width) and block.down.shape == (c.width, c.ffn_width)
        assert block.gate_up.shape == (c.ffn_width * (2 if c.gated else 1), c.width)
        assert (block.qkv_bias is None) == (name in ("llama", "stories"))
        assert block.softmax_shift.shape == (c.heads,)
    norms = fixed.norms()
    assert len(norms) == 2 * c.layers + 1 == len(calibration.norms)
    for norm in norms:
        assert 0 < norm.low < norm.high
        # The sum of squares must stay below half the field, as a non-negative number.
        assert c.width * norm.high * 2.0 ** (2 * norm.square_bits) < P_FIELD / 2
        assert norm.square_bits == 10 or c.width * norm.high * 2.0 ** (2 * norm.square_bits + 2) > 2.0**42
    factor = math.log2(math.e) / math.sqrt(c.head_dim) * 2.0**fixed.score_shift
    assert 0.5 < factor < 2
    assert json.loads(json.dumps(fixed.public_constants()))["score_shift"] == fixed.score_shift


def test_public_constants_hold_nothing_of_the_weights() -> None:
    fixed = measured("llama")[2]
    assert set(fixed.public_constants()) == {"weight_bits", "score_shift", "score_range_bits", "norms"}
    assert set(fixed.public_constants()["norms"][0]) == {"kind", "eps", "low", "high", "square_bits"}


def test_weights_that_do_not_fit_are_refused_by_name() -> None:
    model, calibration, _ = measured("llama")
    blocks = list(model.weights.blocks)
    blocks[1] = dataclasses.replace(blocks[1], down=blocks[1].down * np.float32(100))
    large = build("large", model.config, dataclasses.replace(model.weights, blocks=tuple(blocks)))
    with pytest.raises(UnsupportedModelError, match="MLP's last matrix of layer 1 reach.*less than 16"):
        quantize(large, calibration)


def test_score_shift_gives_way_to_large_query_weights() -> None:
    model, calibration, fixed = measured("llama")
    blocks = [dataclasses.replace(b, q=b.q * np.float32(11)) for b in model.weights.blocks]
    large = build("large", model.config, dataclasses.replace(model.weights, blocks=tuple(blocks)))
    smaller = quantize(large, calibration)
    assert smaller.score_shift < fixed.score_shift
    tokens = list(range(8))
    assert (
        np.abs(run(smaller, tokens) - large.forward(tokens)).max()
        < 0.05 * np.abs(large.forward(tokens)).max()
    )


@pytest.mark.parametrize("name", MODELS)
def test_public_keys_and_values(name: str) -> None:
    model, _, fixed = measured(name)
    c, tokens = model.config, [3, 1, 4]
    keys, values = public_keys_values(model, tokens)
    assert keys.shape == values.shape == (c.layers, 3, c.kv_heads, c.head_dim)
    # The first layer's keys and values from the fixed-point matrices, which fixes the order of dimensions.
    x = fixed.embedding[tokens] / 2**11
    if fixed.positions is not None:
        x = x + fixed.positions[:3] / 2**23
    x = x - x.mean(axis=-1, keepdims=True) if c.norm == "layer" else x
    h = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + c.eps)
    qkv = h @ fixed.blocks[0].qkv.T / 2**11
    if (bias := fixed.blocks[0].qkv_bias) is not None:
        qkv = qkv + bias / 2**23
    k, v = np.split(qkv[:, c.q_width :].reshape(3, 2 * c.kv_heads, c.head_dim), 2, axis=1)
    scale = np.abs(keys[0]).max()
    assert np.abs(keys[0] - rotate_half(k, fixed, 0) * 2**12).max() < 0.02 * scale
    assert np.abs(values[0] - v * 2**12).max() < 0.02 * np.abs(values[0]).max()
    assert public_keys_values(model, [])[0].shape[1] == 0


@pytest.mark.parametrize("name", MODELS)
def test_ranges_cover_the_calibration_text(name: str) -> None:
    model, calibration, _ = measured(name)
    tokens = np.arange(30) * 17 % model.config.vocab_size

    def check(kind: str, layer: int, x: np.ndarray) -> np.ndarray:
        if kind.startswith("norm"):
            x0 = x - x.mean(axis=-1, keepdims=True) if model.config.norm == "layer" else x
            square = np.mean(x0 * x0, axis=-1)
            low, high = calibration.norms[2 * layer + (kind == "norm2_in")]
            assert low < square.min() and square.max() < high
        return x

    model.forward(tokens, hook=check)


def test_calibration_is_remembered_and_repaired(tmp_path: Path) -> None:
    model = common.tiny("llama")
    first = cached_calibration(model, tmp_path)
    (entry,) = tmp_path.iterdir()
    assert entry.stat().st_mode & 0o777 == 0o600
    again = cached_calibration(model, tmp_path)
    assert again.norms == first.norms and np.array_equal(again.score_top, first.score_top)
    good = json.loads(entry.read_text())
    for damage in (
        "",
        "{}",
        "[]",
        json.dumps(good | {"version": 0}),
        json.dumps(good | {"norms": good["norms"][1:]}),
        json.dumps(good | {"norms": [[2, 1]] * len(good["norms"])}),
        json.dumps(good | {"score_top": [[float("nan")] * 4] * 2}),
        json.dumps(good | {"score_error": [[0.0] * 3] * 2}),
    ):
        entry.write_text(damage)
        assert cached_calibration(model, tmp_path).norms == first.norms
        assert json.loads(entry.read_text()) == good


def test_calibration_without_a_writable_cache(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert cached_calibration(common.tiny("llama"), tmp_path / "file").norms


@pytest.mark.slow
def test_smollm2_in_fixed_point(tmp_path: Path) -> None:
    model = common.smollm2()
    fixed = quantize(model, calibrate(model))
    norms = fixed.norms()
    assert fixed.score_shift == 3 and fixed.score_range_bits == 8
    # Break-outs (residual 25,000, mean square 1.1e6) must fit from layer 12 on; 10 bits of squares before.
    assert all(norm.high > 1.1e6 and norm.square_bits == 6 for norm in norms[24:56])
    assert all(norm.square_bits == 10 for norm in norms[:22])
    assert norms[0].low < 0.00558 and norms[0].high > 0.0975  # the whole vocabulary
    prompt = model.card.chat("What colour is the sky?").tokens
    expected, found = model.forward(prompt)[-13:], run(fixed, list(prompt))[-13:]
    p = softmax(expected)
    divergence = (p * (np.log(p) - np.log(softmax(found.astype(np.float32))))).sum(-1)
    assert divergence.mean() < 5e-4


def test_plain_cache_grows_and_refuses() -> None:
    cache = PlainCache(common.tiny("llama").config)
    with pytest.raises(ValueError, match="truncate"):
        cache.truncate(1)
