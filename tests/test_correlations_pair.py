"""The real source between two threads: right, used once, and as expensive as it says."""

from types import SimpleNamespace

import numpy as np
import pytest

from chance import all_new
from correlation_checks import BY_HE, BY_OT
from sottovoce.bgv import SIMD, KeyGenerator, flooded_bytes, fresh_bytes
from sottovoce.correlations import PairSource
from sottovoce.errors import ParameterError, ProtocolError
from sottovoce.net import Role, memory_pair, run_pair
from sottovoce.ot import OtExtension
from sottovoce.packing import DataSide, ModelSide
from sottovoce.ring.primes import P_FIELD, P_SMALL

UP, DOWN = fresh_bytes(SIMD, 1), flooded_bytes(SIMD, 1)
BATCH = 1 << 14


@pytest.fixture(scope="module")
def keys():
    generator = KeyGenerator(SIMD)
    return generator.secret_key, generator.public_key()


@pytest.fixture
def run(keys):
    """Runs fn(source) at both parties; every run has fresh OTs, as every session does."""

    def both(fn, channels=None):
        def party(channel):
            side = SimpleNamespace(parameters=SIMD)
            if channel.role == Role.CLIENT:
                side.secret = keys[0]
            else:
                side.public_key = keys[1]
            return fn(PairSource(channel, side, OtExtension(channel, BATCH)))

        return run_pair(party, party, channels)

    return both


@pytest.mark.parametrize("check", BY_OT + BY_HE, ids=lambda check: check.__name__)
def test_each_kind_is_what_it_says(run, check):
    check(run)


CALLS = {
    "wraps": (lambda s, n: s.wraps(n, [(5, P_FIELD), (3, 1 << 17)]), ([(5, P_FIELD), (3, 1 << 17)],)),
    "ands": (lambda s, n: s.ands(n), ()),
    "bit_values": (lambda s, n: s.bit_values(n, P_FIELD), (P_FIELD,)),
    "b2a": (lambda s, n: s.b2a(n, P_FIELD), (P_FIELD,)),
    "triples": (lambda s, n: s.triples(n), ()),
    "squares": (lambda s, n: s.squares(n), ()),
    "scalars": (lambda s, n: s.scalars(n, 576), (576,)),
    "cross_products": (lambda s, n: s.cross_products(n, 3), (3,)),
}


@pytest.mark.parametrize("kind", CALLS)
def test_prepared_and_made_on_the_spot_are_handed_out_once(run, kind):
    """Calls of many sizes, some prepared: the counter adds up and no element is seen twice."""
    call, arguments = CALLS[kind]
    sizes = (3, 5, 2, 9)

    def party(source):
        assert source.in_stock(kind, *arguments) == 0
        source.prepare(kind, 7, *arguments)
        ready = source.in_stock(kind, *arguments)
        assert ready >= 7
        items = [call(source, n) for n in sizes]
        assert source.consumed[kind] == sum(sizes)
        assert source.in_stock(kind, *arguments) >= 0
        return items

    for items in run(party):
        for name in ("products", "c", "values"):
            if hasattr(items[0], name) and kind != "ands":
                parts = [getattr(item, name) for item in items]
                parts = [part[0] if isinstance(part, list) else part for part in parts]
                values = np.concatenate([part.reshape(-1) for part in parts])
                assert all_new(values)


def cost(run, kind, n, *arguments):
    """(bytes up, bytes down, rounds) of preparing n items of one kind, from both ledgers."""
    channels = memory_pair()
    run(lambda source: source.prepare(kind, n, *arguments), channels)
    totals = []
    for channel in channels:
        rows = [row for row in channel.ledger.rows() if row.operation.startswith("correlations/")]
        totals.append(
            tuple(sum(getattr(row, x) for row in rows) for x in ("bytes_up", "bytes_down", "rounds"))
        )
    assert totals[0] == totals[1]
    return totals[0]


INDICES = BATCH * 15 // 8
TARGETS = [(1, P_FIELD), (1, P_SMALL), (1, 1 << 17)]


@pytest.mark.parametrize(
    "kind, arguments, n, expected",
    [
        (
            "wraps",
            ([(1, P_FIELD), (1, P_SMALL), (1, 1 << 17)],),
            BATCH,
            (INDICES, BATCH * (43 + 28 + 17) // 8, 2),
        ),
        ("b2a", (P_FIELD,), BATCH, (INDICES, BATCH * 43 // 8, 2)),
        ("ands", (), BATCH, (INDICES, INDICES, 1)),
        ("bit_values", (P_FIELD,), BATCH, (INDICES, INDICES + BATCH * 43 // 8, 2)),
        ("ots", (Role.SERVER, 4, 1), BATCH // 4, (INDICES, 0, 1)),
        ("ots", (Role.CLIENT, 4, 1), BATCH // 4, (0, INDICES, 1)),
        ("triples", (), 8192, (2 * UP - 32, DOWN, 2)),
        ("squares", (), 8192, (UP, DOWN, 2)),
        ("cross_products", (3,), 2 * 8192, (6 * UP - 4 * 32, 2 * DOWN, 2)),
        ("scalars", (576,), 14, (2 * UP - 32, DOWN, 2)),
        ("scalars", (20000,), 1, (6 * UP - 3 * 32, 3 * DOWN, 2)),
    ],
)
def test_cost_in_the_ledger(run, kind, arguments, n, expected):
    """The table in pair.py, for whole batches; messages of one call travel together."""
    assert cost(run, kind, n, *arguments) == expected


def test_scalars_of_a_growing_length_come_from_one_batch(run):
    def party(source):
        for length in range(65, 96):
            assert source.scalars(2, length).vectors.shape == (2, length)
        return source.in_stock("scalars", 96)

    client, server = run(party)
    assert client == server == 8192 // 96 - 31 * 2 % (8192 // 96)


def test_long_inner_products_use_full_batches(run):
    channels = memory_pair()
    first, second = run(lambda source: source.cross_products(2, 576), channels)
    total = (first.factors.astype(object) * second.factors).sum(axis=1) % P_FIELD
    assert np.array_equal((first.products.astype(object) + second.products) % P_FIELD, total)
    rows = channels[0].ledger.rows()
    assert sum(row.bytes_up for row in rows if "cross" in row.operation) == UP


def test_refill_makes_the_next_round_silent(run):
    """What one token consumed is ready for the next: no bytes, no rounds; and the refill itself takes few."""

    def token(source):
        source.wraps(700, [(5, P_FIELD)])
        source.ands(300)
        source.bit_values(200, P_FIELD)
        source.b2a(100, 1 << 17)
        for sender, m_bits in ((0, 4), (1, 6)):
            if source.role == sender:
                source.send_ots(900, m_bits)
            else:
                source.receive_ots(900, m_bits)
        source.triples(5000)
        source.scalars(9, 33)
        source.cross_products(2, 30)

    channels = memory_pair()
    rounds = []

    def party(source):
        for _ in range(4):
            ledger = channels[source.role].ledger
            token(source)
            source.refill()
            before = ledger.total()
            token(source)
            after = ledger.total()
            assert (before.bytes_up, before.bytes_down, before.rounds) == (
                after.bytes_up,
                after.bytes_down,
                after.rounds,
            )
            source.refill()
            rounds.append(ledger.total().rounds - after.rounds)

    run(party, channels)
    assert max(rounds) <= 1 + 1 + 3 * 2


def test_misuse_is_refused(run, keys):
    def party(source):
        with pytest.raises(ParameterError, match="not 0"):
            source.ands(0)
        with pytest.raises(ProtocolError, match="another"):
            source.bind(memory_pair()[0])

    run(party)
    secret_at_server = SimpleNamespace(parameters=SIMD, secret=keys[0])
    with pytest.raises(ParameterError, match="secret key at the client"):
        PairSource(memory_pair()[1], secret_at_server)


def test_sides_have_what_the_source_reads():
    assert {"secret", "parameters"} <= set(DataSide.__dataclass_fields__)
    assert {"public_key", "parameters"} <= set(ModelSide.__dataclass_fields__)
