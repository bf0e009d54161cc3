"""Parameters, keys and their bytes: round trips, refusals, and what a fuzzer can provoke."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sottovoce.bgv import (
    ROW_SWAP,
    SIMD,
    Ciphertext,
    Evaluator,
    GaloisKeys,
    KeyGenerator,
    ParametersSpec,
    PublicKey,
    RelinearizationKey,
    SecretKey,
    fresh_bytes,
    load_many,
)
from sottovoce.bgv.encryptor import Encryptor
from sottovoce.errors import (
    FrameError,
    IntegrityError,
    ParameterError,
    ParameterMismatchError,
    ProtocolError,
    RefusedError,
    VersionMismatchError,
)
from sottovoce.ring import RingContext
from sottovoce.ring.primes import P_FIELD, P_SMALL, SIMD_PRIMES, SPECIAL_PRIME, ntt_primes
from sottovoce.ring.sampling import Stream, expand
from sottovoce.rlwe import galois_element, slot_positions
from sottovoce.rlwe.randomness import errors, expand_into, ternary, uniform_rns
from sottovoce.rlwe.wire import HEADER_BYTES

TINY = ParametersSpec(16, SIMD_PRIMES, SPECIAL_PRIME, P_FIELD, security="unchecked").checked()
OTHER = ParametersSpec(16, SIMD_PRIMES, SPECIAL_PRIME, P_SMALL, security="unchecked").checked()


# Parameters


def test_the_simd_set():
    assert SIMD.degree == 8192 and SIMD.primes == SIMD_PRIMES and SIMD.plaintext == P_FIELD
    assert math.log2(SIMD.modulus() * SIMD.special) < 214
    assert SIMD == ParametersSpec(8192, SIMD_PRIMES, SPECIAL_PRIME, P_FIELD).checked()
    with pytest.raises(dataclasses.FrozenInstanceError):
        SIMD.spec = SIMD.spec


@pytest.mark.parametrize(
    "change",
    [
        {"degree": 4096},  # QP is too large there
        {"degree": 16},  # not in the table at all
        {"degree": 8191},
        {"primes": ()},
        {"primes": (SIMD_PRIMES[0],) * 3},
        {"primes": (*SIMD_PRIMES[:2], 1 << 50)},
        {"primes": (*SIMD_PRIMES[:2], SIMD_PRIMES[2] + 2)},
        {"special": SIMD_PRIMES[0]},
        {"special": P_FIELD},
        {"plaintext": SIMD_PRIMES[0]},
        {"plaintext": 1 << 43},
        {"plaintext": P_FIELD + 2},
        {"security": 100},
    ],
)
def test_bad_parameters_are_refused(change):
    with pytest.raises(ParameterError):
        dataclasses.replace(SIMD.spec, **change).checked()


def test_unchecked_is_the_only_way_to_insecure_parameters():
    spec = dataclasses.replace(SIMD.spec, degree=1024)
    with pytest.raises(ParameterError):
        spec.checked()
    assert dataclasses.replace(spec, security="unchecked").checked().degree == 1024


def test_digests_tell_sets_apart():
    assert TINY.digest != OTHER.digest and len(TINY.digest) == 8


# Slots


@pytest.mark.parametrize("n", [4, 16, 64])
def test_slots_and_automorphisms(n):
    positions = slot_positions(n)
    assert sorted(positions) == list(range(n))
    with pytest.raises(ValueError):
        positions[0] = 1
    assert galois_element(n, 0) == 1 and galois_element(n, ROW_SWAP) == 2 * n - 1
    elements = {galois_element(n, k) for k in range(n // 2)}
    assert len(elements | {(2 * n - 1) * e % (2 * n) for e in elements}) == n


# Keys


@pytest.fixture(scope="module")
def keys():
    return KeyGenerator(TINY)


def made(keys):
    return [
        keys.secret_key,
        keys.public_key(),
        keys.relinearization_key(),
        keys.galois_keys([1, 3, ROW_SWAP]),
    ]


def content(key):
    if isinstance(key, SecretKey):
        return [key.coefficients]
    if isinstance(key, PublicKey):
        return [key.data]
    if isinstance(key, RelinearizationKey):
        return [key.key.data]
    return [key.keys[step].data for step in key.steps]


@pytest.mark.parametrize("which", range(4))
def test_key_bytes(keys, which):
    key = made(keys)[which]
    data = key.to_bytes()
    again = type(key).from_bytes(TINY, data)
    assert all((a == b).all() for a, b in zip(content(key), content(again), strict=True))
    assert again.to_bytes() == data
    with pytest.raises(ParameterMismatchError):
        type(key).from_bytes(OTHER, data)
    with pytest.raises(VersionMismatchError):
        type(key).from_bytes(TINY, data[:4] + b"\xff" + data[5:])
    for wrong in (data[:-1], data + b"\0", data[:HEADER_BYTES], b"", b"x" * len(data)):
        with pytest.raises(FrameError):
            type(key).from_bytes(TINY, wrong)
    with pytest.raises(IntegrityError):
        type(key).from_bytes(TINY, data[:-1] + bytes([data[-1] ^ 1]))
    other = made(keys)[(which + 1) % 4]
    with pytest.raises(FrameError):
        type(key).from_bytes(TINY, other.to_bytes())


def test_real_sizes():
    """What the documentation says goes over the wire once per session."""
    keys = KeyGenerator(SIMD)
    assert len(keys.public_key().to_bytes()) == HEADER_BYTES + 32 + 153600
    assert len(keys.relinearization_key().to_bytes()) == HEADER_BYTES + 32 + 614400
    assert len(keys.galois_keys([1, 2]).to_bytes()) == HEADER_BYTES + 12 + 2 * (32 + 614400)
    assert len(keys.secret_key.to_bytes()) == HEADER_BYTES + 2048
    assert fresh_bytes(SIMD, 2) == 32 + 2 * 153600


def test_secrets_do_not_print(keys):
    for key in made(keys):
        text = repr(key)
        assert "array" not in text and "seed" not in text, text


def test_secret_keys_are_ternary_and_fresh():
    a, b = SecretKey.generate(SIMD), SecretKey.generate(SIMD)
    assert a == SecretKey.from_bytes(SIMD, a.to_bytes()) and a != b
    counts = [np.count_nonzero(a.coefficients == v) for v in (-1, 0, 1)]
    assert all(abs(c - SIMD.degree / 3) < 6 * math.sqrt(SIMD.degree * 2 / 9) for c in counts)
    with pytest.raises(ParameterError):
        SecretKey(SIMD, np.zeros(16, np.int8))


def test_key_generator_checks(keys):
    with pytest.raises(ParameterError):
        KeyGenerator(OTHER, keys.secret_key)
    with pytest.raises(ParameterError):
        keys.galois_keys([8])
    with pytest.raises(ParameterError):
        keys.galois_keys([-2])
    assert keys.galois_keys([0, 1, 1]).steps == (1,)


# Randomness


@pytest.mark.parametrize("primes", [SIMD_PRIMES, (P_FIELD, P_SMALL), (97, 257)])
def test_native_samplers_draw_what_the_reference_draws(primes):
    """Same seed, same values as `ring.sampling`; moduli far from a power of two need a second draw."""
    n, seed = 1024, bytes(range(32))
    ring = RingContext(n, primes) if primes == SIMD_PRIMES else None
    for native, reference in ((ternary, Stream.ternary), (errors, Stream.error)):
        values = native(Stream(seed), primes, n, 3)
        signed = reference(Stream(seed), 3, n)
        for limb, q in enumerate(primes):
            assert (values[:, limb] == (signed % q).astype(np.uint64)).all()
        if ring is not None:
            assert (values == ring.reduce_signed(signed)).all()
    out = np.empty((len(primes), n), np.uint64)
    expand_into(seed, b"test", primes, out, 5)
    assert (out == expand(seed, b"test", primes, n, 5)).all()
    mask = uniform_rns(Stream(seed), primes, n, 2)
    stream = Stream(seed)
    for polynomial in mask:
        for limb, q in zip(polynomial, primes, strict=True):
            assert (limb == stream.uniform(q, n)).all()
    assert not (uniform_rns(Stream(), primes, n, 1) == uniform_rns(Stream(), primes, n, 1)).all()


# Fuzzing: whatever comes, an error of the tree or a well-formed object; never another exception.

_KEYS = KeyGenerator(TINY)
_SAMPLES = [
    (SecretKey, _KEYS.secret_key.to_bytes()),
    (PublicKey, _KEYS.public_key().to_bytes()),
    (RelinearizationKey, _KEYS.relinearization_key().to_bytes()),
    (GaloisKeys, _KEYS.galois_keys([1, 2, ROW_SWAP]).to_bytes()),
]
_SENT = Encryptor(TINY, _KEYS.secret_key).encrypt_many(np.zeros((2, 16), np.uint64))


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(_SAMPLES), st.data())
def test_damaged_keys_are_refused(sample, data):
    kind, good = sample
    damaged = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        damaged[at] ^= data.draw(st.integers(1, 255))
    cut = data.draw(st.one_of(st.just(len(damaged)), st.integers(0, len(damaged))))
    damaged = bytes(damaged[:cut])
    if damaged != good:
        with pytest.raises((ProtocolError, RefusedError)):
            kind.from_bytes(TINY, damaged)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([SecretKey, PublicKey, RelinearizationKey, GaloisKeys]), st.binary(max_size=4096))
def test_random_payloads_are_refused_or_valid(kind, payload):
    """Past the header and its checksum: a correct frame around anything still gives only checked objects."""
    from sottovoce.rlwe.wire import KINDS, frame

    names = {SecretKey: "secret key", PublicKey: "public key", RelinearizationKey: "relinearization key"}
    name = names.get(kind, "galois keys")
    assert name in KINDS
    try:
        key = kind.from_bytes(TINY, frame(name, TINY, payload))
    except ProtocolError:
        return
    assert all(array.size for array in content(key)) or kind is GaloisKeys


_STORED = load_many(TINY, _SENT, 2)


def test_stored_ciphertexts():
    evaluator = Evaluator(TINY, _KEYS.relinearization_key())
    for ciphertext in (
        _STORED,
        evaluator.tensor_accumulate(_STORED, _STORED),
        evaluator.mod_switch(_STORED),
    ):
        again = Ciphertext.from_bytes(TINY, ciphertext.to_bytes())
        assert (again.data == ciphertext.flat()).all()
        assert (again.noise, again.factor) == (ciphertext.noise, ciphertext.factor)
    with pytest.raises(ParameterMismatchError):
        Ciphertext.from_bytes(OTHER, _STORED.to_bytes())


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=64))
def test_stored_ciphertexts_are_checked_past_the_header(start):
    from sottovoce.rlwe.wire import frame

    good = _STORED.to_bytes()[HEADER_BYTES:]
    try:
        ciphertext = Ciphertext.from_bytes(TINY, frame("ciphertext", TINY, start + good[len(start) :]))
    except ProtocolError:
        return
    assert (ciphertext.data < np.array(TINY.primes, np.uint64)[: ciphertext.limbs, None]).all()


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damaged_ciphertexts_are_refused_or_reduced(data):
    damaged = bytearray(_SENT)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= data.draw(st.integers(1, 255))
    cut = data.draw(st.one_of(st.just(len(damaged)), st.integers(0, len(damaged))))
    try:
        ciphertext = load_many(TINY, bytes(damaged[:cut]), 2)
    except ProtocolError:
        return
    assert (ciphertext.data < np.array(TINY.primes, np.uint64)[:, None]).all()


def test_a_set_without_a_special_prime_has_public_keys_and_no_switching_keys():
    parameters = ParametersSpec(64, ntt_primes(42, 1 << 15, 2), 0, security="unchecked").checked()
    keys = KeyGenerator(parameters)
    public = keys.public_key()
    assert np.array_equal(PublicKey.from_bytes(parameters, public.to_bytes()).data, public.data)
    assert parameters.key_primes == parameters.primes
    with pytest.raises(ParameterError, match="switching"):
        keys.relinearization_key()
