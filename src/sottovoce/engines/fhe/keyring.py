"""Evaluation keys on their way to the server: one frame each, made when they are sent, kept there by name.

    client                                      server
    key id                                -->
                                          <--   which keys it has (one byte each)
    every missing key, in a fixed order   -->   checked, stored

An upload that broke off goes on where it was: the client keeps its secret, the server what arrived. Keys are
gigabytes at N = 2^16, so the client never holds more than one. The key id is 8 random bytes that only the two
parties know; keys under another id are refused. So are keys of other levels than agreed: higher ones would
take more of the server's memory than it counts on.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from sottovoce.ckks import (
    EncapsulationKeys,
    Evaluator,
    GaloisKeys,
    KeyGenerator,
    PublicKey,
    RelinearizationKey,
    SwitchingKey,
)
from sottovoce.ckks.secret import KEY_ID_BYTES
from sottovoce.engines.base import Progress
from sottovoce.engines.fhe.description import Description
from sottovoce.engines.fhe.returned import LEVEL
from sottovoce.errors import CorruptFileError, IntegrityError, SottovoceError
from sottovoce.net import Channel

_MAX_KEY = 1 << 29
_DIGEST = 16
_FIRST_STEP = 3  # keys before those of rotations


def send_keys(
    channel: Channel, description: Description, keys: KeyGenerator, progress: Progress | None = None
) -> None:
    """The client's side. Cost: 1 round and the missing keys. Leaks that it is the client of an earlier
    session, if the secret is that one's."""
    makers = list(_makers(description, keys))
    channel.send(keys.secret_key.key_id)
    there = bytes(channel.recv(len(makers)))
    for i, (name, make) in enumerate(makers):
        if progress is not None:
            progress(i, len(makers), f"uploading keys: {name}")
        if not there[i]:
            channel.send(make())
    if progress is not None:
        progress(len(makers), len(makers), "uploading keys")


def _makers(description: Description, keys: KeyGenerator) -> Iterator[tuple[str, Callable[[], bytes]]]:
    parameters = description.parameters
    yield "products", lambda: keys.relinearization_key(description.product_level).to_bytes()
    yield "refresh", lambda: keys.encapsulation_keys().to_bytes()
    yield "answers", lambda: keys.public_key(LEVEL).to_bytes()
    for step, level in sorted(description.steps.items()):

        def rotation(step: int = step, level: int = level) -> bytes:
            key = keys.galois_key(step, level)
            return GaloisKeys(parameters, keys.secret_key.key_id, {step: key}).to_bytes()

        yield "rotations", rotation


def receive_keys(
    channel: Channel, description: Description, directory: Path | None
) -> tuple[Evaluator, PublicKey]:
    """The server's side: an evaluator with all keys, and the one that answers are re-randomised with.
    IntegrityError if one is not what was agreed.

    directory: where keys are kept beyond the session, None to keep none.
    """
    key_id = bytes(channel.recv(KEY_ID_BYTES))
    # Under the plan, too: keys that another release made for other steps or levels are as good as none.
    name = key_id.hex() + _plan(description)
    store = None if directory is None else KeyStore(directory / name)
    parameters, steps = description.parameters, sorted(description.steps.items())
    count = _FIRST_STEP + len(steps)
    there = [store is not None and store.has(i) for i in range(count)]
    channel.send(bytes(there))
    rotations: dict[int, SwitchingKey] = {}
    products: RelinearizationKey | None = None
    refresh: EncapsulationKeys | None = None
    answers: PublicKey | None = None
    for i in range(count):
        try:
            raw = store.load(i) if store is not None and there[i] else channel.recv_message(_MAX_KEY)
            found = _parse(description, steps, i, raw)
            if found.key_id != key_id:
                raise IntegrityError("an evaluation key belongs to another secret than was announced")
        except SottovoceError:
            if store is not None:
                store.remove(i)  # a damaged file is uploaded again the next time
            raise
        if isinstance(found, RelinearizationKey):
            products = found
        elif isinstance(found, EncapsulationKeys):
            refresh = found
        elif isinstance(found, PublicKey):
            answers = found
        else:
            rotations.update(found.keys)
        if store is not None and not there[i]:
            store.save(i, raw)
    assert answers is not None
    return Evaluator(parameters, products, GaloisKeys(parameters, key_id, rotations), refresh), answers


def _parse(
    description: Description, steps: Sequence[tuple[int, int]], i: int, raw: bytes | memoryview
) -> RelinearizationKey | EncapsulationKeys | PublicKey | GaloisKeys:
    """Key number i. IntegrityError unless it is the one that belongs there."""
    parameters = description.parameters
    if i == 0:
        products = RelinearizationKey.from_bytes(parameters, raw)
        if products.key.level == description.product_level:
            return products
    elif i == 1:
        refresh = EncapsulationKeys.from_bytes(parameters, raw)
        if refresh.up.level == parameters.top:
            return refresh
    elif i == 2:
        answers = PublicKey.from_bytes(parameters, raw)
        if answers.level == LEVEL:
            return answers
    else:
        step, level = steps[i - _FIRST_STEP]
        rotations = GaloisKeys.from_bytes(parameters, raw)
        if rotations.steps == (step,) and rotations.keys[step].level == level:
            return rotations
    raise IntegrityError("an evaluation key is not the one that was announced")


def _plan(description: Description) -> str:
    """Names which keys there are."""
    text = json.dumps([description.name, description.product_level, sorted(description.steps.items())])
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


class KeyStore:
    """A directory with one file for each key of a client. Nothing in it is secret."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def has(self, number: int) -> bool:
        return self._path(number).is_file()

    def load(self, number: int) -> memoryview:
        """CorruptFileError for a file that is not what was stored: a wrong bit would spoil every answer."""
        try:
            raw = self._path(number).read_bytes()
        except OSError as error:
            raise CorruptFileError(f"{self._path(number)} cannot be read: {error}") from None
        key, digest = memoryview(raw)[:-_DIGEST], raw[-_DIGEST:]
        if _digest(key) != digest:
            raise CorruptFileError(f"{self._path(number)} is damaged; connect again to upload it again")
        return key

    def save(self, number: int, raw: bytes | memoryview) -> None:
        """Best effort and atomic: a full disk costs the next upload, not this session."""
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Of its own: a client that comes back may upload beside a connection that has not ended yet.
            partial = self._path(number).with_suffix(f".{secrets.token_hex(8)}")
            try:
                with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                    file.write(raw)
                    file.write(_digest(raw))
                os.replace(partial, self._path(number))
            finally:
                partial.unlink(missing_ok=True)
        except OSError:
            pass

    def remove(self, number: int) -> None:
        self._path(number).unlink(missing_ok=True)

    def _path(self, number: int) -> Path:
        return self._directory / f"{number:04d}.key"


def _digest(raw: bytes | memoryview) -> bytes:
    return hashlib.blake2b(raw, digest_size=_DIGEST).digest()


def forget_others(directory: Path, keep: int) -> None:
    """Delete the oldest clients' keys until at most `keep` are left. They are uploaded again when needed."""
    folders = [p for p in directory.iterdir() if p.is_dir() and re.fullmatch("[0-9a-f]+", p.name)]
    folders.sort(key=lambda p: p.stat().st_mtime)
    for folder in folders[: max(0, len(folders) - keep)]:
        with suppress(OSError):  # its client may be uploading at this moment
            for file in folder.iterdir():
                file.unlink(missing_ok=True)
            folder.rmdir()


__all__ = ["KeyStore", "forget_others", "receive_keys", "send_keys"]
