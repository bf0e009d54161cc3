"""The masked cache between two parties, with real parameters: integers, stated bytes, dead slots, one use."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats

from chance import LEAST_P, all_new
from masked_sessions import SHAPE, Driver, run_script
from sottovoce.correlations.attention import AttentionSource
from sottovoce.errors import CorruptFileError, ParameterError, ProtocolError
from sottovoce.kvcache import MaskedCache, make_caches
from sottovoce.net import Channel, Role, run_pair
from sottovoce.packing import exchange_keys
from sottovoce.ring.primes import P_FIELD


def test_tokens_one_by_one_over_several_blocks():
    def actions(d: Driver) -> None:
        for _ in range(12):
            d.step(1)
        assert d.source.used == 12

    run_script(actions, layers=2, block=5)


@pytest.mark.parametrize("shape", [(9, 3, 64), (8, 4, 8), (2, 2, 16), (5, 1, 4)])
def test_shapes_of_models(shape):
    def actions(d: Driver) -> None:
        d.step(3)
        d.step(1)

    run_script(actions, shape, block=3)


def test_public_prefix_then_a_batch():
    def actions(d: Driver) -> None:
        d.public(7)
        d.step(5)
        d.step(1)

    run_script(actions)


def test_public_tokens_may_take_prepared_counters():
    def actions(d: Driver) -> None:
        d.prepare(8)
        d.public(3)
        assert d.source.ready == 7  # blocks of 8 are blocks of 10: three heads each fill 32 rows
        d.step(2)

    run_script(actions)


def test_a_batch_over_two_blocks_and_queries_of_its_last_tokens():
    def actions(d: Driver) -> None:
        d.append(6)
        d.attend(2)
        d.step(5)  # counters 6 to 10: two of the first block, three of the second
        d.append(3)
        d.append(2)
        d.attend(5)

    run_script(actions)


def test_queries_on_both_sides_of_a_truncation():
    def actions(d: Driver) -> None:
        d.append(4)
        d.truncate(2)
        d.append(2)
        d.attend(4)

    run_script(actions)


def test_dead_slots_count_for_nothing_in_their_block_and_after():
    def actions(d: Driver) -> None:
        d.prepare(16)
        d.step(5)
        d.truncate(2)
        d.step(3)
        d.truncate(4)
        d.step(1)
        d.step(9)
        assert d.source.used == 18

    run_script(actions, layers=2)


def test_truncating_tokens_that_were_never_opened():
    def actions(d: Driver) -> None:
        d.append(2)
        d.append(3)
        d.truncate(1)
        d.step(1)
        d.truncate(0)
        d.step(2)

    run_script(actions)


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.one_of(st.integers(1, 4), st.floats(0, 1)), min_size=2, max_size=8))
def test_random_sequences(steps):
    def actions(d: Driver) -> None:
        used = 0
        for step in steps:
            if isinstance(step, int):
                d.step(step)
                used += step
            else:
                d.truncate(int(step * len(d.scripts[0].k)))
        assert d.source.used == used

    run_script(actions, (2, 1, 4), block=4)


def test_a_token_asks_once():
    def actions(d: Driver) -> None:
        d.step(2)
        cache, heads, dim = d.caches[0], *SHAPE[::2]
        with pytest.raises(ProtocolError, match="second time"):
            cache.scores(np.zeros((1, heads, dim), np.uint64))
        with pytest.raises(ProtocolError, match="second time"):
            cache.mix(np.zeros((1, heads, 2), np.uint64))

    run_script(actions)


def test_wrong_shapes_are_refused():
    def actions(d: Driver) -> None:
        cache, (heads, kv_heads, dim) = d.caches[0], SHAPE
        good = np.zeros((1, kv_heads, dim), np.uint64)
        with pytest.raises(ParameterError):
            cache.append(good, good[:, :1])
        with pytest.raises(ParameterError):
            cache.scores(np.zeros((1, heads, dim), np.uint64))
        if d.role == Role.SERVER:
            with pytest.raises(ParameterError):
                cache.append_public(1, None, None)
        with pytest.raises(ParameterError):
            cache.truncate(1)
        d.step(1)
        with pytest.raises(ParameterError):
            cache.mix(np.zeros((1, heads, 2), np.uint64))

    run_script(actions)


def p_value(data: bytes) -> float:
    return float(stats.chisquare(np.bincount(np.frombuffer(data, np.uint8), minlength=256)).pvalue)


def constant_session(channel: Channel) -> None:
    """The same key, value, query and probability again and again, with trivial shares."""
    heads, kv_heads, dim = SHAPE
    cache = MaskedCache(channel, AttentionSource(channel, 1, *SHAPE, 16), 0)
    ones = int(channel.role) * np.ones((1, kv_heads, dim), np.uint64)
    for i in range(24):
        cache.append(ones, ones)
        cache.scores(int(channel.role) * np.ones((1, heads, dim), np.uint64))
        cache.mix(np.zeros((1, heads, len(cache)), np.uint64))
        if i % 5 == 4:
            cache.truncate(len(cache) - 2)


def test_everything_opened_is_uniform_and_nothing_is_opened_twice():
    received: dict[Role, list[bytes]] = {role: [] for role in Role}

    def party(channel: Channel) -> None:
        channel.tap = lambda payload: received[channel.role].append(bytes(payload))
        constant_session(channel)

    run_pair(party, party)
    for frames in received.values():
        large = [frame for frame in frames if len(frame) > 1 << 14]
        openings = [frame for frame in frames if len(frame) <= 1 << 14]
        # Headers of the keys are the only structure; what is opened is joined, for it comes in small frames.
        assert min(p_value(frame[64:]) for frame in large) > LEAST_P
        assert len(openings) == 2 * 24 and p_value(b"".join(openings)) > LEAST_P
        assert len({frame[i : i + 8] for frame in openings for i in range(0, len(frame) - 8, 8)}) == sum(
            len(range(0, len(frame) - 8, 8)) for frame in openings
        )


def test_sums_of_openings_are_uniform():
    """What both parties know after an opening, k − b and so on: uniform, though all keys are equal."""
    opened: list[np.ndarray] = []
    original = MaskedCache._open

    def watched(self, share):
        result = original(self, share)
        if self.channel.role is Role.CLIENT:
            opened.append(result.ravel())
        return result

    MaskedCache._open = watched  # type: ignore[method-assign]
    try:
        run_pair(constant_session, constant_session)
    finally:
        MaskedCache._open = original  # type: ignore[method-assign]
    values = np.concatenate(opened)
    counts = np.bincount((values * 64 // P_FIELD).astype(int), minlength=64)
    assert stats.chisquare(counts).pvalue > LEAST_P
    assert all_new(values)


def test_a_saved_cache_goes_on_in_another_session():
    saved: dict[tuple[int, int], bytes] = {}

    def before(d: Driver) -> None:
        d.public(2)
        d.step(4)
        d.truncate(5)
        d.append(1)  # not opened yet
        for layer, cache in enumerate(d.caches):
            saved[d.role, layer] = cache.save()

    first, _ = run_script(before, layers=2)

    def after(d: Driver) -> None:
        for layer, cache in enumerate(d.caches):
            cache.load(saved[d.role, layer])
            d.scripts[layer].k, d.scripts[layer].v = first.scripts[layer].k, first.scripts[layer].v
        assert d.source.used == 7 and len(d.caches[1]) == 6
        d.step(2)
        d.truncate(3)
        d.step(3)

    run_script(after, layers=2)


def test_saved_bytes_are_checked():
    def actions(d: Driver) -> None:
        d.step(3)
        cache = d.caches[0]
        data = cache.save()
        for wrong in (
            b"",
            data[:-1],
            data + b"\0",
            b"XXXX" + data[4:],
            data[:5] + bytes([1 - data[5]]) + data[6:],
            data[:6] + b"\x09" + data[7:],
            data[:-12] + b"\xff" * 12,
            data[:20] + b"\xff" * 8 + data[28:],
        ):
            with pytest.raises(CorruptFileError):
                cache.load(wrong)
        rng = np.random.default_rng(0)
        for _ in range(200):
            broken = bytearray(data)
            broken[int(rng.integers(0, 40))] ^= int(rng.integers(1, 256))
            try:
                cache._parsed(bytes(broken))
            except CorruptFileError:
                pass
        cache.load(data)
        d.step(1)

    run_script(actions)


def test_the_strategies_have_names():
    def party(channel: Channel) -> None:
        side = exchange_keys(channel, [])
        for name, count in (("masked", 3), ("none", 2), ("ciphertext", 1)):
            assert len(make_caches(name, side, count, *SHAPE)) == count
        with pytest.raises(ParameterError):
            make_caches("open", side, 1, *SHAPE)

    run_pair(party, party)
