"""Items that went through a pool, across a restart, are what they say; what it lacks is made on the spot."""

from types import SimpleNamespace

import numpy as np
import pytest

from chance import all_new
from correlation_checks import BY_HE, BY_OT, check_ots
from sottovoce.bgv import SIMD, KeyGenerator
from sottovoce.correlations import PairSource
from sottovoce.correlations.pooled import PooledSource
from sottovoce.correlations.producer import stream_of
from sottovoce.correlations.shelf import ClientShelf, NoShelf, ServerShelf
from sottovoce.net import Role, memory_pair, run_pair
from sottovoce.ot import OtExtension
from sottovoce.ring.primes import P_FIELD

TOKEN = {
    ("wraps", ((5, P_FIELD), (3, 1 << 17))): 100,
    ("ands",): 64,
    ("ots", Role.SERVER, 4, 2): 50,
    ("ots", Role.CLIENT, 2, 1): 9,
    ("triples",): 3000,
    ("scalars", 33): 2,
    ("scalars", 200): 3,
}


@pytest.fixture(scope="module")
def keys():
    generator = KeyGenerator(SIMD)
    return generator.secret_key, generator.public_key()


@pytest.fixture
def session(keys, tmp_path):
    """session(fn, profile): fn(source) at both parties, over their pools in tmp_path."""

    def run(fn, profile, channels=None, pools=True):
        def party(channel):
            is_client = channel.role == Role.CLIENT
            side = SimpleNamespace(parameters=SIMD)
            setattr(side, *(("secret", keys[0]) if is_client else ("public_key", keys[1])))
            shelf = ClientShelf(tmp_path / "c", make=True) if is_client else ServerShelf(tmp_path / "s")
            live = PairSource(channel, side, OtExtension(channel, 1 << 14))
            pool = (shelf if pools else NoShelf()).borrow(channel)
            try:
                return fn(PooledSource(channel, live, pool, lambda tokens, length: profile(tokens)))
            finally:
                if pool is not None:
                    pool.close()

        return run_pair(party, party, channels)

    return run


def times(demand):
    return lambda tokens: {key: n * tokens for key, n in demand.items()}


def demand_of(check, session):
    """What a check takes, from a run without a pool."""
    found = {}

    def record(fn):
        def run(source):
            result = fn(source)
            found.update(source._demand)
            return result

        return session(run, times({}), pools=False)

    check(record)
    return {key: 12 * n for key, n in found.items()}


@pytest.mark.parametrize("check", BY_OT + BY_HE, ids=lambda check: check.__name__)
def test_stored_items_are_what_they_say(session, check):
    """Made in one session, used in another one, with other keys for the transfers."""
    demand = demand_of(check, session)
    session(lambda source: source.fill(1), times(demand))

    def from_the_pool(fn):
        def run(source):
            source.expect(1, 0)
            result = fn(source)
            assert not source.made_on_the_spot
            return result

        return session(run, times({key: n // 12 for key, n in demand.items()}))

    check(from_the_pool)


def use(source):
    """Everything that TOKEN names, as flat arrays."""
    source.expect(1, 0)
    items = [source.wraps(100, [(5, P_FIELD), (3, 1 << 17)]), source.ands(64), source.triples(3000)]
    for sender, n, m_bits, words in ((Role.SERVER, 50, 4, 2), (Role.CLIENT, 9, 2, 1)):
        mine = source.role == sender
        items.append(source.send_ots(n, m_bits, words) if mine else source.receive_ots(n, m_bits, words))
    items += [source.scalars(2, 33), source.scalars(3, 200)]
    return items


def test_a_token_from_the_pool_takes_no_message(session):
    def tokens(source):
        before = source._channel.ledger.total()
        use(source)
        use(source)
        after = source._channel.ledger.total()
        assert (before.bytes_up, before.bytes_down) == (after.bytes_up, after.bytes_down)
        return source.ready(10)

    session(lambda source: source.fill(3), times(TOKEN))
    assert session(lambda source: source.ready(10), times(TOKEN)) == (3, 3)
    assert session(tokens, times(TOKEN)) == (1, 1)


def test_a_dry_pool_is_made_up_for(session):
    def tokens(source):
        items = [use(source) for _ in range(3)]
        triples = [item[2] for item in items]
        return triples, dict(source.made_on_the_spot)

    session(lambda source: source.fill(1), times(TOKEN))
    (mine, spot), (theirs, also) = session(tokens, times(TOKEN))
    assert spot == also and spot["wraps"] == 132 and spot["ands"] == 64
    for first, second in zip(mine, theirs, strict=True):
        a, b, c = ((x.astype(object) + y) % P_FIELD for x, y in zip(first, second, strict=True))
        assert np.array_equal(c, a * b % P_FIELD)
    values = np.concatenate([t.c for t in mine])
    assert all_new(values)


def test_nothing_comes_out_of_a_pool_twice(session):
    session(lambda source: source.fill(4), times(TOKEN))
    seen = []
    for _ in range(2):
        mine, _ = session(lambda source: [use(source) for _ in range(2)], times(TOKEN))
        seen += [item[2].c for item in mine]
    values = np.concatenate(seen)
    assert all_new(values)


def test_filling_makes_only_what_is_lacking(session):
    def twice(source):
        source.fill(2)
        size = source.pool.size
        source.fill(2)
        assert source.pool.size == size
        source.fill(3)
        return source.pool.size > size, source.ready(9)

    assert session(twice, times(TOKEN)) == ((True, 3), (True, 3))


def test_longer_scalars_serve_shorter_contexts(session):
    def tokens(source):
        source.expect(1, 0)
        items = [source.scalars(4, 20), source.scalars(1, 300)]
        assert not source.made_on_the_spot
        return items

    session(lambda source: source.fill(1), times({("scalars", 320): 12}))
    mine, theirs = session(tokens, times({("scalars", 32): 4, ("scalars", 320): 1}))
    for first, second in zip(mine, theirs, strict=True):
        r, t, c = ((x.astype(object) + y) % P_FIELD for x, y in zip(first, second, strict=True))
        assert np.array_equal(c, r * t[:, None] % P_FIELD)


def test_transfers_are_stored_folded(session, tmp_path):
    """16 bytes each at the sender, whatever the table's size."""
    demand = {("ots", Role.SERVER, 7, 1): 4096}
    session(lambda source: source.fill(1), times(demand))
    (path,) = (tmp_path / "s").rglob("*.items")
    assert path.stat().st_size == (4096 + 64) * 16 + 16 + 16 + 8
    check_ots(lambda play: session(play, times({})))


def test_names_of_streams_do_not_depend_on_the_party():
    assert stream_of(("ots", Role.SERVER, 4, 2)) == '["ots",1,4,2]'
    assert stream_of(("wraps", ((5, 7),))) == '["wraps",[[5,7]]]'


def test_both_parties_pay_alike(session):
    channels = memory_pair()
    session(lambda source: (source.fill(1), use(source), use(source)), times(TOKEN), channels)
    first, second = (channel.ledger.total() for channel in channels)
    assert (first.bytes_up, first.bytes_down, first.rounds) == (
        second.bytes_up,
        second.bytes_down,
        second.rounds,
    )
