"""The encrypted cache between two parties, with real parameters: exact integers, stated bytes, dead slots,
refresh."""

import numpy as np
import pytest

from sottovoce.errors import CorruptFileError, ParameterError, SottovoceError
from sottovoce.kvcache import CacheLayout, CiphertextCache, NoCache, best_groups
from sottovoce.kvcache.slots import SlotTable
from sottovoce.net import Channel, run_pair
from sottovoce.packing import DataSide, exchange_keys
from sottovoce.ring.primes import P_FIELD

U64 = np.uint64
SHAPE = (6, 2, 32)  # heads, key-value heads, head dimension


def residues(values: np.ndarray) -> np.ndarray:
    return np.mod(values, P_FIELD).astype(U64)


def added(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a + b) % U64(P_FIELD)


class Script:
    """A model of the cache on plain integers, and shares of everything it is fed: the same at both
    parties."""

    def __init__(self, seed: int, shape: tuple[int, int, int] = SHAPE) -> None:
        self.rng = np.random.default_rng(seed)
        self.heads, self.kv_heads, self.dim = shape
        self.k = np.zeros((0, self.kv_heads, self.dim), dtype=np.int64)
        self.v = self.k

    def share(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        x0 = self.rng.integers(0, P_FIELD, values.shape, dtype=U64)
        return x0, (residues(values) + (U64(P_FIELD) - x0)) % U64(P_FIELD)

    def random(self, *shape: int, bits: int = 15) -> np.ndarray:
        return self.rng.integers(-(1 << bits), 1 << bits, shape)

    def scores(self, q: np.ndarray) -> np.ndarray:
        t, n = len(q), len(self.k)
        keys = np.repeat(self.k, self.heads // self.kv_heads, axis=1)
        full = np.einsum("thd,nhd->thn", q, keys)
        seen = np.arange(n)[None, :] <= n - t + np.arange(t)[:, None]
        return residues(np.where(seen[:, None, :], full, 0))

    def mixed(self, p: np.ndarray) -> np.ndarray:
        t, n = p.shape[0], len(self.v)
        seen = np.arange(n)[None, :] <= n - t + np.arange(t)[:, None]
        values = np.repeat(self.v, self.heads // self.kv_heads, axis=1)
        return residues(np.einsum("thn,nhd->thd", np.where(seen[:, None, :], p, 0), values))


def run_script(actions, seed=1, shape=SHAPE, groups=None, cache_type=CiphertextCache):
    """Run `actions(driver)` at both parties; the driver compares every result with the integers."""

    def party(channel: Channel):
        side = exchange_keys(channel, [])
        driver = Driver(side, cache_type(side, *shape, groups), Script(seed, shape))
        actions(driver)
        return driver.results

    mine, theirs = run_pair(party, party)
    assert len(mine) == len(theirs) > 0
    for (x0, expected), (x1, _) in zip(mine, theirs, strict=True):
        assert np.array_equal(added(x0, x1), expected)


class Driver:
    def __init__(self, side, cache, script) -> None:
        self.side, self.cache, self.script = side, cache, script
        self.results: list[tuple[np.ndarray, np.ndarray]] = []
        self.role = 0 if isinstance(side, DataSide) else 1
        self.ledger = side.channel.ledger

    def public(self, count: int) -> None:
        s = self.script
        k, v = (s.random(count, s.kv_heads, s.dim) for _ in range(2))
        s.k, s.v = np.concatenate([s.k, k]), np.concatenate([s.v, v])
        self.cache.append_public(count, *((None, None) if self.role == 0 else (k, v)))

    def append(self, count: int) -> None:
        s = self.script
        k, v = (s.random(count, s.kv_heads, s.dim) for _ in range(2))
        s.k, s.v = np.concatenate([s.k, k]), np.concatenate([s.v, v])
        shares = s.share(k)[self.role], s.share(v)[self.role]
        self._costs(lambda: self.cache.append(*shares), self.cache.append_bytes(count), 0)

    def attend(self, count: int) -> None:
        s = self.script
        q, p = s.random(count, s.heads, s.dim), s.random(count, s.heads, len(s.k), bits=14)
        q_share, p_share = s.share(q)[self.role], s.share(p)[self.role]
        scores = self._costs(lambda: self.cache.scores(q_share), *self.cache.scores_bytes(count))
        self.results.append((scores, s.scores(q)))
        mixed = self._costs(lambda: self.cache.mix(p_share), *self.cache.mix_bytes(count))
        self.results.append((mixed, s.mixed(p)))

    def truncate(self, length: int) -> None:
        self.script.k, self.script.v = self.script.k[:length], self.script.v[:length]
        self.cache.truncate(length)

    def refresh(self) -> None:
        self._costs(self.cache.refresh, *self.cache.refresh_bytes())

    def _costs(self, call, up: int, down: int):
        before = self.ledger.snapshot()
        result = call()
        rows = self.ledger.since(before)
        assert (sum(r.bytes_up for r in rows), sum(r.bytes_down for r in rows)) == (up, down)
        return result


def test_tokens_one_by_one():
    def actions(d: Driver) -> None:
        for _ in range(3):
            d.append(1)
            d.attend(1)

    run_script(actions)


def test_public_prefix_then_a_batch_over_several_blocks():
    # 6 heads x 32 dimensions in one group: 42 tokens a block.
    def actions(d: Driver) -> None:
        d.public(30)
        d.append(16)
        assert d.cache.layout.block_tokens == 42
        d.attend(3)
        d.append(1)
        d.attend(1)

    run_script(actions, groups=1)


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_groups_change_the_layout_not_the_result(groups):
    def actions(d: Driver) -> None:
        d.append(5)
        d.attend(5)

    run_script(actions, groups=groups)


def test_dead_slots_stay_dead():
    def actions(d: Driver) -> None:
        d.append(4)
        d.truncate(2)
        d.append(3)
        assert d.cache.table.used == 7
        assert d.cache.table.live.tolist() == [0, 1, 4, 5, 6]
        d.attend(2)

    run_script(actions)


def test_refresh_keeps_the_tokens_and_drops_the_dead():
    def actions(d: Driver) -> None:
        d.public(3)
        d.append(45)
        d.truncate(20)
        d.append(2)
        d.refresh()
        assert d.cache.table.used == len(d.cache) == 22
        d.attend(2)
        d.append(1)
        d.attend(1)

    run_script(actions, groups=1)


def test_refresh_is_forced_when_half_is_dead():
    def actions(d: Driver) -> None:
        d.append(50)
        d.truncate(5)
        assert d.cache.needs_refresh
        d.cache.append(*(np.zeros((1, SHAPE[1], SHAPE[2]), dtype=U64),) * 2)
        zero = np.zeros((1, SHAPE[1], SHAPE[2]), dtype=np.int64)
        d.script.k, d.script.v = np.concatenate([d.script.k, zero]), np.concatenate([d.script.v, zero])
        assert d.cache.table.used == len(d.cache) == 6
        d.attend(1)

    run_script(actions, groups=1)


def test_noise_estimate_covers_the_true_noise():
    from sottovoce.bgv import Decryptor

    def client(channel: Channel):
        side = exchange_keys(channel, [])
        cache = CiphertextCache(side, *SHAPE)
        for _ in range(8):
            cache.append(*(np.zeros((1, SHAPE[1], SHAPE[2]), dtype=U64),) * 2)
        return side

    def server(channel: Channel):
        side = exchange_keys(channel, [])
        cache = CiphertextCache(side, *SHAPE)
        rng = np.random.default_rng(0)
        for _ in range(8):
            cache.append(*(rng.integers(0, P_FIELD, (1, SHAPE[1], SHAPE[2]), dtype=U64),) * 2)
        return cache

    side, cache = run_pair(client, server)
    block = cache._keys.block(0)
    measured = Decryptor(side.parameters, side.secret).noise(block)
    assert measured <= block.noise + 0.5
    assert block.noise <= measured + 1.5


def test_save_and_load_continue_a_session():
    stored: dict[int, bytes] = {}

    def first(d: Driver) -> None:
        d.public(2)
        d.append(3)
        d.truncate(4)
        stored[d.role] = d.cache.save()
        fresh = CiphertextCache(d.side, *SHAPE)
        fresh.load(stored[d.role])
        d.cache = fresh
        d.attend(1)
        d.append(1)
        d.attend(1)

    run_script(first)


def test_load_refuses_what_is_not_its_own():
    def party(channel: Channel):
        side = exchange_keys(channel, [])
        cache = CiphertextCache(side, *SHAPE)
        cache.append(*(np.zeros((2, SHAPE[1], SHAPE[2]), dtype=U64),) * 2)
        data = cache.save()
        with pytest.raises(CorruptFileError, match="another model"):
            CiphertextCache(side, 4, 2, 32).load(data)
        rng = np.random.default_rng(side.channel.role)
        for _ in range(40):
            broken = bytearray(data)
            broken[int(rng.integers(0, len(data) if rng.random() < 0.3 else 200)) % len(data)] ^= 1 << int(
                rng.integers(0, 8)
            )
            fresh = CiphertextCache(side, *SHAPE)
            with pytest.raises(SottovoceError):
                fresh.load(bytes(broken))
            assert len(fresh) == 0
            cut = int(rng.integers(0, len(data)))
            with pytest.raises(SottovoceError):
                fresh.load(data[:cut])
        return data

    client, server = run_pair(party, party)
    assert len(client) == 40 < len(server)


def test_no_cache_forgets_between_passes():
    def actions(d: Driver) -> None:
        d.public(2)
        d.append(2)
        d.attend(2)
        d.script.k, d.script.v = d.script.k[:2], d.script.v[:2]
        public_k, public_v = d.script.k, d.script.v
        d.append(3)
        assert len(d.cache) == 5
        assert np.array_equal(d.script.k[:2], public_k) and np.array_equal(d.script.v[:2], public_v)
        d.attend(3)

    run_script(actions, cache_type=NoCache)


def test_wrong_shapes_are_refused():
    def party(channel: Channel):
        cache = CiphertextCache(exchange_keys(channel, []), *SHAPE)
        with pytest.raises(ParameterError):
            cache.append(np.zeros((1, 3, 32), dtype=U64), np.zeros((1, 3, 32), dtype=U64))
        with pytest.raises(ParameterError):
            cache.scores(np.zeros((1, 6, 32), dtype=U64))
        with pytest.raises(ParameterError):
            cache.truncate(1)

    run_pair(party, party)


@pytest.mark.parametrize("shape", [(9, 3, 64, 2), (8, 4, 8, 1), (12, 12, 64, 4), (3, 1, 6, 3)])
def test_layout_products_are_attention(shape):
    heads, kv_heads, dim, groups = shape
    layout = CacheLayout(heads, kv_heads, dim, groups=groups)
    rng = np.random.default_rng(dim)
    t = min(5, layout.block_tokens)
    places = rng.permutation(layout.block_tokens)[:t]
    k, q = (
        rng.integers(0, 1000, (t, kv_heads, dim), dtype=U64),
        rng.integers(0, 1000, (heads, dim), dtype=U64),
    )
    keys = layout.keys(k, places)
    assert np.array_equal(layout.gather(keys[None], places), k)
    products = (keys * layout.query(q)).sum(axis=0)
    repeated = np.repeat(k, heads // kv_heads, axis=1)
    assert np.array_equal(layout.scores(products, P_FIELD)[:, places], np.einsum("hd,thd->ht", q, repeated))
    p = np.zeros((heads, layout.block_tokens), dtype=U64)
    p[:, places] = rng.integers(0, 1000, (heads, t), dtype=U64)
    mixed = layout.mixed(keys * layout.probabilities(p), P_FIELD)
    assert np.array_equal(mixed, np.einsum("ht,thd->hd", p[:, places], repeated))


def test_smollm2_layout():
    assert best_groups(9, 64, 8192, 96) == 2
    assert CacheLayout(9, 3, 64).block_tokens == 28


def test_slot_table_never_hands_out_a_slot_twice():
    rng = np.random.default_rng(4)
    table, seen = SlotTable(), set()
    for _ in range(200):
        if rng.random() < 0.7:
            new = table.append(int(rng.integers(1, 4))).tolist()
            assert not seen & set(new)
            seen |= set(new)
        else:
            table.truncate(int(rng.integers(0, len(table) + 1)))
        assert table.used == len(seen) and (np.diff(table.live) > 0).all()


def test_public_noise_bound_covers_the_server_estimate():
    def party(channel: Channel):
        side = exchange_keys(channel, [])
        cache = CiphertextCache(side, *SHAPE)
        for _ in range(5):
            cache.append(*(np.ones((2, SHAPE[1], SHAPE[2]), dtype=U64),) * 2)
        return cache

    _, cache = run_pair(party, party)
    query = cache.side.evaluator.trivial(np.zeros((3, 8192), dtype=U64), (cache.layout.groups,))
    from dataclasses import replace

    from sottovoce.bgv import noise

    query = replace(query, noise=noise.add_plain(noise.FRESH))
    product = cache.side.evaluator.tensor_accumulate(query, cache._keys.block(0))
    assert product.noise <= cache.product_noise(cache.table.used) <= product.noise + 3
    # Far more tokens than any context: the bound stays below what exact rounding allows.
    assert CiphertextCache(cache.side, 9, 3, 64).product_noise(1 << 14) < 62


def test_noise_forces_a_refresh():
    def actions(d: Driver) -> None:
        d.append(3)
        assert not d.cache.needs_refresh
        d.cache.noise_limit = d.cache.product_noise(3)
        before = d.ledger.total().bytes_down
        d.cache.append(*(np.zeros((1, SHAPE[1], SHAPE[2]), dtype=U64),) * 2)
        assert d.ledger.total().bytes_down > before
        zero = np.zeros((1, SHAPE[1], SHAPE[2]), dtype=np.int64)
        d.script.k, d.script.v = np.concatenate([d.script.k, zero]), np.concatenate([d.script.v, zero])
        d.attend(1)

    run_script(actions)


def test_layout_follows_the_context():
    # 6 heads x 32 dimensions: 42 tokens a block in one group. A long public prefix chooses more groups at
    # once ...
    def prefix(d: Driver) -> None:
        d.public(700)
        d.append(2)
        assert d.cache.layout.groups > 1
        d.attend(1)

    run_script(prefix)

    # ... and a context that has outgrown its layout is laid out anew.
    def growing(d: Driver) -> None:
        d.append(40)
        before = d.cache.layout.groups
        d.append(200)
        assert d.cache.layout.groups == before
        d.append(160)
        assert d.cache.needs_refresh
        d.refresh()
        assert d.cache.layout.groups > before and not d.cache.needs_refresh
        d.attend(1)
        saved = d.cache.save()
        fresh = CiphertextCache(d.side, *SHAPE)
        fresh.load(saved)
        d.cache = fresh
        d.append(1)
        d.attend(1)

    run_script(growing)
