"""Several private tokens through all layers at once: the prefill of a private tail.

All tokens of a chunk share their ciphertexts (`packing.slots.chunk`), so a layer takes as many refreshes for
16 tokens as for one, and about four times as many for 64. Attention to the tokens of their own group is taken
by distance, ciphertext by ciphertext, to public tokens with blocks of their own plaintext by ciphertext. Keys
and values come out in the layout of the cache, so that decoding goes on behind a chunk.

What is folded into matrices, the functions, and the shift of scores are those of `Program`. Sub-slots without
a token are zero; only the sums of norms and rows, whose polynomials must not meet a zero, are filled there.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Generic

import numpy as np

from sottovoce.engines.fhe.chunk_plaintexts import Rows, by_token, one_hot_ciphertexts, square
from sottovoce.engines.fhe.flow import Flow
from sottovoce.engines.fhe.functions import norm_gain, whole_factor
from sottovoce.engines.fhe.program import LayerCache, Program
from sottovoce.engines.fhe.scores import row_weights
from sottovoce.engines.fhe.weights import Matrix
from sottovoce.errors import PromptTooLongError, UsageError
from sottovoce.packing.slots import Chebyshev, Plain, Vector, constant
from sottovoce.packing.slots import attention as att
from sottovoce.packing.slots import chunk as packing
from sottovoce.packing.slots import chunk_attention as among
from sottovoce.packing.slots.arithmetic import MEAN_BOUND, V
from sottovoce.packing.slots.chunk import Chunk

# A chunk fills its slots, so the mean of what is refreshed is larger than that of one token: values are
# divided by this before, and multiplied behind. It costs two bits of a refresh.
SHRINK = 4
# What the embedding takes of one-hot vectors.
EMBED_LEVELS = 1


class ChunkProgram(Generic[V]):
    """Chunks of one session's decoder; `program` decodes on behind them. value_level: the level at which its
    values are kept. before: the caches without the last token of the last chunk, for going back by one; empty
    where keys have no level left for it."""

    def __init__(self, program: Program[V], flow: Flow[V], value_level: int) -> None:
        self.program, self.flow, self.value_level = program, flow, value_level
        self.ar, self.shape, self.functions = program.ar, program.shape, program.functions
        self._tail = Program(program.ar, program.shape, program.weights, program.functions, flow)
        # Keys of the group's encrypted tokens at the level of a chunk, and how many tokens they hold.
        self._keys: list[V] = []
        self._upto = 0
        self.before: list[LayerCache[V]] = []

    def room(self) -> int:
        """Tokens that a chunk may have now: up to the end of a group of private tokens."""
        program, t = self.program, self.shape.heads.t
        group = t - program.private % t
        return max(
            min(group, program.blocks.private * t - program.private, self.shape.tokens - program.length), 0
        )

    def resume(self, keys: list[V]) -> None:
        """Keys of the group's encrypted tokens, a value for each layer, as a chunk left them."""
        self._keys, self._upto = keys, self.program.private

    def run(self, one_hot: Sequence[V], count: int, head: bool = True, progress: Any = None) -> list[V]:
        """Append `count` tokens; the logits behind the last one, compact (none without `head`)."""
        program = self.program
        if count > self.room():
            raise PromptTooLongError(f"a chunk of {count} private tokens does not fit the cache")
        if len(one_hot) != one_hot_ciphertexts(self.shape, count):
            raise UsageError(f"{count} tokens do not come in {len(one_hot)} ciphertexts")
        self.group, start = divmod(program.private, self.shape.heads.t)
        self.chunk = Chunk(self.shape.heads, start, count)
        keys: list[V | None] = [None] * self.shape.config.layers
        if self._held() and self._upto == program.private:
            keys = [*self._keys]
        self._keys, self.before = [], []
        x = self.embed(one_hot)
        for layer in range(self.shape.config.layers):
            if progress is not None:
                progress(layer)
            x = self.attention(x, layer, keys[layer])
            x = self.mlp(x, layer)
        program.length += count
        self._upto = program.private
        return self.logits(x) if head else []

    def embed(self, one_hot: Sequence[V]) -> V:
        """The residual stream, at the chunk's sub-slots. One level."""
        ar, d, heads = self.ar, self.shape.width, self.shape.heads
        first = Chunk(heads, 0, self.chunk.count)
        values = first.unpack(ar, one_hot, -(-self.shape.config.vocab_size // d))
        rows: list[list[Plain]] = []
        for matrix in self.program.weights.embed:
            for i in range(0, self.shape.vocabulary, d):
                rows.append(square(matrix, i, 0, self.shape, first.live()))
        x = packing.products(ar, values, [rows[: len(values)]], heads.t)[0]
        return att.turn_right(ar, x, self.chunk.start)

    def attention(self, x: V, layer: int, held: V | None) -> V:
        """held: keys of the tokens before the chunk in its group, as a chunk left them."""
        ar, chunk, cache = self.ar, self.chunk, self.program.caches[layer]
        block, rows = self.program.weights.blocks[layer], Rows(self.program, chunk, layer)
        x = self.flow.single(ar, layer, "attention", x)
        query, key, value = self._qkv(x, layer)
        scores = self._scores(query, key, held, cache, rows)
        *packed, value = self.flow.several(ar, layer, "scores", chunk.pack(ar, scores), [value])
        packed, value = [ar.times(x, SHRINK) for x in packed], ar.times(value, SHRINK)
        valid = among.exists(chunk, rows.outside, self.group)
        probabilities, times = self._softmax(packed, valid, rows, layer)
        mixed = self._mixed(probabilities, times, len(scores), self._append_values(cache, value), cache)
        return ar.add(x, self._products([mixed], block.o, self.shape.width)[0])

    def _scores(self, query: V, key: V, held: V | None, cache: LayerCache[V], rows: Rows[V]) -> list[V]:
        """Score values: of the group, of full groups before it, of public tokens. Appends the keys."""
        ar, chunk = self.ar, self.chunk
        earlier = [self._gathered(cache.keys, group) for group in range(self.group)]
        if held is None and self._held():
            held = self._gathered(cache.keys, self.group)
        self._append_keys(cache, key)
        keys = key if held is None else ar.add(ar.drop(held, ar.level(key)), key)
        self._keys.append(keys)
        queries = among.turned_queries(ar, chunk, query)
        scores = among.scores(ar, chunk, queries, keys, rows.known, 1 / SHRINK)
        for group in earlier:
            group = ar.drop(group, ar.level(key))
            scores += among.scores(ar, chunk, queries, group, rows.known, 1 / SHRINK, whole=True)
        if rows.outside:
            scores += among.public_scores(ar, chunk, queries, rows.public_keys, rows.known, 1 / SHRINK)
        return scores

    def _mixed(self, probabilities: list[V], times: float, count: int, values: V, cache: LayerCache[V]) -> V:
        """Σ p·v, from `count` values of `times` the probabilities and the group's values."""
        ar, chunk, factor = self.ar, self.chunk, 1 / times
        # Lanes of values take a level, and values can be no higher than probabilities: these follow.
        level = ar.level(probabilities[0])
        parts = chunk.unpack(ar, [ar.drop(p, level - 1) for p in probabilities], count)
        lanes = among.value_lanes(ar, chunk, ar.drop(values, level), factor)
        mixed = among.mix(ar, chunk, parts[: chunk.own], lanes)
        at, size = chunk.own, among.all_distances(chunk)
        for group in cache.values[: self.group]:
            group = ar.drop(group, level)
            mixed = ar.add(mixed, among.mix_group(ar, chunk, parts[at : at + size], group, factor))
            at += size
        if at < count and cache.public is not None:
            mixed = ar.add(
                mixed, among.mix_public(ar, chunk, parts[at:], by_token(cache.public.values), factor)
            )
        return mixed

    def mlp(self, x: V, layer: int) -> V:
        ar, chunk, shape = self.ar, self.chunk, self.shape
        block, functions = self.program.weights.blocks[layer], self.functions.blocks[layer]
        activation = functions.activation.stretched(1 / functions.activation.radius)
        x = self.flow.single(ar, layer, "mlp", x)
        r = self._norm(x, functions.norm2)
        low = ar.drop(x, ar.level(r) + 1)
        ys = [ar.mul(y, r) for y in self._products([low], block.up, shape.ffn, 1 / SHRINK, biased=False)]
        ys = [self._biased(y, block.up, i * shape.width, 1 / SHRINK) for i, y in enumerate(ys)]
        packed = [part for y in chunk.pack(ar, ys) for part in ar.real_imaginary(y)]
        # Halved by the matrix for splitting, which happens twice: before the point and behind it.
        packed = [ar.times(part, SHRINK // 2) for part in self.flow.several(ar, layer, "activation", packed)]
        pairs = zip(packed[::2], packed[1::2], strict=True)
        active = [ar.mul(ar.polynomial(gate, activation), up) for gate, up in pairs]
        parts = chunk.unpack(ar, active, len(ys))
        return ar.add(x, self._products(parts, block.down, shape.width)[0])

    def logits(self, x: V) -> list[V]:
        """Behind the last token: it alone is kept and brought to where a single token lies."""
        ar, chunk = self.ar, self.chunk
        x = self.flow.single(ar, self.shape.config.layers, "last", x)
        last = chunk.start + chunk.count - 1
        mask = np.arange(self.shape.n) % self.shape.heads.t == last
        x = ar.mul_plain(x, constant(mask.astype(np.float64)))
        return self._tail.logits(among.turn_left(ar, x, last, 1))

    def _qkv(self, x: V, layer: int) -> tuple[V, V, V]:
        """Scaled q, k, and v by twice `SHRINK`."""
        ar, heads, chunk = self.ar, self.shape.heads, self.chunk
        block, rope = self.program.weights.blocks[layer], self.shape.config.rope
        assert rope is not None
        r = self._norm(x, self.functions.blocks[layer].norm1)
        low = ar.drop(x, ar.level(r) + 2)
        qk = self._products([low], block.qk, heads.width, biased=False)[0]
        v = self._products([ar.drop(low, ar.level(r) + 1)], block.v, heads.width, 1 / SHRINK, biased=False)[0]
        first, rows = self.program.length, range(chunk.count)
        tables = [[table() for table in heads.rope(first + i, rope.theta)] for i in rows]
        cosines, sines = (np.stack([table[k][:: heads.t] for table in tables]) for k in (0, 1))
        half = self.shape.n // 2
        turned = [(qk, partial(chunk.tokens, cosines)), (ar.rotate(qk, half), partial(chunk.tokens, sines))]
        qk = ar.mul(ar.sum_plain(turned), r)
        if block.qk.bias is not None:
            bias = block.qk.bias * cosines + np.roll(block.qk.bias, -len(block.qk.bias) // 2) * sines
            qk = ar.add_plain(qk, partial(chunk.tokens, bias))
        query, key = ar.real_imaginary(qk)
        return query, key, self._biased(ar.mul(v, r), block.v, 0, 1 / SHRINK)

    def _softmax(self, packed: list[V], valid: Vector, rows: Rows[V], layer: int) -> tuple[list[V], float]:
        """Scores -> probabilities, 0 where there is no token; and what they are times."""
        ar, f, chunk = self.ar, self.functions, self.chunk
        twice = 2.0 if len(packed) > 1 else 1.0  # what sharing a refresh multiplies values by
        inverses, lengths = (*f.coarse, f.accurate), self.program.length + 1 + np.arange(chunk.count)
        # A row's exponentials may add up to more than a refresh bears.
        shrink = min(1.0, MEAN_BOUND * self.shape.heads.dim / f.sums[0])
        exponential = f.exponential.scaled(shrink**0.5**f.squarings).stretched(f.shrink / f.scale)
        us = []
        for p, x in enumerate(packed):
            us.append(ar.polynomial(ar.add_plain(x, partial(rows.offsets, valid, p)), exponential))
        for _ in range(f.squarings):
            us = [ar.mul(u, u) for u in us]
        for i, inverse in enumerate(inverses):
            scale = 1.0 if i else shrink
            k = self._whole(scale * f.sums[i])
            us = self.flow.several(ar, layer, f"round {i}", [ar.times(u, k) for u in us])
            scale *= k * twice
            weights = row_weights(self.shape, f, layer, i, lengths) / (scale * inverse.radius)
            total = among.row_sums(ar, chunk, us, weights)
            total = ar.add_plain(total, chunk.idle((inverse.low + inverse.high) / (2 * inverse.radius)))
            over = ar.polynomial(total, inverse.stretched(1 / inverse.radius).scaled(1 / scale))
            us = [ar.mul(u, over) for u in us]
            if i < f.rounds:
                us = [ar.mul(u, u) for u in us]
        k = self._whole(1.0)
        ps = self.flow.several(ar, layer, "probabilities", [ar.times(u, k) for u in us])
        for _ in range(f.polish):
            rest = among.row_sums(ar, chunk, ps, -1 / (k * twice))
            rest = ar.add_plain(rest, constant(np.full(self.shape.n, 2.0)))
            ps = [ar.mul(p, rest) for p in ps]
        return ps, k * twice

    def _whole(self, most: float) -> int:
        """What rows that add up to `most` at most are multiplied by before a refresh, whose error is the same
        for all: half of what it bears."""
        return max(1, int(MEAN_BOUND / 2 * self.shape.heads.dim * self.chunk.windows / most))

    def _norm(self, x: V, p: Chebyshev) -> V:
        """1/√ of each token's mean square, at all its slots."""
        ar, shape = self.ar, self.shape
        gain = norm_gain(shape.config) / self.functions.residual**2
        k = whole_factor(gain * p.radius)
        total = ar.times(ar.fold(ar.mul(x, x), shape.heads.t, shape.width), k)
        middle = (p.low + p.high) / 2 * k * gain
        return ar.polynomial(ar.add_plain(total, partial(self._idle, middle)), p.stretched(k * gain))

    def _idle(self, value: float) -> Vector:
        """`value` at all sub-slots without a token."""
        return value - self.chunk.live(value)

    def _held(self) -> int:
        """Encrypted tokens of the group."""
        public, start = self.program.caches[0].public, self.program.private % self.shape.heads.t
        return start - (0 if public is None or self.shape.split else public.tokens)

    def _append_keys(self, cache: LayerCache[V], key: V) -> None:
        """Into the lanes of the cache; into `before` those without the last token, where a level is left."""
        ar, blocks, heads = self.ar, self.program.blocks, self.shape.heads
        earlier, held = self._before_last(), cache.keys
        if blocks.classes == 1:
            cache.keys = att.append(ar, held, [key])
            # Whoever goes back goes on with a step, which takes one level of keys.
            without = [ar.mul_plain(cache.keys[0], earlier)] if ar.level(cache.keys[0]) > 1 else []
        else:
            mask = blocks.residue(self.group)
            turned = ar.rotate_many(key, [m * heads.block for m in range(blocks.classes)])
            without = [ar.mul_plain(x, lambda: mask() * earlier()) for x in turned]
            without = att.append(ar, held, without)
            cache.keys = att.append(ar, held, [ar.mul_plain(x, mask) for x in turned])
        if without:
            self.before.append(LayerCache(without, [], cache.public))

    def _before_last(self) -> Plain:
        """1 at the sub-slots before the last token's."""
        last = self.chunk.distances - 1
        return constant((np.arange(self.shape.n) % self.shape.heads.t < last).astype(np.float64))

    def _append_values(self, cache: LayerCache[V], value: V) -> V:
        """The group's values with the chunk's, encrypted and public ones."""
        ar = self.ar
        if self.group < len(cache.values):
            value = ar.add(cache.values[self.group], value)
        elif cache.public is not None and not self.shape.split:
            value = ar.add_plain(value, cache.public.shared_values)
        earlier = cache.values[: self.group]
        cache.values = [*earlier, ar.drop(value, self.value_level)]
        if self.before:
            kept = ar.drop(ar.mul_plain(value, self._before_last()), self.value_level)
            self.before[-1].values = [*earlier, kept]
        return value

    def _gathered(self, lanes: Sequence[V], group: int) -> V:
        """A group's keys out of the lanes of single steps, which have one level left: refreshed, small like
        everything else."""
        ar, heads, total = self.ar, self.shape.heads, None
        mask = self.program.blocks.residue(group, 1 / SHRINK)
        for lane in reversed(lanes):
            part = ar.mul_plain(lane, mask)
            if total is not None:  # one block to the right
                part = ar.add(part, among.turn_left(ar, total, heads.dim - 1, heads.block))
            total = part
        assert total is not None
        return ar.times(ar.bootstrap(total), SHRINK)

    def _products(
        self, xs: Sequence[V], matrix: Matrix, outputs: int, scale: float = 1.0, biased: bool = True
    ) -> list[V]:
        """Products of values of d features each with a matrix, d outputs each. With the bias, and clear of
        what is beside the tokens; or without (`biased`), which takes inputs that are zero there."""
        shape, d = self.shape, self.shape.width
        live = self.chunk.live() if biased else None
        rows = [
            [square(matrix, i * d, o, shape, live, scale) for i in range(len(xs))]
            for o in range(0, outputs, d)
        ]
        out = packing.products(self.ar, xs, rows, shape.heads.t)
        return [self._biased(y, matrix, i * d, scale) for i, y in enumerate(out)] if biased else out

    def _biased(self, x: V, matrix: Matrix, first: int, scale: float) -> V:
        if matrix.bias is None:
            return x
        rows = np.tile(scale * matrix.bias[first : first + self.shape.width], (self.chunk.count, 1))
        return self.ar.add_plain(x, partial(self.chunk.tokens, rows))
