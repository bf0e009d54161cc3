"""Both parties of one arithmetic in two threads, and both shares of their results in the model's layout."""

from collections.abc import Callable
from typing import Any

import numpy as np

from sottovoce.correlations import SimulatedSource
from sottovoce.mpc.requests import MaskedRows
from sottovoce.mpc.two_party import TwoPartyArithmetic
from sottovoce.net import Channel, LedgerRow, memory_pair, run_pair

RNG_SEED = 20240607


def stacked(a: Any, b: Any) -> Any:
    """The two parties' results as the model would hold them: a leading party axis."""
    if isinstance(a, list | tuple):
        return [stacked(x, y) for x, y in zip(a, b, strict=True)]
    if isinstance(a, MaskedRows):
        return (a, b)
    return np.stack([a, b])


def both(
    program: Callable[[TwoPartyArithmetic, int], Any],
    seed: int = 7,
    tap: Callable[[int, bytes], None] | None = None,
) -> tuple[Any, LedgerRow]:
    """Run `program(arithmetic, role)` at both parties -> (stacked results, ledger total), the ledgers
    compared.
    """
    channels = memory_pair()

    def side(channel: Channel) -> tuple[Any, LedgerRow]:
        if tap is not None:
            channel.tap = lambda view: tap(int(channel.role), bytes(view))
        arithmetic = TwoPartyArithmetic(channel, SimulatedSource(channel.role, seed))
        result = program(arithmetic, int(channel.role))
        return result, channel.ledger.total()

    (client, paid), (server, also) = run_pair(side, side, channels)
    assert (paid.bytes_up, paid.bytes_down, paid.rounds) == (also.bytes_up, also.bytes_down, also.rounds)
    return stacked(client, server), paid
