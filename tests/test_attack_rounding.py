"""Repeated questions: what the client knows of roundings, against the matrices it would like to know."""

import numpy as np
import pytest

import models_common as common
from sottovoce.attacks.rounding import ask, estimate, questions_needed
from sottovoce.models import quantize
from sottovoce.models.fixed import FixedModel
from sottovoce.mpc import field
from sottovoce.mpc.functions.exact import exact_rescale
from sottovoce.mpc.model import ModelArithmetic

PROMPT, TIMES, SEED = [5], 150, 1


@pytest.fixture(scope="module")
def fixed() -> FixedModel:
    return quantize(common.tiny("gpt2"))


def found(known: np.ndarray, logits: np.ndarray, truth: np.ndarray) -> float:
    return correlation(estimate(known, logits), truth)


def correlation(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.corrcoef(x.ravel(), y.ravel())[0, 1])


def shuffled(known: np.ndarray) -> np.ndarray:
    return known[np.random.default_rng(0).permutation(len(known))]


def test_rounding_by_chance_before_the_head_tells_its_weights(fixed: FixedModel) -> None:
    """The control: what the attack would find if the final norm were like the others."""
    head = fixed.head.astype(float)
    known, logits = ask(common.tiny("gpt2"), fixed, PROMPT, TIMES, by_chance=True, seed=SEED)
    width = fixed.config.width
    assert known.shape == (TIMES, width) and known.min() >= 0 and known.max() < 1

    # The formula: relative error 3.5·s·√d/√T, with the s of this prompt.
    hidden = np.linalg.lstsq(head, (logits - logits.mean(axis=0)).T, rcond=None)[0]
    error = np.sqrt(questions_needed(hidden.std(axis=1).mean() * np.sqrt(width), 1) / TIMES)
    expected = 1 / np.hypot(1, error)
    assert 0.4 < expected * 0.7 < found(known, logits, head) < 1.3 * expected
    assert abs(found(shuffled(known), logits, head)) < 0.2


def test_exact_rounding_before_the_head_tells_nothing(fixed: FixedModel) -> None:
    known, logits = ask(common.tiny("gpt2"), fixed, PROMPT, TIMES, seed=SEED)
    assert known.shape == (TIMES, fixed.config.width) and known.std() > 0.2
    for numbers in (known, shuffled(known)):
        assert abs(found(numbers, logits, fixed.head.astype(float))) < 0.2


@pytest.mark.parametrize(
    ("rescale", "expected"), [(ModelArithmetic.rescale, -(0.5**0.5)), (exact_rescale, 0)]
)
def test_how_much_of_a_rounding_its_own_share_tells_a_party(rescale, expected: float) -> None:
    """The source of it all: the error of a rescale against the client's number c."""
    model, bits = ModelArithmetic(np.random.default_rng(1)), 11
    values = model.rng.integers(-(1 << 30), 1 << 30, 20_000)
    x = model.share(field.from_signed(values, field.P_FIELD))
    numbers = (x[0] & np.uint64((1 << bits) - 1)) / 2.0**bits
    error = field.centred(model.reveal(rescale(model, x, bits)), field.P_FIELD) - values / 2.0**bits
    assert abs(correlation(numbers, error) - expected) < 0.04


def test_other_roundings_than_the_last_are_known_as_well() -> None:
    """A limit that SECURITY.md states: only the final norm is exact."""
    model = common.tiny("llama")
    fixed = quantize(model)
    for name, inputs in (("down", fixed.config.ffn_width), ("o", fixed.config.q_width)):
        known, logits = ask(model, fixed, PROMPT, 3, (name, fixed.config.layers - 1), seed=SEED)
        assert known.shape == (3, inputs) and len(np.unique(known)) > 2 * inputs
        assert len(np.unique(logits, axis=0)) == 3
