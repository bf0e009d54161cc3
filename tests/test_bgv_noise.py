"""The noise table of docs/design/parameters.md, measured; and the estimates that the evaluator carries."""

import numpy as np
import pytest

from sottovoce.bgv import (
    SIMD,
    Decryptor,
    Encoder,
    Encryptor,
    Evaluator,
    KeyGenerator,
    failure_bits,
    stack,
)
from sottovoce.bgv import noise as estimates

P, N = SIMD.plaintext, SIMD.degree


@pytest.fixture(scope="module")
def parties():
    keys = KeyGenerator(SIMD)
    steps = [1 << k for k in range(12)]
    evaluator = Evaluator(SIMD, keys.relinearization_key(), keys.galois_keys(steps))
    return keys, Encryptor(SIMD, keys.secret_key), Decryptor(SIMD, keys.secret_key), evaluator


def slots(rng, *batch):
    return rng.integers(0, P, (*batch, N), dtype=np.uint64)


def close(decryptor, ciphertext, expected, slack=0.3):
    """Measured noise, estimated noise and the table agree."""
    measured = decryptor.noise(ciphertext)
    assert abs(measured - expected) < slack, (measured, expected)
    assert abs(measured - ciphertext.noise) < slack, (measured, ciphertext.noise)
    return measured


def test_fresh(parties):
    keys, encryptor, decryptor, _ = parties
    plain = Encoder(SIMD).encode(slots(np.random.default_rng(0), 2))
    close(decryptor, encryptor.encrypt(plain), 1.7)
    close(decryptor, Encryptor(SIMD, keys.public_key()).encrypt(plain), 8.4)


def test_plain_products(parties):
    _, encryptor, decryptor, ev = parties
    rng = np.random.default_rng(1)
    ct, plain = (
        encryptor.encrypt(Encoder(SIMD).encode(slots(rng, 2))),
        Encoder(SIMD).encode_ntt(slots(rng, 2)),
    )
    close(decryptor, ev.mul_plain(ct, plain), 49.4)
    close(decryptor, ev.mul_plain_accumulate(ct, plain), 49.9)


def test_key_switch(parties):
    _, encryptor, decryptor, ev = parties
    ct = encryptor.encrypt(Encoder(SIMD).encode(slots(np.random.default_rng(2), 2)))
    close(decryptor, ev.rotate(ct, 1), 7.2)


def test_interleaved_replicated_product(parties):
    """Eight copies by three rotations, 72 rotated copies times plaintexts, folded by three rotations."""
    _, encryptor, decryptor, ev = parties
    rng = np.random.default_rng(3)
    ct = encryptor.encrypt(Encoder(SIMD).encode(slots(rng)))
    for step in (1, 2, 4):
        ct = ev.add(ct, ev.rotate(ct, step))
    # The 72 rotations by babies are noise-wise alike; eight distinct ones are enough to measure.
    babies = ev.rotate_hoisted(ct, [8, 16, 32, 64, 128, 256, 512, 1024])
    plains = Encoder(SIMD).encode_ntt(slots(rng, 72))
    total = ev.mul_plain_accumulate(stack([babies[k % 8] for k in range(72)]), plains)
    for step in (1, 2, 4):
        total = ev.add(total, ev.rotate(total, step))
    measured = decryptor.noise(total)
    assert abs(measured - 61.4) < 0.7, measured
    assert abs(measured - total.noise) < 2.5  # the estimate takes rotations of one ciphertext as independent


def test_cache_product(parties):
    """(Sum of 128 fresh appends) times (fresh query), relinearised; then folded 64 by rotation."""
    _, encryptor, decryptor, ev = parties
    rng = np.random.default_rng(4)
    appended = None
    for _ in range(8):
        batch = ev.sum(encryptor.encrypt(Encoder(SIMD).encode(slots(rng, 16))))
        appended = batch if appended is None else ev.add(appended, batch)
    query = encryptor.encrypt(Encoder(SIMD).encode(slots(rng)))
    product = ev.relinearize(ev.tensor_accumulate(appended, query))
    close(decryptor, product, 56.4)
    for k in range(6):
        product = ev.add(product, ev.rotate(product, 1 << k))
    # Folding leaves 128 different coefficients: their mean square is known to 0.09 bits only.
    close(decryptor, product, 59.4, 0.8)
    assert failure_bits(SIMD, product.noise) < -30


def test_modulus_switch(parties):
    _, encryptor, decryptor, ev = parties
    rng = np.random.default_rng(5)
    ct = ev.mul_plain(
        encryptor.encrypt(Encoder(SIMD).encode(slots(rng))), Encoder(SIMD).encode_ntt(slots(rng))
    )
    close(decryptor, ev.mod_switch(ct), 4.4)


def test_decryption_succeeds_up_to_the_budget(parties):
    _, encryptor, decryptor, ev = parties
    rng = np.random.default_rng(6)
    x = slots(rng)
    plain = Encoder(SIMD).encode(x)
    for bits, fine in ((103, True), (107, False)):
        ct = encryptor.encrypt(plain)
        ring = SIMD.ring()
        error = np.zeros((3, N), np.uint64)
        error[:, 0] = [(P << bits) % q for q in SIMD.primes]
        ct.data[0] = ring.add(np.ascontiguousarray(ct.data[0]), ring.ntt(error))
        assert bool((decryptor.decrypt_slots(ct) == x).all()) is fine
    assert 105 < decryptor.budget() < 107


def test_estimates_are_monotone_and_finite():
    assert estimates.add(-100.0, 3.0) == pytest.approx(3.0)
    assert estimates.add(*[3.0] * 16) == pytest.approx(5.0)
    assert estimates.mul_plain(SIMD, 1.7, N // 4) < estimates.mul_plain(SIMD, 1.7)
    assert estimates.key_switch(SIMD, 1) < estimates.key_switch(SIMD, 3)
