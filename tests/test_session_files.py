"""What is on the client's disk: locks, the keyring, a disk that is full, a clock that jumps."""

import json
import resource
import subprocess
import sys
import threading
import types

import numpy as np
import pytest

from kept_sessions import Host, greedy_tokens
from sottovoce.engines.base import EngineOptions
from sottovoce.engines.registry import make_engine
from sottovoce.errors import CorruptFileError, RefusedError, UsageError
from sottovoce.models.model import greedy
from sottovoce.parties import store as store_module
from sottovoce.parties.saved import exclusive
from sottovoce.parties.store import SessionStore
from sottovoce.parties.vault import Guard, guard_of, open_vault, protect
from test_cli import BASE, Serving, environment, model_path, serving  # noqa: F401  (fixtures)
from test_session_cli import RAW, generate, session, texts  # noqa: F401  (fixtures)
from tiny_model import tiny_model

PROMPT = [3, 31, 8, 12]


class KeyringError(Exception):
    pass


@pytest.fixture
def keyring(monkeypatch):
    """The package `keyring` with a backend in memory."""
    module, errors = types.ModuleType("keyring"), types.ModuleType("keyring.errors")
    module.kept, module.locked = {}, False

    def opened(service, user):
        if module.locked:
            raise KeyringError("locked")
        return service, user

    module.get_password = lambda service, user: module.kept.get(opened(service, user))
    module.set_password = lambda service, user, value: module.kept.update({opened(service, user): value})
    module.delete_password = lambda service, user: module.kept.pop(opened(service, user))
    errors.KeyringError = KeyringError
    module.errors = errors
    monkeypatch.setitem(sys.modules, "keyring", module)
    monkeypatch.setitem(sys.modules, "keyring.errors", errors)
    return module


def test_the_key_is_in_the_keyring_and_nowhere_else(keyring, tmp_path, monkeypatch):
    monkeypatch.setattr("sottovoce.parties.vault._COST", {"n": 16, "r": 8, "p": 1})
    sealed = open_vault(tmp_path, keyring=True).seal("x", b"1")
    assert guard_of(tmp_path) is Guard.KEYRING and [path.name for path in tmp_path.iterdir()] == [
        "vault.json"
    ]
    (key,) = keyring.kept.values()
    assert key not in (tmp_path / "vault.json").read_text()
    assert open_vault(tmp_path).open("x", sealed) == b"1"
    keyring.locked = True
    with pytest.raises(UsageError, match="cannot be used"):
        open_vault(tmp_path)
    keyring.locked = False
    # To a passphrase and back: the same data key, and no copy of it stays behind.
    assert protect(tmp_path, None, "open sesame") is Guard.PASSPHRASE and not keyring.kept
    assert protect(tmp_path, "open sesame", None, keyring=True) is Guard.KEYRING
    assert open_vault(tmp_path).open("x", sealed) == b"1" and set(keyring.kept.values()) == {key}
    for gone in ({}, dict.fromkeys(keyring.kept, "no key"), dict.fromkeys(keyring.kept, "00")):
        keyring.kept = gone
        with pytest.raises(CorruptFileError, match="gone"):
            open_vault(tmp_path)


def test_a_keyring_that_does_not_open_changes_nothing(keyring, tmp_path):
    sealed = open_vault(tmp_path).seal("x", b"1")
    keyring.locked = True
    with pytest.raises(UsageError, match="passphrase"):
        protect(tmp_path, None, None, keyring=True)
    assert guard_of(tmp_path) is Guard.FILE and open_vault(tmp_path).open("x", sealed) == b"1"


def test_without_the_package_there_is_no_keyring(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "keyring", None)
    with pytest.raises(UsageError, match="pip install"):
        open_vault(tmp_path, keyring=True)
    assert guard_of(tmp_path) is None


def test_the_command_uses_the_keyring(keyring, environment, session):  # noqa: F811
    done = session("protect", "--keyring", env=environment)
    assert (done.returncode, done.stdout) == (0, "the saved sessions are protected by: keyring\n")
    assert len(keyring.kept) == 1


def test_a_session_in_use_is_not_removed(tmp_path, environment, session):  # noqa: F811
    store = SessionStore(tmp_path / "config" / "sessions")
    session("ls", env=environment)
    store = SessionStore(next(tmp_path.rglob("sessions.db")).parent)
    store.create("ab" * 16, "mine", {}, b"{}")
    with exclusive(store, "mine"):
        done = session("rm", "mine", "--local", env=environment)
        assert done.returncode == 4 and "in use" in done.stderr and store.find("mine")
    assert session("rm", "mine", "--local", env=environment).returncode == 0
    assert store.find("mine") is None
    assert "mine" not in " ".join(path.name for path in store.directory.iterdir())


def test_locks_are_given_back_and_leave_no_name(tmp_path):
    store = SessionStore(tmp_path)
    for _ in range(2):
        with exclusive(store, "never"), pytest.raises(RefusedError), exclusive(store, "never"):
            pass
    assert not list(tmp_path.glob(".*"))
    store.create("ab" * 16, "mine", {}, b"{}")
    with exclusive(store, "mine"), pytest.raises(RefusedError), exclusive(store, "ab" * 16):
        pass
    assert [path.name for path in tmp_path.glob(".*")] == [".mine.lock"]


def test_the_clock_may_jump(tmp_path, monkeypatch):
    """Ten years forth and back between steps: nothing ends, and what is open is not evicted."""
    engine = make_engine(EngineOptions(engine="clear"), tiny_model())
    engine.prepare()
    wanted, now = greedy(tiny_model(), PROMPT, 8), store_module.time.time()
    with Host(engine, tiny_model(), tmp_path, evict_after=60.0) as host:
        client = host.client()
        client.keep(host.mine, "mine")
        tokens = greedy_tokens(client, PROMPT, 2)
        for jump in (3e8, -3e8, 0.0):
            monkeypatch.setattr(store_module.time, "time", lambda jump=jump: now + jump)
            tokens.append(int(np.argmax(client.decode(tokens[-1]))))
            host.kept.evict()
            client.channel.close()
            tokens.append(int(np.argmax(client.decode(tokens[-1]))))
        assert tokens == wanted and client.resumed == 3 and len(host.kept) == 1
        client.close()


def small_files(bytes_each):
    """For a child process: writing more into any file fails, as on a full disk."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_each, bytes_each))


def test_a_full_disk_at_the_client_ends_the_command_with_a_reason(serving, environment):  # noqa: F811
    command = [*BASE, "generate", serving.address, "one", *RAW, "--session", "mine"]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, preexec_fn=small_files(4096), timeout=300
    )
    assert done.returncode == 2 and "cannot be kept" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and "internal error" not in done.stderr
    # With room again, everything works.
    assert generate(serving, "one", environment, "--session", "mine")[0] == texts(["one"])[0]


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="limits of another process: Linux only")
def test_a_full_disk_at_the_server_costs_the_resumption_only(model_path, tmp_path, environment):  # noqa: F811
    """The database can be made, and then nothing more be written."""
    first = Serving(model_path, tmp_path, environment)
    try:
        generate(first, "one", environment, "--session", "first")
        # Of the process that runs already: as if the disk had filled up meanwhile.
        resource.prlimit(first.process.pid, resource.RLIMIT_FSIZE, (8192, 8192))
        answer, _ = generate(first, "two", environment, "--session", "first")
        assert answer == texts(["one", "two"])[1]
        done = subprocess.run(
            [*BASE, "generate", first.address, "one", *RAW, "--json", "--session", "second"],
            env=environment, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        # Either it was begun and lost its resumption, or the server said that it keeps no more.
        if done.returncode:
            assert done.returncode == 4 and "keeps no sessions" in done.stderr, done.stderr
        else:
            assert json.loads(done.stdout)["text"] == texts(["one"])[0]
    finally:
        first.process.kill()
        first.process.communicate()


def test_two_that_make_the_vault_share_its_key(tmp_path):
    """Who came second replaced the key of the first, whose sessions could not be read any more."""
    vaults, start = [], threading.Barrier(8)

    def make():
        start.wait()
        vaults.append(open_vault(tmp_path))

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sealed = [vault.seal("x", b"1") for vault in vaults]
    assert len(sealed) == 8 and all(open_vault(tmp_path).open("x", raw) == b"1" for raw in sealed)


def test_a_passphrase_is_not_ignored(tmp_path):
    """Who gives one believes that it protects the sessions."""
    open_vault(tmp_path)
    with pytest.raises(UsageError, match="not under a passphrase but protected by: file; .* session protect"):
        open_vault(tmp_path, "open sesame")
