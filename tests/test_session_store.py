"""Saved sessions on disk: checkpoints, crashes, damage, sealing."""

import os
import sqlite3
import stat

import numpy as np
import pytest

from sottovoce.errors import CorruptFileError, StorageError, UsageError, VersionMismatchError
from sottovoce.parties import store as store_module
from sottovoce.parties.store import SessionStore
from sottovoce.parties.vault import Guard, Vault, guard_of, open_vault, protect

ID = "ab" * 16


def rows(count, value):
    return {"k": np.full((2, count, 3), value, np.uint64)}


@pytest.fixture(params=[False, True], ids=["plain", "sealed"])
def vault(request):
    return Vault(bytes(32)) if request.param else None


@pytest.fixture
def store(tmp_path, vault):
    store = SessionStore(tmp_path / "s", vault)
    store.create(ID, "mine", {"tokens": 0}, b"head 0")
    return store


def files(store):
    return sorted(path.name for path in (store.directory / ID).iterdir())


def test_checkpoints_are_found_again(store, vault):
    store.checkpoint(ID, b"head 1", {"tokens.0": rows(4, 1), "table": {"t": np.arange(3)}}, {"tokens": 4})
    store.checkpoint(ID, b"head 2", {"tokens.4": rows(1, 2), "table": {"t": np.arange(5)}}, {"tokens": 5})
    store.close()
    again = SessionStore(store.directory, vault)
    assert again.head(ID) == b"head 2"
    entry = again.find("mine")
    assert entry is not None and entry == again.find(ID) and entry.facts == {"tokens": 5} and entry.size > 0
    names = [(name, {k: v.tolist() for k, v in piece.items()}) for name, piece in again.pieces(ID)]
    assert [name for name, _ in names] == ["tokens.0", "table", "tokens.4"]
    assert names[1][1] == {"t": [0, 1, 2, 3, 4]} and names[0][1] == {"k": rows(4, 1)["k"].tolist()}
    modes = {stat.S_IMODE(path.stat().st_mode) for path in again.directory.rglob("*") if path.is_file()}
    assert modes == {0o600} and stat.S_IMODE(again.directory.stat().st_mode) == 0o700


def test_files_that_nothing_needs_are_deleted(store):
    store.checkpoint(ID, b"", {"tokens.0": rows(4, 1)}, {})
    store.checkpoint(ID, b"", {"tokens.4": rows(4, 1), "block.0": rows(1, 1)}, {})
    store.checkpoint(ID, b"", {"tokens.6": rows(4, 1)}, {})
    store.checkpoint(ID, b"", {"tokens.2": rows(4, 1)}, {})
    assert [name for name, _ in store.pieces(ID)] == ["tokens.0", "block.0", "tokens.2"] and len(
        files(store)
    ) == 3
    store.checkpoint(ID, b"", {"tokens.0": rows(1, 1), "block.0": rows(1, 2)}, {})
    assert len(files(store)) == 1
    store.remove(ID)
    assert not (store.directory / ID).exists() and store.entries() == []
    with pytest.raises(UsageError, match="no such"):
        store.head(ID)
    with pytest.raises(UsageError, match="removed"):
        store.checkpoint(ID, b"", {}, {})


def test_a_checkpoint_that_fails_changes_nothing(store, monkeypatch):
    store.checkpoint(ID, b"head 1", {"tokens.0": rows(4, 1)}, {})

    def full(arrays, metadata):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store_module, "save", full)
    with pytest.raises(StorageError, match="No space left"):
        store.checkpoint(ID, b"head 2", {"tokens.0": rows(9, 9)}, {})
    monkeypatch.undo()
    assert store.head(ID) == b"head 1" and store.pieces(ID)[0][1]["k"].shape == (2, 4, 3)
    store.checkpoint(ID, b"head 3", {"tokens.4": rows(1, 1)}, {})
    assert store.head(ID) == b"head 3"


def test_a_crash_between_file_and_transaction_leaves_the_last_checkpoint(store, monkeypatch):
    store.checkpoint(ID, b"head 1", {"tokens.0": rows(4, 1)}, {})

    def crash(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(SessionStore, "_replace", crash)
    with pytest.raises(KeyboardInterrupt):
        store.checkpoint(ID, b"head 2", {"tokens.4": rows(1, 2)}, {})
    monkeypatch.undo()
    assert len(files(store)) == 2  # one of them half a checkpoint, which the next one overwrites
    assert store.head(ID) == b"head 1" and [name for name, _ in store.pieces(ID)] == ["tokens.0"]
    store.checkpoint(ID, b"head 2", {"tokens.4": rows(1, 3)}, {})
    assert len(files(store)) == 2 and store.pieces(ID)[1][1]["k"][0, 0, 0] == 3


@pytest.mark.parametrize("damage", ["cut", "flip", "gone"])
def test_damage_is_noticed(store, damage):
    store.checkpoint(ID, b"head", {"tokens.0": rows(4, 1)}, {})
    (path,) = (store.directory / ID).iterdir()
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw if damage == "flip" else raw[:-1]) if damage != "gone" else path.unlink()
    with pytest.raises(CorruptFileError, match="missing or damaged"):
        store.pieces(ID)


def test_names_are_unique(store):
    with pytest.raises(UsageError, match="already"):
        store.create("cd" * 16, "mine", {}, b"")
    store.create("cd" * 16, None, {}, b"")
    with pytest.raises(UsageError, match="already"):
        store.rename("cd" * 16, "mine")
    store.rename("cd" * 16, "other")
    assert store.find("other").id == "cd" * 16


def test_eviction_spares_the_busy_and_the_clock_set_back(store, monkeypatch):
    for i in range(3):
        store.create(f"{i:032x}", None, {}, b"")
        store.checkpoint(f"{i:032x}", b"", {"tokens.0": rows(100, i)}, {})
    assert store.evict(1 << 40, 3600) == 0
    now = store_module.time.time()
    monkeypatch.setattr(store_module.time, "time", lambda: now - 1e6)
    assert store.evict(1 << 40, 3600) == 0
    monkeypatch.setattr(store_module.time, "time", lambda: now + 1e6)
    assert store.evict(1 << 40, 3600, busy=frozenset([f"{0:032x}"])) == 3
    assert [entry.id for entry in store.entries()] == [f"{0:032x}"]
    assert store.evict(0, 1e9) == 1


def test_a_database_that_is_none(tmp_path):
    (tmp_path / "sessions.db").write_bytes(b"not a database, certainly not one" * 200)
    with pytest.raises(CorruptFileError, match="cannot be read"):
        SessionStore(tmp_path)


def test_a_database_of_another_format(tmp_path):
    with sqlite3.connect(tmp_path / "sessions.db") as db:
        db.execute("PRAGMA user_version=99")
    db.close()
    with pytest.raises(CorruptFileError, match="format 99"):
        SessionStore(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_directory_that_cannot_be_written(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError):
        SessionStore(tmp_path / "s")


def test_sealed_records_hide_and_cannot_be_swapped(tmp_path):
    vault = Vault(os.urandom(32))
    store = SessionStore(tmp_path, vault)
    store.create(ID, "mine", {}, b"the secret head")
    store.checkpoint(
        ID, b"the secret head", {"tokens.0": {"k": np.frombuffer(b"secret rows!", np.uint8)}}, {}
    )
    raw = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"secret" not in raw
    sealed = vault.seal("a", b"x")
    assert vault.open("a", sealed) == b"x" and vault.seal("a", b"x") != sealed
    for label, data in (("b", sealed), ("a", sealed[:-1] + bytes([sealed[-1] ^ 1])), ("a", b"")):
        with pytest.raises(CorruptFileError):
            vault.open(label, data)


def test_vaults(tmp_path, monkeypatch):
    monkeypatch.setattr("sottovoce.parties.vault._COST", {"n": 16, "r": 8, "p": 1})
    assert guard_of(tmp_path) is None
    sealed = open_vault(tmp_path).seal("x", b"1")
    assert guard_of(tmp_path) is Guard.FILE and open_vault(tmp_path).open("x", sealed) == b"1"
    assert protect(tmp_path, None, "open sesame") is Guard.PASSPHRASE
    assert not (tmp_path / "vault.key").exists()
    for wrong in (None, "", "close sesame"):
        with pytest.raises(UsageError, match="passphrase"):
            open_vault(tmp_path, wrong)
    assert open_vault(tmp_path, "open sesame").open("x", sealed) == b"1"
    assert protect(tmp_path, "open sesame", None) is Guard.FILE
    (tmp_path / "vault.key").unlink()
    with pytest.raises(CorruptFileError, match="gone"):
        open_vault(tmp_path)
    for text in ("", "{}", '{"version": 1}', '{"version": 1, "guard": "dog"}', "[]"):
        (tmp_path / "vault.json").write_text(text)
        with pytest.raises(CorruptFileError):
            open_vault(tmp_path)
    (tmp_path / "vault.json").write_text('{"version": 9, "guard": "file"}')
    with pytest.raises(VersionMismatchError):
        open_vault(tmp_path)
    for cost in ('{"n": 1099511627776, "r": 8, "p": 1}', "3", "{}"):
        (tmp_path / "vault.json").write_text(
            '{"version": 1, "guard": "passphrase", "salt": "00", "sealed": "00", "cost": ' + cost + "}"
        )
        with pytest.raises(CorruptFileError):
            open_vault(tmp_path, "x")
