"""Sessions on the masked cache: the plaintext model's answers, uniform views, sizes that say nothing."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from chance import LEAST_P
from hybrid_sessions import TOLERANCE, prepared, run_session
from models_common import stories, tiny

PUBLIC, DECODED = [0, 5], [4, 9]


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2"])
def test_logits_are_the_plaintext_models(name):
    model, private = tiny(name), [7, 250, 31]
    record = run_session(prepared(model, "masked"), PUBLIC, private, DECODED)
    expected = model.forward(np.asarray(PUBLIC + private + DECODED))[-3:]
    assert np.abs(np.stack(record.logits) - expected).max() < TOLERANCE


def test_a_private_first_token_and_a_truncation():
    model = tiny("llama")
    record = run_session(prepared(model, "masked"), [], [7, 250, 31], DECODED, truncate_to=3)
    expected = model.forward(np.asarray([7, 250, 31, *DECODED]))[-3:]
    assert np.abs(np.stack(record.logits[:3]) - expected).max() < TOLERANCE
    assert np.abs(np.stack(record.logits[3:]) - expected[1:]).max() < TOLERANCE


def test_stories260k_speaks_privately():
    model = stories()
    prompt = model.card.prompt("Once upon a time, there was a")
    public, tokens = list(prompt.public), list(prompt.private)
    private, decoded = tokens[:4], tokens[4:]
    plain = model.forward(np.asarray(public + private + decoded))[-(len(decoded) + 1) :]
    record = run_session(prepared(model, "masked"), public, private, decoded)
    assert [int(x.argmax()) for x in record.logits] == [int(x.argmax()) for x in plain]


def test_what_the_parties_receive_is_uniform_and_of_a_size_that_does_not_depend_on_tokens():
    engine = prepared(tiny("llama"), "masked")
    first, second = (run_session(engine, PUBLIC, p, DECODED) for p in ([7, 250, 31, 8], [7, 7, 7, 7]))
    for name in ("server_received", "client_received"):
        frames, others = getattr(first, name), getattr(second, name)
        assert [len(frame) for frame in frames] == [len(frame) for frame in others]
        assert not {f for f in frames if len(f) >= 16} & {f for f in others if len(f) >= 16}
        large = [frame for frame in frames if len(frame) >= 1 << 14]
        pieces = [*large, b"".join(frame for frame in frames if len(frame) < 1 << 14)]
        for piece in pieces:
            # The header of a public key (32 bytes) is the only structure.
            counts = np.bincount(np.frombuffer(piece, np.uint8)[64:], minlength=256)
            assert stats.chisquare(counts).pvalue > LEAST_P
