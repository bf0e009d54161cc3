"""BGV against exact arithmetic: slot by slot with Python integers, coefficient by coefficient with FLINT."""

import flint
import numpy as np
import pytest

from sottovoce.bgv import (
    ROW_SWAP,
    SIMD,
    Ciphertext,
    Decryptor,
    Encoder,
    Encryptor,
    Evaluator,
    KeyGenerator,
    ParametersSpec,
    Plaintext,
    load_many,
    stack,
)
from sottovoce.errors import ParameterError, RangeError
from sottovoce.ring.primes import P_FIELD, P_SMALL, SIMD_PRIMES, SPECIAL_PRIME


class Party:
    """Both parties' objects for one parameter set."""

    def __init__(self, parameters, steps=(1, 2, 3, ROW_SWAP)):
        self.parameters, self.p, self.n = parameters, parameters.plaintext, parameters.degree
        self.keys = KeyGenerator(parameters)
        self.secret, self.public = self.keys.secret_key, self.keys.public_key()
        self.encoder = Encoder(parameters)
        self.encryptor = Encryptor(parameters, self.secret)
        self.decryptor = Decryptor(parameters, self.secret)
        self.evaluator = Evaluator(parameters, self.keys.relinearization_key(), self.keys.galois_keys(steps))

    def encrypt(self, slots):
        return self.encryptor.encrypt(self.encoder.encode(slots))

    def decrypt(self, ciphertext):
        return self.decryptor.decrypt_slots(ciphertext)


def tiny(n=32, p=P_FIELD):
    return ParametersSpec(n, SIMD_PRIMES, SPECIAL_PRIME, p, security="unchecked").checked()


@pytest.fixture(scope="module", params=["tiny", "tiny small field", "simd"])
def party(request):
    return Party({"tiny": tiny(), "tiny small field": tiny(16, P_SMALL), "simd": SIMD}[request.param])


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def slots(rng, party, *batch):
    return rng.integers(0, party.p, (*batch, party.n), dtype=np.uint64)


def modp(values, p):
    return (np.asarray(values, object) % p).astype(np.uint64)


def rotated(x, step):
    half = x.shape[-1] // 2
    if step == ROW_SWAP:
        return np.roll(x, half, -1)
    return np.concatenate([np.roll(x[..., :half], -step, -1), np.roll(x[..., half:], -step, -1)], -1)


def test_encoding_round_trip(party, rng):
    x = slots(rng, party, 2, 3)
    assert (party.encoder.decode(party.encoder.encode(x)) == x).all()


def test_encoding_is_a_ring_isomorphism(rng):
    """The slots of a product of polynomials (FLINT, exact) are the products of the slots."""
    party = Party(tiny())
    p, n = party.p, party.n
    x, y = slots(rng, party), slots(rng, party)
    a, b = (flint.nmod_poly([int(c) for c in party.encoder.encode(v).coefficients], p) for v in (x, y))
    modulus = flint.nmod_poly([1] + [0] * (n - 1) + [1], p)
    product = (a * b) % modulus
    coefficients = np.array([int(product[i]) for i in range(n)], np.uint64)
    expected = modp(x.astype(object) * y, p)
    assert (party.encoder.decode(Plaintext(party.parameters, coefficients)) == expected).all()


@pytest.mark.parametrize("runs", [1, 2, 4])
def test_periodic_encoding(party, rng, runs):
    """Rows that repeat `runs` times are a polynomial in X^runs, with equal values in runs of the NTT form."""
    short = rng.integers(0, party.p, party.n // runs, dtype=np.uint64)
    full = np.concatenate([np.tile(row, runs) for row in short.reshape(2, -1)])
    a, b = party.encoder.encode_periodic(short), party.encoder.encode(full)
    assert (b.coefficients.reshape(-1, runs)[:, 0] == a.coefficients).all()
    assert not b.coefficients.reshape(-1, runs)[:, 1:].any()
    assert (np.repeat(party.encoder.to_ntt(a), runs, -1) == party.encoder.to_ntt(b)).all()
    x = slots(rng, party)
    expected = modp(x.astype(object) * full, party.p)
    assert (party.decrypt(party.evaluator.mul_plain(party.encrypt(x), a)) == expected).all()
    many = party.evaluator.mul_plain_accumulate(party.encrypt(x[None]), party.encoder.to_ntt(a)[None])
    assert (party.decrypt(many) == expected).all()


def test_encoder_refuses_what_it_cannot_represent(party):
    with pytest.raises(RangeError):
        party.encoder.encode(np.full(party.n, party.p, np.uint64))
    with pytest.raises(ParameterError):
        party.encoder.encode(np.zeros(party.n // 2, np.uint64))
    with pytest.raises(ParameterError):
        party.encoder.encode_periodic(np.zeros(2, np.uint64))
    with pytest.raises(ParameterError):
        party.encoder.encode_periodic(np.zeros(6, np.uint64))
    with pytest.raises(ParameterError):
        party.encoder.encode(np.zeros(party.n, np.int64))


def test_fresh_ciphertexts(party, rng):
    x = slots(rng, party, 3)
    assert (party.decrypt(party.encrypt(x)) == x).all()
    public = Encryptor(party.parameters, party.public).encrypt(party.encoder.encode(x))
    assert (party.decrypt(public) == x).all()
    sent = party.encryptor.encrypt_many(x)
    assert (party.decrypt(load_many(party.parameters, sent, 3)) == x).all()
    assert party.encryptor.encrypt_many(x) != sent


def test_decryption_against_flint(rng):
    """phase = b + a·s computed exactly over the integers modulo Q; its residue modulo p is the message."""
    party = Party(tiny())
    n, p, modulus = party.n, party.p, party.parameters.modulus()
    x = slots(rng, party)
    ciphertext = party.encrypt(x)
    ring = party.parameters.ring()
    halves = [ring.intt(part.copy()) for part in ciphertext.data]
    lifted = []
    for half in halves:
        total = np.zeros(n, object)
        for limb, q in enumerate(ring.primes):
            rest = modulus // q
            total += half[limb].astype(object) * (rest * pow(rest, -1, q))
        lifted.append(flint.fmpz_poly([int(c % modulus) for c in total]))
    secret = flint.fmpz_poly([int(c) for c in party.secret.coefficients])
    phase = lifted[0] + lifted[1] * secret
    folded = [int(phase[i]) - int(phase[i + n]) for i in range(n)]
    centred = [(c + modulus // 2) % modulus - modulus // 2 for c in folded]
    message = np.array([c % p for c in centred], np.uint64)
    assert (message == party.encoder.encode(x).coefficients).all()
    assert max(abs(c) for c in centred) < 64 * p


def test_linear_operations(party, rng):
    x, y, w = slots(rng, party, 2), slots(rng, party, 2), slots(rng, party, 2)
    a, b, ev, p = party.encrypt(x), party.encrypt(y), party.evaluator, party.p
    X, Y, W = (v.astype(object) for v in (x, y, w))
    plain = party.encoder.encode(w)
    assert (party.decrypt(ev.add(a, b)) == modp(X + Y, p)).all()
    assert (party.decrypt(ev.add(a, b[0])) == modp(X + Y[0], p)).all()
    assert (party.decrypt(ev.sub(a, b)) == modp(X - Y, p)).all()
    assert (party.decrypt(ev.negate(a)) == modp(-X, p)).all()
    assert (party.decrypt(ev.sum(a)) == modp(X.sum(0), p)).all()
    assert (party.decrypt(ev.add_plain(a, plain)) == modp(X + W, p)).all()
    assert (party.decrypt(ev.add_plain(a, party.encoder.to_ntt(plain)[0])) == modp(X + W[0], p)).all()
    assert (party.decrypt(ev.sub_plain(a, plain)) == modp(X - W, p)).all()
    assert (party.decrypt(ev.mul_plain(a, plain)) == modp(X * W, p)).all()
    assert (party.decrypt(ev.mul_plain(a, party.encoder.encode(w[1]))) == modp(X * W[1], p)).all()
    assert (party.decrypt(ev.trivial(party.encoder.encode(w[0]))) == w[0]).all()


def test_plain_products_accumulate(party, rng):
    x, w = slots(rng, party, 5), slots(rng, party, 3, 5)
    ct, ev = party.encrypt(x), party.evaluator
    plains = party.encoder.encode_ntt(w)
    expected = modp((x.astype(object) * w).sum(1), party.p)
    assert (party.decrypt(ev.mul_plain_matrix(ct, plains)) == expected).all()
    one = ev.mul_plain_accumulate(ct, plains[0])
    assert (party.decrypt(one) == expected[0]).all()
    twice = ev.mul_plain_accumulate([ct[k] for k in range(5)], list(plains[1]), into=one)
    assert (party.decrypt(twice) == modp(expected[0].astype(object) + expected[1], party.p)).all()


def test_products_of_ciphertexts(party, rng):
    x, y = slots(rng, party, 3), slots(rng, party, 3)
    a, b, ev, p = party.encrypt(x), party.encrypt(y), party.evaluator, party.p
    three = ev.tensor_accumulate(a, b)
    expected = (x.astype(object) * y).sum(0)
    assert three.size == 3 and (party.decrypt(three) == modp(expected, p)).all()
    assert (party.decrypt(ev.relinearize(three)) == modp(expected, p)).all()
    more = ev.tensor_accumulate(a[0], b[1], into=three)
    expected = expected + x[0].astype(object) * y[1]
    assert (party.decrypt(ev.relinearize(more)) == modp(expected, p)).all()
    pair = stack([three, more])
    assert (party.decrypt(ev.relinearize(pair))[1] == modp(expected, p)).all()


def test_rotations(party, rng):
    x = slots(rng, party, 2)
    ct, ev = party.encrypt(x), party.evaluator
    steps = [0, 1, 2, 3, ROW_SWAP]
    for step, turned in zip(steps, ev.rotate_hoisted(ct, steps), strict=True):
        assert (party.decrypt(turned) == rotated(x, step)).all(), step
        assert (party.decrypt(ev.rotate(ct[0], step)) == rotated(x[0], step)).all()
    both = ev.rotate_sum([ct[0], ct[1], ct[0]], [1, 0, ROW_SWAP])
    expected = rotated(x[0], 1).astype(object) + x[1] + rotated(x[0], ROW_SWAP)
    assert (party.decrypt(both) == modp(expected, party.p)).all()


def test_modulus_switching_tracks_the_factor(party, rng):
    x, y, w = slots(rng, party), slots(rng, party), slots(rng, party)
    ev, p = party.evaluator, party.p
    a = ev.mod_switch(ev.relinearize(ev.tensor_accumulate(party.encrypt(x), party.encrypt(y))))
    assert a.limbs == 2 and a.factor != 1
    product = x.astype(object) * y
    assert (party.decrypt(a) == modp(product, p)).all()
    assert (party.decrypt(ev.add_plain(a, party.encoder.encode(w))) == modp(product + w, p)).all()
    assert (party.decrypt(ev.rotate(a, 1)) == rotated(modp(product, p), 1)).all()
    b = ev.mod_switch(party.encrypt(w))
    if party.n < 100:  # at real size one prime has no room for p and the noise, two have none for a product
        assert (party.decrypt(ev.mod_switch(b)) == w).all()
        fourth = ev.relinearize(ev.tensor_accumulate(ev.mod_switch(party.encrypt(x)), b))
        assert (party.decrypt(fourth) == modp(x.astype(object) * w, p)).all()
    with pytest.raises(ParameterError):
        ev.mod_switch(ev.mod_switch(ev.mod_switch(b)))


def test_operands_must_match(party, rng):
    x = slots(rng, party)
    a, ev = party.encrypt(x), party.evaluator
    lower = ev.mod_switch(a)
    three = ev.tensor_accumulate(a, a)
    bad = [
        lambda: ev.add(a, lower),
        lambda: ev.add(a, three),
        lambda: ev.rotate(three, 1),
        lambda: ev.rotate(a, 5),
        lambda: ev.relinearize(a),
        lambda: ev.tensor_accumulate(a, lower),
        lambda: ev.tensor_accumulate(three, three),
        lambda: Evaluator(party.parameters).rotate(a, 1),
        lambda: Evaluator(party.parameters).relinearize(three),
        lambda: ev.add_plain(lower, party.encoder.encode_ntt(x)),
        lambda: a[0],
        lambda: stack([a, lower]),
        lambda: Encryptor(party.parameters, party.public).encrypt_many(x[None]),
    ]
    for operation in bad:
        with pytest.raises(ParameterError):
            operation()


def test_operations_leave_their_operands_alone(party, rng):
    x = slots(rng, party, 2)
    ct, ev = party.encrypt(x), party.evaluator
    before = ct.data.copy()
    plain = party.encoder.encode_ntt(x)
    ev.add_plain(ct, plain)
    ev.mul_plain_accumulate(ct, plain, into=ct[0])
    ev.rotate_hoisted(ct, [1, 2])
    ev.relinearize(ev.tensor_accumulate(ct, ct))
    ev.rotate_sum(ct, [0, 1])
    ev.mod_switch(ct)
    party.decrypt(ct)
    assert (ct.data == before).all()


def test_strided_batches(party, rng):
    """Views into larger arrays (a cache block, a column of a table) are operands like any other."""
    x = slots(rng, party, 4)
    ct, ev = party.encrypt(x), party.evaluator
    odd = Ciphertext(ct.parameters, ct.data[1::2], ct.noise)
    assert (party.decrypt(ev.add(odd, odd)) == modp(2 * x[1::2].astype(object), party.p)).all()
    assert (party.decrypt(ev.rotate(odd, 1)) == rotated(x[1::2], 1)).all()
    assert (
        party.decrypt(ev.mul_plain(odd, party.encoder.encode(x[0])))
        == modp(x[1::2].astype(object) * x[0], party.p)
    ).all()
