"""Material of masked attention: shares of all products, made in blocks, handed out once; counters grow."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sottovoce.correlations.attention import AttentionSource
from sottovoce.correlations.attention_blocks import AttentionShape
from sottovoce.errors import ParameterError, ProtocolError
from sottovoce.net import Channel, run_pair
from sottovoce.ring.primes import P_FIELD

U64 = np.uint64
SHAPE = (2, 4, 2, 8)  # layers, heads, key-value heads, head dimension


def both(actions, shape=SHAPE, block=4):
    """Run `actions(source)` at both parties: the two results."""

    def party(channel: Channel):
        return actions(AttentionSource(channel, *shape, block))

    return run_pair(party, party)


def total(pair):
    x0, x1 = pair
    return (x0 + x1) % U64(P_FIELD)


def nearly(x: np.ndarray, y: np.ndarray) -> bool:
    error = (x.astype(object) - y.astype(object) + P_FIELD // 2) % P_FIELD - P_FIELD // 2
    return bool(np.abs(error.astype(float)).max() < 6000)


def append(source: AttentionSource, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    return [source.append(layer, count) for layer in range(source.shape.layers)]


def test_shares_add_up_to_the_products_of_all_earlier_slots():
    def actions(source: AttentionSource):
        append(source, 3)
        append(source, 2)
        slots = [source.masks(layer, np.arange(5)) for layer in range(2)]
        questions = [source.questions(layer, 5) for layer in range(2)]
        return slots, [[(q.counters, q.positions, q.ask(), q.weigh()) for q in layer] for layer in questions]

    mine, theirs = both(actions)
    for slots0, slots1, parts0, parts1 in zip(mine[0], theirs[0], mine[1], theirs[1], strict=True):
        keys, values = (total(pair) for pair in zip(slots0, slots1, strict=True))
        assert [len(part[0]) for part in parts0] == [4, 1]  # the second append straddles two blocks
        for (counters, positions, *own), (_, _, *other) in zip(parts0, parts1, strict=True):
            (a, products), (weights, mixes) = (
                tuple(total(pair) for pair in zip(x, y, strict=True)) for x, y in zip(own, other, strict=True)
            )
            known = positions < 5
            for head in range(2):
                b, d = (x[:, head].astype(object) for x in (keys, values))
                expected = a[head].astype(object) @ b.T % P_FIELD
                assert nearly(products[head][:, known][:, positions[known]], expected[:, : known.sum()])
            # π is zero where a query must not look ahead, and uniform elsewhere.
            rows = weights.reshape(2, len(counters), 2, -1)
            ahead = positions[None, :] > counters[:, None]
            assert not rows[:, ahead.nonzero()[0], :, ahead.nonzero()[1]].any()
            assert rows[:, (~ahead).nonzero()[0], :, (~ahead).nonzero()[1]].all()
            if ahead[:, known].sum() + known.sum() == ahead.sum():
                d = values[positions[known]].astype(object)
            for head in range(2):
                d = values[:, head].astype(object)
                # Slots of the block that have no token yet carry no weight in the queries asked here.
                seen = weights[head][:, known].astype(object)
                assert nearly(mixes[head], seen @ d[positions[known]] % P_FIELD)


def test_material_is_handed_out_once_and_wiped():
    def actions(source: AttentionSource):
        append(source, 2)
        first, again = source.questions(0, 2)[0], source.questions(0, 1)[0]
        first.ask()
        with pytest.raises(ProtocolError, match="second time"):
            again.ask()
        again.weigh()
        with pytest.raises(ProtocolError, match="second time"):
            first.weigh()
        material = first._material
        rows = [
            array[:, 1] for array in (material.queries, material.scores, material.weights, material.mixes)
        ]
        assert not any(row.any() for row in rows)
        assert material.weights[:, 0].any() and not material.queries[:, 0].any()
        return True

    both(actions)


def test_blocks_fill_a_power_of_two_of_rows():
    def size(group: int, tokens: int) -> int:
        return AttentionShape(1, 3 * group, 3, 64).block_size(tokens)

    assert size(3, 64) == 85 and size(3, 128) == 170 and size(3, 341) == 341
    assert size(1, 64) == 64 and size(1, 65) == 128
    assert size(3, 5000) == 341 and size(1, 5000) == 1024


def test_many_blocks_made_ahead_all_remain():
    def actions(source: AttentionSource):
        source.prepare(14)
        assert [len(block) for block in source._blocks] == [16]
        source.prepare(40)
        source.prepare(60)
        firsts = [block.first for block in source._blocks]
        for expected in range(source.ready):
            append(source, 1)
            for layer in range(2):
                (part,) = source.questions(layer, 1)
                assert list(part.counters) == [expected] and part.positions[expected] == expected
                part.ask()
                part.weigh()
        append(source, 1)
        assert firsts == [0, 16, 48] and len(source._blocks) == 2  # the new one and the one before
        return True

    both(actions)


def test_preparing_ahead_and_running_dry_cost_what_is_stated():
    def actions(source: AttentionSource):
        source.setup()
        ledger, costs = source._maker._ledger, []

        def run(call, expected):
            before = ledger.snapshot()
            call()
            rows = ledger.since(before)
            assert [sum(r.bytes_up for r in rows), sum(r.bytes_down for r in rows)] == [expected] * 2
            costs.append((expected, sum(r.rounds for r in rows)))

        run(lambda: source.prepare(6), source.prepare_bytes(6))
        assert source.ready == 8
        run(lambda: append(source, 8), 0)
        [source.truncate(layer, 5) for layer in range(2)]
        run(lambda: append(source, 1), source.prepare_bytes(1))
        assert source.ready == 3 and source.used == 9
        return costs

    mine, theirs = both(actions)
    assert mine == theirs and mine[0][1] == 2 * 2 and mine[2][1] == 2 * 2


def test_dead_slots_leave_with_the_next_block():
    def actions(source: AttentionSource):
        append(source, 4)
        for layer in range(2):
            source.truncate(layer, 1)
        append(source, 4)
        assert list(source.live(0)) == [0, 4, 5, 6, 7]
        assert list(source.questions(0, 1)[0].positions) == [0, 4, 5, 6, 7]
        append(source, 1)
        assert list(source._held) == [0, 4, 5, 6, 7, 8, 9, 10, 11]
        return True

    both(actions)


def test_public_tokens_take_slots_without_queries():
    def actions(source: AttentionSource):
        for layer in range(2):
            source.append(layer, 3, queries=False)
        assert source.used == 3 and source.ready == 0
        append(source, 1)
        assert list(source.questions(1, 1)[0].positions) == [0, 1, 2, 3, 4, 5, 6]
        with pytest.raises(ParameterError, match="query"):
            source.questions(0, 2)
        return True

    both(actions)


def test_use_is_recorded_before_anything_is_handed_out():
    class Stop(Exception):
        pass

    def actions(source: AttentionSource):
        marks: list[int] = []

        def record(mark: int) -> None:
            marks.append(mark)
            if mark > 2:
                raise Stop

        source.record = record
        append(source, 2)
        with pytest.raises(Stop):
            source.append(0, 1)
        assert marks == [2, 3] and source.used == 2
        return True

    both(actions)


def test_burnt_counters_never_come_back():
    def actions(source: AttentionSource):
        append(source, 2)
        source.burn(10)
        assert source.used == 10 and source.ready == 0
        append(source, 1)
        assert list(source.live(0)) == [0, 1, 10]
        source.burn(3)
        assert source.used == 11
        return True

    both(actions)


def test_material_is_made_between_tokens_only():
    def actions(source: AttentionSource):
        source.append(0, 4)
        with pytest.raises(ProtocolError, match="between tokens"):
            source.prepare(8)
        return True

    both(actions)


def test_impossible_sizes_are_refused():
    def party(channel: Channel):
        for sizes in ((1, 5, 2, 8, 4), (1, 2, 2, 8, 0), (1, 4096, 1, 8, 4)):
            with pytest.raises(ParameterError):
                AttentionSource(channel, *sizes)
        return True

    run_pair(party, party)


STEPS = st.lists(st.one_of(st.integers(1, 3), st.floats(0, 1), st.just("burn")), min_size=1, max_size=12)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(STEPS)
def test_counters_never_repeat_whatever_happens(steps):
    """Appends, truncations and lost connections in any order: a counter and its masks appear once."""

    def actions(source: AttentionSource):
        counters, masks = [], []
        for step in steps:
            if step == "burn":
                source.burn(source.used + 2)
            elif isinstance(step, int):
                keys, values = source.append(0, step)
                counters += list(source.live(0)[-step:])
                masks += [keys, values]
            else:
                source.truncate(0, int(step * source.live(0).size))
        assert len(set(counters)) == len(counters) and counters == sorted(counters)
        drawn = np.concatenate([x.ravel() for x in masks]) if masks else np.zeros(0)
        assert len(np.unique(drawn)) == drawn.size
        return counters

    mine, theirs = both(actions, (1, 2, 1, 4))
    assert mine == theirs
