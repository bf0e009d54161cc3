"""The hybrid engine end to end, under real parameters, against the plaintext reference."""

from __future__ import annotations

import numpy as np
import pytest

from hybrid_sessions import TOLERANCE, prepared, run_session
from models_common import stories, tiny
from sottovoce.engines.base import EngineOptions
from sottovoce.engines.hybrid import HybridDataParty
from sottovoce.engines.registry import check_options
from sottovoce.errors import CorruptFileError, ParameterMismatchError


def reference(model, tokens, last):
    return model.forward(np.asarray(tokens))[-last:]


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2"])
def test_logits_are_the_plaintext_models(name):
    model = tiny(name)
    public, private, decoded = [0, 5], [7, 250, 31], [4, 9]
    record = run_session(prepared(model), public, private, decoded)
    expected = reference(model, public + private + decoded, 3)
    assert np.abs(np.stack(record.logits) - expected).max() < TOLERANCE


def test_without_a_cache_the_result_is_the_same():
    model = tiny("llama")
    public, private, decoded = [0], [7, 250], [4, 9]
    record = run_session(prepared(model, "none"), public, private, decoded)
    expected = reference(model, public + private + decoded, 3)
    assert np.abs(np.stack(record.logits) - expected).max() < TOLERANCE


@pytest.mark.parametrize("kv", ["ciphertext", "none"])
def test_truncated_tokens_leave_no_trace(kv):
    model = tiny("llama")
    public, private, decoded = [0], [7, 250], [4, 9]
    record = run_session(prepared(model, kv), public, private, decoded, truncate_to=3)
    assert np.abs(record.logits[1] - record.logits[3]).max() < TOLERANCE
    assert np.abs(record.logits[2] - record.logits[4]).max() < TOLERANCE


def test_a_private_first_token_needs_no_public_prefix():
    model = tiny("llama")
    record = run_session(prepared(model), [], [7, 250, 31])
    assert np.abs(record.logits[0] - reference(model, [7, 250, 31], 1)).max() < TOLERANCE


def test_stories260k_speaks_privately():
    model = stories()
    prompt = model.card.prompt("Once upon a time, there was a")
    public, tokens = list(prompt.public), list(prompt.private)
    private, decoded = tokens[:4], tokens[4:]
    text = public + private + decoded
    plain = model.forward(np.asarray(text))[-(len(decoded) + 1) :]
    record = run_session(prepared(model), public, private, decoded)
    assert len(decoded) >= 3
    assert [int(x.argmax()) for x in record.logits] == [int(x.argmax()) for x in plain]


def test_options_that_no_engine_has_are_refused():
    with pytest.raises(ParameterMismatchError, match="KV strategy"):
        check_options(EngineOptions(kv="imaginary"))
    with pytest.raises(ParameterMismatchError, match="engine"):
        check_options(EngineOptions(engine="magic"))


@pytest.mark.parametrize(
    "change",
    [
        {"weight_bits": 40},
        {"score_shift": -1},
        {"score_range_bits": 63},
        {"norms": []},
        {"config": {}},
        {"surprise": 1},
    ],
)
def test_a_malformed_model_description_is_refused_by_the_client(change):
    public = {**prepared(tiny("llama")).public(), **change}
    with pytest.raises(CorruptFileError):
        HybridDataParty(EngineOptions(), public)


@pytest.mark.parametrize(
    "entry", [{"low": -1.0}, {"high": float("nan")}, {"kind": "layer"}, {"square_bits": 99}]
)
def test_malformed_norms_are_refused(entry):
    public = prepared(tiny("llama")).public()
    public["norms"][1] = {**public["norms"][1], **entry}
    with pytest.raises(CorruptFileError):
        HybridDataParty(EngineOptions(), public)
