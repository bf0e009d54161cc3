"""Layouts in slots, exact on integers: products, heads, rotary positions, cache, chunks, baselines."""

import numpy as np
import pytest

from sottovoce.errors import RangeError, UsageError
from sottovoce.packing.slots import Heads, Interleaved, PlainSlots, attention, baselines, chunk, padded, place

rng = np.random.default_rng(7)


def integers(*shape):
    return rng.integers(-9, 10, shape).astype(float)


@pytest.mark.parametrize("n", [64, 256, 1024])
@pytest.mark.parametrize(
    "shape", [(16, 16), (16, 64), (64, 16), (64, 64), (16, 32), (32, 2), (4, 64), (8, 8)]
)
def test_vector_times_matrix(n, shape):
    plan = Interleaved(n, *shape)
    ar = PlainSlots(n, 2)
    x, w = integers(shape[0]), integers(*shape)
    y = plan.apply(ar, ar.fresh(plan.place(x)), plan.plaintexts(w))
    assert y.level == 1
    assert np.array_equal(plan.read(y.values), x @ w)
    expected = plan.t_in.bit_length() + plan.t_out.bit_length() - 2
    expected += plan.babies - 1 + max(1, plan.count // plan.babies) - 1
    assert ar.rotations == expected
    assert ar.counts["mul_plain", 2] == plan.count


def test_wide_products_and_padding():
    n, x, w = 32768, integers(576), integers(576, 172)
    plan = Interleaved(n, 1024, 256)
    ar = PlainSlots(n, 1)
    y = plan.apply(ar, ar.fresh(plan.place(np.pad(x, (0, 448)))), plan.plaintexts(padded(w, 1024, 256)))
    assert np.array_equal(plan.read(y.values)[:172], x @ w)
    assert not plan.read(y.values)[172:].any()


def test_two_real_matrices_in_one_complex_product():
    plan, ar = Interleaved(256, 16, 64), PlainSlots(256, 2)
    x, a, b = integers(16), integers(16, 64), integers(16, 64)
    y = ar.mul_plain(plan.apply(ar, ar.fresh(plan.place(x)), plan.plaintexts(a + 1j * b)), plan.mask(0.5))
    real, imaginary = ar.real_imaginary(y)
    assert np.array_equal(real.values, place(x @ a, 256))
    assert np.array_equal(imaginary.values, place(x @ b, 256))


def test_widths_must_be_powers_of_two_that_fit():
    with pytest.raises(UsageError, match="pad"):
        Interleaved(256, 12, 16)
    with pytest.raises(UsageError, match="wider"):
        Interleaved(256, 512, 16)


def test_a_program_that_runs_out_of_levels_says_so():
    plan, ar = Interleaved(64, 8, 8), PlainSlots(64, 1)
    x = plan.apply(ar, ar.fresh(plan.place(integers(8))), plan.plaintexts(integers(8, 8)))
    with pytest.raises(RangeError, match="level exhausted"):
        ar.mul_plain(x, plan.mask())


def reference_heads(heads, x, w):
    """(H, d_h) of the padded heads from a product in the model's order."""
    out = np.zeros((heads.count, heads.dim))
    for h, row in enumerate((x @ w).reshape(heads.heads, heads.head_dim)):
        half = heads.head_dim // 2
        out[heads.number(h), :half] = row[:half]
        out[heads.number(h), heads.dim // 2 : heads.dim // 2 + half] = row[half:]
    return out


@pytest.mark.parametrize(("q", "kv", "dim"), [(4, 4, 8), (8, 4, 8), (9, 3, 4), (6, 2, 6)])
def test_heads_in_order_padded_and_grouped(q, kv, dim):
    heads = Heads(1024, q, kv, dim)
    x = integers(16)
    wq, wk = integers(16, q * dim), integers(16, kv * dim)
    found = (x @ heads.query_columns(wq)).reshape(heads.dim, heads.count).T
    assert np.array_equal(found, reference_heads(heads, x, wq))
    rep = q // kv
    copied = np.repeat((x @ wk).reshape(kv, 1, dim), rep, axis=1).reshape(-1)
    found = (x @ heads.key_columns(wk)).reshape(heads.dim, heads.count).T
    assert np.array_equal(found, reference_heads(heads, np.ones(1), copied[None, :]))
    wo = integers(q * dim, 16)
    assert np.array_equal((x @ heads.query_columns(wq)) @ heads.output_rows(wo), x @ wq @ wo)


def test_nine_heads_on_three_have_the_numbers_of_the_design():
    assert [Heads(32768, 9, 3, 64).number(h) for h in range(9)] == [0, 1, 2, 4, 5, 6, 8, 9, 10]


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotary_positions_are_one_rotation(interleaved):
    from sottovoce.models.config import Rope
    from sottovoce.models.layers import rotate

    heads = Heads(256, 4, 4, 8)
    ar = PlainSlots(256, 2)
    x = rng.standard_normal(32)
    vector = heads.query_columns(x[None, :], interleaved)[0]
    junk = np.arange(256) % heads.t != 0
    y = heads.rotate_half(ar, ar.fresh(place(vector, 256) + 5.0 * junk), heads.rope(11, 10000.0))
    style = "interleaved" if interleaved else "half"
    expected = rotate(x.astype(np.float32).reshape(1, 4, 8), Rope(10000.0, style), 11).reshape(1, -1)
    assert np.allclose(y.values, place(heads.query_columns(expected, interleaved)[0], 256), atol=1e-5)
    assert ar.rotations == 1


def attend(q, k, v):
    """Scores (H, n) and mix for scores as weights, in integers."""
    s = np.einsum("hi,mhi->hm", q, k)
    return s, np.einsum("hm,mhi->hi", s, v)


@pytest.mark.parametrize("tokens", [1, 5, 8, 9, 19, 30])
def test_cache_scores_and_mix(tokens):
    heads = Heads(256, 4, 4, 8)  # t = 8: groups of 8 tokens, at most 64
    ar = PlainSlots(256, 8)
    q, k, v = integers(4, 8), integers(tokens, 4, 8), integers(tokens, 4, 8)

    def compact(x):
        return ar.fresh(place(heads.query_columns(x.reshape(1, -1))[0], 256))

    groups, lanes, values = [], [None] * heads.dim, []
    for p in range(tokens):
        attention.append_key(ar, heads, groups, compact(k[p]), p)
        attention.append_key(ar, heads, values, compact(v[p]), p)
        attention.append_value(ar, heads, lanes, compact(v[p]), p)
    s = attention.scores(ar, heads, groups, compact(q))
    expected, mixed = attend(q, k, v)
    for p in range(tokens):
        at = (p // heads.t) * heads.block + np.arange(4) * heads.t + p % heads.t
        assert np.array_equal(s.values[at], expected[:, p])
    if tokens <= heads.t:
        assert np.array_equal(s.values[: heads.block], s.values[heads.block : 2 * heads.block])
        y = attention.mix_group(ar, heads, s, values[0])
    else:
        y = attention.mix_lanes(ar, heads, s, lanes)
    out = y.values[:: heads.t].reshape(heads.dim, heads.count).T
    assert np.array_equal(out, mixed)
    total = attention.sum_tokens(ar, heads, s, len(groups), 2.0)
    at = np.arange(heads.block)
    assert np.array_equal(total.values[at], 2 * expected.sum(axis=1)[at // heads.t])
    gap = attention.empty(heads, tokens, -7.0, tokens <= heads.t)
    assert np.count_nonzero(gap[: heads.block * heads.dim] == 0) == (
        4 * tokens * (heads.dim if tokens <= heads.t else 1)
    )


def test_a_chunk_of_private_tokens():
    n, d = 256, 16
    heads = Heads(n, 4, 4, 4)  # T = 16 tokens
    ar = PlainSlots(n, 3)
    x, w = integers(16, d), integers(d, d)
    y = chunk.diagonals(ar, ar.fresh(chunk.place_chunk(x, n)), chunk.linear_plaintexts(w, n), n // d)
    assert np.array_equal(chunk.read_chunk(y.values, d), x @ w)
    q, k, v = integers(16, 4, 4), integers(8, 4, 4), integers(8, 4, 4)
    features = chunk.place_chunk(q.transpose(0, 2, 1).reshape(16, d), n)
    total = None
    for c in range(2):
        s = chunk.diagonals(ar, ar.fresh(features), chunk.public_scores(heads, k, c), heads.block)
        block = s.values.reshape(4, 4, 16)  # (token of the block, head, private token)
        assert np.array_equal(block, np.einsum("ihf,ohf->ohi", q, k[4 * c : 4 * c + 4]))
        part = chunk.diagonals(ar, s, chunk.public_values(heads, v, c), heads.block)
        total = part if total is None else ar.add(total, part)
    scores = np.einsum("ihf,mhf->ihm", q, k)
    expected = np.einsum("ihm,mhf->ihf", scores, v).transpose(0, 2, 1).reshape(16, d)
    assert np.array_equal(chunk.read_chunk(total.values, d), expected)
    assert total.level == 1


@pytest.mark.parametrize("d", [16, 32, 64])
def test_baselines_compute_the_same(d):
    n, ar = 256, PlainSlots(256, 1)
    x, w = integers(8, d), integers(d, d)
    y = baselines.diagonal_product(ar, ar.fresh(x[0]), baselines.diagonal_plaintexts(w, n))
    assert np.array_equal(y.values[:d], x[0] @ w)
    columns = [ar.fresh(np.pad(x[:, j], (0, n - 8))) for j in range(d)]
    out = baselines.column_product(ar, columns, w)
    assert np.array_equal(np.stack([y.values[:8] for y in out], axis=1), x @ w)
    tile = baselines.DiagonalMajor(n, d, d, 8)
    ar.counts.clear()
    y = tile.apply(ar, [ar.fresh(c) for c in tile.place(x)], w)
    assert np.array_equal(tile.read([c.values[: tile.lanes * 8] for c in y]), x @ w)
    assert ar.counts["mul_plain", 1] == tile.count


def test_what_the_packings_cost_at_width_1024():
    """One private token in 32,768 slots: the figures that the benchmark shows."""
    plan = Interleaved(32768, 1024, 1024)
    assert plan.count == 32
    assert baselines.DiagonalMajor(32768, 1024, 1024).count == 4096
