"""A limit that SECURITY.md states: repeated questions tell more than one answer does."""

import numpy as np

import models_common as common
from sottovoce.attacks.rounding import ask, estimate
from sottovoce.models import quantize


def test_known_roundings_and_exact_logits_correlate_with_the_head():
    model = common.tiny("llama")
    fixed = quantize(model)
    head, times = fixed.head.astype(float), 500
    known, logits = ask(model, fixed, [5, 9, 7], times)
    assert known.shape == (times, model.config.width) and known.min() >= 0 and known.max() < 1

    def found(numbers):
        return np.corrcoef(estimate(numbers, logits).ravel(), head.ravel())[0, 1]

    # The formula: relative error 3.5·s·√d/√T, with the s of this prompt.
    hidden = np.linalg.lstsq(head, (logits - logits.mean(axis=0)).T, rcond=None)[0]
    error = 3.5 * hidden.std(axis=1).mean() * np.sqrt(model.config.width / times)
    expected = 1 / np.hypot(1, error)
    assert expected / 2 < found(known) < 2 * expected
    shuffled = known[np.random.default_rng(0).permutation(times)]
    assert abs(found(shuffled)) < found(known) / 2
