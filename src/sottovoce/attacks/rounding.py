"""What a client can average out of logits, because it knows half of every rounding. This attack succeeds.

A rescale gives floor(x0/2^f) + ceil(x1/2^f): the value rounded up or down by chance, and the chance is what
the client's own share has below 2^f. So the client knows, of every value it never sees, a number c in [0, 1)
with which the value's rounding is correlated. Exact logits are W·h of the last rounded vector h. A client
that asks the same question T times, and fits its logits to its numbers c of h by least squares, gets W with
an error of about 3.5·s·√(d/T) of its size. d is the width, s the standard deviation of h from run to run in
its last place, from all that is rounded before it: 7 for a short prompt on SmolLM2, where the error is as
large as W at T = 4·10^5 and a tenth of it at 4·10^7.

No answer shows a client more than logits; but these are not those of *one* function of the prompt. Nothing in
the library prevents it. See SECURITY.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sottovoce.engines.clear.fixed import FixedExecutor
from sottovoce.models import Model
from sottovoce.models.fixed import FixedModel
from sottovoce.mpc.requests import Share

Floats = npt.NDArray[np.float64]


def ask(model: Model, fixed: FixedModel, tokens: Sequence[int], times: int) -> tuple[Floats, Floats]:
    """The same prompt many times: what the client knows of the last rounding (T, width), and logits
    (T, vocab) in units of 2^-23.

    Runs both shares of the engine's arithmetic in one process; the two-party run rounds alike.
    """
    executor = FixedExecutor(model, fixed, check=False)
    arithmetic, last = executor.ar, np.zeros(0)
    rescale = arithmetic.rescale

    def listen(x: Share, bits: int, *args: Any, **options: Any) -> Share:
        nonlocal last
        last = (x[0] & np.uint64((1 << bits) - 1)) / 2.0**bits  # of the client's own share
        return rescale(x, bits, *args, **options)

    arithmetic.rescale = listen  # type: ignore[method-assign]
    known, logits = [], []
    for _ in range(times):
        executor.truncate(0)
        logits.append(executor.forward(tokens)[-1] * 2.0**fixed.residual_bits)
        known.append(last[-1])
    return np.array(known), np.array(logits)


def estimate(known: Floats, logits: Floats) -> Floats:
    """W (vocab, width) by least squares: a value is lower by one where c is large."""
    columns = np.concatenate([known - known.mean(axis=0), np.ones((len(known), 1))], axis=1)
    fit, *_ = np.linalg.lstsq(columns, logits, rcond=None)
    return -np.asarray(fit[:-1].T)
