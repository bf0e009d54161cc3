"""A saved session as one file, to be carried to another machine: sealed under a passphrase of its own.

    offset  size  field
    0       8     magic "SVSESS1\\n"
    8       16    salt of the passphrase (scrypt)
    24      n     nonce and AES-256-GCM of a safetensors file: head, description, pieces in their order

The key in it is the session's: whoever has the file and its passphrase is the session's client.
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from ..errors import CorruptFileError, UsageError
from ..net.tls import write_private_file
from .kept import read_head
from .saved import SavedSession
from .store import SessionStore
from .vault import Vault, stretch

_MAGIC = b"SVSESS1\n"
_SALT = 16
_LABEL = "portable session"
_MAX_BYTES = 1 << 32
_KEYS = ("id", "facts", "names")


def export_session(saved: SavedSession, path: Path, passphrase: str) -> None:
    """Write a session to a new file (mode 0600). UsageError if the file exists or the passphrase is empty."""
    if not passphrase:
        raise UsageError(
            "a session that travels needs a passphrase of its own; give it with --file-passphrase-file"
        )
    if path.exists():
        raise UsageError(f"{path} exists already; choose another name or delete it")
    pieces = saved.store.pieces(saved.entry.id)
    arrays: dict[str, npt.NDArray[Any]] = {
        f"{number}/{key}": np.ascontiguousarray(array)
        for number, (_, piece) in enumerate(pieces)
        for key, array in piece.items()
    }
    about = {"id": saved.entry.id, "facts": saved.entry.facts, "names": [name for name, _ in pieces]}
    arrays["about"] = np.frombuffer(json.dumps(about).encode(), np.uint8)
    arrays["head"] = np.frombuffer(saved.store.head(saved.entry.id), np.uint8)
    salt = os.urandom(_SALT)
    write_private_file(path, _MAGIC + salt + Vault(stretch(passphrase, salt)).seal(_LABEL, save(arrays)))


def import_session(store: SessionStore, path: Path, passphrase: str, name: str) -> None:
    """Take up a session from a file. CorruptFileError, or UsageError if the name or the session is there."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise CorruptFileError(f"{path} is too large for a saved session")
        raw = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}); check the name") from None
    if not raw.startswith(_MAGIC):
        raise CorruptFileError(f"{path} is not a saved session of this version")
    salt, sealed = raw[len(_MAGIC) :][:_SALT], raw[len(_MAGIC) + _SALT :]
    try:
        data = Vault(stretch(passphrase, salt)).open(_LABEL, sealed)
    except CorruptFileError:
        raise UsageError(f"the passphrase of {path} is wrong, or the file is damaged") from None
    id, facts, head, pieces = _parsed(data, path)
    read_head(id, head)
    if store.find(id) is not None:
        raise UsageError("this session is here already; `sottovoce session ls` lists it")
    store.create(id, name, facts, head)
    for piece, arrays in pieces:
        store.checkpoint(id, head, {piece: arrays}, facts)


def _parsed(
    data: bytes, path: Path
) -> tuple[str, dict[str, Any], bytes, list[tuple[str, dict[str, npt.NDArray[Any]]]]]:
    try:
        arrays = load(data)
        head = arrays.pop("head").tobytes()
        about = json.loads(arrays.pop("about").tobytes())
        id, facts, names = (about[key] for key in _KEYS)
        if len(bytes.fromhex(id)) != 16 or not isinstance(facts, dict):
            raise ValueError
        pieces: list[tuple[str, dict[str, npt.NDArray[Any]]]] = [(str(name), {}) for name in names]
        for key, array in arrays.items():
            number, _, part = key.partition("/")
            pieces[int(number)][1][part] = array
    except (ValueError, KeyError, TypeError, IndexError, RecursionError, SafetensorError):
        raise CorruptFileError(f"{path} is damaged") from None
    return id, facts, head, pieces
