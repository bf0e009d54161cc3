"""Matrix products made ahead between two parties, with real parameters: right, counted, handed out once."""

import stat
from dataclasses import replace

import numpy as np
import pytest

from sottovoce.bench.matrix import SMOLLM2, crossover, matrix_products
from sottovoce.correlations.hints import HintFile, HintShelf, ModelHints, identity
from sottovoce.correlations.matrix import MatrixItems, MatrixStock, stored_bytes
from sottovoce.correlations.matrix_maker import MatrixMaker, prepared_bytes
from sottovoce.dense import DENSE, SENT_BYTES, HintSecret
from sottovoce.errors import CorruptFileError, IntegrityError, ParameterError, RefusedError
from sottovoce.net import Channel, Role, memory_pair, run_pair
from sottovoce.ring.primes import P_FIELD

# More inputs and more outputs than one frame holds, and sizes that fill nothing evenly.
SHAPES = {("qkv", 0): (97, 63), ("down", 0): (64, 172), ("embedding", 0): (16, 5001), ("head", 0): (2101, 32)}
QKV = ("qkv", 0)


@pytest.fixture(scope="module")
def weights():
    rng = np.random.default_rng(0)
    return {key: rng.integers(-(2**12), 2**12, shape, dtype=np.int16) for key, shape in SHAPES.items()}


@pytest.fixture(scope="module")
def hints(weights):
    return ModelHints(DENSE, SHAPES, weights)


def both(hints, client, server, shelf=None, shapes=SHAPES, on_take=None):
    """Results of client(maker) and server(maker), and the ledgers' rows, which agree."""

    def at_client(channel: Channel):
        maker = MatrixMaker(channel, shapes, shelf, on_take=on_take)
        return client(maker), channel.ledger.rows()

    def at_server(channel: Channel):
        return server(MatrixMaker(channel, shapes, hints)), channel.ledger.rows()

    (mine, rows), (theirs, others) = run_pair(at_client, at_server, memory_pair())
    for a, b in zip(rows, others, strict=True):
        assert (a.phase, a.operation, a.bytes_up, a.bytes_down, a.rounds) == (
            b.phase,
            b.operation,
            b.bytes_up,
            b.bytes_down,
            b.rounds,
        )
    return mine, theirs, {row.operation: row for row in rows if row.operation}


def errors(w, r, u, z):
    exact = (r.astype(object) @ w.T.astype(object)) % P_FIELD
    difference = (u.astype(object) + z.astype(object) - exact) % P_FIELD
    return np.where(difference > P_FIELD // 2, difference - P_FIELD, difference).astype(float)


def test_products_are_right_at_the_stated_cost(hints, weights):
    def client(maker):
        maker.prepare(10)
        return {key: maker.stock.take_client(key, 10) for key in SHAPES}

    def server(maker):
        maker.prepare(10)
        return {key: maker.stock.take_server(key, 10) for key in SHAPES}

    mine, theirs, rows = both(hints, client, server)
    for key, w in weights.items():
        found = errors(w, *mine[key], theirs[key])
        limit = DENSE.noise(float(np.linalg.norm(w.astype(float), axis=1).max()))
        # 160 errors of one matrix, that depend on each other: their deviation is known to 6 %.
        assert found.std() < 1.6 * limit
        assert np.abs(found).max() < 8 * limit
    made = rows["matrix products"]
    assert made.phase == "offline"
    assert (made.bytes_up, made.bytes_down) == prepared_bytes(SHAPES, 10)
    sent = rows["matrix hints"]
    assert (sent.bytes_up, sent.bytes_down) == (
        1,
        64 + SENT_BYTES * 2048 * sum(d for d, _ in SHAPES.values()),
    )
    assert stored_bytes(SHAPES, 10) == sum(10 * 5 * d_out for d_out, _ in SHAPES.values())


def test_slots_leave_once_and_in_order(hints, weights):
    taken = []

    def client(maker):
        stock = maker.stock
        maker.prepare(4, [QKV])
        maker.prepare(3, [QKV])
        parts = [stock.take_client(QKV, n) for n in (3, 2, 1)]  # the second spans both batches
        with pytest.raises(ParameterError, match="2 products were asked for and 1 are ready"):
            stock.take_client(QKV, 2)
        assert (stock.available(QKV), stock.consumed[QKV]) == (1, 6)
        assert stock.available(("down", 0)) == 0
        return np.concatenate([r for r, _ in parts]), np.concatenate([u for _, u in parts])

    def server(maker):
        maker.prepare(4, [QKV])
        maker.prepare(3, [QKV])
        return np.concatenate([maker.stock.take_server(QKV, n) for n in (1, 4, 1)])

    (r, u), z, _ = both(hints, client, server, on_take=lambda key, n: taken.append((key, n)))
    assert np.abs(errors(weights[QKV], r, u, z)).max() < 5000
    assert len(np.unique(r)) == r.size and len(np.unique(z)) == z.size
    assert taken == [(QKV, 3), (QKV, 2), (QKV, 1)]  # and nothing for the request that was refused


def test_consumption_is_recorded_before_anything_is_handed_out():
    def fail(key, n):
        raise OSError("the disk is full")

    stock = MatrixStock(Role.SERVER, DENSE, SHAPES, fail)
    stock.put(QKV, MatrixItems(bytes(32), 0, 5))
    with pytest.raises(OSError):
        stock.take_server(QKV, 2)
    assert stock.consumed[QKV] == 0


def test_stored_words_are_wiped_when_taken():
    stock = MatrixStock(Role.CLIENT, DENSE, SHAPES)
    phases = np.full((4, SENT_BYTES * 97), 7, np.uint8)
    stock.put(QKV, MatrixItems(bytes(32), 0, 4, phases))
    stock.take_client(QKV, 3)
    assert not phases[:3].any() and phases[3].all()


def test_many_tokens_come_in_even_batches(hints):
    def prepare(maker):
        maker.prepare(600, [QKV])
        return [(items.first, items.count) for items in maker.stock._items[QKV]]

    mine, theirs, _ = both(hints, prepare, prepare)
    assert mine == theirs == [(0, 300), (0, 300)]


def test_hints_are_sent_once_and_kept(hints, tmp_path):
    def prepare(maker):
        maker.prepare(1, [QKV])
        return maker.stock.available(QKV)

    _, _, first = both(hints, prepare, prepare, HintShelf(tmp_path))
    (file,) = tmp_path.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    _, _, again = both(hints, prepare, prepare, HintShelf(tmp_path))
    assert first["matrix hints"].bytes_down > 20e6
    assert (again["matrix hints"].bytes_up, again["matrix hints"].bytes_down) == (1, 64)
    # An interrupted transfer is repeated, a strange file is refused.
    raw = bytearray(file.read_bytes())
    raw[6] = 0
    file.write_bytes(raw)
    _, _, repeated = both(hints, prepare, prepare, HintShelf(tmp_path))
    assert repeated["matrix hints"].bytes_down == first["matrix hints"].bytes_down
    raw[0] ^= 1
    file.write_bytes(raw)
    with pytest.raises(CorruptFileError, match="delete it"):
        both(hints, prepare, prepare, HintShelf(tmp_path))


def test_a_servers_hints_survive_its_restart(weights, tmp_path):
    def prepare(maker):
        maker.prepare(1, [QKV])

    first = ModelHints(DENSE, SHAPES, weights, tmp_path / "server")
    assert stat.S_IMODE((tmp_path / "server" / "hints.key").stat().st_mode) == 0o600
    both(first, prepare, prepare, HintShelf(tmp_path / "client"))
    again = ModelHints(DENSE, SHAPES, weights, tmp_path / "server")
    assert again.secret == first.secret and again.identity == first.identity
    _, _, rows = both(again, prepare, prepare, HintShelf(tmp_path / "client"))
    assert rows["matrix hints"].bytes_down == 64  # the client has it
    again.secret = HintSecret.generate(DENSE)  # a hint made anew would differ
    assert np.array_equal(again.rows(QKV, 0, 97), first.rows(QKV, 0, 97))
    # Other weights get other randomness, and their hint takes the place of the old one.
    changed = ModelHints(DENSE, SHAPES, {**weights, QKV: weights[QKV] + 1}, tmp_path / "server")
    assert changed.secret.seed != first.secret.seed and changed.secret.secret != first.secret.secret
    both(changed, prepare, prepare, HintShelf(tmp_path / "client"))
    assert len(list((tmp_path / "client").iterdir())) == 1
    assert sorted(p.suffix for p in (tmp_path / "server").iterdir()) == [".hint", ".key"]


def test_the_key_of_hints_is_refused_if_others_can_read_it(weights, tmp_path):
    ModelHints(DENSE, SHAPES, weights, tmp_path)
    key = tmp_path / "hints.key"
    key.chmod(0o644)
    with pytest.raises(RefusedError, match="chmod 600"):
        ModelHints(DENSE, SHAPES, weights, tmp_path)
    key.chmod(0o600)
    key.write_bytes(bytes(31))
    with pytest.raises(CorruptFileError, match="begin anew"):
        ModelHints(DENSE, SHAPES, weights, tmp_path)


def test_clients_get_the_same_hint_and_different_answers(hints):
    seen = []

    def client(maker):
        maker._channel.tap = lambda view: seen.append(bytes(view))
        maker.prepare(2, [QKV])

    for _ in range(2):
        both(hints, client, lambda maker: maker.prepare(2, [QKV]))
    half = len(seen) // 2
    assert seen[: half - 1] == seen[half:-1]
    assert seen[half - 1] != seen[-1]


def test_another_models_hint_is_refused(hints):
    others = {**SHAPES, QKV: (98, 63)}
    assert identity(DENSE, others, bytes(32)) != identity(DENSE, SHAPES, bytes(32))
    with pytest.raises(IntegrityError):
        run_pair(
            lambda channel: MatrixMaker(channel, others).open(),
            lambda channel: MatrixMaker(channel, SHAPES, hints).open(),
            memory_pair(),
        )


def test_makers_and_hints_must_fit(hints):
    client, server = memory_pair()
    with pytest.raises(ParameterError, match="server"):
        MatrixMaker(client, SHAPES, hints)
    with pytest.raises(ParameterError, match="server"):
        MatrixMaker(server, SHAPES)
    with pytest.raises(ParameterError, match="other matrices"):
        MatrixMaker(server, {**SHAPES, QKV: (98, 63)}, hints)
    for tokens, keys in ((0, [QKV]), (1, [QKV, QKV])):
        with pytest.raises(ParameterError, match="positive"):
            MatrixMaker(client, SHAPES).make(tokens, keys)


@pytest.mark.parametrize("role", Role)
def test_items_can_be_stored_in_a_pool(role):
    rng = np.random.default_rng(1)
    phases = rng.integers(0, 256, (6, 35), dtype=np.uint8) if role is Role.CLIENT else None
    head, tail = MatrixItems(bytes(range(32)), 10, 6, phases).split(2)
    for items in (head, tail):
        back = MatrixItems.from_record(items.to_record(), role)
        assert (back.seed, back.first, back.count) == (items.seed, items.first, items.count)
        assert items.phases is None if back.phases is None else np.array_equal(back.phases, items.phases)
    assert (head.first, tail.first, head.count, tail.count) == (10, 12, 2, 4)
    record = tail.to_record()
    with pytest.raises(CorruptFileError):
        MatrixItems.from_record(type(record)(record.arrays, (), granule=1), role)


def test_hint_files_are_mapped(tmp_path):
    file = HintFile(tmp_path / "x", DENSE, SHAPES, bytes(32))
    assert not file.complete
    file.rows(("head", 0), 2000, 101)[:] = 9
    file.finish()
    again = HintFile(tmp_path / "x", DENSE, SHAPES, bytes(32))
    assert again.complete
    assert (again.rows(("head", 0), 2000, 101) == 9).all() and not again.rows(QKV, 0, 97).any()


def test_benchmark_finds_where_preparation_pays():
    # Straight lines: 3 per batch and 1 per token, against 4 online.
    rows = [{"batch": n, "core_seconds": 1 + 3 / n, "bytes": 2.0} for n in (3, 12)]
    found = crossover({"core_seconds": 10.0, "bytes": 100.0}, rows, {"core_seconds": 4.0, "bytes": 1.0})
    assert found["core_seconds"] == {"batch": 1.0, "with_hint": 10 / 2.75}
    assert found["bytes"] == {"batch": None, "with_hint": None}


@pytest.mark.slow
def test_benchmark_counts_a_whole_model():
    config = replace(
        SMOLLM2, vocab_size=400, width=64, layers=3, heads=2, kv_heads=1, head_dim=32, ffn_width=96
    )
    result = matrix_products((2, 600), config)
    assert [row["batch"] for row in result["rows"]] == [2, 600]
    outputs = 3 * (128 + 64 + 192 + 64) + 400 + 64
    assert result["hint"]["bytes"] == 5 * 2048 * outputs
    assert result["rows"][1]["bytes"] < result["rows"][0]["bytes"] < result["online"]["bytes"]
    assert all(row["core_seconds"] > 0 for row in (*result["rows"], result["hint"], result["online"]))
