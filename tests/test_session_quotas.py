"""Saved sessions of many clients at one server: whose go first, and what happens to one that is just used."""

import threading

import numpy as np
import pytest

from kept_sessions import Host, go_on, greedy_tokens
from sottovoce.engines.base import EngineOptions
from sottovoce.engines.registry import make_engine
from sottovoce.errors import RefusedError, ServerBusyError
from sottovoce.models.model import greedy
from sottovoce.net import socket_pair
from sottovoce.net.tls import Certificate
from sottovoce.parties.admission import Account, Admission, ApiKeys
from sottovoce.parties.connected import Connected
from sottovoce.parties.kept import KeptSessions
from sottovoce.parties.resume import Ticket
from sottovoce.parties.saved import SavedSession
from sottovoce.parties.store import _FLOOR, SessionStore
from tiny_model import tiny_model

PROMPT = [3, 31, 8, 12]
ANN, MALLORY = Account("ann", owner="ann"), Account("mallory", owner="mallory")


@pytest.fixture(scope="module")
def engine():
    engine = make_engine(EngineOptions(engine="clear"), tiny_model())
    engine.prepare()
    return engine


def saved(kept, account, size, tokens=1):
    """A session of so many bytes that is not open; its id."""
    ticket = Ticket.new()
    channel, other = socket_pair()
    with kept.claimed(ticket, channel):
        checkpoints = kept.keep(ticket, account, 1)
        checkpoints.stamps.resize(tokens)
        facts = {"owner": account.owner, "client": account.name}
        kept.store.checkpoint(ticket.id.hex(), b"{}", {"tokens.0": {"k": np.zeros(size, np.uint8)}}, facts)
    other.close()
    channel.close()
    return ticket.id.hex()


def test_who_saves_most_loses_first(tmp_path):
    """Whoever fills the disk pushes out its own sessions, not older ones of others."""
    kept = KeptSessions(SessionStore(tmp_path), limit=5 << 20)
    anns = [saved(kept, ANN, 1 << 20) for _ in range(2)]
    mallorys = [saved(kept, MALLORY, 1 << 20) for _ in range(9)]
    left = {entry.id for entry in kept.store.entries()}
    assert left == {*anns, *mallorys[-2:]} and kept.size() <= kept.limit
    assert saved(kept, ANN, 5 << 19) in {entry.id for entry in kept.store.entries()}
    left = {entry.id for entry in kept.store.entries()}
    assert not left & set(anns) and left > set(mallorys[-2:])  # now Ann had most


def test_empty_sessions_count_as_well(tmp_path):
    kept = KeptSessions(SessionStore(tmp_path), limit=8 * _FLOOR)
    mine = saved(kept, ANN, 1)
    for _ in range(12):
        saved(kept, MALLORY, 1)
    assert len(kept) == 8 and kept.store.find(mine)


def test_what_is_open_is_never_evicted(tmp_path):
    """Also when it is claimed while the eviction is under way."""
    kept = KeptSessions(SessionStore(tmp_path), limit=4 << 20)
    ids = [saved(kept, MALLORY, 1 << 20) for _ in range(4)]
    claimed, original = threading.Event(), kept.store.entries
    channel, other = socket_pair()
    results = []

    def claim():
        with kept.claimed(Ticket(bytes.fromhex(ids[0]), bytes(32)), channel):
            results.append(kept.store.find(ids[0]))
            claimed.set()

    def slowly():
        """Meanwhile somebody comes back to a session that was listed as idle."""
        found = original()
        threading.Thread(target=claim).start()
        claimed.wait(0.2)
        return found

    kept.store.entries, kept.limit = slowly, 3 << 20
    kept.evict()
    kept.store.entries = original
    assert claimed.wait(300)
    # Either it was gone before it was claimed, or it stays: never between.
    assert (results == [None]) == (kept.store.find(ids[0]) is None)
    other.close()
    channel.close()


def test_a_session_that_is_removed_in_use_goes_on_unsaved(engine, tmp_path):
    with Host(engine, tiny_model(), tmp_path) as host:
        client = host.client()
        client.keep(host.mine, "mine")
        tokens = greedy_tokens(client, PROMPT, 3)
        host.kept.store.remove(host.kept.store.entries()[0].id)
        while len(tokens) < 6:
            tokens.append(int(np.argmax(client.decode(tokens[-1]))))
        client.channel.close()
        while len(tokens) < 8:
            tokens.append(int(np.argmax(client.decode(tokens[-1]))))
        assert tokens == greedy(tiny_model(), PROMPT, 8) and client.resumed
        client.close()


def test_another_server_learns_nothing_of_a_ticket(engine, tmp_path, monkeypatch):
    """A session that is offered to the wrong server: it goes on there, and at the first one as before."""
    wanted = greedy(tiny_model(), PROMPT, 7)
    with Host(engine, tiny_model(), tmp_path / "a") as first:
        client = first.client()
        client.keep(first.mine, "mine")
        greedy_tokens(client, PROMPT, 3)
        client.close()
        first.wait_until_empty()
        at_first = first.kept.store.entries()[0].id
        ticket = SavedSession.open(first.mine, "mine").head.ticket
        assert ticket.at("") != ticket.at("sha256:00") != ticket
        assert ticket.at("").id.hex() == at_first != ticket.id.hex()
        for one, other in ((ticket.at(""), ticket.at("x")), (ticket.at(""), ticket)):
            assert one.id != other.id and one.key != other.key
        with monkeypatch.context() as elsewhere:
            elsewhere.setattr(Connected, "_server", "sha256:00")
            stray = first.client("mine")  # who asks hears of nothing, and begins to keep another one
            assert stray.length == 0 and stray.is_kept and len(first.kept) == 2
            stray.close()
        again = first.client("mine")
        assert again.length == 6 and go_on(again, 3) == wanted[2:5]
        again.close()


def test_clients_are_known_by_key_then_certificate_then_address(tmp_path):
    (tmp_path / "keys").write_text("ann secret\n")
    keyed, open_to_all = Admission(1, keys=ApiKeys(tmp_path / "keys")), Admission(1)
    assert keyed.account("secret", "1.2.3.4", "sha256:77").name == "ann"
    assert open_to_all.account(None, "1.2.3.4", "sha256:77").name == "sha256:77"
    assert open_to_all.account(None, "1.2.3.4").name == "1.2.3.4"
    assert open_to_all.account(None, "::ffff:1.2.3.4").name == "1.2.3.4"
    assert open_to_all.account(None, "2001:db8:1:2:3::4%eth0").name == "2001:db8:1:2::/64"
    assert open_to_all.account(None, "").name == ""


def test_certificates_have_quotas_of_their_own(engine, tmp_path):
    """Two clients behind one address, each with its certificate."""
    from sottovoce.net.tls import fingerprint, self_signed
    from sottovoce.parties import Address, Client, Server, Welcome, Wish

    names, trusted = ("ann", "bob"), tmp_path / "clients.crt"
    for name in names:
        key, certificate = self_signed(name)
        (tmp_path / f"{name}.pem").write_bytes(key + certificate)
        with trusted.open("ab") as file:
            file.write(certificate)
    server_certificate, reports = Certificate(tmp_path / "server"), []
    server = Server(
        engine.session,
        Welcome(engine.options, engine.public(), tiny_model().card),
        tls=server_certificate.context(trusted),
        admission=Admission(8, per_client=1),
        on_close=reports.append,
    )

    def connect(name):
        pin = server_certificate.fingerprint
        address = Address("127.0.0.1", server.port)
        return Client.connect(address, Wish("clear"), pin, client_certificate=tmp_path / f"{name}.pem")

    with server:
        with connect("ann"), connect("bob"):
            with pytest.raises(ServerBusyError, match="you have 1 sessions"):
                connect("ann")
    assert len({report.account for report in reports}) == 2
    assert all(report.account.startswith(fingerprint(b"")[:7]) for report in reports)


def test_quotas_hold_for_those_who_come_back(engine, tmp_path):
    with Host(engine, tiny_model(), tmp_path, admission=Admission(1)) as host:
        client = host.client()
        client.keep(host.mine, "mine")
        with pytest.raises(ServerBusyError):
            host.client("mine")
        client.close()
        while host.server.admission.running:
            pass
        host.client("mine").close()


def test_limits_of_saved_sessions(tmp_path):
    store = SessionStore(tmp_path)
    kept = KeptSessions(store, limit=0)
    ticket = Ticket.new()
    kept.keep(ticket, Account("ann"), 1)
    store.checkpoint(ticket.id.hex(), b"{}", {"tokens.0": {"k": np.zeros(100)}}, {"client": "ann"})
    assert len(kept) == 1 and kept.evict() == 1 and len(kept) == 0


def test_servers_that_keep_nothing(engine, tmp_path):
    with Host(engine, tiny_model(), tmp_path) as host:
        host.server._kept = None
        client = host.client()
        with pytest.raises(RefusedError, match="keeps no sessions"):
            client.keep(host.mine, "mine")
        assert host.mine.entries() == [] and len(greedy_tokens(client, PROMPT, 3)) == 3
        client.close()
