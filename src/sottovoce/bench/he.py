"""`bench he`: our lattice operations beside SEAL's (through TenSEAL), in one run on one thread.

Ours is BGV with three 50-bit primes and a 50-bit special one; theirs is BFV with 54 + 54 + 54 bits and a
56-bit special one, the nearest set their API builds at N = 8192. Both have slots, both are 128-bit secure.
SEAL is a benchmark-only dependency: without it its column is null.

What is timed: `ntt` one transform of one polynomial modulo one prime (forward and back, halved);
`ct_pt_acc` one product of a ciphertext with a plaintext, both in NTT form, added to a sum, over `PRODUCTS`
different pairs; `rotate` one rotation of the slots by one; `ct_ct_relin` one product of two ciphertexts,
relinearised.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from sottovoce import ring
from sottovoce.bench.machine import header
from sottovoce.bgv import SIMD, Encoder, Encryptor, Evaluator, KeyGenerator, Parameters
from sottovoce.engines.base import Progress
from sottovoce.ring.primes import P_FIELD

PRODUCTS = 24
PEER_BITS = (54, 54, 54, 56)
PEER_PLAIN_BITS = 43

Operation = Callable[[], object]
# An operation and how many of the units above one call of it does.
Timed = tuple[Operation, int]


def run(repetitions: int = 31, progress: Progress = lambda done, total, what: None) -> dict[str, Any]:
    """One object with the keys of `bench he`: `{ours_s, peer_s, ratio}` for each operation, medians.

    The two sides take turns within every repetition, so that a change of clock or of load meets both.
    """
    before = ring.threads()
    ring.set_threads(1)
    try:
        ours, peer = _ours(SIMD), _peer(SIMD.degree)
        result = header() | {"peer": None if peer is None else f"SEAL BFV {PEER_BITS} bits", "threads": 1}
        for done, (name, operation) in enumerate(ours.items()):
            progress(done, len(ours), name)
            result[name] = _compare(operation, None if peer is None else peer[name], repetitions)
        progress(len(ours), len(ours), "operations")
        return result
    finally:
        ring.set_threads(before)


def _compare(ours: Timed, peer: Timed | None, repetitions: int) -> dict[str, float | None]:
    own, other = [], []
    for _ in range(repetitions):
        own.append(_seconds(ours))
        if peer is not None:
            other.append(_seconds(peer))
    ours_s = statistics.median(own)
    if peer is None:
        return {"ours_s": ours_s, "peer_s": None, "ratio": None}
    peer_s = statistics.median(other)
    return {"ours_s": ours_s, "peer_s": peer_s, "ratio": peer_s / ours_s}


def _seconds(timed: Timed) -> float:
    operation, units = timed
    operation()  # warm: the other side has just used the caches
    start = time.perf_counter()
    operation()
    return (time.perf_counter() - start) / units


def _ours(parameters: Parameters) -> dict[str, Timed]:
    keys = KeyGenerator(parameters)
    evaluator = Evaluator(parameters, keys.relinearization_key(), keys.galois_keys([1]))
    encoder, encryptor = Encoder(parameters), Encryptor(parameters, keys.secret_key)
    slots = np.random.default_rng(1).integers(0, P_FIELD, (PRODUCTS, parameters.degree), np.uint64)
    plaintexts = encoder.encode(slots)
    cts, operands = encryptor.encrypt(plaintexts), list(encoder.to_ntt(plaintexts))
    one, context = cts[0], parameters.ring()
    x = one.data.copy()
    pairs = (cts[:1], cts[1:2])

    def transforms() -> None:
        context.ntt(context.intt(x))

    return {
        "ntt": (transforms, 2 * x.shape[0] * x.shape[1]),
        "ct_pt_acc": (lambda: evaluator.mul_plain_accumulate(cts, operands), PRODUCTS),
        "rotate": (lambda: evaluator.rotate(one, 1), 1),
        "ct_ct_relin": (lambda: evaluator.relinearize(evaluator.tensor_accumulate(*pairs)), 1),
    }


def _peer(degree: int) -> dict[str, Timed] | None:
    """The same operations on SEAL, or None where TenSEAL is not installed."""
    try:
        from tenseal import sealapi
    except ImportError:
        return None
    settings = sealapi.EncryptionParameters(sealapi.SCHEME_TYPE.BFV)
    settings.set_poly_modulus_degree(degree)
    settings.set_coeff_modulus(sealapi.CoeffModulus.Create(degree, list(PEER_BITS)))
    settings.set_plain_modulus(sealapi.PlainModulus.Batching(degree, PEER_PLAIN_BITS))
    context = sealapi.SEALContext(settings, True, sealapi.SEC_LEVEL_TYPE.TC128)
    keys = sealapi.KeyGenerator(context)
    public, relinearization, galois = sealapi.PublicKey(), sealapi.RelinKeys(), sealapi.GaloisKeys()
    keys.create_public_key(public)
    keys.create_relin_keys(relinearization)
    keys.create_galois_keys([3], galois)  # the Galois element of a rotation by one
    encoder, evaluator = sealapi.BatchEncoder(context), sealapi.Evaluator(context)
    encryptor = sealapi.Encryptor(context, public, keys.secret_key())

    rng = np.random.default_rng(1)
    pairs = [
        _peer_pair(sealapi, context, encoder, encryptor, evaluator, rng.integers(0, 1 << 40, degree))
        for _ in range(PRODUCTS)
    ]
    fresh, other, out = pairs[0][0], pairs[1][0], sealapi.Ciphertext()
    transformed = sealapi.Ciphertext()
    evaluator.transform_to_ntt(fresh, transformed)

    def transforms() -> None:
        evaluator.transform_from_ntt_inplace(transformed)
        evaluator.transform_to_ntt_inplace(transformed)

    def products() -> None:
        total = sealapi.Ciphertext()
        evaluator.multiply_plain(pairs[0][1], pairs[0][2], total)
        for _, ct, plain in pairs[1:]:
            evaluator.multiply_plain(ct, plain, out)
            evaluator.add_inplace(total, out)

    def multiply() -> None:
        product = sealapi.Ciphertext()
        evaluator.multiply(fresh, other, product)
        evaluator.relinearize_inplace(product, relinearization)

    return {
        "ntt": (transforms, 2 * 2 * (len(PEER_BITS) - 1)),
        "ct_pt_acc": (products, PRODUCTS),
        "rotate": (lambda: evaluator.rotate_rows(fresh, 1, galois, out), 1),
        "ct_ct_relin": (multiply, 1),
    }


def _peer_pair(
    sealapi: Any, context: Any, encoder: Any, encryptor: Any, evaluator: Any, values: Any
) -> tuple[Any, Any, Any]:
    """A fresh ciphertext, the same in NTT form, and its plaintext in NTT form."""
    plain, ct, transformed = sealapi.Plaintext(), sealapi.Ciphertext(), sealapi.Ciphertext()
    encoder.encode([int(v) for v in values], plain)
    encryptor.encrypt(plain, ct)
    evaluator.transform_to_ntt(ct, transformed)
    evaluator.transform_to_ntt_inplace(plain, context.first_parms_id())
    return ct, transformed, plain
