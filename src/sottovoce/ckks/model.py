"""The evaluator without encryption: float64 slots with the level, scale and key switches of the real thing.

`ModelEvaluator` has the operations that circuits (`paterson_stockmeyer`, `slim`, …) use, checks what the real
one checks (scales agree, levels suffice) and counts what it would cost. It stands in for `Evaluator` in tests
of circuits and in estimates; nothing about it is private.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from sottovoce.ckks.parameters import Parameters
from sottovoce.errors import ParameterError

Slots = npt.NDArray[np.complex128]


@dataclass(frozen=True, eq=False)
class ModelPlaintext:
    """values: (n,)."""

    values: Slots
    level: int
    scale: float

    @property
    def slots(self) -> int:
        return len(self.values)


@dataclass(frozen=True, eq=False)
class ModelCiphertext:
    """values: (n,), what `Decryptor.decrypt_slots` would give; size 3 until it is relinearised."""

    values: Slots
    level: int
    scale: float
    size: int = 2

    @property
    def slots(self) -> int:
        return len(self.values)

    def with_slots(self, slots: int) -> ModelCiphertext:
        repeated = np.tile(self.values, max(1, slots // self.slots))
        if not np.allclose(repeated, np.tile(repeated[:slots], len(repeated) // slots), rtol=1e-6):
            raise ParameterError(f"the message has no period of {slots} slots")
        return replace(self, values=repeated[:slots])

    def with_scale(self, scale: float) -> ModelCiphertext:
        return replace(self, values=self.values * (self.scale / scale), scale=scale)


class ModelEncoder:
    """`Encoder.encode` without rounding."""

    def __init__(self, parameters: Parameters) -> None:
        self.parameters = parameters

    def encode(
        self, values: npt.ArrayLike, level: int | None = None, scale: float | None = None
    ) -> ModelPlaintext:
        level = self.parameters.top if level is None else level
        scale = self.parameters.scale if scale is None else scale
        return ModelPlaintext(np.atleast_1d(np.asarray(values, np.complex128)), level, scale)


class ModelEvaluator:
    """The operations of `Evaluator` on `ModelCiphertext`. counts: key switches, products, rescalings."""

    def __init__(self, parameters: Parameters) -> None:
        self.parameters = parameters
        self.encoder = ModelEncoder(parameters)
        self.counts: Counter[str] = Counter()

    def encrypt(
        self, values: npt.ArrayLike, level: int | None = None, scale: float | None = None
    ) -> ModelCiphertext:
        """A ciphertext as `Encryptor` would make it."""
        plain = self.encoder.encode(values, level, scale)
        return ModelCiphertext(plain.values, plain.level, plain.scale)

    def add(self, a: ModelCiphertext, b: ModelCiphertext | ModelPlaintext) -> ModelCiphertext:
        if abs(a.scale / b.scale - 1) > 2.0**-40:
            raise ParameterError(f"scales differ: {a.scale} and {b.scale}")
        size = max(a.size, b.size if isinstance(b, ModelCiphertext) else 2)
        first, second = _common(a.values, b.values)
        return ModelCiphertext(first + second, min(a.level, b.level), a.scale, size)

    def sub(self, a: ModelCiphertext, b: ModelCiphertext) -> ModelCiphertext:
        return self.add(a, replace(b, values=-b.values))

    def add_plain(self, a: ModelCiphertext, plaintext: ModelPlaintext) -> ModelCiphertext:
        return self.add(a, plaintext)

    def sub_plain(self, a: ModelCiphertext, plaintext: ModelPlaintext) -> ModelCiphertext:
        return self.add(a, replace(plaintext, values=-plaintext.values))

    def add_scalar(self, a: ModelCiphertext, value: complex) -> ModelCiphertext:
        return replace(a, values=a.values + value)

    def mul_integer(self, a: ModelCiphertext, factor: int) -> ModelCiphertext:
        return replace(a, values=a.values * factor)

    def combine(
        self,
        cts: Sequence[ModelCiphertext],
        coefficients: Sequence[float],
        scale: float,
        constant: float = 0.0,
    ) -> ModelCiphertext:
        level = min(ct.level for ct in cts)
        total = np.full(max(ct.slots for ct in cts), constant, np.complex128)
        for ct, coefficient in zip(cts, coefficients, strict=True):
            total = total + coefficient * ct.values
        return ModelCiphertext(total, level, scale)

    def tensor(
        self,
        a: ModelCiphertext,
        b: ModelCiphertext,
        factor: int = 1,
        constant: float = 0.0,
        plus: ModelCiphertext | None = None,
    ) -> ModelCiphertext:
        if a.size != 2 or b.size != 2:
            raise ParameterError("operands of a product have two components")
        self.counts["products"] += 1
        first, second = _common(a.values, b.values)
        values = factor * first * second + constant
        product = ModelCiphertext(values, min(a.level, b.level), a.scale * b.scale, 3)
        return product if plus is None else self.add(product, plus)

    def relinearize(self, a: ModelCiphertext, rescale: int = 0) -> ModelCiphertext:
        if a.size != 3:
            raise ParameterError("there is nothing to relinearise")
        self.counts["key_switches"] += 1
        return self.rescale(replace(a, size=2), rescale)

    def mul(self, a: ModelCiphertext, b: ModelCiphertext, rescale: int = 1) -> ModelCiphertext:
        return self.relinearize(self.tensor(a, b), rescale)

    def square(self, a: ModelCiphertext, rescale: int = 1) -> ModelCiphertext:
        return self.mul(a, a, rescale)

    def rescale(self, a: ModelCiphertext, count: int = 1) -> ModelCiphertext:
        if count > a.level:
            raise ParameterError(f"level {a.level} cannot be rescaled {count} times")
        scale = a.scale
        for level in range(a.level, a.level - count, -1):
            scale /= self.parameters.primes[level]
        self.counts["rescalings"] += count
        return replace(a, level=a.level - count, scale=scale)

    def drop_to(self, a: ModelCiphertext, level: int) -> ModelCiphertext:
        if not 0 <= level <= a.level:
            raise ParameterError(f"level {a.level} cannot be dropped to {level}")
        return replace(a, level=level)

    def match(self, a: ModelCiphertext, level: int, scale: float) -> ModelCiphertext:
        if a.scale == scale:
            return self.drop_to(a, level)
        if level >= a.level:
            raise ParameterError(f"matching a scale takes a level: {a.level} to {level}")
        return replace(a, level=level, scale=scale)

    def rotate(self, a: ModelCiphertext, steps: int) -> ModelCiphertext:
        self.counts["key_switches"] += 1
        return replace(a, values=np.roll(a.values, -steps))


def _common(a: Slots, b: Slots) -> tuple[Slots, Slots]:
    """Both with the longer period."""
    n = max(len(a), len(b))
    return np.tile(a, n // len(a)), np.tile(b, n // len(b))
