"""Seconds of the work that operations consist of, at N = 2^16 on one thread: a model's, or measured here.

Measured are the kernels one by one and a whole key switch at two levels; what a key switch takes beyond the
sum of its kernels (memory, mostly) is a factor between the two. All else is counted in these.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from sottovoce import _native
from sottovoce.ckks import dft
from sottovoce.ckks.ciphertext import empty
from sottovoce.ckks.evalmod import Sine
from sottovoce.ckks.linear import NOTHING
from sottovoce.ckks.linear_map import LinearMap
from sottovoce.ckks.parameters import ENGINE16, Parameters
from sottovoce.ckks.paterson_stockmeyer import plan
from sottovoce.ckks.switching import expansion_keys, key_ring
from sottovoce.ckks.transform import babies

_FEW, _MANY = 3, 15  # primes of the two key switches that are timed
_KEPT_SECONDS = 86_400.0


@dataclass(frozen=True)
class Speed:
    """Seconds for one row, N residues modulo one prime; the defaults are one core of 2023 with AVX-512 IFMA.

    transform: forward or inverse. conversion: a row from six others. inner: a digit times both halves of a
    key, one of them expanded. pointwise: a sum of two rows. few, many: a key switch of 3 and 15 primes over
    the sum of its parts.
    """

    transform: float = 90e-6
    conversion: float = 41.4e-6
    inner: float = 63e-6
    pointwise: float = 35e-6
    few: float = 1.0
    many: float = 1.0

    def key_switch(self, limbs: int, special: int = 6) -> float:
        """Decomposition, product, division by P."""
        rows = -(-limbs // special) * (limbs + special)
        division = 2 * (limbs + special) * self.transform + 2 * limbs * self.conversion
        return self.overhead(limbs) * (rows * (self.transform + self.conversion + self.inner) + division)

    def overhead(self, limbs: int) -> float:
        """What a key switch at this level takes over the sum of its parts."""
        part = min(max((limbs - _FEW) / (_MANY - _FEW), 0.0), 1.0)
        return self.few + part * (self.many - self.few)

    def refresh(self, parameters: Parameters, slots: int) -> float:
        """A bootstrap of so many slots, its operations counted."""
        sine, middle = Sine(), parameters.top - parameters.spec.refresh[2]
        full = slots == parameters.slots
        raised = 2 + (parameters.slots // slots).bit_length() - 1
        total = raised * self.key_switch(parameters.top + 1) + self.key_switch(middle + 2)
        total += sum(self._map(level + 1, each) for level, each in refresh_maps(parameters, slots))
        switches = plan(sine.polynomial).key_switches + sine.doublings + 2 * sine.arcsine
        limbs = middle + 1 - sine.levels // 2
        # A product and the sums around it: some eight passes.
        return total + (1 + full) * switches * (self.key_switch(limbs) + 8 * limbs * self.pointwise)

    def _map(self, limbs: int, linear: LinearMap, special: int = 6) -> float:
        """Baby steps and giant steps, as `transform` takes them."""
        size, wide = babies(linear.diagonals), limbs + special
        small = len({shift % size for shift in linear.diagonals} - {0})
        large = len({shift - shift % size for shift in linear.diagonals} - {0})
        rows = -(-limbs // special) * wide
        decomposed = rows * (self.transform + self.conversion)
        divided = wide * self.transform + limbs * self.conversion  # one component
        steps = (small + large) * (rows * self.inner + 2 * wide * self.pointwise)
        sums = len(linear.diagonals) * wide * self.pointwise  # a product with a plaintext is half a pass
        return self.overhead(limbs) * ((1 + large) * decomposed + (2 + large) * divided + steps + sums)

    @classmethod
    def measured(cls, repetitions: int = 5) -> Speed:
        """About two seconds, and 150 MB; the fastest of the repetitions counts."""
        few, many = (_Timed(limbs, repetitions) for limbs in (_FEW, _MANY))
        plain = cls(many.transform, many.conversion, many.inner, many.pointwise)
        return cls(
            plain.transform,
            plain.conversion,
            plain.inner,
            plain.pointwise,
            few.key_switch / plain.key_switch(_FEW),
            many.key_switch / plain.key_switch(_MANY),
        )

    @classmethod
    def kept(cls, path: Path) -> Speed:
        """From the file if it was measured on this machine within a day, else measured and written there."""
        machine = f"{platform.node()} {platform.machine()} {_native.active_isa()}"
        try:
            found = json.loads(path.read_text())
            speed = cls(**{field.name: float(found[field.name]) for field in fields(cls)})
            if found["machine"] == machine and 0 <= time.time() - float(found["time"]) < _KEPT_SECONDS:
                return speed
        except (OSError, ValueError, KeyError, TypeError):
            pass
        speed = cls.measured()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"machine": machine, "time": time.time(), **asdict(speed)}))
        except OSError:
            pass
        return speed


MODEL = Speed()


def refresh_maps(parameters: Parameters, slots: int) -> list[tuple[int, LinearMap]]:
    """The maps of a bootstrap with their levels; nothing is encoded."""
    stc, sine, cts = parameters.spec.refresh
    forward, back = dft.coefficients_to_slots(slots, cts), dft.slots_to_coefficients(slots, stc)
    if slots < parameters.slots:
        forward, back = dft.side_by_side(forward), dft.joined(back)
    middle = parameters.top - cts
    first = [(parameters.top - i, each) for i, each in enumerate(forward)]
    return first + [(middle - sine - i, each) for i, each in enumerate(back)]


class _Timed:
    """The kernels on so many primes: seconds a row, and of a whole key switch."""

    def __init__(self, limbs: int, repetitions: int) -> None:
        parameters, self.repetitions = ENGINE16, repetitions
        special, n, level = parameters.alpha, parameters.degree, limbs - 1
        ring, low = key_ring(parameters, level, special), parameters.ring(level)
        digits = -(-limbs // special)
        rows = digits * ring.limbs
        x, key, out = empty(2, limbs, n), empty(digits, ring.limbs, n), empty(2, 2, ring.limbs, n)
        split, short = empty(digits, ring.limbs, n), empty(2, limbs, n)
        for each in (x, key):
            each[:] = 1  # pages that are only read would all be one page of zeros
        seeds = expansion_keys(bytes(32), b"speed", (digits, ring.limbs))

        def switch(keys: int) -> None:
            halves, uniform, same = [key] * keys, [seeds] * keys, [1] * keys
            _native.ckks_switch_keys(ring._native, x[0], halves, uniform, NOTHING, same, False, out[:keys], 1)

        def divide() -> None:
            _native.ckks_mod_down(ring._native, out[0], NOTHING, 1, short, 1)

        def both() -> None:
            switch(1)
            divide()

        def decompose() -> None:
            _native.ckks_decompose(ring._native, x[0], special, split, 1)

        self.transform = self._seconds(lambda: low._native.ntt(x[1:], 1)) / limbs
        self.conversion = max(self._seconds(decompose) / rows - self.transform, 0.0)
        self.inner = max(self._seconds(lambda: switch(2)) - self._seconds(lambda: switch(1)), 0.0) / rows
        self.pointwise = self._seconds(lambda: low._native.add(x, x, short, 1)) / (2 * limbs)
        self.key_switch = self._seconds(both)

    def _seconds(self, operation: Callable[[], object]) -> float:
        operation()
        times = []
        for _ in range(self.repetitions):
            # Of this thread, whatever else the machine does.
            start = time.thread_time()
            operation()
            times.append(time.thread_time() - start)
        return min(times)
