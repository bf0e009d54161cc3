"""What a client can average out of logits, because it knows half of every rounding by chance.

A rescale gives floor(x0/2^f) + ceil(x1/2^f): the value rounded up or down by chance, and the chance is what
the client's own share has below 2^f. So the client knows, of every value it never sees, a number c in [0, 1)
with which the value's rounding is correlated, on average by one unit for c from 0 to 1. A client that asks
the same question T times and fits its logits to its numbers c of some vector by least squares gets the
derivatives of the logits by that vector, each with an error of

    3.5 · (spread of the logit from run to run) / (√T · one unit of the vector).

The vector before the head would be the worst: the derivatives are the head's weights. It is therefore rounded
exactly (`mpc.functions.exact`), there is no such number, and the attack fails; with `by_chance` it is rounded
as all others are, which is the control: SmolLM2's weights are found with an error of their size at
T = 4·10^5. For vectors before the final norm the attack works. Derivatives by the input of the last `down`
matrix are products head · (derivative of the norm) · down. See SECURITY.md for what they cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sottovoce.engines.clear.fixed import FixedExecutor
from sottovoce.models import Model
from sottovoce.models.fixed import FixedModel
from sottovoce.mpc.requests import Share, WrapOutput

Floats = npt.NDArray[np.float64]


def ask(
    model: Model,
    fixed: FixedModel,
    tokens: Sequence[int],
    times: int,
    matrix: tuple[str, int] | None = None,
    by_chance: bool = False,
    seed: int | None = None,
) -> tuple[Floats, Floats]:
    """The same prompt many times: the client's numbers c of the last rounding of a matrix's input
    (T, inputs), and logits (T, vocab) in units of 2^-23; both for the last position.

    matrix: its name and layer, None for the head. by_chance: the final norm rounds as all others do. seed:
    makes the shares, for tests. Runs both shares of the engine's arithmetic in one process; the two-party run
    rounds alike.
    """
    executor = FixedExecutor(model, fixed, seed, check=False)
    if by_chance:
        decoder = executor.decoder
        decoder.final_norm = lambda x: decoder._norm(x, 2 * fixed.config.layers)  # type: ignore[method-assign]
    listener = _Listener(executor, matrix)
    known, logits = [], []
    for _ in range(times):
        executor.truncate(0)
        logits.append(executor.forward(tokens)[-1] * 2.0**fixed.residual_bits)
        known.append((listener.last if listener.found is None else listener.found)[-1])
    return np.array(known), np.array(logits)


class _Listener:
    """Notes what the client's own shares have below the bits that a rescale keeps."""

    def __init__(self, executor: FixedExecutor, matrix: tuple[str, int] | None) -> None:
        self.last = np.zeros((1, 0))
        self.found: Floats | None = None
        self._matrix = matrix
        arithmetic, linears = executor.ar, executor.decoder.linears
        self._wrap, self._apply = arithmetic.wrap, linears.apply
        arithmetic.wrap = self.wrap  # type: ignore[method-assign]
        linears.apply = self.apply  # type: ignore[method-assign]

    def wrap(self, x: Share, outputs: Sequence[WrapOutput], *args: Any, **options: Any) -> list[Share]:
        # Exact rounding compares all bits below the point: it asks for x mod 2^s, where others shift by s.
        lost = outputs[0].shift or outputs[0].modulus.bit_length() - 1
        self.last = (x[0] & np.uint64((1 << lost) - 1)) / 2.0**lost
        return self._wrap(x, outputs, *args, **options)

    def apply(self, layer: int, name: str, x: Share) -> Share:
        if (name, layer) == self._matrix:
            self.found = self.last
        return self._apply(layer, name, x)


def estimate(known: Floats, logits: Floats) -> Floats:
    """The derivatives (vocab, inputs) by least squares: a value is lower by one where c is large."""
    columns = np.concatenate([known - known.mean(axis=0), np.ones((len(known), 1))], axis=1)
    fit, *_ = np.linalg.lstsq(columns, logits, rcond=None)
    return -np.asarray(fit[:-1].T)


def questions_needed(spread: float, derivative: float) -> float:
    """T at which the error of an estimate is as large as a derivative (both in the same units)."""
    return float(12 * (spread / derivative) ** 2)
