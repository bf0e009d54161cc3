"""What a client gets back: logits, and nothing else of what the server computed."""

from types import SimpleNamespace

import numpy as np
import pytest

from sottovoce.ckks import SMALL, Decryptor, Encoder, Encryptor, Evaluator, KeyGenerator, PublicKey
from sottovoce.engines.fhe.description import largest_logit
from sottovoce.engines.fhe.returned import FLOOD, WIDE, Returned, check_range
from sottovoce.errors import FrameError, IntegrityError, LevelError, RangeError
from tiny_model import tiny_model

SLOTS, VOCABULARY, SIZE = 64, 16, 20  # two blocks, the second one mostly padding


@pytest.fixture(scope="module")
def party():
    keys, encoder = KeyGenerator(SMALL), Encoder(SMALL)
    shape = SimpleNamespace(n=SLOTS, vocabulary=VOCABULARY, config=SimpleNamespace(vocab_size=SIZE))
    returned = Returned(Evaluator(SMALL), keys.public_key(0), shape)
    logits = np.linspace(-20.0, 20.0, VOCABULARY)
    slots = np.zeros(SLOTS)
    slots[:: SLOTS // VOCABULARY] = logits
    x = Encryptor(SMALL, keys.secret_key).encrypt(encoder.encode(slots, 1))
    return SimpleNamespace(keys=keys, returned=returned, logits=logits, x=x, encoder=encoder)


def phase(party, x):
    """All N coefficients, in units of the scale."""
    return party.encoder.decode_coefficients(Decryptor(SMALL, party.keys.secret_key).decrypt(x))


def test_logits_come_back_and_the_rest_does_not(party):
    decryptor, n, stride = Decryptor(SMALL, party.keys.secret_key), SMALL.degree, SLOTS // VOCABULARY
    before = party.x.data.copy()
    slots, masked = [], []
    for _ in range(40):
        y = party.returned(party.x, 0)
        assert y.level == 0 and y.size == 2 and y.key_id == party.x.key_id
        slots.append(decryptor.decrypt_slots(y, SLOTS))
        masked.append(np.delete(phase(party, y), np.arange(0, n, n // (2 * SLOTS))))
    assert (party.x.data == before).all()  # may be computed with again
    slots = np.array(slots)
    error = slots[:, ::stride].real - party.logits
    # 640 numbers: their standard deviation is known to 3 %, the largest is below 6.
    assert 0.8 * FLOOD < error.std() < 1.2 * FLOOD and np.abs(error).max() < 7 * FLOOD
    wide = WIDE * np.sqrt(SLOTS)
    hidden = np.delete(slots, np.arange(0, SLOTS, stride), axis=1)
    for values in (hidden.real, hidden.imag, slots[:, ::stride].imag):
        assert 0.8 * wide < values.std() < 1.2 * wide
    # What carries no message is uniform modulo q, where the plain ciphertext has its error.
    q = SMALL.primes[0] / party.x.scale
    masked = np.concatenate(masked)
    assert abs(masked.std() / (q / np.sqrt(12)) - 1) < 0.05 and abs(masked.mean()) < 0.05 * q
    bare = phase(party, Evaluator(SMALL).drop_to(party.x, 0))
    assert np.abs(np.delete(bare, np.arange(0, n, n // (2 * SLOTS)))).max() < 1e-6


def test_both_halves_are_fresh_every_time(party):
    one, two = party.returned(party.x, 0), party.returned(party.x, 0)
    for half in range(2):
        differences = one.data[half] != two.data[half]
        assert differences.mean() > 0.99
    # The second half is the old one plus an encryption of zero: as far from it as from anything.
    assert (one.data[1, 0] != party.x.data[1, 0]).mean() > 0.99


def test_guesses_of_weights_are_not_recognised(party):
    """Two matrices that differ by less than any logit shows. A client that computes with both, as the server
    did, finds the right one in a bare ciphertext, and nothing alike in what goes back."""
    evaluator = Evaluator(SMALL)
    weights = np.linspace(0.5, 1.0, SLOTS)
    guesses = [weights, weights + np.eye(SLOTS)[8] * 2.0**-30]
    products = [
        evaluator.rescale(evaluator.mul_plain(party.x, party.encoder.encode(w, 1, SMALL.primes[1])))
        for w in guesses
    ]
    bare = evaluator.rescale(evaluator.mul_plain(party.x, party.encoder.encode(weights, 1, SMALL.primes[1])))
    assert [(bare.data == product.data).all() for product in products] == [True, False]
    back = party.returned(bare, 0)
    for product in products:
        assert (back.data != product.data).mean() > 0.99


def test_padding_behind_the_vocabulary_is_no_logit(party):
    y = Decryptor(SMALL, party.keys.secret_key).decrypt_slots(party.returned(party.x, 1), SLOTS)
    places = y[:: SLOTS // VOCABULARY].real
    assert np.abs(places[: SIZE - VOCABULARY] - party.logits[: SIZE - VOCABULARY]).max() < 7 * FLOOD
    assert np.abs(places[SIZE - VOCABULARY :] - party.logits[SIZE - VOCABULARY :]).max() > 1


def test_the_public_key_is_for_answers_only(party):
    key = party.keys.public_key(0)
    with pytest.raises(LevelError, match="levels up to 0"):
        Encryptor(SMALL, key).encrypt(party.encoder.encode(1.0, 1))
    raw = key.to_bytes()
    again = PublicKey.from_bytes(SMALL, raw)
    assert again.level == 0 and (again.data == key.data).all()
    whole = party.keys.public_key().to_bytes()
    for damaged in (raw[:-1], raw + b"\0", whole[: len(raw)], raw[:30]):
        with pytest.raises((FrameError, IntegrityError)):
            PublicKey.from_bytes(SMALL, damaged)


def test_noise_is_told_from_logits():
    model = tiny_model()
    largest = largest_logit(model.weights)
    logits = model.forward([256, *range(40)])
    assert np.abs(logits).max() <= largest
    check_range(np.asarray(logits[-1], np.float64), largest)
    # A value outside its range leaves coefficients that are uniform modulo q.
    noise = np.random.default_rng(1).normal(0, WIDE * 64, model.config.vocab_size)
    for bad in (noise, np.full(4, np.nan), np.array([0.0, np.inf])):
        with pytest.raises(RangeError, match="left the range"):
            check_range(bad, largest)
