"""The slot arithmetic on CKKS ciphertexts.

Every ciphertext at level l has the same scale Δ_l, with Δ_0 = Δ and Δ_l² = Δ_(l−1)·q_l: a product that is
rescaled has the next one's exactly, a plaintext is encoded for it, and a value that drops levels is brought
to it by a constant on the way. A refresh returns at the top with a scale that differs by the primes'
distance from Δ, about 2^-20: that is left in the values, below the error of the refresh.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np

from sottovoce.ckks import Ciphertext, Evaluator, Parameters, Plaintext
from sottovoce.ckks.bootstrap import Bootstrapper
from sottovoce.ckks.chebyshev import Polynomial
from sottovoce.ckks.paterson_stockmeyer import Plan, evaluate, plan
from sottovoce.errors import LevelError, ParameterError
from sottovoce.packing.slots import Chebyshev, Plain, SlotArithmetic

Operation = Callable[[str], AbstractContextManager[object]]


@functools.lru_cache(maxsize=16)
def scales(parameters: Parameters) -> tuple[float, ...]:
    """Δ_l for every working level."""
    found = [parameters.scale]
    for prime in parameters.primes[1 : parameters.working_top + 1]:
        found.append(math.sqrt(found[-1] * prime))
    return tuple(found)


class CkksSlots(SlotArithmetic[Ciphertext]):
    """operation: books the time of what happens inside, by name."""

    def __init__(
        self,
        evaluator: Evaluator,
        n: int,
        bootstrapper: Bootstrapper | None = None,
        operation: Operation = lambda name: nullcontext(),
    ) -> None:
        self.evaluator, self.n, self.top = evaluator, n, evaluator.parameters.working_top
        self._scales, self._primes = scales(evaluator.parameters), evaluator.parameters.primes
        self._bootstrapper, self._operation = bootstrapper, operation

    def level(self, x: Ciphertext) -> int:
        return x.level

    def drop(self, x: Ciphertext, level: int) -> Ciphertext:
        if level >= x.level:
            return x
        with self._operation("levels"):
            return self.evaluator.match(x, level, self._scales[level])

    def rotate_many(self, x: Ciphertext, steps: Sequence[int]) -> list[Ciphertext]:
        with self._operation("rotations"):
            return self.evaluator.rotate_hoisted(x, [step % self.n for step in steps])

    def rotate_sum(self, x: Ciphertext, steps: Sequence[int]) -> Ciphertext:
        """With two rotations and more: decomposed once, divided by P once."""
        moved = [step % self.n for step in steps if step % self.n]
        if len(moved) < 2:
            return super().rotate_sum(x, steps)
        with self._operation("rotations"):
            total = functools.reduce(self.evaluator.add_wide, self.evaluator.rotate_wide_hoisted(x, moved))
            out = self.evaluator.mod_down(total).with_scale(x.scale)
            for _ in range(len(steps) - len(moved)):
                out = self.evaluator.add(out, x)
            return out

    def conjugate(self, x: Ciphertext) -> Ciphertext:
        with self._operation("rotations"):
            return self.evaluator.conjugate(x)

    def times_i(self, x: Ciphertext) -> Ciphertext:
        return self.evaluator.mul_by_i(x)

    def times(self, x: Ciphertext, k: int) -> Ciphertext:
        return x if k == 1 else self.evaluator.mul_integer(x, k)

    def add(self, x: Ciphertext, y: Ciphertext) -> Ciphertext:
        level = min(x.level, y.level)
        return self.evaluator.add(self.drop(x, level), self.drop(y, level))

    def sub(self, x: Ciphertext, y: Ciphertext) -> Ciphertext:
        level = min(x.level, y.level)
        return self.evaluator.sub(self.drop(x, level), self.drop(y, level))

    def add_plain(self, x: Ciphertext, p: Plain) -> Ciphertext:
        with self._operation("plaintexts"):
            return self.evaluator.add_plain(x, self.evaluator.encoder.encode(p(), x.level, x.scale))

    def sum_plain(self, terms: Sequence[tuple[Ciphertext, Plain]]) -> Ciphertext:
        level = min(x.level for x, _ in terms)
        scale, values = self._factor_scale(level), [self.drop(x, level) for x, _ in terms]
        with self._operation("plaintexts"):
            plains = [self._encode(p, level, scale) for _, p in terms]
            total = self.evaluator.mul_plain_sum(values, plains)
            return self._settled(self.evaluator.rescale(total))

    def sum_products(self, terms: Sequence[tuple[Ciphertext, Ciphertext]]) -> Ciphertext:
        level = min(min(x.level, y.level) for x, y in terms)
        total: Ciphertext | None = None
        dropped = [(self.drop(x, level), self.drop(y, level)) for x, y in terms]
        with self._operation("products"):
            for x, y in dropped:
                part = self.evaluator.tensor(x, y)
                total = part if total is None else self.evaluator.add(total, part)
            assert total is not None
            return self._settled(self.evaluator.relinearize(total, 1))

    def polynomial(self, x: Ciphertext, p: Chebyshev) -> Ciphertext:
        how = _plan(p)
        with self._operation("polynomials"):
            return evaluate(self.evaluator, x, how, self._scales[max(x.level - how.depth, 0)])

    def bootstrap(self, x: Ciphertext) -> Ciphertext:
        if self._bootstrapper is None:
            raise ParameterError("this computation needs a bootstrap, and was given no keys for one")
        with self._operation("bootstraps"):
            top = self._scales[self.top]
            if x.level:
                x = self.evaluator.match(x, 0, top)
            usual = self.evaluator.parameters.scale
            return self._bootstrapper(self.evaluator, x.with_scale(usual)).with_scale(top)

    def _encode(self, p: Plain, level: int, scale: float) -> Plaintext:
        return self.evaluator.encoder.encode(p(), level, scale)

    def _factor_scale(self, level: int) -> float:
        """Of a plaintext that a value at this level is multiplied by."""
        if not level:
            raise LevelError("a product takes a level; a value at level 0 has none left: refresh it first")
        below = self._scales[level - 1]
        return self._primes[level] * below / self._scales[level]

    def _settled(self, x: Ciphertext) -> Ciphertext:
        """The scale without the last bits' rounding."""
        return x.with_scale(self._scales[x.level])


@functools.lru_cache(maxsize=128)
def _plan(p: Chebyshev) -> Plan:
    return plan(Polynomial(np.array(p.coefficients), p.low, p.high))
