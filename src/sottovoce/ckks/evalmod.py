"""The polynomial that removes the multiples of q_0 in a bootstrap: sin(2πx)/2π near the integers.

After the modulus is raised a coefficient is m + q_0·I with |I| ≤ K, so x = m/q_0 + I is close to an integer.
sin(2πx) = cos(2π(x − 1/4)) is computed from cos(2π(x − 1/4)/2^d) by d doublings cos 2θ = 2cos²θ − 1; the
polynomial for the latter is fitted by least squares with the distribution of I as its weight, which a plain
interpolant of the same degree cannot match: hardly any I is large. arcsin s ≈ s + s³/6 then removes most of
the sine's own curvature.

Sources: least squares, double angles: Lee et al., EUROCRYPT 2021, and Han and Ki, CT-RSA 2020; the weights
are the Irwin-Hall density of the sum of h + 1 uniforms, h = 32 the weight of the ephemeral secret.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from math import comb, factorial, pi

import numpy as np

from sottovoce.ckks.chebyshev import Floats, Polynomial, least_squares

_WEIGHT_FLOOR = 2.0**-40
_POINTS = 48  # around every integer


@dataclass(frozen=True)
class Sine:
    """How the sine is computed. Levels: ⌈lg(degree + 1)⌉ + doublings + 2 for the arcsine.

    bound: K, no |I| is larger. width: the fit holds for |x − I| ≤ width, the size of m/q_0. weight: Hamming
    weight h of the secret under which the modulus was raised.
    """

    bound: int = 16
    degree: int = 31
    doublings: int = 3
    arcsine: bool = True
    width: float = 2.0**-4
    weight: int = 32

    @property
    def levels(self) -> int:
        return self.degree.bit_length() + self.doublings + 2 * self.arcsine

    @cached_property
    def polynomial(self) -> Polynomial:
        """t = x/K in [−1, 1] -> cos(2π(Kt − 1/4)/2^doublings)."""
        integers = np.arange(-self.bound, self.bound + 1, dtype=np.float64)
        offsets = self.width * np.cos(pi * (np.arange(_POINTS) + 0.5) / _POINTS)
        x = (integers[:, None] + offsets[None, :]).ravel()
        # What the doublings do to an error: the derivative of cos 2^d θ by cos θ at the sine's zeros.
        gain = 1 / np.abs(np.sin(self._angle(integers)))
        weights = np.maximum(irwin_hall(integers.tolist(), self.weight + 1), _WEIGHT_FLOOR) * gain**2
        spread = np.repeat(weights, _POINTS)
        t = x / self.bound
        # The interval of the basis is [−1, 1]; |x| may exceed K by the width, where the fit still holds.
        return least_squares(t, np.cos(self._angle(x)), spread, self.degree, -1.0, 1.0)

    def _angle(self, x: Floats) -> Floats:
        angle: Floats = 2 * pi * (x - 0.25) / 2**self.doublings
        return angle

    def model(self, t: Floats) -> Floats:
        """What the encrypted evaluation computes, in float64: t = x/K -> x − I (nearly)."""
        value = self.polynomial(t)
        for _ in range(self.doublings):
            value = 2 * value * value - 1
        if self.arcsine:
            value = value * (1 + value * value / 6)
        result: Floats = value / (2 * pi)
        return result


def irwin_hall(x: Sequence[float], terms: int) -> Floats:
    """The density at whole numbers x of the sum of `terms` uniforms on [−1/2, 1/2]; exact, then rounded."""

    def density(at: int) -> float:
        # Twice the distance to every corner is an integer, so the alternating sum, which cancels, is exact.
        corners = [2 * abs(at) + terms - 2 * k for k in range(terms + 1)]
        total = sum((-1) ** k * comb(terms, k) * c ** (terms - 1) for k, c in enumerate(corners) if c > 0)
        return float(Fraction(total, factorial(terms - 1) * 2 ** (terms - 1)))

    return np.array([density(int(value)) for value in x])
