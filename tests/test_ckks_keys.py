"""CKKS keys: parameter checks, seeded halves, levels, and bytes from strangers."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sottovoce.ckks import (
    BOOT16,
    CONJUGATE,
    ENGINE16,
    FULL16,
    LEVELED13,
    LEVELED14,
    LEVELED15,
    Ciphertext,
    Decryptor,
    EncapsulationKeys,
    Encoder,
    Encryptor,
    Evaluator,
    GaloisKeys,
    KeyGenerator,
    Parameters,
    ParametersSpec,
    PublicKey,
    RelinearizationKey,
    SecretKey,
    SwitchingKey,
    chain,
    flood,
    load_fresh,
)
from sottovoce.errors import (
    ForeignKeyError,
    FrameError,
    IntegrityError,
    MissingKeyError,
    ParameterError,
    ParameterMismatchError,
    SottovoceError,
)
from sottovoce.ring.security import limit

N = 64


def tiny(degree=N, secret="ternary", **changes):
    primes = chain(degree, [49, 41, 41, 50, 50])
    fields = {"primes": primes[:3], "special": primes[3:], "secret": secret, "security": "unchecked"}
    return ParametersSpec(degree, **{**fields, **changes}).checked()


TINY = tiny()


@pytest.fixture(scope="module")
def generator():
    return KeyGenerator(TINY)


@pytest.mark.parametrize(
    "parameters, bits, levels",
    [(BOOT16, 1527, 9), (ENGINE16, 1724, 16), (FULL16, 1732, 14)],
)
def test_shipped_sets_keep_their_budget(parameters, bits, levels):
    assert parameters.log_qp == pytest.approx(bits, abs=0.01)
    assert parameters.log_qp <= limit(parameters.degree, parameters.spec.secret).log_qp
    assert parameters.working_top == levels
    assert max(*parameters.primes, *parameters.special) < 1 << 50
    # A digit is at least six bits smaller than P, and the scales stay within 2^-15 of 2^41.
    for first in range(0, parameters.top + 1, parameters.alpha):
        digit = math.prod(parameters.primes[first : first + parameters.alpha])
        assert parameters.special_modulus >= 60 * digit
    for q in parameters.primes[1 : levels + 1]:
        assert abs(q / 2**41 - 1) < 2**-15


@pytest.mark.parametrize("parameters", [LEVELED13, LEVELED14, LEVELED15])
def test_leveled_sets_are_secure(parameters):
    assert parameters.spec.security == 128
    assert parameters.log_qp <= limit(parameters.degree).log_qp


def test_often_quoted_insecure_sets_are_refused():
    """1,763 bits with a sparse secret; and a dense one over the limit."""
    with pytest.raises(ParameterError, match="not 128-bit secure"):
        dataclasses.replace(ENGINE16.spec, secret="sparse-192").checked()
    for parameters in (BOOT16, ENGINE16):
        longer = (*parameters.primes, *chain(1 << 16, [48]))
        with pytest.raises(ParameterError, match="not 128-bit secure"):
            dataclasses.replace(parameters.spec, primes=longer).checked()
    with pytest.raises(ParameterError, match="no row"):
        dataclasses.replace(LEVELED15.spec, secret="sparse-192").checked()


@pytest.mark.parametrize(
    "changes",
    [
        {"degree": 100},
        {"primes": ()},
        {"special": ()},
        {"primes": (TINY.primes[0],) * 2},
        {"primes": (97,)},
        {"primes": (*TINY.primes, (1 << 50) + 1)},
        {"special": chain(N, [41, 41, 41, 41])[2:]},
        {"scale": 0.5},
        {"secret": "dense"},
        {"secret": "sparse-192"},
        {"refresh": (1, 1, 1)},
        {"security": 100},
    ],
)
def test_inconsistent_parameters_are_refused(changes):
    with pytest.raises(ParameterError):
        spec = {**vars(TINY.spec), **changes}
        Parameters(ParametersSpec(**spec))


def test_secrets_have_the_stated_weight():
    parameters = tiny(1024, "sparse-192")
    secret = KeyGenerator(parameters).secret_key
    assert np.count_nonzero(secret.coefficients) == 192
    assert SecretKey.from_bytes(parameters, secret.to_bytes()) == secret
    ephemeral = SecretKey.generate(parameters, "ephemeral-32")
    assert np.count_nonzero(ephemeral.coefficients) == 32
    signs = SecretKey.generate(parameters).coefficients
    assert set(np.unique(signs)) == {-1, 0, 1}


def test_the_ephemeral_secret_never_meets_a_large_modulus():
    """A key under it over all of Q·P would cost about 20 bits of security."""
    secret = SecretKey.generate(TINY, "ephemeral-32")
    source = TINY.ring(0).zeros()
    SwitchingKey.generate(secret, source, 0, special=1)
    for level, special in ((0, 2), (2, 1)):
        with pytest.raises(ParameterError, match="ephemeral"):
            SwitchingKey.generate(secret, TINY.ring(level).zeros(), level, special)
    with pytest.raises(ParameterError, match="ephemeral"):
        Encryptor(TINY, secret).encrypt(Encoder(TINY).encode(1.0))
    keys = KeyGenerator(TINY).encapsulation_keys()
    with pytest.raises(ParameterError, match="ephemeral"):
        EncapsulationKeys(TINY, keys.key_id, keys.up, keys.up)


def test_a_key_is_an_encryption_of_multiples_of_its_source(generator):
    secret = generator.secret_key
    ring = TINY.wide_ring(2)
    s = secret.ntt(ring.primes)
    key = generator.relinearization_key().key
    from sottovoce import _native

    p = TINY.special_modulus
    for d in range(2):
        a = np.empty((ring.limbs, N), np.uint64)
        _native.ckks_expand(key.uniform[d], list(ring.primes), a, 1)
        phase = ring.add(key.b[d], ring.mul(a, s))
        covered = range(2 * d, min(2 * d + 2, 3))
        gadget = [p if limb in covered else 0 for limb in range(ring.limbs)]
        error = ring.intt(ring.sub(phase, ring.mul_scalar(ring.mul(s, s), gadget)))
        centred = [min(int(v), q - int(v)) for q, row in zip(ring.primes, error, strict=True) for v in row]
        assert max(centred) <= 21


def test_keys_cost_half_and_survive_bytes(generator):
    galois = generator.galois_keys({1: 2, 3: 0, CONJUGATE: 1})
    assert galois.keys[1].nbytes == 2 * 5 * N * 8 and galois.keys[3].nbytes == 1 * 3 * N * 8
    assert galois.nbytes == sum(key.nbytes for key in galois.keys.values())
    back = GaloisKeys.from_bytes(TINY, galois.to_bytes())
    assert back.steps == (CONJUGATE, 1, 3) and back.key_id == galois.key_id
    assert all(np.array_equal(back.keys[k].b, galois.keys[k].b) for k in galois.steps)
    merged = GaloisKeys(TINY, galois.key_id, {})
    for part in galois.parts():
        merged = merged.merge(GaloisKeys.from_bytes(TINY, part.to_bytes()))
    assert merged.steps == galois.steps
    relinearization = RelinearizationKey.from_bytes(TINY, generator.relinearization_key().to_bytes())
    capsule = EncapsulationKeys.from_bytes(TINY, generator.encapsulation_keys().to_bytes())
    evaluator = Evaluator(TINY, relinearization, merged, capsule)
    z = np.linspace(-1, 1, N // 2)
    x = Encryptor(TINY, generator.secret_key).encrypt(Encoder(TINY).encode(z))
    decryptor = Decryptor(TINY, generator.secret_key)
    assert np.max(np.abs(decryptor.decrypt_slots(evaluator.rotate(x, 1)) - np.roll(z, -1))) < 2**-25
    assert np.max(np.abs(decryptor.decrypt_slots(evaluator.square(x)) - z * z)) < 2**-20
    with pytest.raises(MissingKeyError):
        evaluator.rotate(x, 3)
    with pytest.raises(ForeignKeyError):
        merged.merge(KeyGenerator(TINY).galois_keys([1]))


def test_ciphertexts_and_public_keys_survive_bytes(generator):
    z = np.linspace(-1, 1, N // 2) * 1j
    plain = Encoder(TINY).encode(z, 1)
    decryptor = Decryptor(TINY, generator.secret_key)
    public = PublicKey.from_bytes(TINY, generator.public_key().to_bytes())
    for ct in (
        load_fresh(TINY, Encryptor(TINY, generator.secret_key).encrypt_bytes(plain)),
        Ciphertext.from_bytes(TINY, Encryptor(TINY, public).encrypt(plain).to_bytes()),
    ):
        assert (ct.level, ct.scale, ct.slots) == (1, plain.scale, N // 2)
        assert np.max(np.abs(decryptor.decrypt_slots(ct) - z)) < 2**-25
    fresh = Encryptor(TINY, generator.secret_key).encrypt_bytes(plain)
    assert len(fresh) < 0.55 * len(load_fresh(TINY, fresh).to_bytes())


def loaders(generator):
    plain = Encoder(TINY).encode(0.5, 1)
    encryptor = Encryptor(TINY, generator.secret_key)
    return {
        SecretKey.from_bytes: generator.secret_key.to_bytes(),
        PublicKey.from_bytes: generator.public_key().to_bytes(),
        RelinearizationKey.from_bytes: generator.relinearization_key(0).to_bytes(),
        GaloisKeys.from_bytes: generator.galois_keys({1: 0, 2: 0}).to_bytes(),
        EncapsulationKeys.from_bytes: generator.encapsulation_keys(0).to_bytes(),
        Ciphertext.from_bytes: encryptor.encrypt(plain).to_bytes(),
        load_fresh: encryptor.encrypt_bytes(plain),
    }


def test_damaged_bytes_are_refused(generator):
    for load, data in loaders(generator).items():
        load(TINY, data)
        for damaged in (b"", data[:10], data[:-1], data + b"\0", b"X" + data[1:]):
            with pytest.raises(FrameError):
                load(TINY, damaged)
        flipped = bytearray(data)
        flipped[len(data) // 2] ^= 1
        with pytest.raises(IntegrityError):
            load(TINY, bytes(flipped))
        with pytest.raises(ParameterMismatchError):
            load(tiny(128), data)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_bytes_behind_a_valid_header_are_refused_or_valid(generator, data):
    """Whatever the payload: an error of the package, or an object whose residues are reduced."""
    from sottovoce.rlwe.wire import HEADER_BYTES, KINDS, frame

    load, good = data.draw(st.sampled_from(list(loaders(generator).items())))
    payload = bytearray(good[HEADER_BYTES:])
    for _ in range(data.draw(st.integers(1, 4))):
        # Most fields that mean something come first.
        bound = data.draw(st.sampled_from([40, len(payload)]))
        payload[data.draw(st.integers(0, min(bound, len(payload)) - 1))] = data.draw(st.integers(0, 255))
    payload = payload[: data.draw(st.sampled_from([len(payload), len(payload) // 2, 3]))]
    kind = next(name for name, number in KINDS.items() if number == good[5])
    try:
        loaded = load(TINY, frame(kind, TINY, bytes(payload)))
    except SottovoceError:
        return
    if isinstance(loaded, Ciphertext):
        primes = np.array(TINY.primes[: loaded.level + 1], np.uint64)[:, None]
        assert (loaded.data < primes).all()


def test_flooding_adds_the_stated_noise():
    values = np.zeros(4096, np.complex128)
    flooded = flood(values, 2.0**-40, 20)
    assert np.std(flooded.real) == pytest.approx(2.0**-20, rel=0.1)
    assert np.std(flooded.imag) == pytest.approx(2.0**-20, rel=0.1)
    for bound, bits in ((0.0, 10), (1.0, 61), (math.inf, 3)):
        with pytest.raises(ParameterError):
            flood(values, bound, bits)
