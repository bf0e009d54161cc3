"""Sessions survive dropped connections and restarts of either party, and go on with the same tokens."""

import dataclasses

import numpy as np
import pytest

from hybrid_sessions import prepared
from kept_sessions import Host, go_on, greedy_tokens
from sottovoce.engines.base import EngineOptions
from sottovoce.engines.clear.parties import ClearModelParty
from sottovoce.engines.registry import make_engine
from sottovoce.errors import (
    CorruptFileError,
    ModelMismatchError,
    PeerConnectionError,
    RefusedError,
    ServerBusyError,
    StorageError,
    UsageError,
)
from sottovoce.models.model import greedy
from sottovoce.parties import (
    Client,
    Conversation,
    GenerationOptions,
    Pools,
    ServerSession,
    Wish,
    server_shelf,
)
from sottovoce.parties import kept as kept_module
from sottovoce.parties.protocol import Command, Verb
from sottovoce.parties.resume import Stamps, Ticket, ask_to_keep, common, parse_stamps
from sottovoce.parties.saved import SavedSession, exclusive
from sottovoce.parties.store import SessionStore
from tiny_model import tiny_model

PROMPT, PUBLIC = [3, 31, 8, 12], [5, 9, 7]


@pytest.fixture(scope="module")
def engine():
    engine = make_engine(EngineOptions(engine="clear"), tiny_model())
    engine.prepare()
    return engine


@pytest.fixture(scope="module")
def expected():
    return greedy(tiny_model(), PROMPT, 12)


class Thief:
    """Somebody who has heard a session's name, and not its key."""

    def __init__(self, ticket: Ticket) -> None:
        self.ticket = ticket

    def at(self, server):
        return Ticket(self.ticket.at(server).id, bytes(32))


@pytest.fixture
def host(engine, tmp_path):
    with Host(engine, tiny_model(), tmp_path) as host:
        yield host


def test_a_client_that_starts_again(host, expected):
    first = host.client()
    first.keep(host.mine, "mine", "here:1")
    assert first.is_kept and greedy_tokens(first, PROMPT, 5) == expected[:5]
    first.channel.close()  # no farewell: as if killed
    second = host.client("mine")
    assert second.tokens == [*PROMPT, *expected[:4]] and second.length == 8
    assert go_on(second, 8) == expected[4:12]
    assert host.mine.find("mine").facts["tokens"] == second.length
    second.close()
    host.wait_until_empty()
    assert host.kept.store.entries()[0].facts == {
        "owner": "",
        "client": "127.0.0.1",
        "tokens": second.length,
    }


def test_a_server_that_starts_again(host, expected):
    client = host.client()
    client.keep(host.mine, "mine")
    tokens = greedy_tokens(client, PROMPT, 5)
    host.stop()
    host.start()
    while len(tokens) < 12:
        tokens.append(int(np.argmax(client.decode(tokens[-1]))))
    assert tokens == expected and client.resumed == 1
    client.close()


def test_a_dropped_connection_with_public_tokens(host):
    wanted = greedy(tiny_model(), [*PUBLIC, *PROMPT], 8)
    client = host.client()
    client.keep(host.mine)
    tokens = greedy_tokens(client, PROMPT, 3, PUBLIC)
    client.channel.close()
    while len(tokens) < 8:
        tokens.append(int(np.argmax(client.decode(tokens[-1]))))
        client.channel._sock.close()
    assert tokens == wanted and client.resumed == 5 and client.public_count == 3
    client.close()


def test_what_the_server_lost_is_computed_again(host, expected):
    client = host.client()
    client.keep(host.mine, "mine")
    tokens = greedy_tokens(client, PROMPT, 4)
    client.channel.close()
    host.stop()
    host.kept.store.remove(host.kept.store.entries()[0].id)
    host.start()
    while len(tokens) < 8:
        tokens.append(int(np.argmax(client.decode(tokens[-1]))))
    assert tokens == expected[:8] and len(host.kept) == 1
    client.close()
    again = host.client("mine")
    assert again.length == 4 + 7 and go_on(again, 4) == expected[7:11]
    again.close()


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(b"junk"), lambda path: path.unlink()])
def test_damaged_files_at_the_server_cost_a_prefill(host, expected, damage):
    client = host.client()
    client.keep(host.mine, "mine")
    greedy_tokens(client, PROMPT, 4)
    client.close()
    (directory,) = [path for path in host.kept.store.directory.iterdir() if path.is_dir()]
    damage(next(directory.iterdir()))
    again = host.client("mine")
    assert again.tokens == [] and greedy_tokens(again, PROMPT, 6) == expected[:6]
    again.close()


def test_only_the_owner_comes_back(host, engine):
    client = host.client()
    client.keep(host.mine, "mine")
    greedy_tokens(client, PROMPT, 2)
    client.close()
    saved = SavedSession.open(host.mine, "mine")
    saved.head = dataclasses.replace(saved.head, ticket=Thief(saved.head.ticket))
    with pytest.raises(RefusedError, match="key"):
        Client(*host.connected(Wish("clear")), saved=saved)
    host.client("mine").close()


def test_nobody_takes_a_session_over_by_its_name(host, expected):
    """Its name is no secret. Without its key, nobody is kept under it, and its client is not cut off."""
    client = host.client()
    client.keep(host.mine, "mine")
    tokens = greedy_tokens(client, PROMPT, 3)
    thief = host.client()
    with pytest.raises(RefusedError, match="key"):
        thief._order(Command(Verb.KEEP))
        ask_to_keep(thief.channel, Thief(client._keeping.saved.head.ticket).at(""))
        thief.channel.recv(1)
    tokens.append(int(np.argmax(client.decode(tokens[-1]))))
    assert tokens == expected[:4] and client.resumed == 0 and len(host.kept) == 1
    client.close()


@pytest.mark.parametrize("kept", [1, 0])
def test_what_replaced_public_tokens_stays_private(host, kept):
    """Also when the server has lost the session, and all of it is sent again."""
    client = host.client()
    client.keep(host.mine, "mine")
    client.prefill(PUBLIC, PROMPT)
    client.truncate(kept)
    client.prefill([], PROMPT)
    assert client.public_count == kept
    client.channel.close()
    host.stop()
    host.kept.store.remove(host.kept.store.entries()[0].id)
    host.start()
    client.decode(1)
    assert client.resumed == 1 and client.tokens == [*PUBLIC[:kept], *PROMPT, 1]
    client.close()
    host.wait_until_empty()
    assert host.reports[-1].public_tokens == kept


def test_a_session_is_for_one_connection(host, expected):
    """The old one, whose client nobody has seen leaving, is cut off; its last step is not lost."""
    first = host.client()
    first.keep(host.mine, "mine")
    tokens = greedy_tokens(first, PROMPT, 3)
    second = host.client("mine")
    assert second.tokens == [*PROMPT, *tokens[:2]]
    first._again = None
    with pytest.raises(PeerConnectionError):
        first.decode(tokens[-1])
    assert go_on(second, 3) == expected[2:5]
    second.close()


def test_another_model_is_refused(host, engine, tmp_path):
    client = host.client()
    client.keep(host.mine, "mine")
    client.close()
    other = tiny_model(seed=1)
    changed = make_engine(EngineOptions(engine="clear"), other)
    host.stop()
    with (
        Host(changed, other, tmp_path) as elsewhere,
        pytest.raises(ModelMismatchError, match="another model"),
    ):
        elsewhere.client("mine")


def test_names(host):
    client = host.client()
    client.keep(host.mine, "mine")
    other = host.client()
    with pytest.raises(UsageError, match="already"):
        other.keep(host.mine, "mine")
    assert not other.is_kept and len(host.mine.entries()) == 1
    with pytest.raises(UsageError, match="no saved session"):
        host.client("yours")
    with pytest.raises(UsageError, match="cannot name"):
        other.keep(host.mine, "a/b")
    client.close()
    other.close()


def test_a_full_disk_at_the_server_costs_only_the_resumption(host, expected, monkeypatch):
    client = host.client()
    client.keep(host.mine, "mine")
    tokens = greedy_tokens(client, PROMPT, 3)
    original = SessionStore.checkpoint

    def full(self, *arguments):
        if self is host.kept.store:
            raise StorageError("no space left")
        original(self, *arguments)

    monkeypatch.setattr(SessionStore, "checkpoint", full)
    while len(tokens) < 6:
        tokens.append(int(np.argmax(client.decode(tokens[-1]))))
    monkeypatch.undo()
    client.channel.close()
    while len(tokens) < 9:
        tokens.append(int(np.argmax(client.decode(tokens[-1]))))
    assert tokens == expected[:9]
    client.close()


def test_a_full_disk_at_the_client_is_said(host, expected, monkeypatch):
    client = host.client()
    client.keep(host.mine, "mine")
    tokens = greedy_tokens(client, PROMPT, 3)

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(host.mine, "_seal", full)
    with pytest.raises(StorageError, match="No space left"):
        client.decode(tokens[-1])
    # The session itself goes on, unsaved; what was saved before holds.
    assert int(np.argmax(client.decode(expected[3]))) == expected[4]
    monkeypatch.undo()
    client.close()
    again = host.client("mine")
    assert again.tokens == [*PROMPT, *expected[:2]] and go_on(again, 4) == expected[2:6]
    again.close()


def test_patience_with_a_server_that_stays_away(host):
    client, said = host.client(patience=0.2), []
    client.keep(host.mine, "mine")
    tokens = greedy_tokens(client, PROMPT, 2)
    client.notify = said.append
    host.stop()
    with pytest.raises(PeerConnectionError, match="goes on when the server is there again"):
        client.decode(tokens[-1])
    assert len(said) == 1  # the patience is used up once, not for every attempt at the step
    client.close()


def test_a_busy_step_is_waited_for_and_then_reported(host, monkeypatch):
    kept, ticket = host.kept, Ticket.new()
    monkeypatch.setattr(kept_module, "_PATIENCE", 0.01)

    class Deaf:
        def close(self):
            pass

    with kept.claimed(ticket, Deaf()):
        with pytest.raises(ServerBusyError, match="busy"), kept.claimed(ticket, Deaf()):
            pass
        assert kept._open
    assert not kept._open


def test_stamps():
    stamps = Stamps(5)
    stamps.resize(3)
    stamps.resize(1)
    stamps.resize(4)
    first = parse_stamps(stamps.to_bytes())
    assert first.tolist() == [(5 << 24) + n for n in (0, 3, 4, 5)] and len(stamps) == 4
    other = Stamps(6, first[:2])
    other.resize(3)
    assert common(first, parse_stamps(other.to_bytes())) == 2
    assert common(first, first[:3]) == 3 and common(first, first[:0]) == 0


def test_processes_do_not_share_a_session(tmp_path):
    store = SessionStore(tmp_path)
    with exclusive(store, "mine"), exclusive(store, "yours"):
        with pytest.raises(RefusedError, match="in use"), exclusive(store, "mine"):
            pass
    with exclusive(store, "mine"):
        pass
    store.create("f" * 32, "mine", {}, b"")
    with exclusive(store, "mine"), pytest.raises(RefusedError, match="in use"), exclusive(store, "f" * 32):
        pass
    for name in ("", "a/b", "a\0", "x" * 65, "../mine"):
        with pytest.raises(UsageError, match="cannot name"), exclusive(store, name):
            pass


def test_heads_that_are_none(host):
    store = SessionStore(host.directory / "junk")
    good = b'{"key": "%s", "stamps": "", "keeps": true, "tokens": []}' % (b"00" * 32)
    changes = [(b"00", b"0"), (b"[]", b"[1]"), (b"[]", b"3"), (b'""', b'"AAAA"')]
    heads = [b"", b"[]", b"{}", *(good.replace(old, new, 1) for old, new in changes)]
    for number, head in enumerate(heads):
        store.create(f"{number:032x}", f"s{number}", {}, head)
        with pytest.raises(CorruptFileError):
            assert SavedSession.open(store, f"s{number}").tokens
    store.create("f" * 32, "good", {}, good)
    assert SavedSession.open(store, "good").tokens == []


def test_idle_sessions_go_to_disk(engine, tmp_path, expected):
    sessions = []
    with Host(engine, tiny_model(), tmp_path, on_open=sessions.append, evict_after=600) as host:
        client = host.client()
        client.keep(host.mine)
        sessions[0]._evict_after = 0.01  # from the next command on
        tokens = greedy_tokens(client, PROMPT, 3)
        while not any("idle" in report.ended for report in host.reports):
            pass
        assert int(np.argmax(client.decode(tokens[-1]))) == expected[3] and client.resumed >= 1
        client.close()


@pytest.mark.parametrize("kv", ["ciphertext", "masked", "none"])
def test_hybrid_sessions(kv, tmp_path):
    """Without a cache there is nothing to restore: everything is computed again."""
    model = tiny_model()
    wanted = greedy(model, [*PUBLIC, *PROMPT], 4)
    with Host(prepared(model, kv), model, tmp_path) as host:
        client = host.client()
        client.keep(host.mine, "mine")
        tokens = greedy_tokens(client, PROMPT, 2, PUBLIC)
        client.channel.close()
        tokens.append(int(np.argmax(client.decode(tokens[-1]))))
        assert client.resumed == 1
        client.close()
        again = host.client("mine")
        assert again.length == (0 if kv == "none" else 9)
        if kv != "none":
            assert go_on(again, 2) == wanted[2:4]
        assert tokens == wanted[:3]
        again.close()


def test_a_server_without_memory_says_so(host, monkeypatch):
    """MemoryError in a step ends that session clearly; the others, and the saved state, are untouched."""
    client = host.client()
    client.keep(host.mine, "mine")
    other = host.client()
    tokens = greedy_tokens(client, PROMPT, 3)

    def exhausted(self, party, command):
        raise MemoryError

    monkeypatch.setattr(ServerSession, "_execute", exhausted)
    with pytest.raises(ServerBusyError, match="memory") as caught:
        client.decode(tokens[-1])
    assert caught.value.retry_after == 30
    monkeypatch.undo()
    assert len(greedy_tokens(other, PROMPT, 3)) == 3
    again = host.client("mine")
    assert again.tokens == [*PROMPT, *tokens[:2]]
    again.close()
    other.close()


def test_a_session_with_a_pool_gets_it_again(tmp_path):
    """The pool is locked by one session at a time: the broken one lets go of it first; rows stay spent."""
    model = tiny_model()
    engine = prepared(model, "masked")
    wanted = greedy(model, [*PUBLIC, *PROMPT], 5)
    with Host(engine, model, tmp_path) as host:
        shelf = server_shelf(tmp_path / "pools-server", host.welcome)

        def open_party():
            party = engine.session()
            party.shelf = shelf
            return party

        host.server._open_party = open_party
        taken = []
        client = host.client(pools=Pools(tmp_path / "pools-client", make=True))
        client.prepare(12)
        client.keep(host.mine, "mine")
        tokens = greedy_tokens(client, PROMPT, 2, PUBLIC)
        for _ in range(2):
            taken.append(client._party._provisions.source.pool.state().takes)
            client.channel.close()
            tokens.append(int(np.argmax(client.decode(tokens[-1]))))
            assert client.has_pool
        taken.append(client._party._provisions.source.pool.state().takes)
        assert tokens == wanted[:4] and client.resumed == 2 and taken == sorted(set(taken))
        client.close()


def test_an_interrupted_answer_leaves_the_conversation_saved(host):
    """Ctrl-C in the middle of a step ends the connection; what was said before is on the disk."""
    client = host.client()
    client.keep(host.mine, "mine")
    talk = Conversation(client, chat=False)
    options = GenerationOptions(max_tokens=4)
    first = talk.ask("one", options)

    def interrupt(done, total, what):
        raise KeyboardInterrupt

    decode = client._party.decode
    client._party.decode = lambda token, progress: interrupt(0, 0, "")
    again = talk.ask("two", options)
    assert again.finish_reason == "cancelled"
    client._party.decode = decode
    client.close()
    resumed = host.client("mine")
    going_on = Conversation(resumed)
    assert [message["content"] for message in going_on.said][:2] == ["one", first.text]
    assert going_on.ask("three", options).finish_reason in ("length", "stop")
    resumed.close()


def test_tokens_are_not_forgotten_before_they_are_computed_again(host):
    """The server lost its half; the client is killed before it has sent anything: nothing is lost here."""
    client = host.client()
    client.keep(host.mine, "mine")
    greedy_tokens(client, PROMPT, 3)
    client.close()
    host.wait_until_empty()
    host.kept.store.remove(host.kept.store.entries()[0].id)
    for _ in range(2):
        again = host.client("mine")
        assert again.tokens == [] and len(SavedSession.open(host.mine, "mine").tokens) == 6
        again.channel.close()


def test_a_state_that_cannot_be_restored_is_computed_again(host, expected, monkeypatch):
    """Files that are whole, but not what the engine saved."""
    client = host.client()
    client.keep(host.mine, "mine")
    tokens = greedy_tokens(client, PROMPT, 3)

    def damaged(self, pieces, length):
        raise CorruptFileError("not mine")

    monkeypatch.setattr(ClearModelParty, "restore", damaged)
    client.channel.close()
    while len(tokens) < 6:
        tokens.append(int(np.argmax(client.decode(tokens[-1]))))
    assert tokens == expected[:6] and client.resumed
    client.close()
