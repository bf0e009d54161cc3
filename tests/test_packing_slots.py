"""Layouts in slots, exact on integers: products, heads, rotary positions, cache, chunks, baselines."""

import numpy as np
import pytest

from sottovoce.errors import RangeError, UsageError
from sottovoce.packing.slots import (
    Blocks,
    CountingSlots,
    Heads,
    Interleaved,
    PlainSlots,
    attention,
    baselines,
    chunk,
    padded,
    place,
)

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


@pytest.mark.parametrize(("n", "shape"), [(64, (16, 16)), (256, (64, 64)), (256, (32, 64)), (64, (64, 32))])
@pytest.mark.parametrize("radix", [2, 4])
def test_folded_a_real_matrix_takes_half_of_the_plaintexts(n, shape, radix):
    plan, ar = Interleaved(n, *shape, radix), PlainSlots(n, 2)
    x, w = integers(shape[0]), integers(*shape)
    plaintexts = plan.folded_plaintexts(w)
    y = plan.apply_folded(ar, ar.fresh(plan.place(x)), plaintexts)
    assert len(plaintexts) == plan.count // 2 and y.level == 1
    assert np.array_equal(plan.read(y.values), x @ w)


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


class Cache:
    """Keys and values of tokens in slots: private ones as programs append them, public as plaintexts."""

    def __init__(self, blocks, public=(), levels=8):
        self.blocks, self.heads = blocks, blocks.heads
        self.ar, self.keys, self.values, self.tokens = PlainSlots(self.heads.n, levels), [], [], 0
        rows = -(-len(public[0]) // self.heads.t) * self.heads.t if len(public) else 0
        self.public = [self.rows(x, rows) for x in public]

    def rows(self, x, count):
        """(tokens, heads, head_dim) -> (d_h, H, count)."""
        heads, out = self.heads, np.zeros((self.heads.dim, self.heads.count, count))
        out[:, :, : len(x)] = heads.query_columns(x.reshape(len(x), -1)).T.reshape(heads.dim, heads.count, -1)
        return out

    def compact(self, x):
        return self.ar.fresh(place(self.heads.query_columns(x.reshape(1, -1))[0], self.heads.n))

    def append(self, k, v):
        lanes = attention.key_lanes(self.ar, self.blocks, self.compact(k), self.tokens)
        self.keys = attention.append(self.ar, self.keys, lanes)
        self.values = attention.append_value(self.ar, self.blocks, self.values, self.compact(v), self.tokens)
        self.tokens += 1

    def scores(self, q):
        lanes = []
        if self.public:
            ciphertexts = range(self.blocks.ciphertexts)
            lanes = [attention.public_keys(self.blocks, lambda: self.public[0], z) for z in ciphertexts]
        return attention.scores(self.ar, self.blocks, self.compact(q), self.keys, lanes)

    def mix(self, p):
        lanes = []
        if self.public:
            ciphertexts = range(self.blocks.ciphertexts)
            lanes = [attention.public_values(self.blocks, lambda: self.public[1], z) for z in ciphertexts]
        y = attention.mix(self.ar, self.blocks, p, self.values, lanes)
        return y, y.values[:: self.heads.t].reshape(self.heads.dim, self.heads.count).T


def where(blocks, private, public):
    """Every (ciphertext, block, row, token) at which a score stands: public tokens first."""
    t, found = blocks.heads.t, []
    for z in range(blocks.ciphertexts):
        for b, group in enumerate(blocks.groups(z)):
            if group >= 0:
                found += [(z, b, r, group * t + r) for r in range(t) if group * t + r < public]
            elif z == 0 and b % blocks.classes < blocks.private:
                first = (b % blocks.classes) * t
                found += [(0, b, r, public + first + r) for r in range(t) if first + r < private]
    return found


@pytest.mark.parametrize(
    ("classes", "private", "public"),
    [(1, 1, 0), (1, 8, 0), (2, 9, 0), (4, 19, 0), (4, 30, 0), (8, 64, 0)]  # private alone
    + [(2, 1, 1), (2, 8, 32), (4, 16, 29), (8, 20, 40), (8, 8, 56)]  # public in the blocks that are left
    + [(1, 5, 11), (1, 8, 130), (2, 3, 90), (8, 8, 57)],  # and in further ciphertexts
)
def test_cache_scores_sums_and_mix(classes, private, public):
    heads = Heads(256, 4, 4, 8)  # t = 8: 8 blocks of 8 tokens
    blocks = Blocks(heads, classes, -(-public // heads.t))
    k, v = integers(public + private, 4, 8), integers(public + private, 4, 8)
    cache = Cache(blocks, (k[:public], v[:public]) if public else ())
    for p in range(public, public + private):
        cache.append(k[p], v[p])
    q = integers(4, 8)
    s = cache.scores(q)
    expected = np.einsum("hi,mhi->hm", q, k)
    places = where(blocks, private, public)
    assert len(s) == blocks.ciphertexts and min(x.level for x in s) == 7 - (classes > 1)
    assert {token for *_, token in places} == set(range(public + private))
    live = [np.zeros(256, bool) for _ in s]
    for z, b, r, token in places:
        at = b * heads.block + np.arange(4) * heads.t + r
        assert np.array_equal(s[z].values[at], expected[:, token])
        live[z][at] = True
    for z, (mine, found) in enumerate(zip(live, blocks.positions(private, public), strict=True)):
        assert np.array_equal(mine, found)
        s[z] = cache.ar.fresh(np.where(mine, s[z].values, 0.0), s[z].level)
    total = attention.sum_tokens(cache.ar, blocks, s, 2.0)
    at = np.arange(256)
    assert np.array_equal(total.values, 2 * expected.sum(axis=1)[at // heads.t % 4])
    assert total.level == min(x.level for x in s) - 1
    y, mixed = cache.mix(s)
    assert np.array_equal(mixed, np.einsum("hm,mhi->hi", expected, v))
    assert y.level == s[0].level - 1 - (classes > 1)


def test_public_tokens_cost_the_same_rotations_up_to_the_capacity():
    """32 private tokens of SmolLM2's shape behind 32 or 1,024 public ones; no relinearisation more."""
    heads, counts = Heads(32768, 9, 3, 64), []
    for groups in (1, 32):
        ar = CountingSlots(heads.n, 1)
        blocks = Blocks(heads, 2, groups)
        lanes = attention.public_keys(blocks, lambda: None, 0)
        attention.scores(ar, blocks, ar.fresh(), [ar.fresh()] * 2, [lanes])
        counts.append(ar.counts)
        assert blocks.ciphertexts == 1 and blocks.private == 1
    assert counts[0] == counts[1]
    assert counts[1]["relinearize", 1] == 1 and counts[1]["mul_plain", 1] == 64
    assert ar.rotations == 5 + 7 + 7 + 5  # spread, baby and giant steps, fold of the private part


def test_blocks_of_scores():
    heads = Heads(4096, 8, 4, 8)
    assert Blocks(heads, 8, 7).private == 1 and Blocks(heads, 8, 0).private == 8
    assert Blocks(heads, 2, 4).ciphertexts == 1 and Blocks(heads, 2, 5).ciphertexts == 2
    assert Blocks(heads, 1, 16).ciphertexts == 3 and Blocks(heads, 1).copies == 8
    assert Blocks(heads, 4, 3).groups(0).tolist() == [-1, -1, 0, 1, -1, -1, 2, -1]


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
    assert baselines.DiagonalMajor(32768, 1024, 1024).count == 2048
