"""A decoder as a program on slots: one token through all layers, behind a cache of encrypted keys and
values.

Written once for ciphertexts, for numbers, and for counting. The residual stream is only ever added to, so it
is refreshed rarely; a norm's 1/√ is computed beside the matrix behind it and multiplied at the end; matrices
run at the lowest level that their product with the norm leaves them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Generic

import numpy as np

from sottovoce.engines.fhe.flow import Flow
from sottovoce.engines.fhe.functions import BlockFunctions, Functions, norm_gain, whole_factor
from sottovoce.engines.fhe.scores import PublicTokens, ScoreShift, row_weights
from sottovoce.engines.fhe.shape import Shape
from sottovoce.engines.fhe.weights import Block, Matrix, SlotWeights
from sottovoce.errors import PromptTooLongError
from sottovoce.packing.slots import Chebyshev, Interleaved, Plain, SlotArithmetic, constant, place
from sottovoce.packing.slots import attention as att
from sottovoce.packing.slots.arithmetic import MEAN_BOUND, V


@dataclass
class LayerCache(Generic[V]):
    """Of private tokens, encrypted: keys, a lane for each class; values, a ciphertext for each group of t
    tokens. public: tokens whose keys and values the server knows, plaintexts."""

    keys: list[V] = field(default_factory=list)
    values: list[V] = field(default_factory=list)
    public: PublicTokens | None = None


class Program(Generic[V]):
    """One session's decoder. `length` counts the tokens in the cache, public ones included; `blocks` says
    where scores of public and of private ones stand."""

    def __init__(
        self,
        ar: SlotArithmetic[V],
        shape: Shape,
        weights: SlotWeights,
        functions: Functions,
        flow: Flow[V],
    ) -> None:
        self.ar, self.shape, self.weights, self.functions, self.flow = ar, shape, weights, functions, flow
        self.caches: list[LayerCache[V]] = [LayerCache() for _ in range(shape.config.layers)]
        self.length, self._public = 0, 0
        self.blocks = shape.blocks()

    def append_public(self, keys: list[np.ndarray], values: list[np.ndarray]) -> None:
        """Keys (rotated) and values of a public prefix, (tokens, kv_heads, head_dim) for each layer."""
        assert not self.length
        tokens, shape = len(keys[0]), self.shape
        if not (shape.shared or shape.split):
            raise PromptTooLongError("public tokens need blocks of their own or one group of keys")
        if tokens > shape.tokens:
            raise PromptTooLongError(f"{tokens} public tokens do not fit a session of {shape.tokens}")
        for cache, k, v in zip(self.caches, keys, values, strict=True):
            cache.public = PublicTokens(shape, k, v)
        self.length = tokens
        if shape.split:
            self._public, self.blocks = tokens, shape.blocks(tokens)

    @property
    def private(self) -> int:
        """Tokens in the encrypted groups; public ones that share the one group are among them."""
        return self.length - self._public

    def embed(self, one_hot: list[V], position: int) -> V:
        """The residual stream of a token, from its one-hot vector in blocks. Two levels."""
        ar, plan, total = self.ar, self.shape.embed, None
        for x, matrix in zip(one_hot, self.weights.embed, strict=True):
            part = plan.product(ar, plan.replicate(ar, x), matrix.plaintexts)
            total = part if total is None else ar.add(total, part)
        assert total is not None
        x = ar.mul_plain(plan.fold(ar, total), plan.mask())
        if self.weights.positions is not None:
            row = np.zeros(self.shape.width)
            row[: self.shape.config.width] = self.weights.positions[position] / self.functions.residual
            x = ar.add_plain(x, constant(place(row, self.shape.n)))
        return x

    def step(self, one_hot: list[V], head: bool = True, progress: Any = None) -> list[V]:
        """Append a token; its logits in blocks (none without `head`), compact."""
        self.check_room(1)
        x = self.embed(one_hot, self.length)
        for layer in range(self.shape.config.layers):
            if progress is not None:
                progress(layer)
            x = self.attention(x, layer)
            x = self.mlp(x, layer)
        self.length += 1
        return self.logits(x) if head else []

    def attention(self, x: V, layer: int) -> V:
        ar, cache = self.ar, self.caches[layer]
        block, functions = self.weights.blocks[layer], self.functions.blocks[layer]
        x = self.flow.single(ar, layer, "attention", x)
        query, key, value = self._qkv(x, block, functions)
        cache.keys = att.append(ar, cache.keys, key)
        shift = ScoreShift(
            self.shape, self.blocks, functions.predictor, self.functions, self.private, cache.public
        )
        lanes = [ar.add_plain(lane, shift.lane(m)) for m, lane in enumerate(cache.keys)]
        scores = att.scores(ar, self.blocks, query, lanes, shift.public_lanes())
        *scores, value = self.flow.several(ar, layer, "scores", scores, [value])
        scores = [ar.add_plain(s, shift.offsets(z)) for z, s in enumerate(scores)]
        p, times = self._softmax(scores, layer)
        mixed = self._mix(p, times, value, cache)
        return ar.add(x, self._apply(self.shape.out, mixed, block.o))

    def mlp(self, x: V, layer: int) -> V:
        ar, plan, block = self.ar, self.shape.up, self.weights.blocks[layer].up
        functions = self.functions.blocks[layer]
        activation = functions.activation.stretched(1 / functions.activation.radius)
        x = self.flow.single(ar, layer, "mlp", x)
        r = self._norm(x, functions.norm2)
        low = plan.replicate(ar, ar.drop(x, ar.level(r) + 2))
        y = plan.fold(ar, plan.product(ar, low, block.plaintexts))
        y = self._biased(ar.mul(ar.mul_plain(y, plan.mask()), r), block, plan)
        if self.shape.config.gated:
            gate, up = self.flow.parts(ar, layer, "activation", y)
            y = ar.mul(ar.polynomial(gate, activation), up)
        else:
            y = ar.polynomial(self.flow.single(ar, layer, "activation", y), activation)
            # Junk between the features is 0 before, but an activation of 0 is only nearly 0.
            y = ar.mul_plain(y, plan.mask())
        y = self.flow.single(ar, layer, "activated", y)
        return ar.add(x, self._apply(self.shape.down, y, self.weights.blocks[layer].down))

    def logits(self, x: V) -> list[V]:
        ar, plan = self.ar, self.shape.head
        x = self.flow.single(ar, self.shape.config.layers, "head", x)
        r = self._norm(x, self.functions.norm)
        low = plan.replicate(ar, ar.drop(x, ar.level(r) + 2))
        out = []
        for matrix in self.weights.head:
            y = ar.mul_plain(plan.fold(ar, plan.product(ar, low, matrix.plaintexts)), plan.mask())
            out.append(self._biased(ar.mul(y, r), matrix, plan))
        return out

    def _qkv(self, x: V, block: Block, functions: BlockFunctions) -> tuple[V, list[V], V]:
        """Scaled q, the lanes of k, and half of v, free of junk."""
        ar, plan, heads, rope = self.ar, self.shape.qkv, self.shape.heads, self.shape.config.rope
        r = self._norm(x, functions.norm1)
        spare = int(self.blocks.classes > 1)  # lanes take a mask before the product with the norm
        low = plan.replicate(ar, ar.drop(x, ar.level(r) + 2 + spare))
        qk = plan.fold(ar, plan.product(ar, low, block.qk.plaintexts))
        v = plan.fold(ar, plan.product(ar, ar.drop(low, ar.level(r) + 2), block.v.plaintexts))
        bias = block.qk.bias
        if rope is None:
            qk = ar.mul_plain(qk, plan.mask())
            added = None if bias is None else place(bias, self.shape.n)
        else:
            tables = heads.rope(self.length, rope.theta)
            qk = heads.rotate_half(ar, qk, tables)
            added = None
            if bias is not None:
                b = place(bias, self.shape.n)
                added = b * tables[0]() + np.roll(b, -self.shape.n // 2) * tables[1]()
        value = self._biased(ar.mul(ar.mul_plain(v, plan.mask()), r), block.v, plan)
        if not spare:
            qk = ar.mul(qk, r)
            if added is not None:
                qk = ar.add_plain(qk, constant(added))
            query, key = ar.real_imaginary(qk)
            return query, att.key_lanes(ar, self.blocks, key, self.private), value
        query, key = ar.real_imaginary(qk)
        query = ar.mul(query, r)
        lanes = [ar.mul(lane, r) for lane in att.key_lanes(ar, self.blocks, key, self.private)]
        if added is not None:  # both parts come doubled
            query = ar.add_plain(query, constant(2 * added.real))
            biases = att.plain_lanes(self.blocks, 2 * added.imag, self.private)
            lanes = [ar.add_plain(x, constant(p)) for x, p in zip(lanes, biases, strict=True)]
        return query, lanes, value

    def _softmax(self, scores: list[V], layer: int) -> tuple[list[V], float]:
        """Shifted scores -> probabilities, 0 where there is no token, by ciphertext; and what they are times.

        Before a refresh they are multiplied as far as its bound allows: rows of many tokens are small, and
        its error is the same for all.
        """
        ar, f = self.ar, self.functions
        twice = 2.0 if len(scores) > 1 else 1.0  # what sharing a refresh multiplies values by
        us = [ar.polynomial(s, f.exponential.stretched(f.shrink / f.scale)) for s in scores]
        for _ in range(f.squarings):
            us = [ar.mul(u, u) for u in us]
        for i, inverse in enumerate((*f.coarse, f.accurate)):
            k = self._whole(f.sums[i] * twice)
            us = self.flow.several(ar, layer, f"round {i}", [ar.times(u, k) for u in us])
            weights = row_weights(self.shape, f, layer, i, [self.length + 1])[:, 0]
            total = att.sum_tokens(ar, self.blocks, us, weights / (k * twice * inverse.radius))
            over = ar.polynomial(total, inverse.stretched(1 / inverse.radius).scaled(1 / (k * twice)))
            us = [ar.mul(u, over) for u in us]
            if i < f.rounds:
                us = [ar.mul(u, u) for u in us]
        k = self._whole(twice)
        ps = self.flow.several(ar, layer, "probabilities", [ar.times(u, k) for u in us])
        for _ in range(f.polish):
            rest = att.sum_tokens(ar, self.blocks, ps, -1 / (k * twice))
            rest = ar.add_plain(rest, constant(np.full(self.shape.n, 2.0)))
            ps = [ar.mul(p, rest) for p in ps]
        return ps, k * twice

    def _whole(self, most: float) -> int:
        """A factor for rows that add up to `most` at most: half of what a refresh bears."""
        return max(1, int(MEAN_BOUND / 2 * self.shape.heads.t * self.blocks.classes / most))

    def _mix(self, p: list[V], times: float, value: V, cache: LayerCache[V]) -> V:
        """Append the value at the level of the probabilities, then Σ p·v, free of junk."""
        ar, heads, blocks, public = self.ar, self.shape.heads, self.blocks, cache.public
        value = ar.drop(value, ar.level(p[0]) - (blocks.classes > 1))
        first = not cache.values
        cache.values = att.append_value(ar, blocks, cache.values, value, self.private)
        lanes: list[list[Plain]] = []
        if public is not None and self.shape.split:
            lanes = public.value_lanes(blocks)
        elif public is not None and first:
            cache.values = [ar.add_plain(cache.values[0], public.shared_values)]
        return ar.mul_plain(att.mix(ar, blocks, p, cache.values, lanes), att.clean(heads, 1 / times))

    def _norm(self, x: V, p: Chebyshev) -> V:
        """1/√ of the mean square (of the variance), in all slots."""
        ar, c, n = self.ar, self.shape.config, self.shape.n
        total = ar.fold(ar.mul(x, x), 1, n)
        if c.norm == "layer":
            mean = ar.fold(x, 1, n)
            total = ar.sub(ar.times(total, c.width), ar.mul(mean, mean))
        gain = norm_gain(c) / self.functions.residual**2
        k = whole_factor(gain * p.radius)
        return ar.polynomial(ar.times(total, k), p.stretched(k * gain))

    def _apply(self, plan: Interleaved, x: V, matrix: Matrix) -> V:
        return self._biased(
            self.ar.mul_plain(plan.apply(self.ar, x, matrix.plaintexts), plan.mask()), matrix, plan
        )

    def _biased(self, x: V, matrix: Matrix, plan: Interleaved) -> V:
        return x if matrix.bias is None else self.ar.add_plain(x, constant(place(matrix.bias, plan.n)))

    def check_room(self, more: int) -> None:
        """PromptTooLongError if so many more private tokens do not fit."""
        tokens = self.shape.tokens
        if self.length + more > tokens:
            raise PromptTooLongError(f"{self.length + more} tokens do not fit a session of {tokens}")
        room = self.blocks.private * self.shape.heads.t
        if self.private + more > room:
            found = self.private + more
            raise PromptTooLongError(
                f"{found} private tokens do not fit behind {self._public} public ones; {room} do"
            )
