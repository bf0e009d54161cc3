"""Recipes Z and F: exact shares, a uniform view for the receiver, and no way to the weights from it."""

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from chance import LEAST_P
from sottovoce import _native
from sottovoce.bgv import (
    SIMD,
    Encoder,
    Encryptor,
    Evaluator,
    GaloisKeys,
    KeyGenerator,
    ParametersSpec,
    PublicKey,
    failure_bits,
    flood_and_pack,
    flooded_bytes,
    load_many,
    mask_and_pack,
    masked_bytes,
    recipe_f,
    recipe_z,
    unmask_and_decode,
    unpack,
)
from sottovoce.errors import FrameError, ParameterError, RangeError
from sottovoce.ring import sampling
from sottovoce.ring.primes import P_FIELD, SIMD_PRIMES, SPECIAL_PRIME

TINY = ParametersSpec(32, SIMD_PRIMES, SPECIAL_PRIME, P_FIELD, security="unchecked").checked()
P = P_FIELD
_SECRET = KeyGenerator(TINY).secret_key


@pytest.fixture(scope="module", params=[TINY, SIMD], ids=["tiny", "simd"])
def setting(request):
    keys = KeyGenerator(request.param)
    return request.param, keys.secret_key, keys.public_key()


def product(setting, seed, batch):
    """A client's ciphertexts times a server's plaintexts, and the slots of the result."""
    parameters, secret, _ = setting
    rng = np.random.default_rng(seed)
    x, w = rng.integers(0, P, (2, batch, parameters.degree), dtype=np.uint64)
    ciphertext = load_many(parameters, Encryptor(parameters, secret).encrypt_many(x), batch)
    ciphertext = Evaluator(parameters).mul_plain(ciphertext, Encoder(parameters).encode(w))
    return ciphertext, (x.astype(object) * w % P).astype(np.uint64)


def test_recipe_z_is_exact(setting):
    parameters, secret, public = setting
    for seed in range(10):
        ciphertext, expected = product(setting, seed, 3)
        sent, share = mask_and_pack(ciphertext, public)
        assert len(sent) == masked_bytes(parameters, 3)
        assert ((unmask_and_decode(sent, secret, 3) + share) % np.uint64(P) == expected).all()
    single, share = mask_and_pack(ciphertext[1], public)
    assert share.shape == (parameters.degree,)
    assert ((unmask_and_decode(single, secret, 1)[0] + share) % np.uint64(P) == expected[1]).all()


def test_recipe_z_is_exact_at_its_noise_limit():
    """Noise of 62 bits put on by hand: every slot still exact (a failure has probability 2^-31)."""
    keys = KeyGenerator(SIMD)
    rng = np.random.default_rng(0)
    x = rng.integers(0, P, (4, SIMD.degree), dtype=np.uint64)
    ciphertext = Encryptor(SIMD, keys.secret_key).encrypt(Encoder(SIMD).encode(x))
    ring = SIMD.ring()
    wide = ring.reduce_signed(np.rint(rng.normal(size=(4, SIMD.degree)) * 2.0**31).astype(np.int64))
    noise = ring.ntt(ring.mul_scalar(wide, (1 << 31) * P))
    ciphertext.data[:, 0] = ring.add(np.ascontiguousarray(ciphertext.data[:, 0]), noise)
    sent, share = mask_and_pack(ciphertext, keys.public_key())
    assert ((unmask_and_decode(sent, keys.secret_key, 4) + share) % np.uint64(P) == x).all()


def test_recipe_z_failure_bound():
    """The written bound holds at the limit; and the formula predicts failures where they are frequent."""
    assert failure_bits(SIMD, recipe_z.NOISE_LIMIT) <= -30
    keys = KeyGenerator(SIMD)
    rng = np.random.default_rng(1)
    batch, bits = 8, 91
    phase_error = [(int(v) << (bits - 52)) for v in np.rint(rng.normal(size=SIMD.degree * batch) * 2.0**52)]
    x = rng.integers(0, P, (batch, SIMD.degree), dtype=np.uint64)
    ciphertext = Encryptor(SIMD, keys.secret_key).encrypt(Encoder(SIMD).encode(x))
    ring = SIMD.ring()
    noise = np.array([[e * P % q for e in phase_error] for q in SIMD.primes], np.uint64)
    noise = ring.ntt(np.ascontiguousarray(noise.reshape(3, batch, -1).transpose(1, 0, 2)))
    ciphertext.data[:, 0] = ring.add(np.ascontiguousarray(ciphertext.data[:, 0]), noise)
    sent, share = mask_and_pack(ciphertext, keys.public_key())
    total = (unmask_and_decode(sent, keys.secret_key, batch) + share) % np.uint64(P)
    wrong = Encoder(SIMD).encode((total + np.uint64(P) - x) % np.uint64(P)).coefficients != 0
    expected = batch * 2.0 ** failure_bits(SIMD, bits)
    assert abs(wrong.sum() - expected) < 6 * math.sqrt(expected), (wrong.sum(), expected)


def test_recipe_z_refuses_what_it_cannot_promise(setting):
    parameters, secret, public = setting
    ciphertext, _ = product(setting, 0, 1)
    ev = Evaluator(parameters)
    with pytest.raises(RangeError):
        mask_and_pack(
            ev.mul_plain(ciphertext, Encoder(parameters).encode(np.ones(parameters.degree, np.uint64))),
            public,
        )
    with pytest.raises(ParameterError):
        mask_and_pack(ev.mod_switch(ciphertext), public)
    sent, _ = mask_and_pack(ciphertext, public)
    for bad in (sent[:-1], sent + b"\0", b""):
        with pytest.raises(FrameError):
            unmask_and_decode(bad, secret, 1)


def phases(parameters, secret, sent, count, kappa_a, kappa_b):
    """What the client sees besides A': the fractions of (B' + A'·s)/Q, as floats in [0, 1)."""
    n, primes = parameters.degree, list(parameters.primes[:2])
    ring = parameters.ring(2)
    split = count * n // 8 * kappa_a
    raw = np.frombuffer(sent, np.uint8)
    x = np.empty((count, 2, n), np.uint64)
    _native.bgv_unpack_lift(raw[:split].reshape(count, -1), kappa_a, primes, x)
    ring.intt(ring.mul(ring.ntt(x), secret.limbs(2), x))
    y = np.empty((count, 2, n), np.uint64)
    _native.bgv_unpack_lift(raw[split:].reshape(count, -1), kappa_b, primes, y)
    ring.add(x, y, x)
    modulus = primes[0] * primes[1]
    total = sum(
        x[:, i].astype(object) * (modulus // q * pow(modulus // q, -1, q)) for i, q in enumerate(primes)
    )
    return total % modulus, modulus


def uniform(values, bins=64):
    """p-value of a χ² test that values in [0, 1) are uniform."""
    return scipy.stats.chisquare(np.bincount((values * bins).astype(int), minlength=bins)).pvalue


def test_the_clients_view_is_uniform():
    """A' and the masked phase: top bits, and the bits below p that a mask modulo p would leave open."""
    keys = KeyGenerator(SIMD)
    setting = SIMD, keys.secret_key, keys.public_key()
    ciphertext, _ = product(setting, 3, 4)
    sent, share = mask_and_pack(ciphertext, setting[2])
    total, modulus = phases(SIMD, setting[1], sent, 4, recipe_z.KAPPA_A, recipe_z.KAPPA_B)
    flat = total.reshape(-1)
    top = np.array([float(v) / modulus for v in flat])
    low = np.array([float(v * P % modulus) / modulus for v in flat])
    views = {"phase": top, "phase below p": low, "share": share.reshape(-1) / P}
    a_bytes = np.frombuffer(sent, np.uint8)[: 4 * SIMD.degree // 8 * recipe_z.KAPPA_A]
    views["A bytes"] = a_bytes / 256
    for name, values in views.items():
        assert uniform(values) > LEAST_P, name
    # The same ciphertext masked modulo p only: the phase below p is noise around zero.
    flooded, _ = _masked_mod_p(ciphertext, setting[2], flood=False)
    total, modulus = phases(SIMD, setting[1], flooded, 4, 92, 88)
    low = np.array([float(v * P % modulus) / modulus for v in total.reshape(-1)])
    assert uniform(low) < 1e-100


def _masked_mod_p(ciphertext, public, flood):
    """Recipe F's mask, with or without its flood, at recipe Z's precision."""
    parameters = ciphertext.parameters
    ring, stream = parameters.ring(), sampling.Stream()
    a, b = recipe_z.rerandomised_halves(ciphertext, public)
    mask = stream.uniform(P, len(b), parameters.degree)
    wide = np.empty_like(b)
    _native.bgv_lift(mask, P, 1, list(parameters.primes), wide)
    ring.add(b, ring.mul_scalar(wide, pow(P, -1, parameters.modulus())), b)
    assert not flood
    return recipe_z.pack_halves((a, b), parameters, 92, 88), mask


def _solve_a(received, chosen, parameters):
    """The client chose A; if A' = W·A came back untouched, W = A'/A pointwise in NTT form."""
    ring = parameters.ring()
    inverse = np.array(
        [[pow(int(v), -1, q) for v in row] for row, q in zip(chosen, ring.primes, strict=True)], np.uint64
    )
    return ring.intt(ring.mul(received, inverse))


def test_weights_can_be_extracted_without_the_encryption_of_zero():
    """Control of the attack, and its failure: only the missing step makes the difference."""
    parameters = TINY
    keys = KeyGenerator(parameters)
    setting = parameters, keys.secret_key, keys.public_key()
    rng = np.random.default_rng(5)
    weights = rng.integers(0, P, (1, parameters.degree), dtype=np.uint64)
    plain = Encoder(parameters).encode(weights)
    x = Encryptor(parameters, setting[1]).encrypt(Encoder(parameters).encode(weights))
    result = Evaluator(parameters).mul_plain(x, plain)
    ring = parameters.ring()
    inverse_p = pow(P, -1, parameters.modulus())
    target = np.empty((1, 3, parameters.degree), np.uint64)
    _native.bgv_lift(plain.coefficients, P, 1, list(parameters.primes), target)

    untouched = ring.mul_scalar(result.data[:, 1].copy(), inverse_p)
    found = _solve_a(ring.mul_scalar(untouched, P)[0], x.data[0, 1], parameters)
    assert (found == target[0]).all()

    a, _ = recipe_z.rerandomised_halves(result, setting[2])
    found = _solve_a(ring.mul_scalar(ring.ntt(a), P)[0], x.data[0, 1], parameters)
    assert (found == target[0]).mean() < 0.1


def test_weights_can_be_extracted_under_a_mask_modulo_p_without_flood():
    """The client chooses its errors: with a known large e, the low bits of the phase are W·e."""
    parameters = TINY
    keys = KeyGenerator(parameters)
    secret, public = keys.secret_key, keys.public_key()
    n, ring = parameters.degree, parameters.ring()
    rng = np.random.default_rng(6)
    plain = Encoder(parameters).encode(rng.integers(0, P, (1, n), dtype=np.uint64))
    weights = plain.coefficients[0].astype(object)
    weights = np.where(weights > P // 2, weights - P, weights)
    # An encryption of zero whose error is the constant 2^63: its product with W has error 2^63·W.
    ciphertext = Encryptor(parameters, secret).encrypt(
        Encoder(parameters).encode(np.zeros((1, n), np.uint64))
    )
    constant = np.zeros((1, 3, n), np.uint64)
    constant[..., 0] = [(P << 63) % q for q in parameters.primes]
    ciphertext.data[:, 0] = ring.add(np.ascontiguousarray(ciphertext.data[:, 0]), ring.ntt(constant))
    result = Evaluator(parameters).mul_plain(ciphertext, plain)

    def recovered(sent):
        total, modulus = phases(parameters, secret, sent, 1, 92, 88)
        # phase/Q = j/p + (m/p + e)/Q: fold out the multiples of 1/p, then scale the rest back to e.
        low = total[0] * P % modulus
        low = np.where(low > modulus // 2, low - modulus, low)
        guess = np.array([round(float(v) / modulus * parameters.modulus() / P / 2.0**63) for v in low])
        return float(np.mean(guess == weights))

    # The rounding of A and B leaves 2^61 at most, so that weights come out to the last bit.
    assert recovered(_masked_mod_p(result, public, flood=False)[0]) > 0.9
    assert recovered(mask_and_pack(result, public)[0]) < 0.1


def test_recipe_f_is_exact(setting):
    parameters, secret, public = setting
    for seed in range(5):
        ciphertext, expected = product(setting, seed, 2)
        sent, share = flood_and_pack(ciphertext, public)
        assert len(sent) == flooded_bytes(parameters, 2)
        assert ((unpack(sent, secret, 2) + share) % np.uint64(P) == expected).all()
    with pytest.raises(RangeError):
        ev = Evaluator(parameters)
        plain = Encoder(parameters).encode(np.ones(parameters.degree, np.uint64))
        flood_and_pack(ev.mul_plain(ev.mul_plain(ciphertext, plain), plain), public)
    with pytest.raises(FrameError):
        unpack(sent[1:], secret, 2)


def test_recipe_f_floods_as_much_as_it_says():
    """The error that the client can see is uniform and 2^50 times what it bounds, for every honest noise."""
    keys = KeyGenerator(SIMD)
    setting = SIMD, keys.secret_key, keys.public_key()
    ciphertext, _ = product(setting, 4, 2)
    width = recipe_f.flood_bits(SIMD, ciphertext.noise)
    assert width >= ciphertext.noise + math.log2(6) + recipe_f.FLOOD_BITS
    sent, _ = flood_and_pack(ciphertext, setting[2])
    total, modulus = phases(SIMD, setting[1], sent, 2, recipe_f.KAPPA_A, recipe_f.KAPPA_B)
    low = total.reshape(-1) * P % modulus
    low = np.where(low > modulus // 2, low - modulus, low)
    spread = np.std([float(v) / modulus for v in low]) * SIMD.modulus() / P
    rounding = math.hypot(
        2.0**-recipe_f.KAPPA_A * math.sqrt(8192 / 18), 2.0**-recipe_f.KAPPA_B / math.sqrt(12)
    )
    expected = math.hypot(2.0**width / math.sqrt(3), rounding * SIMD.modulus())
    # The deviation of 16,384 uniform values is known to 0.005 bits.
    assert abs(math.log2(spread / expected)) < 0.05


@pytest.mark.parametrize("server", ["portable", "avx2", "avx512"])
@pytest.mark.parametrize("client", ["portable", "avx512"])
def test_parties_on_different_machines(server, client):
    """Each party computes with its own instruction set; bytes mean the same to both."""
    before = _native.active_isa()
    rng = np.random.default_rng(8)
    x, w = rng.integers(0, P, (2, 1, SIMD.degree), dtype=np.uint64)
    try:
        _native.set_isa(client)
        keys = KeyGenerator(SIMD)
        secret, public, galois = keys.secret_key, keys.public_key(), keys.galois_keys([1])
        sent = Encryptor(SIMD, secret).encrypt_many(x)
        _native.set_isa(server)
        ev = Evaluator(SIMD, galois_keys=GaloisKeys.from_bytes(SIMD, galois.to_bytes()))
        ciphertext = ev.mul_plain(ev.rotate(load_many(SIMD, sent, 1), 1), Encoder(SIMD).encode(w))
        back, share = mask_and_pack(ciphertext, PublicKey.from_bytes(SIMD, public.to_bytes()))
        _native.set_isa(client)
        total = (unmask_and_decode(back, secret, 1) + share) % np.uint64(P)
    finally:
        _native.set_isa(before)
    turned = np.concatenate([np.roll(row, -1) for row in x.reshape(2, -1)])
    assert (total[0] == (turned.astype(object) * w[0] % P).astype(np.uint64)).all()


@settings(max_examples=50, deadline=None)
@given(st.binary(min_size=720, max_size=720))
def test_any_bytes_of_the_right_size_decode(data):
    """There is nothing to validate in a masked result: every string is some ciphertext."""
    assert masked_bytes(TINY, 1) == len(data)
    assert (unmask_and_decode(data, _SECRET, 1) < np.uint64(P)).all()
    assert (unpack(data[: flooded_bytes(TINY, 1)], _SECRET, 1) < np.uint64(P)).all()
