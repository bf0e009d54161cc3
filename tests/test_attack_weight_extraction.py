"""A curious client learns nothing of W from what layers return; it would, without either safeguard."""

import numpy as np
import pytest

from sottovoce.attacks.weight_extraction import CuriousClient, Return, give_back, solved_error, solved_part
from sottovoce.bgv import SIMD
from sottovoce.ring.primes import P_FIELD

OUTPUTS, INPUTS, ANSWERS = 96, 64, 16
# In standard deviations. What is found has 101 in an answer, or 8 to 18: it depends on the key, with whose
# coefficients what rounding leaves makes a pattern. Over 16 answers that is 32 and more.
STANDS_OUT = 8


@pytest.fixture(scope="module")
def layer():
    rng = np.random.default_rng(0)
    client = CuriousClient(OUTPUTS, INPUTS)
    # The client knows candidates, for example a base model and two of its descendants.
    guesses = [rng.integers(-2000, 2000, (OUTPUTS, INPUTS)).astype(np.int16) for _ in range(3)]
    questions = []
    for _ in range(ANSWERS):
        inputs = client.ask(rng.integers(0, P_FIELD, INPUTS, dtype=np.uint64))
        questions.append((inputs, client.compute(guesses[1], inputs)))
    return client, guesses, questions


@pytest.mark.parametrize("how", Return)
def test_guesses_of_the_weights(layer, how):
    client, guesses, questions = layer
    answers = [
        client.compare(give_back(results, client.public_key, how), how, inputs, guesses)
        for inputs, results in questions
    ]
    for name, found in (("uniform_half", Return.NO_ENCRYPTION_OF_ZERO), ("noise", Return.MASK_MODULO_P)):
        values = np.sum([getattr(answer, name) for answer in answers], axis=0) / ANSWERS**0.5
        assert np.abs(values[[0, 2]]).max() < STANDS_OUT, (name, values)
        if how is found:
            assert values[1] > STANDS_OUT, (name, values)
        else:
            assert abs(values[1]) < STANDS_OUT, (name, values)


def test_solving_for_the_weights():
    weights = np.random.default_rng(1).integers(0, P_FIELD, SIMD.degree, dtype=np.uint64)
    assert solved_part(Return.NO_ENCRYPTION_OF_ZERO, weights) == 1.0
    assert solved_part(Return.RECIPE_Z, weights) == 0.0


def test_the_error_of_what_is_solved_for():
    weights = np.random.default_rng(1).integers(-2000, 2000, SIMD.degree) % P_FIELD
    errors = {how: solved_error(how, weights.astype(np.uint64), 4000) for how in Return}
    assert errors[Return.NO_ENCRYPTION_OF_ZERO] == 0.0
    assert 0.99 < errors[Return.RECIPE_Z] < 1.01
