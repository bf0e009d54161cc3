"""Chunks of private tokens in slots, exact on integers: matrices, scores, sums, public tokens."""

from functools import partial

import numpy as np
import pytest

from sottovoce.errors import UsageError
from sottovoce.packing.slots import Heads, PlainSlots, chunk, chunk_attention
from sottovoce.packing.slots.chunk import Chunk

rng = np.random.default_rng(11)
HEADS = Heads(256, 4, 4, 4)  # T = 16 tokens, d = 16


def integers(*shape):
    return rng.integers(-9, 10, shape).astype(float)


def flat(x):
    """(tokens, H, d_h) -> (tokens, d) in the order of the heads."""
    return x.transpose(0, 2, 1).reshape(len(x), -1)


@pytest.mark.parametrize(("start", "count"), [(0, 1), (0, 16), (3, 5), (13, 3), (1, 8), (15, 1)])
def test_matrices_and_shared_ciphertexts(start, count):
    ar, c = PlainSlots(256, 4), Chunk(HEADS, start, count)
    x, w = integers(count, 16), integers(16, 48)
    blocks = [chunk.linear_plaintexts(w[:, o : o + 16], 256) for o in (0, 16, 32)]
    values = chunk.products(ar, [ar.fresh(c.tokens(x))], [[b] for b in blocks], c.heads.t)
    for o, y in enumerate(values):
        assert np.array_equal(c.read(y.values, 16), x @ w[:, 16 * o : 16 * o + 16])
    packed = c.pack(ar, values)
    assert len(packed) == c.packs(3)
    again = c.unpack(ar, packed, 3)
    back = [chunk.linear_plaintexts(w[:, o : o + 16].T, 256, c.live()) for o in (0, 16, 32)]
    total = chunk.products(ar, again, [back], c.heads.t)[0]
    assert np.array_equal(total.values, c.tokens(x @ w @ w.T))
    assert total.level == 2
    assert set(ar.steps) <= {16, 64, 128, 256 - c.window, c.window}


@pytest.mark.parametrize(("start", "count"), [(0, 1), (0, 16), (2, 5), (0, 8), (14, 2), (7, 4), (5, 11)])
@pytest.mark.parametrize("public", [0, 6])
def test_scores_and_sums_by_distance(start, count, public):
    """Some of the group's tokens are plaintext, and every row has a shift of its own."""
    ar, c, h = PlainSlots(256, 8), Chunk(HEADS, start, count), HEADS
    q, k, v = integers(count, 4, 4), integers(start + count, 4, 4), integers(start + count, 4, 4)
    kp, vp, shift = integers(public, 4, 4), integers(public, 4, 4), integers(count, 4, 4)
    plain = np.arange(start + count) < start // 2
    group, shifts = np.zeros((2, h.t, 4, 4))
    group[: start + count][plain] = k[plain]
    shifts[start : start + count] = shift
    whole = Chunk(h, 0, start + count)
    keys = ar.fresh(whole.tokens(flat(np.where(plain[:, None, None], 0, k))))
    queries = chunk_attention.turned_queries(ar, c, ar.fresh(c.tokens(flat(q))))
    known = partial(chunk_attention.PlainKeys, group, shifts)
    values = chunk_attention.scores(ar, c, queries, keys, known, 0.5)
    assert len(values) == c.own and values[0].level == 6
    values += chunk_attention.public_scores(ar, c, queries, kp, known, 0.5)
    packed = c.pack(ar, values)
    valid = chunk_attention.exists(c, public)
    assert len(valid) == len(values)
    expected = np.zeros((len(values), 4, 4, count))  # value, block, head, token
    for i in range(count):
        for g, block in zip(*np.nonzero(valid[:, :, i]), strict=True):
            if g < c.own:
                key = k[start + i - (g * 4 + block)]
            else:
                key = kp[(g - c.own) * 4 + block]
            expected[g, block, :, i] = 0.5 * np.einsum("hi,hi->h", q[i], key - shift[i])
    assert valid.sum() == sum(start + i + 1 + public for i in range(count))
    for p, x in enumerate(packed):
        rest = chunk_attention.offsets(c, valid, p, np.zeros((4, count)), -1000.0)
        seen = np.roll(x.values + rest, -start).reshape(4, 4, c.windows, c.window)
        for a in range(c.windows):
            g = p * c.windows + a
            there = expected[g] + np.where(valid[g][:, None], 0, -1000.0) if g < len(values) else -1000.0
            assert np.array_equal(seen[:, :, a, :count], np.broadcast_to(there, (4, 4, count)))
            assert (seen[:, :, a, count:] == -1000.0).all()
    sums = chunk_attention.row_sums(ar, c, packed, 2.0)
    filled = sums.values + c.idle(7.0)()
    rows = np.roll(filled, -start).reshape(4, 4, c.windows, c.window)
    assert np.array_equal(
        rows[..., :count],
        np.broadcast_to(2 * expected.sum(axis=(0, 1))[None, :, None], (4, 4, c.windows, count)),
    )
    assert (rows[..., count:] == 7.0).all()
    groups = c.unpack(ar, packed, len(values))
    lanes = chunk_attention.value_lanes(ar, c, ar.fresh(whole.tokens(flat(v))), 2.0)
    mixed = chunk_attention.mix(ar, c, groups[: c.own], lanes)
    if public:
        mixed = ar.add(mixed, chunk_attention.mix_public(ar, c, groups[c.own :], vp, 2.0))
    for i in range(count):
        row = np.zeros((4, 4))
        for g, block in zip(*np.nonzero(valid[:, :, i]), strict=True):
            value = v[start + i - (g * 4 + block)] if g < c.own else vp[(g - c.own) * 4 + block]
            row += 2 * expected[g, block, :, i][:, None] * value
        assert np.array_equal(c.read(mixed.values, 16)[i], flat(row[None])[0])


@pytest.mark.parametrize(
    "heads", [HEADS, Heads(128, 2, 2, 16)]
)  # T = 16; T = 4, fewer tokens than dimensions
@pytest.mark.parametrize(("start", "count"), [(0, 4), (1, 2)])
def test_a_full_group_before(heads, start, count):
    ar, c = PlainSlots(heads.n, 8), Chunk(heads, start, count)
    whole, (t, h, dim) = Chunk(heads, 0, heads.t), (heads.t, heads.count, heads.dim)
    q, k, v, shift = (
        integers(count, h, dim),
        integers(t, h, dim),
        integers(t, h, dim),
        integers(count, h, dim),
    )
    shifts = np.zeros((t, h, dim))
    shifts[start : start + count] = shift
    known = partial(chunk_attention.PlainKeys, np.full((t, h, dim), np.nan), shifts)
    queries = chunk_attention.turned_queries(ar, c, ar.fresh(c.tokens(flat(q))))
    keys, values = ar.fresh(whole.tokens(flat(k))), ar.fresh(whole.tokens(flat(v)))
    found = chunk_attention.scores(ar, c, queries, keys, known, 0.5, whole=True)
    valid = chunk_attention.exists(c, 0, 1)[c.own :]
    assert len(found) == len(valid) == chunk_attention.all_distances(c) and found[0].level == 6
    mixed = chunk_attention.mix_group(ar, c, found, values, 2.0)
    for i in range(count):
        row, s = np.zeros((h, dim)), start + i
        for g, x in enumerate(found):
            blocks = x.values.reshape(dim, h, t)[:, :, s]
            for block in range(dim):
                distance = g * dim + block
                expected = np.zeros(h)
                if distance < t:
                    expected = 0.5 * np.einsum("hi,hi->h", q[i], k[(s - distance) % t] - shift[i])
                    row += 2 * expected[:, None] * v[(s - distance) % t]
                assert np.array_equal(blocks[block], expected)
                assert valid[g, block, i] == (distance < t)
        assert np.array_equal(c.read(mixed.values, heads.width)[i], flat(row[None])[0])


def test_a_chunk_fits_its_group():
    for start, count in ((0, 0), (0, 17), (10, 7), (-1, 2)):
        with pytest.raises(UsageError, match="do not fit"):
            Chunk(HEADS, start, count)
