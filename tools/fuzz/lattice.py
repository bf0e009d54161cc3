"""Keys and ciphertexts, with small and insecure parameters: the same code, and a hundred times the inputs.

Every input is read as it is, and once more with the header's checksum and length put right: behind a checksum
that mutations break nothing would be tested.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from functools import cache

import numpy as np
from target import REFUSALS, Target

from sottovoce import bgv, ckks
from sottovoce.kvcache.store import Store
from sottovoce.ring.primes import P_FIELD, SIMD_PRIMES, SPECIAL_PRIME
from sottovoce.rlwe.wire import HEADER_BYTES, KINDS

_LENGTH_AT = 16
BGV = bgv.ParametersSpec(32, SIMD_PRIMES, SPECIAL_PRIME, P_FIELD, security="unchecked").checked()
_CHAIN = ckks.chain(64, [49, 41, 41, 50, 50])
CKKS = ckks.ParametersSpec(
    64, primes=_CHAIN[:3], special=_CHAIN[3:], secret="ternary", security="unchecked"
).checked()

Load = Callable[[bytes], object]


def _sealed(data: bytes) -> bytes:
    """The same bytes with the length and the checksum that belong to them."""
    payload = data[HEADER_BYTES:]
    checksum = hashlib.blake2b(payload, digest_size=8).digest()
    return data[:_LENGTH_AT] + struct.pack("<Q8s", len(payload), checksum) + payload


def _both(load: Load) -> Load:
    def run(data: bytes) -> None:
        try:
            load(data)
        except REFUSALS:
            if len(data) < HEADER_BYTES:
                raise
            load(_sealed(data))

    return run


def _by_kind(loaders: dict[str, Load]) -> Load:
    """The loader that the header's kind asks for; the first one for kinds that do not exist."""
    numbered = {KINDS[kind]: load for kind, load in loaders.items()}
    first = next(iter(loaders.values()))

    def load(data: bytes) -> object:
        return numbered.get(data[5] if len(data) > 5 else -1, first)(data)

    return _both(load)


_BGV_KEYS: dict[str, Load] = {
    "public key": lambda data: bgv.PublicKey.from_bytes(BGV, data),
    "secret key": lambda data: bgv.SecretKey.from_bytes(BGV, data),
    "relinearization key": lambda data: bgv.RelinearizationKey.from_bytes(BGV, data),
    "galois keys": lambda data: bgv.GaloisKeys.from_bytes(BGV, data),
}
_CKKS: dict[str, Load] = {
    "ciphertext": lambda data: ckks.Ciphertext.from_bytes(CKKS, data),
    "fresh ciphertext": lambda data: ckks.load_fresh(CKKS, data),
    "public key": lambda data: ckks.PublicKey.from_bytes(CKKS, data),
    "secret key": lambda data: ckks.SecretKey.from_bytes(CKKS, data),
    "relinearization key": lambda data: ckks.RelinearizationKey.from_bytes(CKKS, data),
    "galois keys": lambda data: ckks.GaloisKeys.from_bytes(CKKS, data),
    "switching key": lambda data: ckks.EncapsulationKeys.from_bytes(CKKS, data),
}


@cache
def _generator() -> bgv.KeyGenerator:
    return bgv.KeyGenerator(BGV)


def _ciphertext() -> bgv.Ciphertext:
    slots = np.arange(BGV.degree, dtype=np.uint64)[None]
    secret = _generator().secret_key
    return bgv.Encryptor(BGV, secret).encrypt(bgv.Encoder(BGV).encode(slots))


def _bgv_keys() -> list[bytes]:
    keys = _generator()
    made = keys.secret_key, keys.relinearization_key(), keys.galois_keys([1, 2])
    return [key.to_bytes() for key in made]


def _ckks() -> list[bytes]:
    keys = ckks.KeyGenerator(CKKS)
    message = ckks.Encoder(CKKS).encode(np.arange(8) / 8.0)
    by_key = ckks.Encryptor(CKKS, keys.secret_key)
    made = [
        by_key.encrypt(message),
        keys.public_key(),
        keys.secret_key,
        keys.relinearization_key(),
        keys.galois_keys([1, 2]),
        keys.encapsulation_keys(),
    ]
    return [by_key.encrypt_bytes(message), *(x.to_bytes() for x in made)]


_GROUPS = 1


def _blocks() -> list[bytes]:
    store = Store(BGV, _GROUPS)
    store.adopt(_ciphertext().data.reshape(1, _GROUPS, 2, BGV.limbs, BGV.degree), [12.0])
    return [store.to_bytes(), Store(BGV, _GROUPS).to_bytes()]


TARGETS = {
    "public-key": Target(
        _both(_BGV_KEYS["public key"]), lambda: [_generator().public_key().to_bytes()], made=True
    ),
    "ciphertext": Target(
        _both(lambda data: bgv.Ciphertext.from_bytes(BGV, data)),
        lambda: [_ciphertext().to_bytes()],
        made=True,
    ),
    "other-keys": Target(_by_kind(_BGV_KEYS), _bgv_keys, made=True),
    "ckks": Target(_by_kind(_CKKS), _ckks, made=True),
    "saved-blocks": Target(_both(lambda data: Store.from_bytes(BGV, _GROUPS, data)), _blocks, made=True),
}
