"""Plans of matrix-vector products: exact against integers, every entry placed once, few plaintexts."""

import numpy as np
import pytest

from sottovoce.errors import ParameterError
from sottovoce.packing import CostModel, MatVecPlan, all_plans, group_tokens, plan_matvec, rotations
from sottovoce.packing.cover import EMPTY, _starts, covers
from sottovoce.packing.model import multiply_slots
from sottovoce.ring.primes import P_FIELD
from sottovoce.rlwe import ROW_SWAP

REAL = [
    (960, 576),
    (576, 576),
    (3072, 576),
    (576, 1536),
    (172, 64),
    (64, 172),
    (128, 64),
    (512, 64),
    (64, 512),
]
GPT2 = [(2304, 768), (768, 3072)]


def exact_product(weights: np.ndarray, x: np.ndarray) -> np.ndarray:
    low = weights.astype(np.int64) @ (x & 0xFFFFF).astype(np.int64)
    high = weights.astype(np.int64) @ (x >> 20).astype(np.int64)
    return ((low + (high % P_FIELD) * (1 << 20)) % P_FIELD).astype(np.uint64)


def run_plan(plan: MatVecPlan, weights: np.ndarray, x: np.ndarray) -> np.ndarray:
    slots = plan.lay_out(x)
    results = np.stack([multiply_slots(plan, weights, row, P_FIELD) for row in slots])
    return plan.collect(results, P_FIELD)


@pytest.mark.parametrize(("d_out", "d_in"), REAL + GPT2)
def test_product_is_exact(d_out: int, d_in: int) -> None:
    rng = np.random.default_rng(d_out * 7 + d_in)
    weights = rng.integers(-(2**15), 2**15, (d_out, d_in), dtype=np.int16)
    x = rng.integers(0, P_FIELD, (1, d_in), dtype=np.uint64)
    plan = plan_matvec(d_out, d_in)
    assert np.array_equal(run_plan(plan, weights, x)[0], exact_product(weights, x[0]))


@pytest.mark.parametrize(
    ("d_out", "d_in"), [(1, 1), (3, 5), (33, 20), (20, 33), (100, 64), (200, 3), (3, 200), (130, 130)]
)
@pytest.mark.parametrize("degree", [64, 128])
def test_odd_shapes_in_small_rings(d_out: int, d_in: int, degree: int) -> None:
    rng = np.random.default_rng(degree + d_out)
    weights = rng.integers(-(2**15), 2**15, (d_out, d_in), dtype=np.int16)
    x = rng.integers(0, P_FIELD, (3, d_in), dtype=np.uint64)
    plan = plan_matvec(d_out, d_in, degree, babies=4)
    result = run_plan(plan, weights, x)
    for row in range(3):
        assert np.array_equal(result[row], exact_product(weights, x[row]))


@pytest.mark.parametrize(("d_out", "d_in"), [(960, 576), (576, 1536), (33, 20)])
def test_every_entry_is_placed_once(d_out: int, d_in: int) -> None:
    plan = plan_matvec(d_out, d_in)
    seen = np.zeros(d_out * d_in, dtype=np.int64)
    for o in range(plan.output_count):
        for c in range(plan.input_count):
            for index in plan.diagonal_indices(o, c):
                np.add.at(seen, index[index != EMPTY], 1)
    assert (seen == 1).all()


@pytest.mark.slow
def test_vocabulary_shapes_place_every_entry() -> None:
    # The validity table raises if an entry is missing; a full product would take minutes, so check slices of
    # outputs.
    rng = np.random.default_rng(1)
    head = plan_matvec(49152, 576)
    assert (head.input_count, head.output_count, head.plaintext_count) == (2, 6, 3516)
    embedding = plan_matvec(576, 49152)
    assert (embedding.input_count, embedding.output_count, embedding.plaintext_count) == (6, 1, 3516)
    column = rng.integers(-(2**15), 2**15, (576, 49152), dtype=np.int16)
    token = 31234
    one_hot = np.zeros((1, 49152), dtype=np.uint64)
    one_hot[0, token] = 4096
    expected = column[:, token].astype(np.int64) * 4096 % P_FIELD
    assert np.array_equal(run_plan(embedding, column, one_hot)[0], expected.astype(np.uint64))


def test_head_slice_is_exact() -> None:
    # A vocabulary that still needs several input and output ciphertexts, at an eighth of the ring.
    rng = np.random.default_rng(2)
    weights = rng.integers(-(2**15), 2**15, (4096, 576), dtype=np.int16)
    x = rng.integers(0, P_FIELD, (1, 576), dtype=np.uint64)
    plan = plan_matvec(4096, 576, 1024)
    assert plan.output_count >= 4
    assert np.array_equal(run_plan(plan, weights, x)[0], exact_product(weights, x[0]))
    transposed = plan_matvec(576, 4096, 1024)
    assert transposed.input_count >= 4
    y = rng.integers(0, P_FIELD, (1, 4096), dtype=np.uint64)
    assert np.array_equal(run_plan(transposed, weights.T, y)[0], exact_product(weights.T, y[0]))


@pytest.mark.parametrize(
    ("d_out", "d_in", "most"),
    [(960, 576, 72), (576, 576, 42), (3072, 576, 288), (576, 1536, 120), (172, 64, 2)],
)
def test_plaintext_counts(d_out: int, d_in: int, most: int) -> None:
    plan = plan_matvec(d_out, d_in)
    assert plan.plaintext_count <= most
    assert (plan.input_count, plan.output_count) == (1, 1)


def test_rotation_keys_are_shared() -> None:
    steps = set().union(*(plan_matvec(*shape).steps() for shape in REAL))
    assert steps <= set(range(1, 33))


def test_more_babies_than_the_limit_are_never_planned() -> None:
    for shape in REAL:
        plan = plan_matvec(*shape, babies=8)
        assert plan.babies <= 8
        assert max(plan.steps(), default=0) <= 8


def test_expensive_rotations_prefer_fewer_of_them() -> None:
    cheap = plan_matvec(3072, 576, cost=CostModel(rotation=0.1))
    dear = plan_matvec(3072, 576, cost=CostModel(rotation=3.0))
    assert dear.giants <= cheap.giants


def test_covers_reach_the_bound_within_a_tenth() -> None:
    for inputs, outputs in [(576, 480), (576, 288), (768, 576), (64, 86), (4096, 576), (576, 4096)]:
        best = min(cover.rotations for cover in covers(inputs, outputs, 4096, 1))
        assert best <= 1.1 * inputs * outputs / 4096 + 8


def test_impossible_shape_is_refused() -> None:
    with pytest.raises(ParameterError):
        plan_matvec(5, 0)


@pytest.mark.parametrize(
    ("d_out", "d_in"), [(1, 1), (3, 5), (33, 20), (20, 33), (100, 64), (200, 3), (3, 200), (130, 130)]
)
@pytest.mark.parametrize("tokens", [2, 4, 8])
def test_several_tokens_in_a_ciphertext(d_out: int, d_in: int, tokens: int) -> None:
    rng = np.random.default_rng(tokens + d_out)
    weights = rng.integers(-(2**15), 2**15, (d_out, d_in), dtype=np.int16)
    x = rng.integers(0, P_FIELD, (2 * tokens, d_in), dtype=np.uint64)
    plan = plan_matvec(d_out, d_in, 256, babies=8, tokens=tokens)
    assert plan.lay_out(x).shape == (2, plan.sent_count, 256)
    result = run_plan(plan, weights, x)
    for row, y in zip(x, result, strict=True):
        assert np.array_equal(y, exact_product(weights, row))


@pytest.mark.parametrize(("d_out", "d_in"), [(960, 576), (576, 576), (576, 1536)])
def test_eight_tokens_of_a_model(d_out: int, d_in: int) -> None:
    rng = np.random.default_rng(d_in)
    weights = rng.integers(-(2**15), 2**15, (d_out, d_in), dtype=np.int16)
    x = rng.integers(0, P_FIELD, (8, d_in), dtype=np.uint64)
    plan = plan_matvec(d_out, d_in, tokens=8)
    assert plan.swapped or (d_out, d_in) != (960, 576)
    result = run_plan(plan, weights, x)
    for row, y in zip(x, result, strict=True):
        assert np.array_equal(y, exact_product(weights, row))


def test_tokens_together_send_less_and_rotate_less() -> None:
    for shape in REAL[:4]:
        one, eight = plan_matvec(*shape), plan_matvec(*shape, tokens=8)
        assert 3 * (eight.sent_count + eight.output_count) < 8 * (one.sent_count + one.output_count)
        assert eight.plaintext_count < 1.3 * 8 * one.plaintext_count


def test_keys_serve_all_group_sizes() -> None:
    steps = set().union(*(plan.steps() for shape in REAL[:2] for plan in all_plans(*shape)))
    assert steps <= {ROW_SWAP, *range(1, rotations.SHORT + 1), *rotations.LONG}


@pytest.mark.parametrize("stride", [1, 2, 4, 8, 16, 32])
def test_every_rotation_is_made_of_keys_from_ones_made_before(stride: int) -> None:
    steps = range(0, 512, stride)
    made = {0}
    for origin, group in rotations.sources(steps).items():
        assert origin in made
        for step in group:
            assert rotations.has_key(step - origin)
            made.add(step)
    assert made == set(steps)
    depth = {0: 0}
    for step in steps[1:]:
        depth[step] = depth[rotations.origin(step)] + 1
    assert max(depth.values()) <= 5


@pytest.mark.parametrize("tokens", [1, 2, 3, 5, 7, 8, 13, 16, 37, 64, 300])
def test_groups_hold_all_tokens_with_little_left_empty(tokens: int) -> None:
    groups = group_tokens(96, 64, tokens)
    held = sum(group.tokens for group in groups)
    assert tokens <= held < tokens + 16 * -(-tokens // 256)
    assert sum(group.sent_count for group in groups) <= tokens


def test_one_token_is_alone_and_a_vocabulary_goes_token_by_token() -> None:
    (single,) = group_tokens(960, 576, 1)
    assert single.plan is plan_matvec(960, 576)
    (many,) = group_tokens(960, 576, 64)
    assert many.plan.tokens >= 4
    (rows,) = group_tokens(576, 49152, 64)
    assert (rows.plan.tokens, rows.count) == (1, 64)


@pytest.mark.parametrize("everything", [True, False])
@pytest.mark.parametrize(("length", "copies"), [(12, 3), (13, 4), (40, 7), (9, 8), (64, 2)])
def test_starts_are_those_of_one_choice_after_the_other(length: int, copies: int, everything: bool) -> None:
    """Both parties must arrive at the same plans, whichever version they run."""
    rng = np.random.default_rng(length * copies)
    free, steps = rng.integers(0, 5, length), np.arange(copies) * length // copies
    for outputs in (1, 5, int(free.sum()) // copies):
        left, chosen, grew = free.copy(), [], True
        while len(chosen) < outputs and grew:
            grew = False
            for start in range(length):
                members = (start + steps) % length
                room = int(left[members].min())
                take = min(room if everything else min(room, 1), outputs - len(chosen))
                left[members] -= take
                chosen += [start] * take
                grew |= take > 0
        found = _starts(free, steps, length, outputs, everything)
        assert (None if found is None else found.tolist()) == (chosen if len(chosen) == outputs else None)
