"""Dense products: kernels against Python integers on every instruction set, noise, refusals."""

import hashlib
import math

import numpy as np
import pytest

from sottovoce import _native
from sottovoce.dense import (
    DENSE,
    FRESH_BITS,
    LOG_Q,
    SENT_BITS,
    BatchAnswers,
    BatchSecret,
    DenseParameters,
    HintSecret,
    answer_bytes,
    fresh_bytes,
    matrix_product,
    public_key_bytes,
    reference,
    row_keys,
    row_residues,
    row_words,
    server_share,
    share_of_phase,
)
from sottovoce.dense.public import feature_rows, polynomials, rerandomiser
from sottovoce.errors import FrameError, ParameterError
from sottovoce.net import unpack_bits
from sottovoce.ring import context
from sottovoce.ring.primes import P_FIELD

U64 = np.uint64
MASK = (1 << LOG_Q) - 1
SMALL = DenseParameters(degree=64, block=16, security="unchecked")
SEED = bytes(range(32))
ISAS = ["portable", "avx2", "avx512"]


@pytest.fixture(params=ISAS)
def isa(request):
    if ISAS.index(request.param) > ISAS.index(_native.detected_isa()):
        pytest.skip(f"this machine has no {request.param}")
    _native.set_isa(request.param)
    yield request.param
    _native.set_isa(_native.detected_isa())


def exact_words(w: np.ndarray, x: np.ndarray) -> np.ndarray:
    return ((w.astype(object) @ x.astype(object)) % (1 << LOG_Q)).astype(U64)


def signed(words: np.ndarray) -> np.ndarray:
    """Errors as the definition of the distribution has them."""
    low = np.bitwise_count(words & U64(0x1FFFFF)).astype(int)
    return low - np.bitwise_count((words >> U64(21)) & U64(0x1FFFFF)).astype(int)


def ternary(coins: np.ndarray) -> np.ndarray:
    return (coins.astype(U64) * U64(3) >> U64(32)).astype(int) - 1


@pytest.mark.parametrize(("rows", "depth", "cols"), [(1, 1, 1), (5, 7, 3), (13, 300, 33), (200, 513, 130)])
def test_words_are_multiplied_exactly(isa, rows, depth, cols):
    rng = np.random.default_rng(rows)
    w = rng.integers(-(2**15), 2**15, (rows, depth + 3), dtype=np.int16)
    w[0] = -(2**15)
    x = rng.integers(0, 1 << LOG_Q, (depth, cols), dtype=U64)
    x[:, 0] = MASK
    out = np.empty((rows, cols), U64)
    matrix_product(w, 2, x, out, False)
    expected = exact_words(w[:, 2 : 2 + depth], x)
    assert np.array_equal(out, expected)
    matrix_product(w, 0, x, out, True)
    assert np.array_equal(out, (expected + exact_words(w[:, :depth], x)) & U64(MASK))


def test_shapes_of_products_are_checked():
    w, x = np.zeros((2, 3), np.int16), np.zeros((3, 4), U64)
    for first, words, out in [(1, x, (2, 4)), (4, x[:0], (2, 4)), (0, x[:0], (2, 4)), (0, x, (2, 3))]:
        with pytest.raises(ValueError):
            matrix_product(w, first, words, np.zeros(out, U64), False)


def test_fresh_ciphertexts_equal_the_reference(isa):
    rng, n, count = np.random.default_rng(1), 11, 6  # the second polynomial is only half full
    secret = BatchSecret(SMALL, SEED)
    s = np.array(_coefficients(secret)).reshape(16, 4).T
    message = rng.integers(0, P_FIELD, (count, n), dtype=U64)
    message[0, :2] = 0, P_FIELD - 1
    data = secret.encrypt(3, 0, message)
    assert len(data) == fresh_bytes(count, n)
    sent = unpack_bits(data, count * n, FRESH_BITS).reshape(count, n)
    noise = signed(row_words(row_keys(secret._errors, b"errors of matrix 3", 0, count), 0, n))
    for j, a in enumerate(polynomials(SMALL, SEED, 3, 0, 2)):
        whole, errors = np.zeros((2, 4, 16), dtype=object)
        for k in range(4):
            if 4 * j + k < count:
                whole[k, :n] = message[4 * j + k]
                errors[k, :n] = noise[4 * j + k]
        expected = reference.fresh(SMALL, *(natural(SMALL, x) for x in (a, s, whole, errors)))
        for k in range(4):
            if 4 * j + k < count:
                assert sent[4 * j + k].tolist() == expected[k : 4 * n + k : 4]


def test_features_are_shifted_to_the_component_that_is_read():
    rows = feature_rows(SMALL, SEED, 2, 4, 7)
    for i, row in enumerate(rows):
        whole = natural(SMALL, polynomials(SMALL, SEED, 2, 1 + i // 4, 1)[0])
        assert natural(SMALL, row) == [x % (1 << LOG_Q) for x in reference.shifted(whole, i % 4)]


def test_hints_answers_and_phases_equal_the_reference(isa):
    rng, n, rows, inputs = np.random.default_rng(2), 13, 9, 10
    hints, secret = HintSecret(SMALL, SEED, bytes(32)), BatchSecret(SMALL, SEED)
    w = rng.integers(-(2**15), 2**15, (rows, inputs), dtype=np.int16)
    public_key = secret.public_key()
    answers = BatchAnswers(hints, public_key, n)
    fresh = answers.load(secret.encrypt(0, 0, rng.integers(0, P_FIELD, (inputs, n), dtype=U64)), inputs)
    sums = matrix_product(w, 0, fresh, np.empty((rows, n), U64), False)
    hint, answer = hints.hint(0, w, 0, rows), answers.answer(0, sums, 0)
    opened = secret.open(hint, answer, n)

    fixed = exact_words(w, feature_rows(SMALL, SEED, 0, 0, inputs))
    u = ternary(hints.coins(0, 0, rows))
    e = signed(row_words(row_keys(hints.secret, b"errors of matrix 0", 0, rows), 0, 64))
    key = unpack_bits(public_key, 64, FRESH_BITS)
    drop = FRESH_BITS - SENT_BITS
    upper = ((key + U64(1 << (drop - 1))) >> U64(drop)) & U64((1 << SENT_BITS) - 1)
    a, b = natural(SMALL, rerandomiser(SMALL, SEED)), natural(SMALL, upper)
    masks = row_words(row_keys(answers.masks, b"masks of matrix 0", 0, n), 0, rows)
    s = _coefficients(secret)
    for r in range(rows):
        row = reference.hint(natural(SMALL, fixed[r]), natural(SMALL, u[r]), a, natural(SMALL, e[r]))
        assert natural(SMALL, unpack_bits(hint[r], 64, SENT_BITS)) == row
        reply = reference.answer(sums[r].tolist(), natural(SMALL, u[r]), b, masks[:, r].tolist(), 4)
        assert unpack_bits(answer[r], n, SENT_BITS).tolist() == reply
        assert opened[r].tolist() == reference.phase(row, s, reply, 4)
        mine = [reference.share(x, SENT_BITS, P_FIELD) for x in opened[r].tolist()]
        assert share_of_phase(SMALL, opened)[r].tolist() == mine
        other = [-reference.share(int(z) & MASK, LOG_Q, P_FIELD) % P_FIELD for z in masks[:, r]]
        assert server_share(SMALL, answers.masks, 0, 0, n, rows)[:, r].tolist() == other

    # Where the product will be opened, all bits of the key count.
    again = BatchAnswers(hints, public_key, n, answers.masks).answer(0, sums, 0, opened=True)
    whole = [x << (LOG_Q - FRESH_BITS) for x in natural(SMALL, key)]
    for r in range(rows):
        product = reference.negacyclic(whole, natural(SMALL, u[r]))[::4]
        words = [int(s) + x + int(z) for s, x, z in zip(sums[r], product, masks[:, r], strict=False)]
        assert unpack_bits(again[r], n, SENT_BITS).tolist() == [
            reference.upper(x % (1 << LOG_Q), SENT_BITS) for x in words
        ]


def test_public_keys_hide_a_small_error():
    secret = BatchSecret(SMALL, SEED)
    b = [x << (LOG_Q - FRESH_BITS) for x in natural(SMALL, unpack_bits(secret.public_key(), 64, FRESH_BITS))]
    product = reference.negacyclic(natural(SMALL, rerandomiser(SMALL, SEED)), _coefficients(secret))
    error = np.array(
        [(int(x) + y + (1 << 51)) % (1 << 52) - (1 << 51) for x, y in zip(b, product, strict=True)]
    )
    assert np.abs(error).max() <= 21 + 4


@pytest.mark.parametrize(("d_out", "d_in", "n"), [(64, 30, 512), (96, 576, 100), (33, 1536, 64)])
def test_error_of_a_product_is_the_predicted_one(d_out, d_in, n):
    rng = np.random.default_rng(d_in)
    # Rows as heavy as the heaviest of SmolLM2: 2^15.8 for its o and down matrices.
    w = rng.normal(0, 2**15.8 / math.sqrt(1536), (d_out, d_in)).astype(np.int16)
    error = product_error(DENSE, w, n)
    predicted = DENSE.noise(float(np.linalg.norm(w.astype(float), axis=1).mean()))
    assert 0.9 < error.std() / predicted < 1.1
    assert abs(error.mean()) < 8 * predicted / math.sqrt(error.size)
    assert error.std() < 2.0 ** (23 - 13)  # at 2^-23: below 2^-13, the rounding of activations


def product_error(parameters: DenseParameters, w: np.ndarray, n: int) -> np.ndarray:
    hints = HintSecret.generate(parameters)
    secret = BatchSecret(parameters, hints.seed)
    answers = BatchAnswers(hints, secret.public_key(), n)
    r = row_residues(row_keys(SEED, b"inputs", 0, n), w.shape[1], P_FIELD)
    words = answers.load(secret.encrypt(5, 0, np.ascontiguousarray(r.T)), w.shape[1])
    sums = matrix_product(w, 0, words, np.empty((len(w), n), U64), False)
    u = share_of_phase(parameters, secret.open(hints.hint(5, w, 0, len(w)), answers.answer(5, sums, 0), n))
    z = server_share(parameters, answers.masks, 5, 0, n, len(w))
    exact = (r.astype(object) @ w.T.astype(object)) % P_FIELD
    error = (u.T.astype(object) + z.astype(object) - exact) % P_FIELD
    return np.where(error > P_FIELD // 2, error - P_FIELD, error).astype(float)


def test_parameters_are_checked():
    assert DENSE.features == 4 and LOG_Q <= 53
    for bad in ({"degree": 1024}, {"block": 600}, {"block": 0}, {"degree": 2000}, {"plaintext": 257}):
        with pytest.raises(ParameterError):
            DenseParameters(**bad)


def test_nothing_is_encrypted_or_answered_twice():
    secret = BatchSecret(SMALL, SEED)
    message = np.zeros((4, 3), U64)
    secret.encrypt(0, 0, message)
    secret.encrypt(0, 4, message[:1])  # fills its ciphertext
    secret.encrypt(1, 0, message)
    for matrix, first in ((0, 0), (0, 4), (0, 9)):
        with pytest.raises(ParameterError, match="cannot be encrypted"):
            secret.encrypt(matrix, first, message)
    answers = BatchAnswers(HintSecret.generate(SMALL), secret.public_key(), 3)
    answers.answer(0, np.zeros((4, 3), U64), 0)
    with pytest.raises(ParameterError, match="answered"):
        answers.answer(0, np.zeros((4, 3), U64), 2)
    with pytest.raises(ParameterError, match="tokens"):
        BatchAnswers(HintSecret.generate(SMALL), secret.public_key(), 17)


def test_wrong_sizes_are_refused_and_any_bytes_open():
    hints = HintSecret.generate(SMALL)
    secret = BatchSecret(SMALL, hints.seed)
    rng = np.random.default_rng(0)
    with pytest.raises(FrameError):
        BatchAnswers(hints, bytes(public_key_bytes(SMALL) - 1), 3)
    answers = BatchAnswers(hints, rng.bytes(public_key_bytes(SMALL)), 3)
    with pytest.raises(FrameError):
        answers.load(bytes(fresh_bytes(4, 3) + 1), 4)
    hint = hints.hint(0, np.zeros((2, 4), np.int16), 0, 2)
    with pytest.raises(FrameError):
        secret.open(hint, bytes(answer_bytes(2, 3) - 5), 3)
    for _ in range(20):
        opened = secret.open(
            rng.integers(0, 256, hint.shape, dtype=np.uint8), rng.bytes(answer_bytes(2, 3)), 3
        )
        assert opened.shape == (2, 3) and int(opened.max()) < 1 << SENT_BITS


def test_rows_of_a_keystream_can_be_read_anywhere(isa):
    keys = row_keys(SEED, b"test", 0, 5)
    assert np.array_equal(row_keys(SEED, b"test", 3, 2), keys[3:])
    assert not np.array_equal(row_keys(SEED, b"tesu", 0, 5), keys)
    words = row_words(keys, 0, 101)
    assert np.array_equal(row_words(keys[2:4], 10, 31), words[2:4, 10:41])
    # Expansion is part of the wire format: the same bytes on every machine, for ever.
    digest = hashlib.sha256(np.ascontiguousarray(words, "<u8").tobytes()).hexdigest()
    assert digest[:16] == "987b44c5dc432e42"
    with pytest.raises(ParameterError):
        row_words(keys, 1, 4)


def test_residues_are_uniform():
    values = row_residues(row_keys(SEED, b"residues", 0, 50), 2000, P_FIELD).astype(float) / P_FIELD
    counts = np.histogram(values, 64, (0, 1))[0]
    assert ((counts - 100000 / 64) ** 2 / (100000 / 64)).sum() < 130  # 63 degrees of freedom


def natural(parameters: DenseParameters, components: np.ndarray) -> list[int]:
    """The coefficients of a polynomial that is given by its components."""
    return components.reshape(parameters.features, parameters.block).T.reshape(-1).tolist()


def _coefficients(secret: BatchSecret) -> list[int]:
    ring = context(secret.parameters.degree, secret.parameters.primes[:1])
    values = ring.intt(secret._whole[:1].copy())[0].astype(np.int64)
    return np.where(values > 1, -1, values).tolist()
