"""Segments: attention material that belongs to no conversation until one moves into it."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats

from chance import LEAST_P, all_new
from masked_sessions import SHAPE, Driver, run_script
from sottovoce.correlations.attention import AttentionSource
from sottovoce.correlations.attention_blocks import AttentionShape
from sottovoce.correlations.attention_segments import Segment, layers_at_once
from sottovoce.correlations.records import read_rows, write_records
from sottovoce.engines.base import EngineOptions
from sottovoce.engines.hybrid import HybridEngine, attention_provisions
from sottovoce.errors import ParameterError, ProtocolError
from sottovoce.kvcache import MaskedCache, adopt_segment
from sottovoce.net import Channel, Role, run_pair
from sottovoce.ring.primes import P_FIELD
from test_pool_hybrid import plain, prepare, sessions
from tiny_model import tiny_model


def made(source: AttentionSource, room: int, queries: int, step: int = 1) -> Segment:
    making = source.segment(room, queries)
    while (segment := making.step(step)) is None:
        pass
    return segment


def move(d: Driver, room: int, queries: int) -> None:
    adopt_segment(d.caches, made(d.source, room, queries))


def test_a_conversation_goes_on_in_a_segment():
    def actions(d: Driver) -> None:
        d.public(2)
        d.step(3)
        d.append(1)  # not opened yet
        d.truncate(5)
        move(d, 8, 5)
        assert d.source.ready == 5 and [len(cache) for cache in d.caches] == [5, 5]
        d.step(2)
        d.truncate(6)
        d.truncate(3)  # of what has moved
        d.step(1)
        d.step(2)
        move(d, 6, 4)  # no slot to spare
        d.step(4)
        d.step(1)  # none is ready: a block is made for the slots as they lie

    run_script(actions, layers=2)


def test_a_session_begins_with_a_segment():
    def actions(d: Driver) -> None:
        move(d, 0, 6)
        d.step(4)
        move(d, 4, 2)
        d.step(2)

    run_script(actions)


def test_a_segment_survives_the_disk(tmp_path):
    def actions(d: Driver) -> None:
        d.step(2)
        record = made(d.source, 3, 4, step=2).to_record()
        path = tmp_path / f"{d.role}"
        with path.open("wb+", buffering=0) as file:
            layouts, _ = write_records(file.fileno(), {"attention": record}, {})
            layout = layouts["attention"]
            segment = Segment.from_record(read_rows(file.fileno(), layout, 0, 1))
        assert (segment.room, segment.queries) == (3, 4)
        adopt_segment(d.caches, segment)
        d.step(4)

    run_script(actions, layers=2)


def test_a_saved_conversation_goes_on_in_a_segment():
    saved: dict[tuple[int, int], bytes] = {}

    def before(d: Driver) -> None:
        d.step(3)
        move(d, 4, 3)
        d.step(2)
        for layer, cache in enumerate(d.caches):
            saved[d.role, layer] = cache.save()

    first, _ = run_script(before, layers=2)

    def after(d: Driver) -> None:
        for layer, cache in enumerate(d.caches):
            cache.load(saved[d.role, layer])
            d.scripts[layer].k, d.scripts[layer].v = first.scripts[layer].k, first.scripts[layer].v
        used = d.source.used
        move(d, 5, 2)
        assert d.source.used >= used + 5 and len(d.caches[1]) == 5
        d.step(2)

    run_script(after, layers=2)


STEPS = st.lists(st.one_of(st.integers(1, 3), st.floats(0, 1), st.just("move")), min_size=3, max_size=8)


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(STEPS)
def test_random_sequences(steps):
    def actions(d: Driver) -> None:
        marks: list[int] = []
        d.source.record = marks.append
        for step in steps:
            if step == "move":
                move(d, len(d.scripts[0].k) + 1, 2)
            elif isinstance(step, int):
                d.step(step)
            else:
                d.truncate(int(step * len(d.scripts[0].k)))
        assert marks == sorted(set(marks)) and d.source.used == max(marks, default=0)

    run_script(actions, (2, 1, 4), block=4)


def test_moving_is_recorded_before_masks_are_handed_out():
    class Stop(Exception):
        pass

    def actions(d: Driver) -> None:
        d.step(2)
        segment = made(d.source, 4, 2)

        def record(mark: int) -> None:
            assert mark == d.source._made + 4
            raise Stop

        d.source.record = record
        before = d.source.live(0)
        with pytest.raises(Stop):
            adopt_segment(d.caches, segment)
        assert d.source.live(0) is before and d.source.used == 2

    run_script(actions)


def test_what_does_not_fit_is_refused():
    def actions(d: Driver) -> None:
        d.step(3)
        with pytest.raises(ParameterError, match="do not fit"):
            move(d, 2, 4)
        d.step(1)
        for room, queries in ((-1, 2), (2, 0)):
            with pytest.raises(ParameterError):
                d.source.segment(room, queries)
        segment = made(d.source, 8, 2)
        d.append_to(0, 1)
        with pytest.raises(ProtocolError, match="between tokens"):
            adopt_segment(d.caches, segment)
        d.append_to(1, 1)
        d.attend(1)

    run_script(actions, layers=2)


def test_queries_that_were_left_are_gone():
    def actions(d: Driver) -> None:
        d.append(3)
        move(d, 4, 2)
        with pytest.raises(ParameterError, match="query"):
            d.source.questions(0, 1)

    run_script(actions)


def test_a_segment_costs_what_is_stated():
    shape = AttentionShape(3, 6, 2, 8)

    def party(channel: Channel):
        source = AttentionSource(channel, 3, *SHAPE)
        source.setup()
        before = channel.ledger.snapshot()
        made(source, 5, 4, step=2)
        rows = channel.ledger.since(before)
        assert {sum(r.bytes_up for r in rows), sum(r.bytes_down for r in rows)} == {shape.block_bytes(4, 9)}
        return sum(r.rounds for r in rows)

    assert run_pair(party, party) == (2 * 3, 2 * 3)
    whole = shape.block_bytes(4, 9)
    assert [layers_at_once(shape, 5, 4, most) for most in (0, whole // 2, whole)] == [1, 1, 3]


def test_what_moving_opens_is_uniform_and_never_the_same():
    """Equal keys and values, moved again and again: what both parties know of them is uniform each time."""
    opened: list[np.ndarray] = []

    def party(channel: Channel) -> None:
        heads, kv_heads, dim = SHAPE
        cache = MaskedCache(channel, AttentionSource(channel, 1, *SHAPE, 8), 0)
        store = cache._store

        def watched(k: np.ndarray, v: np.ndarray) -> None:
            if channel.role is Role.CLIENT:
                opened.extend([k.ravel(), v.ravel()])
            store(k, v)

        cache._store = watched  # type: ignore[method-assign]
        ones = int(channel.role) * np.ones((6, kv_heads, dim), np.uint64)
        cache.append(ones, ones)
        for _ in range(40):
            adopt_segment([cache], made(cache.source, 8, 1))
            cache.append(ones[:1], ones[:1])
            cache.scores(np.zeros((1, heads, dim), np.uint64))
            cache.truncate(6)

    run_pair(party, party)
    values = np.concatenate(opened)
    assert values.size == 40 * 2 * 7 * SHAPE[1] * SHAPE[2]
    counts = np.bincount((values * 64 // P_FIELD).astype(int), minlength=64)
    assert stats.chisquare(counts).pvalue > LEAST_P
    assert all_new(values)


@pytest.fixture
def small(monkeypatch):
    """Segments of a few tokens, so that a short conversation crosses several borders."""
    monkeypatch.setattr(attention_provisions, "FIRST", (4, 8))
    monkeypatch.setattr(attention_provisions, "_PREFIX", 2)
    monkeypatch.setattr(attention_provisions, "_STEP_BYTES", 1)


TOKENS = [5, 6, 7, 8, 9, 10, 11, 12]


def test_a_long_answer_makes_no_attention_material_on_the_way(small, tmp_path):
    engine = HybridEngine(EngineOptions(kv="masked"), tiny_model())
    engine.prepare()
    run = sessions(engine, tmp_path)
    steps: list[str] = []

    def filling(party):
        party.prepare(14, lambda done, total, what: steps.append(what))
        return party.ready(99)

    ready, _ = run(filling, prepare(14))
    assert ready >= 14 and steps.count("preparing attention") >= 4  # a layer at a time

    def client(party):
        part = party._provisions._parts[-1]
        left = [part.ready(party._provisions.source.pool.available, 99)]
        logits = [party.prefill([256, 3], [7, 8, 9])]
        for token in TOKENS:
            logits.append(party.decode(token))
            left.append(part.ready(party._provisions.source.pool.available, 99))
        return logits, left, party.execution.caches[0].source.used

    def server(party):
        party.prefill([256, 3], 3)
        for _ in TOKENS:
            party.decode()

    (logits, left, used), ledger = run(client, server)
    assert np.abs(np.array(logits) - plain(TOKENS)).max() < 0.05
    made_now = [row for row in ledger.rows() if row.operation.endswith("correlations/attention")]
    assert not any(row.bytes_up for row in made_now)
    assert left == sorted(left, reverse=True) and used > 2 + 3 + len(TOKENS)  # it has moved


def test_in_the_middle_of_a_conversation_the_next_segment_is_made_ahead(small, tmp_path):
    engine = HybridEngine(EngineOptions(kv="masked"), tiny_model())
    engine.prepare()

    def client(party):
        first = [party.prefill([256, 3], [7, 8, 9])]
        party.prepare(10)
        assert party.ready(10) == 10
        before = party._execution.channel.ledger.snapshot()
        logits = first + [party.decode(token) for token in TOKENS]
        rows = party._execution.channel.ledger.since(before)
        assert not any(row.bytes_up for row in rows if row.operation.endswith("correlations/attention"))
        return logits

    def server(party):
        party.prefill([256, 3], 3)
        party.prepare(10)
        for _ in TOKENS:
            party.decode()

    logits, _ = sessions(engine, tmp_path)(client, server)
    assert np.abs(np.array(logits) - plain(TOKENS)).max() < 0.05
