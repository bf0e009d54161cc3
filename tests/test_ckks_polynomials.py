"""Fits, and polynomials of ciphertexts: plans and trees against NumPy, then encrypted."""

import numpy as np
import pytest

from sottovoce.ckks import SMALL, paterson_stockmeyer, slim
from sottovoce.ckks.chebyshev import Polynomial, interpolate, least_squares, minimax, nodes
from sottovoce.ckks.decryptor import Decryptor
from sottovoce.ckks.encoder import Encoder
from sottovoce.ckks.encryptor import Encryptor
from sottovoce.ckks.evalmod import Sine, irwin_hall
from sottovoce.ckks.evaluator import Evaluator
from sottovoce.ckks.keys import KeyGenerator
from sottovoce.ckks.model import ModelEvaluator
from sottovoce.ckks.parameters import LEVELED15
from sottovoce.errors import ParameterError


def silu(x):
    return x / (1 + np.exp(-x))


def inverse(x):
    return 1 / x


def inverse_root(x):
    return 1 / np.sqrt(x)


@pytest.mark.parametrize(
    ("function", "degree", "low", "high", "relative", "bits"),
    [
        (silu, 31, -8, 8, False, 16),
        (silu, 63, -12, 12, False, 22),
        (inverse_root, 31, 1 / 32, 1, True, 18),
        (inverse, 63, 1 / 64, 1, True, 22),
        (np.exp, 15, -16, 0, False, 19),
    ],
)
def test_minimax_reaches_the_known_errors(function, degree, low, high, relative, bits):
    best = minimax(function, degree, low, high, relative)
    assert best.degree == degree
    assert best.error(function, relative) < 2.0**-bits
    plain = interpolate(function, degree, low, high)
    assert best.error(function, relative) <= 1.001 * plain.error(function, relative)


def test_a_minimax_error_is_level():
    best = minimax(np.exp, 5, -1, 2)
    x = nodes(20_001, -1, 2)
    error = best(x) - np.exp(x)
    assert -error.min() == pytest.approx(error.max(), rel=0.03)


def test_interpolation_is_exact_for_polynomials():
    exact = Polynomial(np.array([1.0, -2, 0.5, 3]), -3, 5)
    again = interpolate(exact, 3, -3, 5)
    assert np.allclose(again.coefficients, exact.coefficients, atol=1e-12)


def test_least_squares_follows_its_weights():
    x = nodes(200)
    near = least_squares(x, np.exp(x), np.where(np.abs(x) < 0.2, 1.0, 1e-12), 4, -1, 1)
    inside = np.abs(x) < 0.2
    even = least_squares(x, np.exp(x), np.ones_like(x), 4, -1, 1)
    assert np.abs(near(x) - np.exp(x))[inside].max() < 0.01 * np.abs(even(x) - np.exp(x))[inside].max()


def test_bad_polynomials_are_refused():
    with pytest.raises(ParameterError):
        Polynomial(np.ones(3), 1.0, 1.0)
    with pytest.raises(ParameterError):
        Polynomial(np.ones((2, 2)))
    with pytest.raises(ParameterError):
        least_squares(np.zeros(3), np.zeros(3), np.ones(3), 3, -1, 1)
    with pytest.raises(ParameterError):
        paterson_stockmeyer.plan(Polynomial(np.ones(1)))


def test_irwin_hall_is_a_density():
    values = irwin_hall(range(-17, 18), 33)
    assert values.sum() == pytest.approx(1, abs=1e-9)  # the unit lattice sums a smooth density
    assert np.array_equal(values, values[::-1]) and np.all(np.diff(values[17:]) <= 0)
    assert irwin_hall([0], 1)[0] == 1


def test_the_sine_is_precise_where_multiples_are_likely():
    sine = Sine()
    offsets = np.linspace(-(2.0**-7), 2.0**-7, 401)
    assert sine.levels == 10
    for multiple, bits in ((0, 26), (1, 26), (-2, 26), (6, 26), (-9, 26), (12, 24), (-15, 20)):
        found = sine.model((multiple + offsets) / sine.bound)
        # The curvature that a cubic arcsine leaves, 3/40·(2πx)^5/2π, is 2^-27 here.
        assert np.abs(found - offsets).max() < 2.0**-bits
    at_zero = sine.model(np.arange(-6, 7) / sine.bound)
    assert np.abs(at_zero).max() < 2.0**-40


@pytest.mark.parametrize("degree", [1, 2, 3, 5, 7, 8, 15, 16, 23, 31, 32, 63, 64, 100, 127])
def test_a_plan_computes_its_polynomial(degree):
    rng = np.random.default_rng(degree)
    polynomial = Polynomial(rng.standard_normal(degree + 1), -3, 5)
    plan = paterson_stockmeyer.plan(polynomial)
    evaluator = ModelEvaluator(LEVELED15)
    x = evaluator.encrypt(rng.uniform(-3, 5, 32), scale=plan.best_scale(LEVELED15.scale))
    found = paterson_stockmeyer.evaluate(evaluator, x, plan)
    assert np.allclose(found.values, polynomial(x.values.real), atol=1e-9)
    assert LEVELED15.top - found.level == plan.depth == degree.bit_length()
    assert found.scale == LEVELED15.scale
    assert evaluator.counts["key_switches"] == plan.key_switches
    assert evaluator.counts["products"] == plan.products


def arbitrary(degree):
    return Polynomial(np.random.default_rng(degree).uniform(0.5, 1, degree + 1))


def test_key_switches_of_plans():
    counts = [paterson_stockmeyer.plan(arbitrary(d)).key_switches for d in (7, 15, 31, 63, 127)]
    assert counts == [4, 7, 10, 15, 20]


def test_zero_coefficients_are_not_computed_with():
    odd = Polynomial(arbitrary(31).coefficients * (np.arange(32) % 2))
    plan = paterson_stockmeyer.plan(odd)
    assert all(index % 2 for node in plan.root.walk() for index in node.leaf)


def test_an_argument_of_another_scale_costs_a_level():
    plan = paterson_stockmeyer.plan(minimax(silu, 15, -8, 8))
    evaluator = ModelEvaluator(LEVELED15)
    x = evaluator.encrypt(np.linspace(-8, 8, 16))
    found = paterson_stockmeyer.evaluate(evaluator, x, plan)
    assert LEVELED15.top - found.level == plan.depth + 1
    assert np.abs(found.values - silu(x.values.real)).max() < 0.01


SLIM = [
    (silu, 31, -8, 8, False, 2.0**-12),
    (inverse_root, 31, 1 / 32, 1, True, 2.0**-10),
    (inverse, 63, 1 / 64, 1, True, 2.0**-10),
    (np.exp, 3, -1, 0, False, 2.0**-10),
]


@pytest.mark.parametrize(("function", "degree", "low", "high", "relative", "epsilon"), SLIM)
def test_a_split_is_the_polynomial(function, degree, low, high, relative, epsilon):
    fit = minimax(function, degree, low, high, relative)
    polynomial = slim.eligible(fit, epsilon)
    tree = slim.split(polynomial)
    x = nodes(2001, low, high)
    assert np.abs(polynomial(x) - fit(x)).max() <= epsilon * 1.001
    largest = np.abs(polynomial(x)).max()
    assert np.abs(tree(x) - polynomial(x)).max() < 2.0**-38 * max(1, largest)
    # Precision is lost to what the nodes are larger than the result: little, thanks to the search.
    assert tree.largest() < 4 * max(1, largest)
    assert tree.blocks == polynomial.degree == 1 << tree.depth


@pytest.mark.parametrize(("function", "degree", "low", "high", "relative", "epsilon"), SLIM)
def test_a_split_runs_in_the_blocks_of_one_ciphertext(function, degree, low, high, relative, epsilon):
    tree = slim.split(slim.eligible(minimax(function, degree, low, high, relative), epsilon))
    evaluator = ModelEvaluator(LEVELED15)
    values = np.random.default_rng(3).uniform(low, high, 8)
    x = evaluator.encrypt(values, scale=tree.best_scale(LEVELED15.primes[-1]))
    found = slim.evaluate(evaluator, x, tree)
    assert np.allclose(found.values, tree.polynomial(values), atol=1e-9)
    assert found.slots == 8 and LEVELED15.top - found.level == tree.depth
    assert evaluator.counts["key_switches"] == 2 * tree.depth
    plan = paterson_stockmeyer.plan(tree.polynomial)
    assert degree < 31 or evaluator.counts["key_switches"] <= plan.key_switches


def test_only_eligible_polynomials_are_split():
    for coefficients in ([0.0, 1, 1, 1], [1.0, 0, -1], [1.0, 1, 1, 1, 1, 1, 1]):
        with pytest.raises(ParameterError):
            slim.split(Polynomial(np.array(coefficients)))
    already = Polynomial(np.array([0.0, 0, 1]))
    assert slim.eligible(already, 0.1) is already


def test_blocks_must_fit_the_slots():
    tree = slim.split(slim.eligible(minimax(silu, 31, -8, 8), 2.0**-12))
    evaluator = ModelEvaluator(SMALL)
    x = evaluator.encrypt(np.zeros(SMALL.slots), scale=tree.best_scale(SMALL.primes[-1]))
    with pytest.raises(ParameterError):
        slim.evaluate(evaluator, x, tree)


@pytest.fixture(scope="module")
def small():
    generator = KeyGenerator(SMALL)
    keys = generator.galois_keys([4 << i for i in range(5)])
    evaluator = Evaluator(SMALL, generator.relinearization_key(), keys)
    return generator.secret_key, evaluator


def encrypt(secret, values, scale):
    return Encryptor(SMALL, secret).encrypt(Encoder(SMALL).encode(values, scale=scale))


@pytest.mark.parametrize("degree", [1, 3, 8, 15, 31])
def test_encrypted_polynomials(small, degree):
    secret, evaluator = small
    rng = np.random.default_rng(degree)
    polynomial = Polynomial(rng.uniform(-1, 1, degree + 1), -2, 6)
    plan = paterson_stockmeyer.plan(polynomial)
    values = rng.uniform(-2, 6, 64)
    x = encrypt(secret, values, plan.best_scale(SMALL.scale))
    found = paterson_stockmeyer.evaluate(evaluator, x, plan)
    assert found.level == SMALL.top - plan.depth and found.scale == SMALL.scale
    assert np.abs(Decryptor(SMALL, secret).decrypt_slots(found, 64) - polynomial(values)).max() < 2.0**-18


def test_encrypted_slim(small):
    secret, evaluator = small
    tree = slim.split(slim.eligible(minimax(silu, 31, -8, 8), 2.0**-12))
    values = np.array([-7.5, -1.0, 0.3, 6.0])
    x = encrypt(secret, values, tree.best_scale(SMALL.primes[-1]))
    found = slim.evaluate(evaluator, x, tree)
    assert found.level == SMALL.top - 5
    slots = Decryptor(SMALL, secret).decrypt_slots(found, 4)
    assert np.abs(slots - tree.polynomial(values)).max() < 2.0**-12
    assert np.abs(slots - silu(values)).max() < 2.0**-10
