"""The two sides of homomorphic work in one session: who holds which key, and the messages between them.

The data side (client) has the secret key: it encrypts and decrypts. The model side (server) has the public,
relinearisation and rotation keys: it computes. Ciphertexts travel in two messages: `upload` (fresh, seeded,
154 KB each) and `give_back` (recipe Z: re-randomised, masked over all of Z_q, rounded, 184 KB each).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sottovoce.bgv import (
    SIMD,
    Ciphertext,
    Encoder,
    Encryptor,
    Evaluator,
    GaloisKeys,
    KeyGenerator,
    Parameters,
    PublicKey,
    RelinearizationKey,
    SecretKey,
    fresh_bytes,
    load_many,
    mask_and_pack,
    masked_bytes,
    unmask_and_decode,
)
from sottovoce.errors import IntegrityError
from sottovoce.net import Channel, Role

_MASKED_AT_ONCE = 16  # results in one pass: 3 MB per step and limb, which the cache holds

Words = npt.NDArray[np.uint64]

_KEY_BYTES = 1 << 20  # bounds of the key messages: public and relinearisation keys, and each rotation key


@dataclass(frozen=True)
class DataSide:
    """The client's keys of one session."""

    channel: Channel
    parameters: Parameters
    secret: SecretKey
    encryptor: Encryptor

    def upload(self, slots: Words) -> None:
        """Encrypt slots (B, N) and send them. Cost: one message, `upload_bytes(parameters, B)`."""
        self.channel.ledger.count("he_uploaded", len(slots))
        self.channel.send(self.encryptor.encrypt_many(slots))

    def take_back(self, count: int) -> Words:
        """Receive `count` masked results: this party's shares of their slots (count, N). One message."""
        self.channel.ledger.count("he_returned", count)
        data = self.channel.recv(masked_bytes(self.parameters, count))
        size = masked_bytes(self.parameters, 1)
        parts = [
            unmask_and_decode(data[first * size : last * size], self.secret, last - first)
            for first, last in _slices(count)
        ]
        return np.concatenate(parts) if len(parts) > 1 else parts[0]


@dataclass(frozen=True)
class ModelSide:
    """The server's half: keys that compute on the client's ciphertexts and cannot open them."""

    channel: Channel
    parameters: Parameters
    public_key: PublicKey
    evaluator: Evaluator
    encoder: Encoder

    def download(self, count: int) -> Ciphertext:
        """Receive what the client uploads: a batch of `count` ciphertexts."""
        self.channel.ledger.count("he_uploaded", count)
        return load_many(self.parameters, self.channel.recv(fresh_bytes(self.parameters, count)), count)

    def give_back(self, results: Ciphertext) -> Words:
        """Mask and send a batch of results; returns this party's shares of their slots (count, N). One
        message.

        What the client sees is uniform, whatever was multiplied into the results (recipe Z).
        """
        self.channel.ledger.count("he_returned", len(results))
        parts = [mask_and_pack(results[first:last], self.public_key) for first, last in _slices(len(results))]
        self.channel.send(b"".join(data for data, _ in parts) if len(parts) > 1 else parts[0][0])
        return np.concatenate([shares for _, shares in parts]) if len(parts) > 1 else parts[0][1]


Side = DataSide | ModelSide


def upload_bytes(parameters: Parameters, count: int) -> int:
    """Bytes of an upload of `count` ciphertexts."""
    return fresh_bytes(parameters, count)


def give_back_bytes(parameters: Parameters, count: int) -> int:
    """Bytes of `count` masked results."""
    return masked_bytes(parameters, count)


def _slices(count: int) -> list[tuple[int, int]]:
    """Bounds of the slices in which a batch is masked: both parties cut alike, memory stays bounded."""
    return [(first, min(first + _MASKED_AT_ONCE, count)) for first in range(0, count, _MASKED_AT_ONCE)]


def exchange_keys(
    channel: Channel, steps: Collection[int], parameters: Parameters = SIMD, secret: SecretKey | None = None
) -> Side:
    """Make keys at the client, send the public ones to the server; both parties call it with the same
    `steps`.

    secret: the client's existing key (to go on with stored ciphertexts), or None for a fresh one.
    Cost: one round; 154 KB + 614 KB (1 + number of steps) up. Leaks nothing.
    """
    if channel.role is Role.CLIENT:
        keys = KeyGenerator(parameters, secret)
        channel.send(keys.public_key().to_bytes())
        channel.send(keys.relinearization_key().to_bytes())
        channel.send(keys.galois_keys(sorted(steps)).to_bytes())
        return DataSide(channel, parameters, keys.secret_key, Encryptor(parameters, keys.secret_key))
    public = PublicKey.from_bytes(parameters, channel.recv_message(_KEY_BYTES))
    relinearisation = RelinearizationKey.from_bytes(parameters, channel.recv_message(_KEY_BYTES))
    rotations = GaloisKeys.from_bytes(parameters, channel.recv_message((1 + len(steps)) * _KEY_BYTES))
    if set(rotations.steps) != set(steps):
        raise IntegrityError("the client sent rotation keys for other steps than the model needs")
    evaluator = Evaluator(parameters, relinearisation, rotations)
    return ModelSide(channel, parameters, public, evaluator, Encoder(parameters))
