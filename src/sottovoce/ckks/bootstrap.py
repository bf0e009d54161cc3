"""Bootstrapping: a ciphertext with no levels left becomes one of the same message with `working_top` levels.

1. The message is multiplied up to q_0/2^ρ and the modulus raised under an ephemeral secret of 32 non-zero
   coefficients: the plaintext is then m + q_0·I with |I| ≤ K.
2. For n < N/2 slots the sum of the rotations by n, 2n, … leaves the coefficients that belong to n slots.
3. Coefficients to slots (`dft`), scaled to (m/q_0 + I)/K. With n ≤ N/4, real and imaginary parts stand side
   by side in one ciphertext; with N/2 slots there are two.
4. The sine removes I (`evalmod`).
5. Slots to coefficients; the scale returns to Δ.

A polynomial sees the coefficients |m_k| ≤ (1/n)·Σ|slots|, which must stay well below 2^ρ·2^-4 (`Sine.width`)
= 1 at ρ = 4; the sine's own curvature costs 2^-17 of a coefficient of 1/4 at ρ = 4, 2^-21 at ρ = 5. Larger
messages: read them with a larger scale (`with_scale`) before, and undo it afterwards.

Sources: Cheon et al., EUROCRYPT 2018; sparse-secret encapsulation: Bossuat et al., ACNS 2022.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from sottovoce.ckks import dft, paterson_stockmeyer
from sottovoce.ckks.ciphertext import Ciphertext
from sottovoce.ckks.encoder import Encoder
from sottovoce.ckks.evalmod import Sine
from sottovoce.ckks.evaluator import Evaluator
from sottovoce.ckks.galois import CONJUGATE
from sottovoce.ckks.linear_map import LinearMap
from sottovoce.ckks.parameters import Parameters
from sottovoce.ckks.transform import Transform, prepare
from sottovoce.errors import ParameterError

# Scales that should be equal differ by a few roundings of doubles.
_SAME_SCALE = 2.0**-40


@dataclass(frozen=True)
class BootstrapSpec:
    """slots: n. ratio: ρ, how many bits the message stays below q_0. sine: how the sine is computed.

    More bits make the sine straighter and every other error larger: 4 is best where coefficients are small
    against the slots (many slots with a message like noise), 5 elsewhere.
    """

    slots: int
    ratio: int = 5
    sine: Sine = Sine()


@dataclass(frozen=True)
class Stage:
    """A step of the circuit: the level it starts at, the levels it takes, its key switches."""

    name: str
    level: int
    levels: int
    key_switches: int


class Bootstrapper:
    """Everything public about a bootstrap of n slots: plaintexts, the keys that are needed, the circuit.

    Raises ParameterError when the parameters' `refresh` primes do not fit the circuit. Preparation encodes
    the maps: a few seconds and `nbytes` of memory at N = 2^16.
    """

    def __init__(self, parameters: Parameters, spec: BootstrapSpec) -> None:
        self.parameters, self.spec = parameters, spec
        stc, sine, cts = parameters.spec.refresh
        if sine != spec.sine.levels:
            raise ParameterError(f"the parameters reserve {sine} levels for a sine of {spec.sine.levels}")
        if min(stc, cts) < 1:
            raise ParameterError(
                "the parameters reserve no levels for the maps between slots and coefficients"
            )
        n = spec.slots
        if n < 2 or n & (n - 1) or n > parameters.slots:
            raise ParameterError(f"a bootstrap has 2 to {parameters.slots} slots, a power of two, not {n}")
        self.full = n == parameters.slots
        self.sine_level = parameters.top - cts
        self.back_level = self.sine_level - sine
        encoder = Encoder(parameters)
        self.forward = self._forward(encoder, cts)
        self.back = self._back(encoder, stc)

    # Scales

    @property
    def _raised_scale(self) -> float:
        """How the raised ciphertext is read: (m + q_0·I)/(K·q_0), times the copies that rotations add up."""
        copies = self.parameters.slots // self.spec.slots
        return float(self.parameters.primes[0] * self.spec.sine.bound * copies)

    @property
    def _sine_scale(self) -> float:
        """At the sine's first level: squares divided by the primes below stay there."""
        return float(self.parameters.primes[self.sine_level])

    def _factor(self, scale: float) -> int:
        """The integer that brings a message of this scale up to about q_0/2^ρ."""
        return max(1, round(math.ldexp(self.parameters.primes[0], -self.spec.ratio) / scale))

    def _message_scale(self, scale: float) -> float:
        """What the sine's result is multiplied by, per message of this input scale: 2π·scale·factor/q_0."""
        return 2 * math.pi * scale * self._factor(scale) / self.parameters.primes[0]

    @cached_property
    def _sine_out(self) -> float:
        """The scale of the sine's result."""
        level, primes = self.sine_level - self._plan.depth, self.parameters.primes
        scale = float(primes[level])
        for _ in range(self.spec.sine.doublings):
            scale *= scale / primes[level]
            level -= 1
        if self.spec.sine.arcsine:
            scale *= 6 * (scale / primes[level]) * (scale / primes[level - 1])
        return scale

    def _forward(self, encoder: Encoder, factors: int) -> list[Transform]:
        maps = dft.coefficients_to_slots(self.spec.slots, min(factors, self._layers))
        if self.full:
            maps[-1] = maps[-1].times(0.5)
        else:
            maps = dft.side_by_side(maps)
        return self._prepared(encoder, maps, self.parameters.top, self._sine_scale / self._raised_scale)

    def _back(self, encoder: Encoder, factors: int) -> list[Transform]:
        maps = dft.slots_to_coefficients(self.spec.slots, min(factors, self._layers))
        maps = maps if self.full else dft.joined(maps)
        usual = self.parameters.scale
        gain = usual / (self._sine_out * self._message_scale(usual))
        return self._prepared(encoder, maps, self.back_level, gain)

    @property
    def _layers(self) -> int:
        return self.spec.slots.bit_length() - 1

    def _prepared(
        self, encoder: Encoder, maps: Sequence[LinearMap], level: int, gain: float
    ) -> list[Transform]:
        """The maps one level after the other, the change of scale `gain` shared among them."""
        share = gain ** (1 / len(maps))
        return [
            prepare(encoder, each, level - i, self.parameters.primes[level - i] * share)
            for i, each in enumerate(maps)
        ]

    # What it needs

    @cached_property
    def steps(self) -> dict[int, int]:
        """Rotations (and CONJUGATE) with the highest level at which each is used: for `galois_keys`."""
        parameters, n = self.parameters, self.spec.slots
        found: dict[int, int] = {CONJUGATE: self.sine_level + 1}
        for transform in (*self.forward, *self.back):
            for step, level in transform.steps.items():
                found[step] = max(found.get(step, 0), level)
        step = n
        while step < parameters.slots:
            found[step] = parameters.top
            step *= 2
        return found

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The circuit in order: what it costs, and where the levels go."""
        sine, copies = self.spec.sine, self.parameters.slots // self.spec.slots
        parts = 2 if self.full else 1
        switches = self._plan.key_switches + sine.doublings + 2 * sine.arcsine
        forward = 1 + sum(transform.key_switches for transform in self.forward)
        back = (not self.full) + sum(transform.key_switches for transform in self.back)
        return (
            Stage("raise", self.parameters.top, 0, 2),
            Stage("sum of rotations", self.parameters.top, 0, copies.bit_length() - 1),
            Stage("coefficients to slots", self.parameters.top, len(self.forward), forward),
            Stage("sine", self.sine_level, sine.levels, parts * switches),
            Stage("slots to coefficients", self.back_level, len(self.back), back),
        )

    @property
    def nbytes(self) -> int:
        """Memory of the maps."""
        return sum(transform.nbytes for transform in (*self.forward, *self.back))

    def key_bytes(self, level: int) -> int:
        """Memory of one switching key for levels up to `level`."""
        words = self.parameters.digits(level) * (level + 1 + self.parameters.alpha)
        return 8 * words * self.parameters.degree

    @property
    def all_key_bytes(self) -> int:
        """Memory of every key: rotations, relinearisation, encapsulation."""
        rotations = sum(self.key_bytes(level) for level in self.steps.values())
        return rotations + self.key_bytes(self.sine_level) + self.key_bytes(self.parameters.top)

    # The circuit

    def __call__(self, evaluator: Evaluator, x: Ciphertext) -> Ciphertext:
        """The message of x at level `working_top`.

        x: of n slots, any level (all but the lowest are dropped), scale within a few bits of Δ; coefficients
        as the module's docstring says, or the result is garbage, which nobody can see without the key. The
        result's scale is Δ if x has a level to spend or scale Δ, else that of x times a power of two, nearly.
        MissingKeyError without the keys of `steps`, a relinearisation key for `sine_level` and
        encapsulation keys.
        """
        x = self._lowest(evaluator, x)
        parts = self.to_slots(evaluator, self.raise_modulus(evaluator, x))
        reduced = [self.reduce(evaluator, part) for part in parts]
        return self.to_coefficients(evaluator, reduced, x.scale)

    def _lowest(self, evaluator: Evaluator, x: Ciphertext) -> Ciphertext:
        """x at level 0, and at scale Δ if it has a level to spend on that."""
        usual = self.parameters.scale
        return evaluator.match(x, 0, usual) if x.level else x

    def raise_modulus(self, evaluator: Evaluator, x: Ciphertext) -> Ciphertext:
        """x, of level 0, at the top level: the slots of the polynomial (m + q_0·I)/(K·q_0) in X^(N/2n)."""
        parameters = self.parameters
        if x.slots > self.spec.slots:
            raise ParameterError(f"this bootstrap has {self.spec.slots} slots, the ciphertext {x.slots}")
        raised = evaluator.mod_raise(evaluator.mul_integer(x, self._factor(x.scale)), parameters.top)
        raised = raised.with_slots(parameters.slots)
        step = self.spec.slots
        while step < parameters.slots:
            raised = evaluator.add(raised, evaluator.rotate(raised, step))
            step *= 2
        return raised.with_slots(self.spec.slots).with_scale(self._raised_scale)

    def to_slots(self, evaluator: Evaluator, raised: Ciphertext) -> list[Ciphertext]:
        """The real and the imaginary half of the coefficients, in one ciphertext or two."""
        *first, last = self.forward
        for transform in first:
            raised = transform(evaluator, raised)
        # Rescaled after the conjugate is added: its rounding is not doubled, the key switch's vanishes.
        raised = last(evaluator, raised, rescale=0)
        mirrored = evaluator.conjugate(raised)
        parts = [evaluator.add(raised, mirrored)]
        if self.full:
            parts.append(evaluator.mul_by_i(evaluator.sub(mirrored, raised)))
        return [evaluator.rescale(part).with_scale(self._sine_scale) for part in parts]

    def reduce(self, evaluator: Evaluator, x: Ciphertext) -> Ciphertext:
        """2π times the distance to the next integer of K·x, nearly."""
        sine, primes = self.spec.sine, self.parameters.primes
        level = x.level - self._plan.depth
        value = paterson_stockmeyer.evaluate(evaluator, x, self._plan, float(primes[level]), central=True)
        for _ in range(sine.doublings):
            value = evaluator.relinearize(evaluator.tensor(value, value, factor=2, constant=-1.0), rescale=1)
        if sine.arcsine:
            # 1 + value²/6: the six is in the scale.
            square = evaluator.relinearize(evaluator.tensor(value, value, constant=6.0), rescale=1)
            value = evaluator.mul(value, square.with_scale(6 * square.scale))
        return value

    def to_coefficients(self, evaluator: Evaluator, parts: Sequence[Ciphertext], scale: float) -> Ciphertext:
        """The parts as coefficients of one message. scale: of the message before the bootstrap."""
        total = parts[0]
        if self.full:
            total = evaluator.add(total, evaluator.mul_by_i(parts[1]))
        total = total.with_scale(total.scale * self._message_scale(scale))
        for transform in self.back:
            total = transform(evaluator, total)
        if not self.full:
            total = evaluator.add(total, evaluator.rotate(total, self.spec.slots))
        usual = self.parameters.scale
        exact = abs(total.scale / usual - 1) < _SAME_SCALE
        return total.with_slots(self.spec.slots).with_scale(usual if exact else total.scale)

    @cached_property
    def _plan(self) -> paterson_stockmeyer.Plan:
        return paterson_stockmeyer.plan(self.spec.sine.polynomial)
