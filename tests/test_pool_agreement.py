"""The two halves of a pool: in step, or refused; what crosses the wire is checked."""

import os
import shutil
import threading
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pool_rows import KEY, put, rows, taken
from sottovoce.correlations.agreement import admit, reconcile
from sottovoce.correlations.marks import EPOCH_BYTES, State
from sottovoce.correlations.pool import Pool
from sottovoce.correlations.producer import store
from sottovoce.correlations.records import Record
from sottovoce.correlations.shelf import ClientShelf, NoShelf, ServerShelf
from sottovoce.errors import (
    CorruptFileError,
    IntegrityError,
    ProtocolError,
    RefusedError,
    UsageError,
)
from sottovoce.net import Role, memory_pair, run_pair
from sottovoce.parties.pools import evict_pools


class Home:
    """A client's and a server's place on one machine."""

    def __init__(self, path, **limits):
        limits.setdefault("patience", 0.0)
        self.path = path
        self.client = ClientShelf(path / "client", make=True)
        self.server = ServerShelf(path / "server", **limits)

    def meet(self, client_fn=lambda channel, pool: "met", server_fn=None):
        """A session: both open their halves, then run their functions (None if they have none)."""

        def party(shelf, work):
            def run(channel):
                pool = shelf.borrow(channel)
                if pool is not None:
                    with pool:
                        return work(channel, pool)

            return run

        return run_pair(party(self.client, client_fn), party(self.server, server_fn or client_fn))


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path)


def fill(channel, pool, n=16):
    store(channel, pool, {"a": Record((rows(n, 5 + channel.role),)), "b": Record((rows(8, 9),))})


def spend(n):
    return lambda channel, pool: taken(pool, a=n)["a"]


def id_of(home):
    with home.client.open() as pool:
        return pool.id


def test_both_halves_stay_in_step(home):
    home.meet(fill)
    mine, theirs = home.meet(spend(8))
    assert mine == list(rows(16, 5)[:8]) and theirs == list(rows(16, 6)[:8])
    mine, theirs = home.meet(spend(8))
    assert mine == list(rows(16, 5)[8:]) and theirs == list(rows(16, 6)[8:])


def test_the_larger_mark_counts(home):
    """One party took and was killed before the other did: gone for both."""
    home.meet(fill)
    home.meet(spend(8), lambda channel, pool: None)
    mine, theirs = home.meet(spend(8))
    assert mine == list(rows(16, 5)[8:]) and theirs == list(rows(16, 6)[8:])
    home.meet(fill)
    home.meet(lambda channel, pool: None, spend(8))
    mine, theirs = home.meet(spend(8))
    assert mine == list(rows(16, 5)[8:]) and theirs == list(rows(16, 6)[8:])


def test_a_batch_of_only_one_party_is_dropped(home):
    def half(channel, pool):
        pool.commit(pool.stage({"a": Record((rows(8),))}))

    home.meet(half, lambda channel, pool: None)
    mine, theirs = home.meet(spend(8))
    assert mine == theirs == []
    assert not list(home.path.rglob("*.items"))
    home.meet(fill)
    mine, theirs = home.meet(spend(8))
    assert mine == list(rows(16, 5)[:8]) and theirs == list(rows(16, 6)[:8])


@pytest.mark.parametrize("restored", ["client", "server"])
@pytest.mark.parametrize("copied", ["marks and items", "everything"])
def test_a_pool_restored_from_a_backup_is_refused(home, restored, copied):
    home.meet(fill)
    (original,) = (p.parent for p in (home.path / restored).rglob("marks.db"))
    backup = home.path / "backup"
    shutil.copytree(original, backup)
    home.meet(spend(8))
    shutil.rmtree(original)
    shutil.copytree(backup, original)
    for _ in range(2):  # stays refused
        with pytest.raises(RefusedError, match="restored from a backup.*prepare SERVER --reset") as caught:
            home.meet(spend(8))
        assert "is older than the last use" in str(caught.value)
    assert not taken_anything(home)


def taken_anything(home):
    """Whether a refused session took something at either party."""
    counts = set()
    for path in home.path.glob("*/**/marks.db"):
        if "backup" not in path.parts:
            with Pool(path.parent) as pool:
                counts.add(pool.state().takes)
    return counts != {0, 1}


def test_a_session_beside_another_goes_without_the_pool(home):
    """As `generate` does while a proxy runs; who comes to fill it is refused."""
    home.meet(fill)
    told = []
    with home.client.open():
        beside = Home(home.path)
        beside.client = ClientShelf(home.client.directory, in_use=lambda: told.append(True))
        assert beside.meet(lambda channel, pool: pool) == (None, None) and told == [True]
        with pytest.raises(RefusedError, match="in use by another session"):
            home.meet(fill)


def test_a_cloned_pool_is_refused_in_and_after_the_original_session(home, tmp_path):
    home.meet(fill)
    clone = Home(tmp_path)
    clone.client = ClientShelf(tmp_path / "clone", make=True)
    shutil.copytree(home.client.directory, clone.client.directory)

    def meanwhile(channel, pool):
        with pytest.raises(RefusedError, match="in use by another session"):
            clone.meet(spend(8))
        channel.send(b"x")
        return spend(8)(channel, pool)

    def until_then(channel, pool):
        channel.recv(1)
        return spend(8)(channel, pool)

    mine, _ = home.meet(meanwhile, until_then)
    assert len(mine) == 8
    with pytest.raises(RefusedError, match="a copy of it was used elsewhere"):
        clone.meet(spend(8))
    mine, _ = home.meet(spend(8))
    assert mine == list(rows(16, 5)[8:])


def test_a_session_waits_for_one_that_is_about_to_end(home):
    home.meet(fill)
    home.server.patience = 5.0
    held = home.server.find(id_of(home))
    threading.Timer(0.2, held.close).start()
    mine, _ = home.meet(spend(8))
    assert len(mine) == 8


def test_a_pool_that_the_server_forgot_is_deleted_and_made_anew(home):
    home.meet(fill)
    for path in (home.path / "server").iterdir():
        shutil.rmtree(path)
    home.client.make = False
    assert home.meet(spend(8)) == (None, None)
    assert not home.client.directory.exists()
    home.client.make = True
    assert home.meet(fill) == (None, None)
    mine, theirs = home.meet(spend(8))
    assert mine == list(rows(16, 5)[:8]) and theirs == list(rows(16, 6)[:8])


def test_reset_deletes_both_halves_even_if_they_do_not_fit(home):
    home.meet(fill)
    before = id_of(home)
    with home.client.open() as pool:
        pool.marks.set_facts(epoch=bytes(EPOCH_BYTES))
    with pytest.raises(RefusedError):
        home.meet(spend(8))
    home.client.reset = True
    assert home.meet(spend(8)) == ([], [])
    assert id_of(home) != before
    assert len(list((home.path / "server").iterdir())) == 1


def test_reset_of_a_pool_that_cannot_be_read(home):
    home.meet(fill)
    (home.client.directory / "marks.db").write_bytes(b"no database" * 100)
    with pytest.raises(CorruptFileError, match="--reset"):
        home.meet(spend(8))
    home.client.reset = True
    assert home.meet() == ("met", "met")


def test_sessions_without_a_pool(home):
    home.client.make = False
    assert home.meet() == (None, None)
    home.client = NoShelf()
    assert home.meet() == (None, None)


def test_a_server_without_pools_leaves_the_clients_alone(home):
    home.meet(fill)
    shelf, home.server = home.server, NoShelf()
    assert home.meet() == (None, None)
    home.server = shelf
    mine, theirs = home.meet(spend(8))
    assert len(mine) == len(theirs) == 8


@pytest.mark.parametrize("liar", [Role.CLIENT, Role.SERVER])
def test_who_does_not_know_the_key_is_refused(home, liar):
    home.meet(fill)
    (path,) = (p.parent for p in (home.path / ("client", "server")[liar]).rglob("marks.db"))
    with Pool(path) as pool:
        pool.marks.set_facts(secret=b"x" * 32)
    with pytest.raises(RefusedError, match="does not know the key"):
        home.meet(spend(8))


def test_a_full_pool_says_so_at_both_parties(tmp_path):
    home = Home(tmp_path, limit=200)
    messages = []

    def overfill(channel, pool):
        fill(channel, pool, 8)
        try:
            fill(channel, pool, 16)
        except UsageError as error:
            messages.append(str(error))
        return pool.available("a")

    mine, theirs = home.meet(overfill)
    assert mine == theirs == 8
    assert len(messages) == 2 and all("is full" in m and "--pool-limit" in m for m in messages)
    assert {"other side" in m for m in messages} == {True, False}


def test_different_batches_are_not_stored(home):
    def uneven(channel, pool):
        with pytest.raises(ProtocolError, match="different items"):
            store(channel, pool, {"a": Record((rows(8 + 8 * channel.role),))})
        return pool.available("a")

    assert home.meet(uneven) == (0, 0)


def test_the_server_limits_and_evicts(tmp_path):
    homes = [Home(tmp_path, most=2, max_idle=3600) for _ in range(3)]
    for i, home in enumerate(homes):
        home.client = ClientShelf(tmp_path / f"client{i}", make=True)
    homes[0].meet(fill)
    homes[1].meet(fill)
    with pytest.raises(RefusedError, match="2 clients"):
        homes[2].meet(fill)
    first = tmp_path / "server" / id_of(homes[0]).hex()
    os.utime(first, (0, 0))
    assert not homes[2].client.directory.exists()
    homes[2].meet(fill)
    assert not first.exists()
    homes[0].client.make = False
    assert homes[0].meet(spend(8)) == (None, None)
    assert not homes[0].client.directory.exists()


def test_empty_pools_give_up_their_places(tmp_path):
    """Whoever makes many has not kept anybody out, unless he fills them."""
    shelf = ServerShelf(tmp_path, most=3)
    used = shelf.create(b"u" * 16, KEY)
    kept = shelf.create(b"k" * 16, KEY)
    kept.begin(bytes(EPOCH_BYTES), 1)
    put(kept, a=rows(8))
    kept.close()
    for i in range(4):
        shelf.create(bytes([i]) * 16, KEY).close()
    assert shelf.find(b"k" * 16) is not None and (tmp_path / (b"u" * 16).hex()).exists()
    used.close()
    assert {path.name for path in tmp_path.iterdir()} == {x.hex() for x in (b"u" * 16, b"k" * 16, b"\3" * 16)}


def test_made_up_streams_do_not_pile_up(home, monkeypatch):
    """A client that announces others at every opening would have the server's ledger grow without end."""
    home.meet(fill)
    honest, names = Pool.state, iter(range(100))

    def more(pool):
        found = honest(pool)
        if "client" not in pool.directory.parts[-1]:
            return found
        made_up = {f"{next(names)}{'x' * (1 << 18)}{i}": (0, 0) for i in range(3)}
        own = {name: marks for name, marks in found.streams.items() if len(name) < 100}
        return replace(found, streams={**own, **made_up})

    monkeypatch.setattr(Pool, "state", more)
    with pytest.raises(IntegrityError, match="more streams"):
        for _ in range(3):
            home.meet()
    (ledger,) = (home.path / "server").rglob("marks.db")
    assert ledger.stat().st_size < 4 << 20


def test_material_of_other_releases_goes_too(tmp_path):
    now, before = (ServerShelf(tmp_path / "clients" / name) for name in ("now", "before"))
    for shelf in (now, before):
        for number in (1, 2):
            shelf.create(bytes([number]) * 16, KEY).close()
    os.utime(tmp_path / "clients" / "before" / (b"\1" * 16).hex(), (0, 0))
    with before.find(b"\2" * 16):
        os.utime(tmp_path / "clients" / "before" / (b"\2" * 16).hex(), (0, 0))
        assert evict_pools(tmp_path / "clients") == 1
    assert (now.count(), before.count()) == (2, 1)
    assert evict_pools(tmp_path / "missing") == 0


def test_the_total_limits_every_pool(tmp_path):
    home = Home(tmp_path, total=1000)
    home.meet(fill)
    with home.server.find(id_of(home)) as pool:
        assert pool.limit == 1000
    with home.server.create(b"o" * 16, KEY) as pool:
        assert pool.limit < 1000


# The rules of agreement


def state(epoch=1, pending=None, takes=0, generation=1, streams=None, batches=()):
    def name(n):
        return None if n is None else n.to_bytes(EPOCH_BYTES, "little")

    return State(generation, name(epoch), name(pending), takes, streams or {}, batches)


def test_every_interrupted_opening_can_be_continued():
    """Four openings in a row, each stopped at every combination of steps that the protocol allows.

    A party confirms (2) only after the other has agreed (1).
    """
    stops = [(0, 0), (1, 0), (0, 1), (1, 1), (2, 1), (1, 2), (2, 2)]
    for sequence in product(stops, repeat=4):
        parties = [state(), state()]
        for number, reached in enumerate(sequence, 2):
            agreed = [reconcile(*parties), reconcile(*parties[::-1])]
            assert agreed[0] == agreed[1]
            epoch = number.to_bytes(EPOCH_BYTES, "little")
            for i in (0, 1):
                if reached[i] >= 1:
                    parties[i] = replace(agreed[i], pending=epoch)
                if reached[i] == 2:
                    parties[i] = replace(
                        parties[i], epoch=epoch, pending=None, generation=agreed[i].generation + 1
                    )
        reconcile(*parties)


def test_marks_are_the_larger_ones_and_batches_those_of_both():
    mine = state(takes=4, streams={"a": (3, 9), "b": (0, 4)}, batches=(b"1", b"2"))
    other = state(takes=3, streams={"a": (5, 8)}, batches=(b"2", b"3"))
    agreed = reconcile(mine, other)
    assert agreed.streams == {"a": (5, 9), "b": (0, 4)} and agreed.batches == (b"2",) and agreed.takes == 4


@pytest.mark.parametrize(
    "mine, other",
    [
        (state(epoch=1), state(epoch=2, generation=2)),
        (state(epoch=1, pending=3), state(epoch=2, generation=2)),
        (state(epoch=1, pending=3), state(epoch=2, pending=3)),
        (state(takes=1), state(takes=9)),
    ],
)
def test_halves_that_do_not_fit(mine, other):
    with pytest.raises(RefusedError, match="ours is older|the other one is older"):
        reconcile(mine, other)
    with pytest.raises(RefusedError):
        reconcile(other, mine)


def test_state_survives_the_wire():
    mine = state(pending=7, streams={"a": (1, 2)}, batches=(b"x" * 16,))
    assert State.from_bytes(mine.to_bytes()) == mine


@settings(deadline=None)
@given(st.binary(max_size=60))
def test_states_from_the_wire_are_checked(raw):
    with pytest.raises(IntegrityError):
        State.from_bytes(raw)


@pytest.mark.parametrize(
    "old, new",
    [
        (b'"takes": 0', b'"takes": -1'),
        (b'"takes": 0', b'"takes": 4611686018427387904'),
        (b'"takes": 0', b'"takes": 1.5'),
        (b"[1, 2]", b"[1]"),
        (b"[1, 2]", b'"x"'),
        (b"01000000", b"01"),
        (b'"batches": []', b'"batches": ["00"]'),
    ],
)
def test_malformed_states_are_refused(old, new):
    raw = state(streams={"a": (1, 2)}).to_bytes()
    assert old in raw
    with pytest.raises(IntegrityError):
        State.from_bytes(raw.replace(old, new))


def test_garbage_instead_of_a_handshake(home):
    channels = memory_pair()

    def client(channel):
        channel.send(bytes([9]) + bytes(80))

    with pytest.raises(IntegrityError, match="malformed"):
        run_pair(client, lambda channel: admit(channel, home.server), channels)
