"""A model of masked attention on plain integers, and two-party runs of the masked cache against it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from sottovoce.correlations.attention import AttentionSource
from sottovoce.kvcache import MaskedCache
from sottovoce.net import Channel, Role, run_pair
from sottovoce.ring.primes import P_FIELD

U64 = np.uint64
TOLERANCE = 6000  # units; the standard deviation is about 750
SHAPE = (6, 2, 8)  # heads, key-value heads, head dimension


def residues(values: np.ndarray) -> np.ndarray:
    return np.mod(values, P_FIELD).astype(U64)


class Script:
    """Keys, values, queries and probabilities as integers, with shares of each: the same at both parties."""

    def __init__(self, seed: int, shape: tuple[int, int, int]) -> None:
        self.rng = np.random.default_rng(seed)
        self.heads, self.kv_heads, self.dim = shape
        self.k = np.zeros((0, self.kv_heads, self.dim), dtype=np.int64)
        self.v = self.k

    def share(self, values: np.ndarray, role: int) -> np.ndarray:
        x0 = self.rng.integers(0, P_FIELD, values.shape, dtype=U64)
        return x0 if role == 0 else (residues(values) + (U64(P_FIELD) - x0)) % U64(P_FIELD)

    def random(self, *shape: int, bits: int = 15) -> np.ndarray:
        return self.rng.integers(-(1 << bits), 1 << bits, shape)

    def seen(self, t: int) -> np.ndarray:
        n = len(self.k)
        return np.arange(n)[None, :] <= n - t + np.arange(t)[:, None]

    def scores(self, q: np.ndarray) -> np.ndarray:
        keys = np.repeat(self.k, self.heads // self.kv_heads, axis=1)
        return np.where(self.seen(len(q))[:, None, :], np.einsum("thd,nhd->thn", q, keys), 0)

    def mixed(self, p: np.ndarray) -> np.ndarray:
        values = np.repeat(self.v, self.heads // self.kv_heads, axis=1)
        return np.einsum("thn,nhd->thd", np.where(self.seen(len(p))[:, None, :], p, 0), values)


class Driver:
    """One party: every call with its cost checked, every result kept with what it should be."""

    def __init__(self, channel: Channel, shape: tuple[int, int, int], seed: int, block: int, layers: int):
        self.role, self.channel = int(channel.role), channel
        self.source = AttentionSource(channel, layers, *shape, block)
        self.caches = [MaskedCache(channel, self.source, layer) for layer in range(layers)]
        self.scripts = [Script(seed + layer, shape) for layer in range(layers)]
        self.results: list[tuple[np.ndarray, np.ndarray]] = []

    def prepare(self, tokens: int) -> None:
        self.source.setup()
        expected = self.source.prepare_bytes(tokens)
        self._costs(lambda: self.source.prepare(tokens), expected)

    def public(self, count: int) -> None:
        for cache, s in zip(self.caches, self.scripts, strict=True):
            k, v = (s.random(count, s.kv_heads, s.dim) for _ in range(2))
            s.k, s.v = np.concatenate([s.k, k]), np.concatenate([s.v, v])
            mine = (None, None) if self.role == Role.CLIENT else (k, v)
            self._costs(lambda c=cache, m=mine: c.append_public(count, *m), 0)

    def append(self, count: int) -> None:
        for layer in range(len(self.caches)):
            self.append_to(layer, count)

    def step(self, count: int) -> None:
        """A forward pass: every layer appends and attends before the next one does."""
        for layer in range(len(self.caches)):
            self.append_to(layer, count)
            self.attend_to(layer, count)

    def attend(self, count: int) -> None:
        for layer in range(len(self.caches)):
            self.attend_to(layer, count)

    def truncate(self, length: int) -> None:
        for cache, s in zip(self.caches, self.scripts, strict=True):
            s.k, s.v = s.k[:length], s.v[:length]
            self._costs(lambda c=cache: c.truncate(length), 0)

    def append_to(self, layer: int, count: int) -> None:
        s = self.scripts[layer]
        k, v = (s.random(count, s.kv_heads, s.dim) for _ in range(2))
        s.k, s.v = np.concatenate([s.k, k]), np.concatenate([s.v, v])
        self.caches[layer].append(s.share(k, self.role), s.share(v, self.role))

    def attend_to(self, layer: int, count: int) -> None:
        s, cache = self.scripts[layer], self.caches[layer]
        q, p = s.random(count, s.heads, s.dim), s.random(count, s.heads, len(s.k), bits=14)
        q_share, p_share = s.share(q, self.role), s.share(p, self.role)
        scores = self._costs(lambda: cache.scores(q_share), cache.scores_bytes(count))
        self.results.append((scores, s.scores(q)))
        self.results.append((self._costs(lambda: cache.mix(p_share), cache.mix_bytes(count)), s.mixed(p)))

    def _costs(self, call: Callable, expected: int):
        before = self.channel.ledger.snapshot()
        result = call()
        rows = self.channel.ledger.since(before)
        assert {sum(r.bytes_up for r in rows), sum(r.bytes_down for r in rows)} == {expected}
        return result


def run_script(actions, shape=SHAPE, seed=1, block=8, layers=1, tap=None):
    """Run `actions(driver)` at both parties and compare every result; returns both drivers."""

    def party(channel: Channel) -> Driver:
        if tap is not None:
            channel.tap = lambda payload: tap(channel.role, bytes(payload))
        driver = Driver(channel, shape, seed, block, layers)
        actions(driver)
        return driver

    client, server = run_pair(party, party)
    assert len(client.results) == len(server.results)
    for (x0, expected), (x1, _) in zip(client.results, server.results, strict=True):
        total = ((x0 + x1) % U64(P_FIELD)).astype(np.int64)
        error = (total - expected + P_FIELD // 2) % P_FIELD - P_FIELD // 2
        assert np.abs(error).max() < TOLERANCE
    return client, server
