"""The client's half of the fhe engine: makes keys, encrypts tokens, decrypts logits. See `parties`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sottovoce.ckks import Ciphertext, Decryptor, Encoder, Encryptor, KeyGenerator, SecretKey
from sottovoce.engines.base import DataParty, EngineOptions, Logits, Piece, Pieces, Progress
from sottovoce.engines.fhe.answer import MAX_CIPHERTEXT, digest_of, receive_answer, send_sizes
from sottovoce.engines.fhe.chunk_plaintexts import chunk_sizes, one_hots
from sottovoce.engines.fhe.ciphertexts import scales
from sottovoce.engines.fhe.description import Description
from sottovoce.engines.fhe.keyring import send_keys
from sottovoce.engines.fhe.memory import available_memory, check_client
from sottovoce.engines.fhe.returned import check_range
from sottovoce.net import Channel
from sottovoce.packing.slots import Vector

MAX_ANSWERS = 64  # positions whose logits one step gives


class FheDataParty(DataParty):
    """The client's half: holds the secret key. The server learns how many tokens there are."""

    def __init__(self, options: EngineOptions, public: dict[str, Any]) -> None:
        self.description = Description.from_json(public)
        self._promised: tuple[tuple[int, ...], tuple[int, ...], list[bytes]] = ((), (), [])
        # Tokens. In a session that was restored it is not known how many are public: then none.
        self._public, self._private, self._restored = 0, 0, False

    def setup(self, channel: Channel, progress: Progress | None = None) -> None:
        self._channel, parameters = channel, self.description.parameters
        check_client(parameters.degree, available_memory())
        secret = None if self.secret is None else SecretKey.from_bytes(parameters, self.secret)
        keys = KeyGenerator(parameters, secret)
        self._secret = keys.secret_key
        with channel.ledger.operation("keys"):
            send_keys(channel, self.description, keys, progress)
        self._encryptor, self._encoder = Encryptor(parameters, self._secret), Encoder(parameters)
        self._decryptor = Decryptor(parameters, self._secret)

    def secret_key(self) -> bytes:
        return self._secret.to_bytes()

    def new_secret(self) -> bytes | None:
        return KeyGenerator(self.description.parameters).secret_key.to_bytes()

    @property
    def keeps(self) -> bool:
        return True

    def changed(self, first: int) -> dict[str, Piece]:
        """Nothing: the cache is the server's, encrypted."""
        return {}

    def restore(self, pieces: Pieces, length: int) -> None:
        """The secret key is all. How many of the tokens are public is the server's to know."""
        self._public, self._private, self._restored = 0, length, True

    def prefill(
        self, public_tokens: Sequence[int], private_tokens: Sequence[int], progress: Progress | None = None
    ) -> Logits:
        together = self._together(len(private_tokens))
        send_sizes(self._channel, together)
        self._public = len(public_tokens) or self._public
        self._send(private_tokens, together)
        self._wait(len(private_tokens) - sum(together) + len(together), progress)
        logits: Logits = self._logits(1)[-1]
        return logits

    def decode(self, token: int, progress: Progress | None = None) -> Logits:
        logits: Logits = self.verify([token], progress)[-1]
        return logits

    def verify(self, tokens: Sequence[int], progress: Progress | None = None) -> Logits:
        self._send(tokens, ())
        self._wait(len(tokens), progress)
        return self._logits(len(tokens))

    @property
    def collects(self) -> bool:
        return True

    def promise(self, tokens: Sequence[int], prefill: bool) -> bytes:
        together = self._together(len(tokens)) if prefill else ()
        self._promised = tuple(tokens), together, self._encrypted(tokens, together)
        return digest_of(self._promised[2])

    def collect(self, digest: bytes | None) -> Logits | None:
        blocks = self.description.shape.vocabulary_blocks
        frames = receive_answer(self._channel, digest, MAX_ANSWERS * blocks)
        if frames is None or len(frames) % blocks:
            return None
        rows = [frames[i : i + blocks] for i in range(0, len(frames), blocks)]
        return np.stack([self._decrypted(row) for row in rows])

    def truncate(self, length: int) -> None:
        """The server's cache forgets; there is nothing on this side."""
        self._public = min(self._public, length)
        self._private = min(self._private, length - self._public)

    def _together(self, count: int) -> tuple[int, ...]:
        """The chunks in which the first tokens of a prefill come. Where private tokens end is not known of a
        restored session: at most where all do."""
        t = self.description.shape.heads.t
        if self._restored and self._private >= t:
            return ()
        sizes = chunk_sizes(count, self._private, t, self.description.chunk)
        return tuple(sizes[:1] if self._restored else sizes)

    def _send(self, tokens: Sequence[int], together: tuple[int, ...]) -> None:
        *promised, frames = self._promised
        if promised != [tuple(tokens), together]:
            frames = self._encrypted(tokens, together)
        self._promised = (), (), []
        self._private += len(tokens)
        for frame in frames:
            self._channel.send(frame)

    def _encrypted(self, tokens: Sequence[int], together: tuple[int, ...]) -> list[bytes]:
        """One-hot vectors: those of chunks, then the others' block by block."""
        shape, level = self.description.shape, self.description.entry
        scale, vectors, at = scales(self.description.parameters)[level], list[Vector](), 0
        with self._channel.ledger.operation("encrypt"):
            for size in together:
                vectors += one_hots(shape, tokens[at : at + size])
                at += size
            vectors += [vector for token in tokens[at:] for vector in self._one_hot(token)]
            plaintexts = (self._encoder.encode(vector, level, scale) for vector in vectors)
            return [self._encryptor.encrypt_bytes(plaintext) for plaintext in plaintexts]

    def _one_hot(self, token: int) -> list[Vector]:
        shape = self.description.shape
        block, at = divmod(token, shape.vocabulary)
        vectors = np.zeros((shape.vocabulary_blocks, shape.vocabulary))
        vectors[block, at] = 1.0
        return [shape.embed.place(vector) for vector in vectors]

    def _wait(self, tokens: int, progress: Progress | None) -> None:
        steps = tokens * self.description.shape.config.layers
        for step in range(steps):
            self._channel.recv(1)
            if progress is not None:
                progress(step, steps, "layers")

    def _logits(self, count: int) -> Logits:
        """(count, vocab), from the next frames."""
        blocks = range(self.description.shape.vocabulary_blocks)
        rows = [[self._channel.recv_message(MAX_CIPHERTEXT) for _ in blocks] for _ in range(count)]
        return np.stack([self._decrypted(row) for row in rows])

    def _decrypted(self, frames: Sequence[memoryview]) -> Logits:
        """(vocab,), from the ciphertexts of one position."""
        shape, found = self.description.shape, []
        for raw in frames:
            x = Ciphertext.from_bytes(self.description.parameters, raw)
            with self._channel.ledger.operation("decrypt"):
                found.append(shape.head.read(self._decryptor.decrypt_slots(x, shape.n)).real)
        logits: Logits = np.concatenate(found)[: shape.config.vocab_size]
        check_range(logits, self.description.largest)
        return logits
