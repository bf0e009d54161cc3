"""Secrets at rest at the client: what a saved session holds of tokens and keys is encrypted before it is
written.

One random data key for all sessions of a user, AES-256-GCM for every record. The data key is wrapped by a
passphrase (scrypt), lies in the operating system's keyring (optional package `keyring`), or, where neither is
wanted, in a file that only its owner can read: that protects copies of the sessions without the file, and
nothing else.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from ..errors import CorruptFileError, UsageError, VersionMismatchError
from ..net.tls import make_private_directory, write_private_file
from ..storage import locked

_VERSION = 1
_NONCE = 12
_KEY = 32
# 64 MiB and a quarter of a second for every guess.
_COST = {"n": 1 << 16, "r": 8, "p": 1}
_SERVICE = "sottovoce sessions"


class Guard(StrEnum):
    """What keeps the data key."""

    PASSPHRASE = "passphrase"
    KEYRING = "keyring"
    FILE = "file"


class Vault:
    """Seals and opens records. Every record is bound to a label, so that one cannot stand in for another."""

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(key)

    def seal(self, label: str, data: bytes) -> bytes:
        """Nonce and ciphertext: 28 bytes more than the data."""
        nonce = os.urandom(_NONCE)
        return nonce + self._cipher.encrypt(nonce, data, label.encode())

    def open(self, label: str, sealed: bytes) -> bytes:
        """CorruptFileError unless `sealed` was sealed here under this label."""
        try:
            return self._cipher.decrypt(sealed[:_NONCE], sealed[_NONCE:], label.encode())
        except (InvalidTag, ValueError):
            raise CorruptFileError(
                "a saved session was changed or damaged on the disk, or belongs to another key; "
                "remove it with `sottovoce session rm`"
            ) from None


def guard_of(directory: Path) -> Guard | None:
    """How the vault of this directory is kept; None if there is none yet."""
    path = directory / "vault.json"
    return Guard(_read(path)["guard"]) if path.exists() else None


def open_vault(directory: Path, passphrase: str | None = None, keyring: bool = False) -> Vault:
    """The vault of a directory of sessions, made on first use.

    passphrase, keyring: how to keep the key of a new vault; of an old one, the passphrase it wants.
    UsageError if that is missing or wrong, or given for a vault that is kept in another way.
    """
    path = directory / "vault.json"
    make_private_directory(directory)
    with locked(
        os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    ):  # of two processes that make it, one would seal under a key that is lost
        if not path.exists():
            guard = Guard.PASSPHRASE if passphrase else Guard.KEYRING if keyring else Guard.FILE
            return Vault(_keep(path, os.urandom(_KEY), guard, passphrase))
    return Vault(_unwrap(path, _read(path), passphrase))


def protect(directory: Path, old: str | None, new: str | None, keyring: bool = False) -> Guard:
    """Keep the same data key in another way: under the passphrase `new`, in the keyring, or in a file."""
    path = directory / "vault.json"
    fields = _read(path)
    key = _unwrap(path, fields, old)
    guard = Guard.PASSPHRASE if new else Guard.KEYRING if keyring else Guard.FILE
    _keep(path, key, guard, new)
    if fields["guard"] == Guard.FILE and guard != Guard.FILE:
        (directory / "vault.key").unlink(missing_ok=True)
    if fields["guard"] == Guard.KEYRING and guard != Guard.KEYRING:
        with suppress(UsageError), _keyring() as keys:
            keys.delete_password(_SERVICE, str(path))
    return guard


def _keep(path: Path, key: bytes, guard: Guard, passphrase: str | None) -> bytes:
    fields: dict[str, Any] = {"version": _VERSION, "guard": guard.value}
    if guard is Guard.PASSPHRASE:
        assert passphrase
        salt = os.urandom(16)
        sealed = Vault(_stretch(passphrase, salt, _COST)).seal("data key", key)
        fields |= {"salt": salt.hex(), "cost": _COST, "sealed": sealed.hex()}
    elif guard is Guard.KEYRING:
        with _keyring() as keys:
            keys.set_password(_SERVICE, str(path), key.hex())
    else:
        write_private_file(path.with_name("vault.key"), key)
    write_private_file(path, json.dumps(fields).encode())
    return key


def _unwrap(path: Path, fields: dict[str, Any], passphrase: str | None) -> bytes:
    guard = Guard(fields["guard"])
    if guard is Guard.PASSPHRASE:
        if not passphrase:
            raise UsageError(
                "the saved sessions are protected by a passphrase; give it with --passphrase-file"
            )
        try:
            kek = _stretch(passphrase, bytes.fromhex(fields["salt"]), fields["cost"])
            return Vault(kek).open("data key", bytes.fromhex(fields["sealed"]))
        except CorruptFileError:
            raise UsageError("the passphrase of the saved sessions is wrong; try again") from None
        except (KeyError, TypeError, ValueError):
            raise _damaged(path) from None
    if passphrase:
        raise UsageError(
            f"the saved sessions are not under a passphrase but protected by: {guard}; leave it away, or put"
            " them under one with `sottovoce session protect --new-passphrase-file FILE`"
        )
    try:
        if guard is Guard.KEYRING:
            with _keyring() as keys:
                key = bytes.fromhex(keys.get_password(_SERVICE, str(path)) or "")
        else:
            key = path.with_name("vault.key").read_bytes()
    except (OSError, ValueError):
        key = b""
    if len(key) != _KEY:
        raise CorruptFileError(
            f"the key of the saved sessions in {path.parent} is gone; without it they cannot be read. "
            "Delete the directory to begin anew"
        )
    return key


def _read(path: Path) -> dict[str, Any]:
    try:
        fields = json.loads(path.read_text())
        version, _ = fields["version"], Guard(fields["guard"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise _damaged(path) from None
    if version != _VERSION:
        raise VersionMismatchError(f"{path} was written by another release; use that one")
    return dict(fields)


def stretch(passphrase: str, salt: bytes) -> bytes:
    """A key from a passphrase, at the cost of this release."""
    return _stretch(passphrase, salt, _COST)


def _stretch(passphrase: str, salt: bytes, cost: dict[str, int]) -> bytes:
    if not (1 < cost["n"] <= 1 << 20 and 0 < cost["r"] <= 32 and 0 < cost["p"] <= 16):
        raise ValueError
    kdf = Scrypt(salt=salt, length=_KEY, n=cost["n"], r=cost["r"], p=cost["p"])
    return kdf.derive(passphrase.encode())


@contextmanager
def _keyring() -> Iterator[Any]:
    """UsageError if there is no keyring, or it does not open."""
    try:
        import keyring  # type: ignore[import-not-found,unused-ignore]
        from keyring.errors import KeyringError  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        raise UsageError(
            "the operating system's keyring needs the package keyring: pip install sottovoce[keyring]"
        ) from None
    try:
        yield keyring
    except KeyringError as error:
        raise UsageError(
            f"the operating system's keyring cannot be used ({type(error).__name__}); unlock it and try"
            " again, or protect the sessions by a passphrase"
        ) from None


def _damaged(path: Path) -> CorruptFileError:
    return CorruptFileError(f"{path} cannot be read; restore it, or delete the directory to begin anew")
