"""`weight-extraction`: a curious client of `hybrid` compares what a layer returns with guesses of its
weights.

A trial: a random layer, four candidates for its weights, and four answers. The attack succeeds if the right
candidate stands out by six standard deviations, or if the weights can be solved for.
"""

from __future__ import annotations

import numpy as np

from sottovoce.attacks.base import Control, Outcome, Setting
from sottovoce.attacks.weight_extraction import CuriousClient, Return, give_back, solved_error, solved_part
from sottovoce.bgv import SIMD
from sottovoce.ring.primes import P_FIELD

_OUTPUTS, _INPUTS = 96, 64
_GUESSES, _ANSWERS = 4, 4
_BOUND = 2000  # of the layers' weights
_STANDS_OUT = 6.0  # standard deviations


class WeightExtraction:
    name, target, profiles, samples = "weight-extraction", "hybrid", ("default",), 100
    says = "weights from what a layer returns to a client that knows its own keys and errors"

    def run(self, setting: Setting) -> Outcome:
        recognised = _rate(setting, Return.RECIPE_Z, setting.samples)
        controls = [
            Control(how.value, _rate(setting, how, setting.for_control().samples))
            for how in (Return.NO_ENCRYPTION_OF_ZERO, Return.MASK_MODULO_P)
        ]
        weights = np.random.default_rng(1).integers(0, P_FIELD, SIMD.degree, dtype=np.uint64)
        solved = {
            how.name.lower(): solved_part(how, weights)
            for how in (Return.RECIPE_Z, Return.NO_ENCRYPTION_OF_ZERO)
        }
        controls.append(Control("solving for W, not re-randomised", solved["no_encryption_of_zero"]))
        small = np.random.default_rng(2).integers(-_BOUND, _BOUND, SIMD.degree) % P_FIELD
        errors = {
            how.name.lower(): solved_error(how, small.astype(np.uint64), 2 * _BOUND)
            for how in (Return.RECIPE_Z, Return.NO_ENCRYPTION_OF_ZERO)
        }
        rate = max(recognised, solved["recipe_z"])
        return Outcome(
            rate,
            tuple(controls),
            setting.samples,
            {
                "guesses": _GUESSES,
                "answers": _ANSWERS,
                "solved_part": solved,
                "relative_weight_error": errors,
            },
        )


def _rate(setting: Setting, how: Return, trials: int) -> float:
    """Share of trials in which the right candidate is recognised."""
    found = 0
    for trial in range(trials):
        setting.progress(trial, trials, how.value)
        rng = np.random.default_rng(trial)  # layers, inputs; the keys are the system's
        client = CuriousClient(_OUTPUTS, _INPUTS)
        shape = (_GUESSES, _OUTPUTS, _INPUTS)
        guesses = list(rng.integers(-_BOUND, _BOUND, shape).astype(np.int16))
        right = int(rng.integers(_GUESSES))
        total = np.zeros((2, _GUESSES))
        for _ in range(_ANSWERS):
            inputs = client.ask(rng.integers(0, P_FIELD, _INPUTS, dtype=np.uint64))
            answer = give_back(client.compute(guesses[right], inputs), client.public_key, how)
            scores = client.compare(answer, how, inputs, guesses)
            total += np.array([scores.uniform_half, scores.noise])
        best = (total / _ANSWERS**0.5).max(axis=0)
        found += int(best.argmax() == right and best.max() > _STANDS_OUT)
    return found / trials
