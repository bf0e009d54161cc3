"""Slots are those of Microsoft SEAL (through TenSEAL): rows, direction of rotation, products."""

import numpy as np
import pytest

from sottovoce.bgv import SIMD, Decryptor, Encoder, Encryptor, Evaluator, KeyGenerator

ts = pytest.importorskip("tenseal")
sealapi = pytest.importorskip("tenseal.sealapi")

# A plaintext modulus that TenSEAL's BFV accepts; the semantics of slots do not depend on it.
SMALL = 65537


@pytest.fixture(scope="module")
def seal():
    parms = sealapi.EncryptionParameters(sealapi.SCHEME_TYPE.BFV)
    parms.set_poly_modulus_degree(SIMD.degree)
    parms.set_coeff_modulus(sealapi.CoeffModulus.BFVDefault(SIMD.degree, sealapi.SEC_LEVEL_TYPE.TC128))
    parms.set_plain_modulus(SMALL)
    return sealapi.SEALContext(parms, True, sealapi.SEC_LEVEL_TYPE.TC128)


def run_seal(context, x, y, step):
    keys = sealapi.KeyGenerator(context)
    public, galois = sealapi.PublicKey(), sealapi.GaloisKeys()
    keys.create_public_key(public)
    keys.create_galois_keys(galois)
    encoder, evaluator = sealapi.BatchEncoder(context), sealapi.Evaluator(context)
    encryptor, decryptor = sealapi.Encryptor(context, public), sealapi.Decryptor(context, keys.secret_key())

    def encode(v):
        plain = sealapi.Plaintext()
        encoder.encode([int(c) for c in v], plain)
        return plain

    def decode(ciphertext):
        plain = sealapi.Plaintext()
        decryptor.decrypt(ciphertext, plain)
        return np.array(encoder.decode_uint64(plain), np.uint64)

    ct, out = sealapi.Ciphertext(), {}
    encryptor.encrypt(encode(x), ct)
    rotated, swapped, product = sealapi.Ciphertext(), sealapi.Ciphertext(), sealapi.Ciphertext()
    evaluator.rotate_rows(ct, step, galois, rotated)
    evaluator.rotate_columns(ct, galois, swapped)
    evaluator.multiply_plain(ct, encode(y), product)
    return {"rotated": decode(rotated), "swapped": decode(swapped), "product": decode(product), **out}


def test_same_slots_as_seal(seal):
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (2, SIMD.degree), dtype=np.uint64)
    step = 5
    keys = KeyGenerator(SIMD)
    ev = Evaluator(SIMD, galois_keys=keys.galois_keys([step, -1]))
    ct = Encryptor(SIMD, keys.secret_key).encrypt(Encoder(SIMD).encode(x))
    decrypt = Decryptor(SIMD, keys.secret_key).decrypt_slots
    theirs = run_seal(seal, x, y, step)
    assert (decrypt(ev.rotate(ct, step)) == theirs["rotated"]).all()
    assert (decrypt(ev.rotate(ct, -1)) == theirs["swapped"]).all()
    assert (decrypt(ev.mul_plain(ct, Encoder(SIMD).encode(y))) == theirs["product"]).all()
