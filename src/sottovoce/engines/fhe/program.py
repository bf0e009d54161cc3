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
from sottovoce.engines.fhe.scores import PublicKeys, ScoreShift
from sottovoce.engines.fhe.shape import Shape
from sottovoce.engines.fhe.weights import Block, Matrix, SlotWeights
from sottovoce.errors import PromptTooLongError
from sottovoce.packing.slots import Chebyshev, Interleaved, SlotArithmetic, constant, place
from sottovoce.packing.slots import attention as att
from sottovoce.packing.slots.arithmetic import V


@dataclass
class LayerCache(Generic[V]):
    """keys: groups of t tokens. values: one ciphertext (`Shape.single`), or d_h lanes. public: tokens whose
    keys and values the server knows; they are added as plaintexts."""

    keys: list[V] = field(default_factory=list)
    values: list[V | None] = field(default_factory=list)
    public: PublicKeys | None = None


class Program(Generic[V]):
    """One session's decoder. `length` counts the tokens in the cache, public ones included."""

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
        self.length = 0

    def append_public(self, keys: list[np.ndarray], values: list[np.ndarray]) -> None:
        """Keys (rotated) and values of a public prefix, (tokens, kv_heads, head_dim) for each layer."""
        assert not self.length
        if not self.shape.single:
            raise PromptTooLongError("public tokens need a session whose context fits one group of keys")
        self._room(len(keys[0]))
        for cache, k, v in zip(self.caches, keys, values, strict=True):
            cache.public = PublicKeys(self.shape, k, v)
        self.length = len(keys[0])

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
        self._room(1)
        x = self.embed(one_hot, self.length)
        for layer in range(self.shape.config.layers):
            if progress is not None:
                progress(layer)
            x = self.attention(x, layer)
            x = self.mlp(x, layer)
        self.length += 1
        return self.logits(x) if head else []

    def attention(self, x: V, layer: int) -> V:
        ar, heads, cache = self.ar, self.shape.heads, self.caches[layer]
        block, functions = self.weights.blocks[layer], self.functions.blocks[layer]
        x = self.flow.single(ar, layer, "attention", x)
        query, key, value = self._qkv(x, block, functions)
        att.append_key(ar, heads, cache.keys, key, self.length)
        shift = ScoreShift(self.shape, functions.predictor, self.functions, self.length)
        groups = [
            ar.add_plain(group, shift.keys(c, cache.public if c == 0 else None))
            for c, group in enumerate(cache.keys)
        ]
        scores = att.scores(ar, heads, groups, query)
        scores, value = self.flow.pair(ar, layer, "scores", scores, value)
        p = self._softmax(ar.add_plain(scores, shift.offsets), layer)
        mixed = self._mix(p, value, cache)
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

    def _qkv(self, x: V, block: Block, functions: BlockFunctions) -> tuple[V, V, V]:
        """Scaled q (with the rotation), k and half of v, free of junk."""
        ar, plan, heads, rope = self.ar, self.shape.qkv, self.shape.heads, self.shape.config.rope
        r = self._norm(x, functions.norm1)
        low = plan.replicate(ar, ar.drop(x, ar.level(r) + 2))
        qk = plan.fold(ar, plan.product(ar, low, block.qk.plaintexts))
        v = plan.fold(ar, plan.product(ar, low, block.v.plaintexts))
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
        qk = ar.mul(qk, r)
        if added is not None:
            qk = ar.add_plain(qk, constant(added))
        query, key = ar.real_imaginary(qk)
        return query, key, self._biased(ar.mul(ar.mul_plain(v, plan.mask()), r), block.v, plan)

    def _softmax(self, scores: V, layer: int) -> V:
        """Shifted scores -> probabilities; 0 where there is no token."""
        ar, f, heads = self.ar, self.functions, self.shape.heads
        groups = 1 if self.shape.single else len(self.caches[layer].keys)
        u = ar.polynomial(scores, f.exponential.stretched(f.shrink / f.scale))
        for _ in range(f.squarings):
            u = ar.mul(u, u)
        for i, inverse in enumerate((*f.coarse, f.accurate)):
            u = self.flow.single(ar, layer, f"round {i}", u)
            total = att.sum_tokens(ar, heads, u, groups, 1 / inverse.radius)
            u = ar.mul(u, ar.polynomial(total, inverse.stretched(1 / inverse.radius)))
            if i < f.rounds:
                u = ar.mul(u, u)
        return self.flow.single(ar, layer, "probabilities", u)

    def _mix(self, p: V, value: V, cache: LayerCache[V]) -> V:
        """Append the value at the level of the probabilities, then Σ p·v, free of junk."""
        ar, heads = self.ar, self.shape.heads
        value = ar.drop(value, ar.level(p))
        if self.shape.single:
            turned = att.turn_right(ar, value, self.length % heads.t)
            before = cache.values[0] if cache.values else None
            if before is not None:
                turned = ar.add(turned, before)
            elif cache.public is not None:
                turned = ar.add_plain(turned, cache.public.values)
            cache.values = [turned]
            mixed = att.mix_group(ar, heads, p, turned)
        else:
            if not cache.values:
                cache.values = [None] * heads.dim
            att.append_value(ar, heads, cache.values, value, self.length)
            mixed = att.mix_lanes(ar, heads, p, cache.values)
        return ar.mul_plain(mixed, att.clean(heads))

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

    def _room(self, tokens: int) -> None:
        if self.length + tokens > self.shape.tokens:
            raise PromptTooLongError(
                f"{self.length + tokens} tokens do not fit a session of {self.shape.tokens}"
            )
