"""`bench polynomials`: slim evaluation against Paterson and Stockmeyer's, encrypted, one thread.

1/√x and 1/x on intervals that a normalisation meets, relative minimax fits of degree 31, 63 and 127; the slim
method evaluates the same fit with a term of the next power of two that is below its tolerance (`epsilon`).
Periodic slots: the slim method needs the room of as many copies as its degree.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from sottovoce.bench.machine import header
from sottovoce.ckks import LEVELED15, Parameters, paterson_stockmeyer, slim
from sottovoce.ckks.chebyshev import Floats, Polynomial, minimax
from sottovoce.ckks.ciphertext import Ciphertext
from sottovoce.ckks.decryptor import Decryptor
from sottovoce.ckks.encoder import Encoder
from sottovoce.ckks.encryptor import Encryptor
from sottovoce.ckks.evaluator import Evaluator
from sottovoce.ckks.keys import KeyGenerator
from sottovoce.engines.base import Progress
from sottovoce.ring import set_threads, threads

EPSILON = 2.0**-14
_FUNCTIONS: dict[str, Callable[[Floats], Floats]] = {"1/√x": lambda x: 1 / np.sqrt(x), "1/x": lambda x: 1 / x}
# Degree, and the ratio of the ends of the interval.
_CASES = ((31, 32), (63, 64), (127, 256))


def run(
    repeat: int = 5,
    parameters: Parameters = LEVELED15,
    period: int = 64,
    progress: Progress = lambda done, total, what: None,
) -> dict[str, Any]:
    """`rows`: a row for every function and degree, medians of `repeat` runs after one that warms up."""
    before = threads()
    set_threads(1)
    try:
        keys = KeyGenerator(parameters)
        steps = [period << i for i in range(7) if period << i < parameters.slots]
        evaluator = Evaluator(parameters, keys.relinearization_key(), keys.galois_keys(steps))
        jobs = [(name, degree, spread) for name in _FUNCTIONS for degree, spread in _CASES]
        rows = []
        for done, (name, degree, spread) in enumerate(jobs):
            progress(done, len(jobs), f"{name}, degree {degree}")
            fit = minimax(_FUNCTIONS[name], degree, 1 / spread, 1.0, relative=True)
            row = {"function": name, "degree": degree, "low": 1 / spread, "fit_bits": _bits(fit, name)}
            rows.append(row | _compare(evaluator, keys, fit, period, repeat))
        progress(len(jobs), len(jobs), "polynomials")
    finally:
        set_threads(before)
    chosen = {"security_bits": 128, "degree": parameters.degree, "log_qp": parameters.log_qp}
    return {**header(), "parameters": chosen, "period": period, "epsilon": EPSILON, "rows": rows}


def _bits(fit: Polynomial, name: str) -> float:
    return -math.log2(fit.error(_FUNCTIONS[name], relative=True))


def _compare(
    evaluator: Evaluator, keys: KeyGenerator, fit: Polynomial, period: int, repeat: int
) -> dict[str, Any]:
    parameters = evaluator.parameters
    values = np.random.default_rng(1).uniform(fit.low, fit.high, period)
    plan, tree = paterson_stockmeyer.plan(fit), slim.split(slim.eligible(fit, EPSILON))

    def encrypted(scale: float) -> Ciphertext:
        plain = Encoder(parameters).encode(values, scale=scale)
        return Encryptor(parameters, keys.secret_key).encrypt(plain)

    def measured(evaluate: Callable[[], Ciphertext], exact: Floats) -> tuple[float, int, float]:
        seconds = []
        for _ in range(repeat + 1):
            start = time.perf_counter()
            result = evaluate()
            seconds.append(time.perf_counter() - start)
        slots = Decryptor(parameters, keys.secret_key).decrypt_slots(result, period)
        error = float(np.abs(slots - exact).max())
        return statistics.median(seconds[1:]), parameters.top - result.level, -math.log2(error)

    x = encrypted(plan.best_scale(parameters.scale))
    plain_s, plain_levels, plain_bits = measured(
        lambda: paterson_stockmeyer.evaluate(evaluator, x, plan), fit(values)
    )
    y = encrypted(tree.best_scale(float(parameters.primes[-1])))
    slim_s, slim_levels, slim_bits = measured(
        lambda: slim.evaluate(evaluator, y, tree), tree.polynomial(values)
    )
    return {
        "key_switches": plan.key_switches,
        "slim_key_switches": 2 * tree.depth,
        "levels": plain_levels,
        "slim_levels": slim_levels,
        "seconds": plain_s,
        "slim_seconds": slim_s,
        "speedup": plain_s / slim_s,
        "bits": plain_bits,
        "slim_bits": slim_bits,
    }
