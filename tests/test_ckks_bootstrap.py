"""Linear maps and bootstrapping: exact models in NumPy, then small unchecked rings."""

import numpy as np
import pytest

from sottovoce.ckks import dft
from sottovoce.ckks.bootstrap import Bootstrapper, BootstrapSpec
from sottovoce.ckks.decryptor import Decryptor
from sottovoce.ckks.encoder import Encoder
from sottovoce.ckks.encryptor import Encryptor
from sottovoce.ckks.evalmod import Sine
from sottovoce.ckks.evaluator import Evaluator
from sottovoce.ckks.keys import KeyGenerator
from sottovoce.ckks.linear_map import LinearMap, from_matrix, shortened
from sottovoce.ckks.parameters import BOOT16, ENGINE16, SMALL, refreshing
from sottovoce.ckks.secret import EPHEMERAL
from sottovoce.ckks.transform import babies, prepare
from sottovoce.errors import LevelError, MissingKeyError, ParameterError
from sottovoce.ring import bit_reversal


def embedding(n):
    """U[j, k] = ζ^(5^j·k), ζ = exp(iπ/2n)."""
    powers = [1]
    for _ in range(n - 1):
        powers.append(powers[-1] * 5 % (4 * n))
    return np.exp(0.5j * np.pi / n * np.outer(powers, np.arange(n)))


def complexes(rng, n):
    return rng.uniform(-1, 1, n) + 1j * rng.uniform(-1, 1, n)


def apply(maps, x):
    for each in maps:
        x = each(x)
    return x


@pytest.mark.parametrize(("n", "factors"), [(2, 1), (16, 2), (16, 4), (256, 3), (512, 4)])
def test_factors_make_the_transform(n, factors):
    coefficients = complexes(np.random.default_rng(n), n)
    reversed_ = coefficients[bit_reversal(n)]
    slots = embedding(n) @ coefficients
    back, forward = dft.slots_to_coefficients(n, factors), dft.coefficients_to_slots(n, factors)
    assert len(back) == len(forward) == factors
    assert np.allclose(apply(back, reversed_), slots)
    assert np.allclose(apply(forward, slots), reversed_)
    beside = apply(dft.side_by_side(forward), np.tile(slots, 2))
    beside = beside + beside.conj()
    assert np.allclose(beside, np.concatenate([reversed_.real, reversed_.imag]))
    joined = apply(dft.joined(back), beside)
    assert np.allclose(joined + np.roll(joined, -n), np.tile(slots, 2))


def test_merged_factors_are_sparse_and_short():
    n = 4096
    forward = dft.coefficients_to_slots(n, 3)
    assert [len(m.diagonals) for m in forward] == [16, 31, 31]
    assert [max(map(len, m.diagonals.values())) for m in forward] == [4096, 256, 16]
    assert dft.sizes(15, 4) == [4, 4, 4, 3]
    with pytest.raises(ParameterError):
        dft.sizes(2, 3)


def test_maps_compose_like_matrices():
    rng = np.random.default_rng(5)
    a, b = (rng.standard_normal((8, 8)) + 1j * rng.standard_normal((8, 8)) for _ in range(2))
    x = complexes(rng, 8)
    assert np.allclose(from_matrix(a)(x), a @ x)
    assert np.allclose(from_matrix(a).after(from_matrix(b))(x), a @ b @ x)
    assert np.allclose(from_matrix(a).times(2j)(x), 2j * a @ x)
    assert len(shortened(np.tile([1 + 0j, 2], 4))) == 2
    with pytest.raises(ParameterError):
        LinearMap(8, {8: np.ones(1, np.complex128)})
    with pytest.raises(ParameterError):
        from_matrix(a).after(from_matrix(np.eye(4)))


def test_baby_steps_balance_giant_steps():
    shifts = [k % 4096 for k in range(-15, 16)]
    size = babies(shifts)
    assert size in (4, 8, 16)
    assert babies([0]) >= 1


@pytest.fixture(scope="module")
def small():
    return KeyGenerator(SMALL)


def test_a_transform_is_its_map(small):
    rng = np.random.default_rng(6)
    n, level = 32, 5
    matrix = rng.uniform(-1, 1, (n, n)) + 1j * rng.uniform(-1, 1, (n, n))
    encoder = Encoder(SMALL)
    transform = prepare(encoder, from_matrix(matrix), level, float(SMALL.primes[level]))
    assert transform.key_switches <= 2 * n**0.5 + 4
    evaluator = Evaluator(SMALL, galois_keys=small.galois_keys(transform.steps))
    x = complexes(rng, n)
    ciphertext = Encryptor(SMALL, small.secret_key).encrypt(encoder.encode(x))
    found = transform(evaluator, ciphertext)
    assert found.level == level - 1 and found.scale == pytest.approx(SMALL.scale)
    assert np.abs(Decryptor(SMALL, small.secret_key).decrypt_slots(found, n) - matrix @ x).max() < 2.0**-20
    with pytest.raises(LevelError):
        transform(evaluator, evaluator.drop_to(ciphertext, 2))
    with pytest.raises(MissingKeyError):
        transform(Evaluator(SMALL, galois_keys=small.galois_keys([1])), ciphertext)


REFRESHING = refreshing(1 << 10, 2, (2, 10, 3), 6, "ternary", "unchecked")
# Full slots, half of them (side by side fills the ciphertext), few.
CASES = {512: 4, 256: 4, 8: 5}


@pytest.fixture(scope="module", params=CASES)
def refreshed(request):
    n = request.param
    bootstrapper = Bootstrapper(REFRESHING, BootstrapSpec(n, CASES[n]))
    generator = KeyGenerator(REFRESHING)
    evaluator = Evaluator(
        REFRESHING,
        generator.relinearization_key(bootstrapper.sine_level),
        generator.galois_keys(bootstrapper.steps),
        generator.encapsulation_keys(),
    )
    return n, bootstrapper, evaluator, generator.secret_key


def encrypt(secret, values, level, scale=None):
    return Encryptor(REFRESHING, secret).encrypt(Encoder(REFRESHING).encode(values, level, scale))


def errors(secret, ciphertext, values):
    return np.abs(Decryptor(REFRESHING, secret).decrypt_slots(ciphertext, len(values)) - values)


def test_a_bootstrap_gives_levels_back(refreshed):
    n, bootstrapper, evaluator, secret = refreshed
    # Values like noise keep coefficients below 1/4 of what a constant vector of ones has.
    values = complexes(np.random.default_rng(n), n) / (1 if n > 8 else 2)
    found = bootstrapper(evaluator, encrypt(secret, values, 0))
    assert found.level == REFRESHING.working_top and found.slots == n
    assert found.scale == REFRESHING.scale
    error = errors(secret, found, values)
    assert error.mean() < 2.0**-17 and error.max() < 2.0**-14


def test_stages_say_what_is_done(refreshed):
    n, bootstrapper, _, _ = refreshed
    stages = {stage.name: stage for stage in bootstrapper.stages}
    assert sum(stage.levels for stage in stages.values()) == REFRESHING.top - REFRESHING.working_top
    assert stages["sine"].key_switches == (30 if n == 512 else 15)
    assert stages["sum of rotations"].key_switches == {512: 0, 256: 1, 8: 6}[n]
    assert stages["coefficients to slots"].key_switches <= 1 + len(bootstrapper.steps)


def test_a_bootstrap_of_another_scale_and_level(refreshed):
    n, bootstrapper, evaluator, secret = refreshed
    values = complexes(np.random.default_rng(n + 1), n) / 4
    found = bootstrapper(evaluator, encrypt(secret, values, 2, 1.1 * REFRESHING.scale))
    assert found.scale == REFRESHING.scale
    assert errors(secret, found, values).max() < 2.0**-13
    found = bootstrapper(evaluator, encrypt(secret, values, 0, 1.1 * REFRESHING.scale))
    assert errors(secret, found, values).max() < 2.0**-13


def test_a_refreshed_ciphertext_can_be_used(refreshed):
    n, bootstrapper, evaluator, secret = refreshed
    values = complexes(np.random.default_rng(n + 2), n) / 2
    found = bootstrapper(evaluator, encrypt(secret, values, 0))
    square = evaluator.square(found)
    assert errors(secret, square, values**2).max() < 2.0**-13
    again = bootstrapper(evaluator, square)
    assert errors(secret, again, values**2).max() < 2.0**-12


def test_too_many_slots_are_refused(refreshed):
    n, bootstrapper, evaluator, secret = refreshed
    if n < REFRESHING.slots:
        with pytest.raises(ParameterError):
            bootstrapper(evaluator, encrypt(secret, np.zeros(2 * n), 0))


def test_circuits_that_do_not_fit_the_chain_are_refused():
    with pytest.raises(ParameterError, match="reserve"):
        Bootstrapper(REFRESHING, BootstrapSpec(8, sine=Sine(arcsine=False)))
    with pytest.raises(ParameterError, match="slots"):
        Bootstrapper(REFRESHING, BootstrapSpec(2 * REFRESHING.slots))
    with pytest.raises(ParameterError):
        Bootstrapper(SMALL, BootstrapSpec(8))


def test_shipped_sets_leave_the_levels_they_promise():
    assert (BOOT16.working_top, ENGINE16.working_top) == (9, 16)
    assert min(q.bit_length() for q in BOOT16.primes[1:10]) >= 41
    assert EPHEMERAL == f"ephemeral-{Sine().weight}"
    assert BOOT16.spec.refresh[1] == ENGINE16.spec.refresh[1] == Sine().levels
