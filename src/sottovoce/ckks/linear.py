"""What needs no key: sums, products with plaintexts and constants, rescaling, levels and scales."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from sottovoce import _native
from sottovoce.ckks.ciphertext import Ciphertext, Plaintext, empty
from sottovoce.ckks.encoder import Encoder
from sottovoce.ckks.parameters import Parameters
from sottovoce.errors import ForeignKeyError, LevelError, ParameterError, ScaleError
from sottovoce.ring import context, threads

Words = npt.NDArray[np.uint64]

# Scales are doubles that follow every product: equal ones differ by a few roundings.
SCALE_TOLERANCE = 2.0**-40
NOTHING: Words = np.zeros((0, 0, 0), np.uint64)


class Linear:
    """Operations return new ciphertexts; operands are never changed. Operands of different levels meet at the
    lower one."""

    def __init__(self, parameters: Parameters) -> None:
        self.parameters = parameters
        self.encoder = Encoder(parameters)

    # Sums

    def add(self, a: Ciphertext, b: Ciphertext) -> Ciphertext:
        """a + b. ScaleError unless the scales agree."""
        a, b = self._meet(a, b, "add")
        return self._sum(a, b, False)

    def sub(self, a: Ciphertext, b: Ciphertext) -> Ciphertext:
        """a − b. ScaleError unless the scales agree."""
        a, b = self._meet(a, b, "subtract")
        return self._sum(a, b, True)

    def negate(self, a: Ciphertext) -> Ciphertext:
        """−a."""
        return self.mul_integer(a, -1)

    def add_plain(self, a: Ciphertext, plain: Plaintext) -> Ciphertext:
        """a + plain, the plaintext at a's level or above. ScaleError unless the scales agree."""
        same_scale(a.scale, plain.scale, "add a plaintext to")
        ring, out = self.parameters.ring(a.level), empty(*a.data.shape)
        _native.ckks_add_plain(ring._native, a.data, self._rows(plain, a), out, threads())
        return replace(a, data=out, slots=max(a.slots, plain.slots))

    def sub_plain(self, a: Ciphertext, plain: Plaintext) -> Ciphertext:
        """a − plain."""
        ring = context(max(plain.data.shape[1], 2), self.parameters.primes[: a.level + 1])
        rows = self._rows(plain, a)
        primes = np.array(ring.primes, np.uint64)[:, None]
        return self.add_plain(a, replace(plain, data=np.where(rows == 0, rows, primes - rows), level=a.level))

    def add_scalar(self, a: Ciphertext, value: complex) -> Ciphertext:
        """a + value in every slot."""
        return self.add_plain(a, self.encoder.encode(value, a.level, a.scale))

    def trivial(self, plain: Plaintext, key_id: bytes) -> Ciphertext:
        """A "ciphertext" (m, 0) of public data, encrypting nothing, to add others to."""
        zero = np.zeros((2, plain.level + 1, self.parameters.degree), np.uint64)
        return self.add_plain(Ciphertext(self.parameters, zero, plain.scale, plain.slots, key_id), plain)

    # Products with what is public

    def mul_plain(self, a: Ciphertext, plain: Plaintext) -> Ciphertext:
        """a·plain slot by slot, at the product of the scales; the plaintext at a's level or above."""
        out = self._accumulate(a.size, a.level, [a], [self._rows(plain, a)])
        return replace(a, data=out, scale=a.scale * plain.scale, slots=max(a.slots, plain.slots))

    def mul_plain_sum(self, cts: Sequence[Ciphertext], plains: Sequence[Plaintext]) -> Ciphertext:
        """Σ_k cts[k]·plains[k], with one reduction: the operation to give many products to. No rescaling."""
        if not cts or len(cts) != len(plains):
            raise ParameterError("a sum of products takes as many ciphertexts as plaintexts, at least one")
        level, scale = min(ct.level for ct in cts), cts[0].scale * plains[0].scale
        for ct, plain in zip(cts, plains, strict=True):
            same_scale(scale, ct.scale * plain.scale, "add up products of")
            self._same_key(cts[0], ct)
        cts = [self.drop_to(ct, level) for ct in cts]
        rows = _equal_length([self._rows(plain, cts[0]) for plain in plains])
        out = self._accumulate(cts[0].size, level, cts, rows)
        slots = max([ct.slots for ct in cts] + [plain.slots for plain in plains])
        return replace(cts[0], data=out, scale=scale, slots=slots)

    def mul_scalar(self, a: Ciphertext, value: complex, scale: float | None = None) -> Ciphertext:
        """a·value, the constant encoded at `scale`: by default the prime that rescaling divides by."""
        scale = float(self.parameters.primes[a.level]) if scale is None else float(scale)
        if complex(value).imag:
            return self.mul_plain(a, self.encoder.encode(value, a.level, scale))
        integer = _integer(complex(value).real * scale)
        return replace(self.mul_integer(a, integer), scale=a.scale * scale)

    def mul_integer(self, a: Ciphertext, value: int) -> Ciphertext:
        """a·value exactly, at the same scale and level."""
        ring, out = self.parameters.ring(a.level), empty(*a.data.shape)
        for component, rows in zip(out, a.data, strict=True):
            ring.mul_scalar(rows, value, component)
        return replace(a, data=out)

    def mul_by_i(self, a: Ciphertext) -> Ciphertext:
        """a·√−1 exactly: the product with X^(N/2). Takes no level."""
        ring = self.parameters.ring(a.level)
        power = np.zeros((ring.limbs, 2), np.uint64)
        power[:, 1] = 1
        context(2, ring.primes).ntt(power)
        return replace(a, data=self._accumulate(a.size, a.level, [a], [power]))

    def combine(
        self,
        cts: Sequence[Ciphertext],
        coefficients: Sequence[float],
        scale: float,
        constant: float = 0.0,
    ) -> Ciphertext:
        """constant + Σ_k coefficients[k]·cts[k] at exactly `scale` and the lowest level; no rescaling.

        Every coefficient is rounded at scale / cts[k].scale, which should have 30 bits and more.
        """
        if not cts or len(cts) != len(coefficients):
            raise ParameterError("a combination takes as many ciphertexts as coefficients, at least one")
        level = min(ct.level for ct in cts)
        primes = self.parameters.primes[: level + 1]
        rows = []
        for ct, value in zip(cts, coefficients, strict=True):
            self._same_key(cts[0], ct)
            integer = _integer(float(value) * (scale / ct.scale))
            rows.append(np.array([[integer % q] for q in primes], np.uint64))
        out = self._accumulate(cts[0].size, level, [self.drop_to(ct, level) for ct in cts], rows)
        added = self._constant(constant, level, scale)
        if added:
            ring, plain = self.parameters.ring(level), np.array(added, np.uint64)[:, None]
            _native.ckks_add_plain(ring._native, out, plain, out, threads())
        return replace(cts[0], data=out, scale=float(scale), slots=max(ct.slots for ct in cts))

    # Levels and scales

    def rescale(self, a: Ciphertext, count: int = 1) -> Ciphertext:
        """Divided by the top `count` primes, rounded: scale / q_level, one level less each."""
        self._levels_left(a, count, "rescale")
        out = empty(a.size, a.level + 1 - count, self.parameters.degree)
        ring = self.parameters.ring(a.level)
        _native.ckks_mod_down(ring._native, a.data, NOTHING, 1, out, threads())
        return replace(a, data=out, scale=self._rescaled(a.scale, a.level, count))

    def drop_to(self, a: Ciphertext, level: int) -> Ciphertext:
        """The same message at a lower level; shares memory."""
        if level == a.level:
            return a
        if not 0 <= level < a.level:
            raise LevelError(f"a ciphertext at level {a.level} cannot be brought to level {level}")
        return replace(a, data=a.data[:, : level + 1])

    def match(self, a: Ciphertext, level: int, scale: float) -> Ciphertext:
        """a at this level with exactly this scale.

        By dropping limbs if the scale is right already, else by one product with a constant and a rescaling,
        which needs a level above the target.
        """
        if _close(a.scale, scale):
            return replace(self.drop_to(a, level), scale=float(scale))
        if a.level <= level:
            raise LevelError(
                f"changing the scale at level {a.level} to reach level {level} needs one level more"
            )
        a = self.drop_to(a, level + 1)
        factor = _integer(scale * self.parameters.primes[level + 1] / a.scale)
        if factor < 1:
            raise ScaleError(
                f"a scale of 2^{math.log2(a.scale):.1f} cannot be brought to 2^{math.log2(scale):.1f}"
            )
        return replace(self.rescale(self.mul_integer(a, factor)), scale=float(scale))

    # Helpers

    def _rescaled(self, scale: float, level: int, count: int) -> float:
        for prime in self.parameters.primes[level + 1 - count : level + 1]:
            scale /= prime
        return scale

    def _levels_left(self, a: Ciphertext, count: int, operation: str) -> None:
        if count < 0 or a.level < count:
            raise LevelError(
                f"cannot {operation} at level {a.level}: {count} more level(s) needed; bootstrap, or take a "
                "parameter set with more primes"
            )

    def _constant(self, value: float, level: int, scale: float) -> list[int]:
        """A constant at this scale modulo every prime; nothing for 0."""
        integer = _integer(value * scale)
        return [integer % q for q in self.parameters.primes[: level + 1]] if integer else []

    def _accumulate(self, size: int, level: int, cts: Sequence[Ciphertext], rows: Sequence[Words]) -> Words:
        """Σ_k cts[k]·rows[k], all at `level`; rows of equal length."""
        ring, out = self.parameters.ring(level), empty(size, level + 1, self.parameters.degree)
        length = rows[0].shape[1]
        for part in range(size):
            # The first product needs no sum to be added to.
            first, sums = cts[0].data[part], out[part]
            if length == self.parameters.degree:
                ring.mul(first, rows[0], sums)
            elif length == 1:
                ring.mul_scalar(first, [int(value) for value in rows[0][:, 0]], sums)
            else:
                sums[:] = 0
            done = length in (1, self.parameters.degree)
            if len(cts) > done:
                ring.mac_many(sums, [ct.data[part] for ct in cts[done:]], rows[done:])
        return out

    def _rows(self, plain: Plaintext, a: Ciphertext) -> Words:
        if plain.parameters != self.parameters:
            raise ParameterError("the plaintext belongs to other parameters")
        if plain.level < a.level:
            raise LevelError(f"a plaintext of level {plain.level} against a ciphertext of level {a.level}")
        return plain.data[: a.level + 1]

    def _meet(self, a: Ciphertext, b: Ciphertext, operation: str) -> tuple[Ciphertext, Ciphertext]:
        self._same_key(a, b)
        same_scale(a.scale, b.scale, operation)
        level = min(a.level, b.level)
        return self.drop_to(a, level), self.drop_to(b, level)

    def _sum(self, a: Ciphertext, b: Ciphertext, minus: bool) -> Ciphertext:
        ring, longer = self.parameters.ring(a.level), max(a, b, key=lambda ct: ct.size)
        out, kernel = empty(*longer.data.shape), ring.sub if minus else ring.add
        for part in range(min(a.size, b.size)):
            kernel(a.data[part], b.data[part], out[part])
        # A product that is not relinearised yet has a third component, the other operand none.
        for part in range(min(a.size, b.size), longer.size):
            ring.mul_scalar(longer.data[part], -1 if minus and longer is b else 1, out[part])
        return replace(a, data=out, slots=max(a.slots, b.slots))

    def _same_key(self, a: Ciphertext, b: Ciphertext) -> None:
        if a.parameters != self.parameters or b.parameters != self.parameters:
            raise ParameterError("a ciphertext belongs to other parameters")
        if a.key_id != b.key_id:
            raise ForeignKeyError("ciphertexts of different keys cannot be combined")


def _close(a: float, b: float) -> bool:
    return abs(a / b - 1) <= SCALE_TOLERANCE


def same_scale(a: float, b: float, operation: str) -> None:
    if not _close(a, b):
        raise ScaleError(
            f"cannot {operation} ciphertexts of scales 2^{math.log2(a):.4f} and 2^{math.log2(b):.4f}: "
            "bring them to one scale first"
        )


def _integer(value: float) -> int:
    if not math.isfinite(value):
        raise ParameterError("a constant must be finite")
    return round(value)


def _equal_length(rows: list[Words]) -> list[Words]:
    size = max(row.shape[1] for row in rows)
    return [row if row.shape[1] == size else np.repeat(row, size // row.shape[1], axis=1) for row in rows]
