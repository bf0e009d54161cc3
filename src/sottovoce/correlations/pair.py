"""Correlations that the two parties make between themselves: oblivious transfer, homomorphic encryption.

Items are made when the stock runs dry, ahead by `prepare` and `refill`, or for a pool on disk (`pooled.py`).
Cost per item before rounding up to whole batches (w = bits of a residue, i = 15/8: one OT index):

| kind | bytes up | bytes down | made from |
|---|---|---|---|
| wraps | i | Σ w/8 over targets | correlated OT, the server its sender |
| b2a | i | w/8 | the same |
| ands | i | i | a random OT each way |
| bit_values | i | i + w/8 | an OT each way, one of them correlated |
| send_ots, receive_ots | m·i from receiver to sender | | m indices |
| cross_products | terms · 18.75 | 12.75 | Enc(f) up, Enc(f)·g back |
| squares | 18.75 | 12.75 | cross products of 1 term |
| triples; scalars, per element | 37.5 | 12.75 | cross products of 2 terms |

Security: semi-honest, 128 bits computational; the flood leaves a statistical distance below 2^-39 per
ciphertext.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from sottovoce.correlations.cross import CrossMaker
from sottovoce.correlations.from_ot import OtMaker
from sottovoce.correlations.stock import Arrays
from sottovoce.correlations.stocked import Kind, StockedSource
from sottovoce.errors import ProtocolError
from sottovoce.net import Channel
from sottovoce.ot import FoldedPads, OtExtension

if TYPE_CHECKING:
    from sottovoce.packing import DataSide, ModelSide

_IN_SLOTS = frozenset(("triples", "squares", "scalars", "cross_products"))


class PairSource(StockedSource):
    """The real source. `side`: this party's keys (`packing.exchange_keys`), for slots modulo P_FIELD.

    Both parties call every method in lockstep with the same arguments; one thread, the owner of the channel.
    Making an `OtExtension` (if none is given) takes its setup: 3 exchanges.
    """

    def __init__(self, channel: Channel, side: "DataSide | ModelSide", ot: OtExtension | None = None) -> None:
        super().__init__(channel.role)
        self._channel = channel
        self._cross = CrossMaker(channel, side)
        self._ot = OtMaker(channel.role, OtExtension(channel) if ot is None else ot)

    def bind(self, channel: Channel) -> None:
        """Items are spent on the channel on which they were made."""
        if channel is not self._channel:
            raise ProtocolError("correlations made on one channel were to be spent on another")

    def make(self, key: Kind, n: int) -> Arrays | FoldedPads:
        """n items rounded up to whole ciphertexts; what OTs make is made to measure (they come in batches).

        A sender's OTs leave folded.
        """
        kind, *arguments = key
        batch = self._batch(key)
        maker: Callable[..., Arrays | FoldedPads]
        maker = getattr(self._cross if kind in _IN_SLOTS else self._ot, kind)
        ledger = self._channel.ledger
        with ledger.operation("correlations"), ledger.operation(kind):
            return maker(-(-n // batch) * batch, *arguments)

    def reserve(self, demand: Mapping[Kind, int]) -> None:
        """Have the OT indices in stock that making these items takes: at most one exchange."""
        with self._channel.ledger.operation("correlations"):
            self._ot.reserve(demand)

    def refill(self, tokens: int = 1) -> None:
        """Make ahead a token's share of what `tokens` tokens consumed since the last refill.

        All OT indices come in one exchange, the correlated OTs in one message down, then two messages for
        each kind made in slots. ANDs and 1-of-2^m OTs stay indices: making them later takes no message.
        """
        demand = self._forecast(tokens)
        self.reserve(demand)
        for key, n in demand.items():
            if key[0] not in ("ands", "ots"):
                self._fill(key, n)

    def _batch(self, key: Kind) -> int:
        if key[0] == "scalars":
            return max(1, self._cross.slots // int(key[1]))
        return self._cross.slots if key[0] in _IN_SLOTS else 1
