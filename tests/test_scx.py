"""The engine scx is exact: its logits are the plaintext model's, whatever the profile, model and array
library."""

from __future__ import annotations

import numpy as np
import pytest

from models_common import tiny
from scx_sessions import Pair, engine_of
from sottovoce.engines.scx import PROFILES

PROMPT = [7, 250, 31, 8, 9, 100, 3]
MORE = [4, 9, 77, 12, 5]


@pytest.fixture(params=sorted(PROFILES))
def profile(request):
    return request.param


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen2"])
def test_logits_are_those_of_the_plaintext_model(name, profile):
    model = tiny(name)
    plain = model.forward([*PROMPT, *MORE])
    scale = 1e-5 * np.abs(plain).max()
    with Pair(engine_of(model, profile)) as pair:
        assert np.abs(pair.prefill(PROMPT) - plain[len(PROMPT) - 1]).max() < scale
        for i, token in enumerate(MORE):
            assert np.abs(pair.decode(token) - plain[len(PROMPT) + i]).max() < scale
