"""CKKS against NumPy: every homomorphic operation on complex slots, and the errors that misuse raises."""

import dataclasses

import numpy as np
import pytest

from sottovoce import _native
from sottovoce.ckks import (
    CONJUGATE,
    ENGINE16,
    LEVELED13,
    SMALL,
    Ciphertext,
    Decryptor,
    Encoder,
    Encryptor,
    Evaluator,
    KeyGenerator,
)
from sottovoce.errors import (
    ForeignKeyError,
    LevelError,
    MissingKeyError,
    ParameterError,
    RangeError,
    ScaleError,
)

STEPS = (1, 2, 5, 64, 511)


class Party:
    """All keys of one secret, and shortcuts for tests."""

    def __init__(self, parameters, steps=STEPS, level=None):
        self.parameters = parameters
        self.generator = KeyGenerator(parameters)
        self.secret = self.generator.secret_key
        self.relinearization = self.generator.relinearization_key(level)
        self.galois = self.generator.galois_keys([*steps, CONJUGATE], level)
        self.encoder = Encoder(parameters)
        self.encryptor = Encryptor(parameters, self.secret)
        self.decryptor = Decryptor(parameters, self.secret)
        self.evaluator = Evaluator(parameters, self.relinearization, self.galois)

    def encrypt(self, values, level=None, scale=None):
        return self.encryptor.encrypt(self.encoder.encode(values, level, scale))

    def close(self, ct, expected, bits=20.0):
        got = self.decryptor.decrypt_slots(ct)
        error = np.max(np.abs(got - np.resize(expected, ct.slots)))
        assert error < 2.0**-bits, f"2^{np.log2(error):.1f}"


def slots(n, seed=0, real=False):
    rng = np.random.default_rng(seed)
    return rng.uniform(-1, 1, n) + (0 if real else 1j * rng.uniform(-1, 1, n))


@pytest.fixture(scope="module")
def party():
    return Party(SMALL)


@pytest.fixture(params=["portable", "avx2", "avx512"])
def isa(request):
    order = ["portable", "avx2", "avx512"]
    if order.index(request.param) > order.index(_native.detected_isa()):
        pytest.skip(f"this machine has no {request.param}")
    _native.set_isa(request.param)
    yield request.param
    _native.set_isa(_native.detected_isa())


@pytest.mark.parametrize("n", [1, 2, 4, 16, 512])
@pytest.mark.parametrize("real", [False, True])
def test_encoding_is_inverted_by_decoding(n, real):
    encoder = Encoder(SMALL)
    z = slots(n, n, real)
    plain = encoder.encode(z)
    assert plain.data.shape[1] <= 2 * n
    assert np.max(np.abs(encoder.decode(plain) - z)) < 2.0**-35
    assert np.max(np.abs(encoder.decode(encoder.encode(z, 0, 2.0**30)) - z)) < 2.0**-24


def test_slots_are_values_at_powers_of_five():
    encoder, n = Encoder(SMALL), 16
    z = slots(n, 3)
    coefficients = encoder.decode_coefficients(encoder.encode(z))
    root = np.exp(1j * np.pi / (2 * n))
    for j in range(n):
        value = np.polynomial.polynomial.polyval(root ** pow(5, j, 4 * n), coefficients)
        assert abs(value - z[j]) < 2.0**-34


def test_a_value_that_does_not_fit_is_refused():
    encoder = Encoder(SMALL)
    for bad in (2.0**9, np.inf, np.nan):
        with pytest.raises(RangeError):
            encoder.encode(bad, 0)
    large = encoder.encode(2.0**60, 9)
    assert abs(encoder.decode(large)[0] / 2.0**60 - 1) < 2.0**-50


def test_fresh_ciphertexts_of_both_kinds(party):
    z = slots(512)
    party.close(party.encrypt(z), z, 25)
    public = Encryptor(SMALL, party.generator.public_key())
    party.close(public.encrypt(party.encoder.encode(z)), z, 22)


def test_sums(party):
    ev, a, b = party.evaluator, slots(512, 1), slots(512, 2)
    x, y = party.encrypt(a), party.encrypt(b, 4)
    party.close(ev.add(x, y), a + b)
    assert ev.add(x, y).level == 4
    party.close(ev.sub(y, x), b - a)
    party.close(ev.negate(x), -a)
    party.close(ev.add_plain(x, party.encoder.encode(b)), a + b)
    party.close(ev.sub_plain(y, party.encoder.encode(a)), b - a)
    party.close(ev.add_scalar(x, 0.25 - 1.5j), a + 0.25 - 1.5j)
    party.close(ev.add_scalar(x, -3.0), a - 3)


def test_products_with_public_values(party, isa):
    ev, a, b = party.evaluator, slots(512, 1), slots(512, 2)
    x = party.encrypt(a)
    q = float(SMALL.primes[9])
    product = ev.rescale(ev.mul_plain(x, party.encoder.encode(b, 9, q)))
    assert product.scale == x.scale and product.level == 8
    party.close(product, a * b)
    short = slots(8, 5)
    party.close(ev.rescale(ev.mul_plain(x, party.encoder.encode(short, 9, q))), a * np.resize(short, 512))
    party.close(ev.rescale(ev.mul_scalar(x, 0.3)), 0.3 * a)
    party.close(ev.rescale(ev.mul_scalar(x, 0.3 - 2j)), (0.3 - 2j) * a)
    party.close(ev.mul_integer(x, -5), -5 * a)
    party.close(ev.mul_by_i(x), 1j * a, 25)
    y = party.encrypt(b, 5)
    both = ev.combine([x, y], [0.5, -2.0], 2.0**82)
    assert both.scale == 2.0**82
    party.close(ev.rescale(both), 0.5 * a - 2 * b)
    plains = [party.encoder.encode(slots(n, n), 9, q) for n in (512, 16)]
    total = ev.rescale(ev.mul_plain_sum([x, y], plains))
    party.close(total, a * slots(512, 512) + b * np.resize(slots(16, 16), 512))


@pytest.mark.parametrize("level", range(1, 10))
def test_products_and_rotations_at_every_level(party, level):
    ev, a, b = party.evaluator, slots(512, 1), slots(512, 2)
    x, y = party.encrypt(a, level), party.encrypt(b)
    product = ev.mul(x, y)
    assert product.level == level - 1
    assert product.scale == pytest.approx(2.0**82 / SMALL.primes[level], rel=1e-14)
    party.close(product, a * b)
    separately = ev.rescale(ev.relinearize(ev.tensor(x, y)))
    party.close(separately, a * b)
    party.close(ev.square(x), a * a)
    party.close(ev.rotate(x, 5), np.roll(a, -5))
    party.close(ev.conjugate(x), np.conj(a))


def test_level_zero_still_rotates(party):
    a = slots(512, 1)
    party.close(party.evaluator.rotate(party.encrypt(a, 0), -1), np.roll(a, 1))


def test_hoisted_rotations(party, isa):
    ev, a = party.evaluator, slots(512, 1)
    x = ev.drop_to(party.encrypt(a), 7)
    for step, turned in zip([0, *STEPS], ev.rotate_hoisted(x, [0, *STEPS]), strict=True):
        party.close(turned, np.roll(a, -step))


def test_rotation_of_periodic_slots_needs_only_the_remainder(party):
    a = slots(64, 1)
    x = party.encrypt(a)
    party.close(party.evaluator.rotate(x, 65), np.roll(a, -1))
    assert party.evaluator.rotate(x, 64) is x
    # Read with its full period the key for 64 is used, and the message is the same.
    party.close(party.evaluator.rotate(x.with_slots(512), 64), a)


def test_products_with_a_factor_and_a_sum(party):
    ev, n = party.evaluator, 512
    a, b, c = (slots(n, seed) for seed in (1, 2, 3))
    x, y = party.encrypt(a, 6), party.encrypt(b, 5)
    plus = party.encrypt(c, 6, x.scale * y.scale)
    product = ev.tensor(x, y, factor=3, constant=0.5, plus=plus)
    party.close(ev.relinearize(product, rescale=1), 3 * a * b + 0.5 + c)
    party.close(ev.combine([x, y], [0.25, -2.0], 2.0**80, 0.5), 0.25 * a - 2 * b + 0.5)
    with pytest.raises(ScaleError):
        ev.tensor(x, y, plus=x)


def test_lazy_sums(party, isa):
    """A baby-step giant-step product with one division by P per giant step, and one for the sum."""
    ev, n = party.evaluator, 512
    a, level = slots(n, 1), 6
    q = float(SMALL.primes[level])
    x = party.encrypt(a, level)
    babies = ev.rotate_wide_hoisted(x, (0, 1, 2))
    diagonals = [slots(n, 10 + k) for k in range(3)]
    plains = [party.encoder.encode(d, level, q, wide=True) for d in diagonals]
    inner = ev.mul_plain_wide(babies, plains)
    expected = sum(np.roll(a, -k) * d for k, d in enumerate(diagonals))
    party.close(ev.mod_down(inner, 1), expected)
    party.close(ev.rescale(ev.mod_down(inner)), expected)
    total = ev.add_wide(inner, ev.turn_wide(inner, 5))
    twice = expected + np.roll(expected, -5)
    party.close(ev.mod_down(total, 1), twice)
    party.close(ev.mod_down(ev.turn_wide(inner, 5, total), 1), twice + np.roll(expected, -5))
    party.close(ev.mod_down(ev.rotate_wide(x, CONJUGATE)), np.conj(a))


def test_match_brings_to_an_exact_scale(party):
    ev, a = party.evaluator, slots(512, 1)
    x = party.encrypt(a, 6, 2.0**40)
    y = ev.match(x, 3, 2.0**41)
    assert (y.level, y.scale) == (3, 2.0**41)
    party.close(y, a)
    assert ev.match(y, 2, 2.0**41).level == 2
    with pytest.raises(LevelError):
        ev.match(x, 6, 2.0**41)


def test_relabelling_divides_the_message(party):
    a = slots(512, 1)
    x = party.encrypt(a)
    party.close(x.with_scale(4 * x.scale), a / 4, 25)


def test_modulus_raising_adds_small_multiples_of_the_lowest_prime(party):
    keys = party.generator.encapsulation_keys()
    ev = Evaluator(SMALL, encapsulation_keys=keys)
    a = slots(512, 1)
    raised = ev.mod_raise(party.encrypt(a, 0), 9)
    assert raised.level == 9
    plain = party.decryptor.decrypt(raised)
    message = party.encoder.decode_coefficients(plain) * raised.scale
    multiples = np.rint(message / SMALL.primes[0])
    assert 0 < np.max(np.abs(multiples)) <= 16
    rest = (message - multiples * SMALL.primes[0]) / raised.scale
    expected = party.encoder.decode_coefficients(party.encoder.encode(a))
    assert np.max(np.abs(rest - expected)) < 2.0**-24


def test_noise_of_a_rotation_is_that_of_rounding(party):
    """A key switch adds about as much as a division by P must: a few units in each coefficient."""
    zero = party.encrypt(0.0)
    plain = party.decryptor.decrypt(party.evaluator.rotate(zero.with_slots(512), 1))
    error = party.encoder.decode_coefficients(plain) * plain.scale
    assert 1 < np.std(error) < 60


def test_clear_errors(party):
    ev, x = party.evaluator, party.encrypt(slots(512))
    with pytest.raises(MissingKeyError, match="rotation by 3 at level 9"):
        ev.rotate(x, 3)
    low = Evaluator(SMALL, party.generator.relinearization_key(2), party.generator.galois_keys([1], 2))
    with pytest.raises(MissingKeyError, match="levels up to 2"):
        low.rotate(x, 1)
    with pytest.raises(MissingKeyError, match="levels up to 2"):
        low.mul(x, x)
    low.mul(ev.drop_to(x, 2), ev.drop_to(x, 2))
    with pytest.raises(LevelError, match="level 0"):
        ev.rescale(ev.drop_to(x, 0))
    with pytest.raises(LevelError):
        ev.mul(ev.drop_to(x, 0), x)
    with pytest.raises(LevelError):
        ev.drop_to(ev.drop_to(x, 3), 4)
    with pytest.raises(ScaleError):
        ev.add(x, party.encrypt(1.0, scale=2.0**40))
    with pytest.raises(ScaleError):
        ev.add_plain(x, party.encoder.encode(1.0, scale=2.0**40))
    with pytest.raises(ParameterError):
        ev.rotate(ev.tensor(x, x), 1)
    for bare in (Evaluator(SMALL).conjugate, Evaluator(SMALL).square):
        with pytest.raises(MissingKeyError):
            bare(x)
    with pytest.raises(ParameterError):
        ev.add(x, dataclasses.replace(x, parameters=LEVELED13))


def test_keys_of_another_secret_are_refused(party):
    other = Party(SMALL, steps=(1,), level=1)
    x, y = party.encrypt(1.0), other.encrypt(1.0)
    for operation in (party.evaluator.add, party.evaluator.mul):
        with pytest.raises(ForeignKeyError):
            operation(x, y)
    with pytest.raises(ForeignKeyError):
        party.evaluator.rotate(y.with_slots(512), 1)
    with pytest.raises(ForeignKeyError):
        party.decryptor.decrypt(y)
    with pytest.raises(ForeignKeyError):
        Evaluator(SMALL, party.relinearization, other.galois)


def test_a_secure_set_multiplies_and_rotates():
    party = Party(LEVELED13, steps=(1,))
    a = slots(4096, 1)
    x = party.encrypt(a)
    party.close(party.evaluator.mul(x, x), a * a)
    party.close(party.evaluator.rotate(x, 1), np.roll(a, -1))
    assert isinstance(x, Ciphertext)


def test_the_whole_ring():
    """N = 2^16 and all primes of a shipped set: what shows only there is rare in small rings."""
    party = Party(ENGINE16, steps=(1,))
    x = slots(ENGINE16.slots)
    a = party.encrypt(x)
    party.close(party.evaluator.mul(a, a), x * x, 14)  # the top primes are longer than the scale
    party.close(party.evaluator.rotate(a, 1), np.roll(x, -1), 22)
    party.close(party.evaluator.conjugate(party.evaluator.drop_to(a, 5)), x.conj(), 22)
