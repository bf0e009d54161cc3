"""Correlations that the two parties make between themselves: oblivious transfer, homomorphic encryption.

Items are made when the stock runs dry, or ahead by `prepare`: the place where a pool on disk will plug in.
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

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from sottovoce.correlations.cross import CrossMaker
from sottovoce.correlations.from_ot import OtMaker
from sottovoce.correlations.interface import (
    U64,
    Ands,
    BitValues,
    ChosenPads,
    CorrelationSource,
    CrossProducts,
    Scalars,
    SharedBits,
    Squares,
    Triples,
    Wraps,
)
from sottovoce.correlations.stock import Arrays, Stock
from sottovoce.errors import ParameterError, ProtocolError
from sottovoce.net import Channel
from sottovoce.ot import OtExtension
from sottovoce.ot.modular import sum_mod
from sottovoce.ring.primes import P_FIELD

if TYPE_CHECKING:
    from sottovoce.packing import DataSide, ModelSide

# Inner products of up to this many terms are added up under encryption, longer ones in the shares.
_FUSED_TERMS = 4

_IN_SLOTS = frozenset(("triples", "squares", "scalars", "cross_products"))

Kind = tuple[Any, ...]  # the name of a method and its arguments besides the number of items


class PairSource(CorrelationSource):
    """The real source. `side`: this party's keys (`packing.exchange_keys`), for slots modulo P_FIELD.

    Both parties call every method in lockstep with the same arguments; one thread, the owner of the channel.
    Making an `OtExtension` (if none is given) takes its setup: 3 exchanges.
    """

    def __init__(self, channel: Channel, side: "DataSide | ModelSide", ot: OtExtension | None = None) -> None:
        self.role = channel.role
        self.consumed = Counter()
        self._channel = channel
        self._cross = CrossMaker(channel, side)
        self._ot = OtMaker(channel.role, OtExtension(channel) if ot is None else ot)
        self._stocks: dict[Kind, Stock] = {}
        self._demand: Counter[Kind] = Counter()  # since the last refill

    def bind(self, channel: Channel) -> None:
        """Items are spent on the channel on which they were made."""
        if channel is not self._channel:
            raise ProtocolError("correlations made on one channel were to be spent on another")

    def wraps(self, n: int, targets: Sequence[tuple[int, int]]) -> Wraps:
        bits, *products = self._take(("wraps", tuple(targets)), n)
        return Wraps(bits, products)

    def ands(self, n: int) -> Ands:
        return Ands(*self._take(("ands",), n))

    def bit_values(self, n: int, modulus: int) -> BitValues:
        return BitValues(*self._take(("bit_values", modulus), n))

    def b2a(self, n: int, modulus: int) -> SharedBits:
        return SharedBits(*self._take(("b2a", modulus), n))

    def send_ots(self, n: int, m_bits: int, words: int = 1) -> U64:
        (pads,) = self._take(("ots", self.role, m_bits, words), n)
        return pads

    def receive_ots(self, n: int, m_bits: int, words: int = 1) -> ChosenPads:
        return ChosenPads(*self._take(("ots", self.role.other, m_bits, words), n))

    def triples(self, n: int) -> Triples:
        return Triples(*self._take(("triples",), n))

    def squares(self, n: int) -> Squares:
        return Squares(*self._take(("squares",), n))

    def scalars(self, groups: int, length: int) -> Scalars:
        """Made in rounded lengths (`_bucket`), so that a growing context finds groups of its length."""
        vectors, scalars, products = self._take(("scalars", _bucket(length)), groups)
        return Scalars(vectors[:, :length], scalars, products[:, :length])

    def cross_products(self, n: int, terms: int = 1) -> CrossProducts:
        if terms <= _FUSED_TERMS:
            return CrossProducts(*self._take(("cross_products", terms), n))
        factors, products = self._take(("cross_products", 1), n * terms)
        return CrossProducts(factors.reshape(n, terms), sum_mod(products.reshape(n, terms), P_FIELD))

    def prepare(self, kind: str, n: int, *arguments: Any) -> None:
        """Make items until n of a kind are in stock; both parties call it alike.

        kind with arguments: wraps targets; ands; bit_values modulus; b2a modulus; ots sender, m_bits, words;
        triples; squares; scalars length; cross_products terms.
        """
        self._fill(_key(kind, arguments), n)

    def refill(self, tokens: int = 1) -> None:
        """Make ahead a token's share of what `tokens` tokens consumed since the last refill.

        All OT indices come in one exchange, the correlated OTs in one message down, then two messages for
        each kind made in slots. ANDs and 1-of-2^m OTs stay indices: making them later takes no message.
        """
        demand = {key: -(-n // tokens) for key, n in self._demand.items()}
        self._demand.clear()
        with self._channel.ledger.operation("correlations"):
            self._ot.reserve(demand)
        for key, n in demand.items():
            if key[0] not in ("ands", "ots"):
                self._fill(key, n)

    def in_stock(self, kind: str, *arguments: Any) -> int:
        """How many items of a kind are ready."""
        key = _key(kind, arguments)
        return len(self._stocks[key]) if key in self._stocks else 0

    def _take(self, key: Kind, n: int) -> Arrays:
        stock = self._fill(key, n)
        self.consumed[key[0]] += n
        self._demand[key] += n
        return stock.take(n)

    def _fill(self, key: Kind, n: int) -> Stock:
        if n < 1:
            raise ParameterError(f"{key[0]}: correlations are handed out one or more at a time, not {n}")
        stock = self._stocks.setdefault(key, Stock())
        if n > len(stock):
            batch = self._batch(key)
            count = -(-(n - len(stock)) // batch) * batch
            kind, *arguments = key
            make: Callable[..., Arrays] = getattr(self._cross if kind in _IN_SLOTS else self._ot, kind)
            ledger = self._channel.ledger
            with ledger.operation("correlations"), ledger.operation(kind):
                stock.put(make(count, *arguments))
        return stock

    def _batch(self, key: Kind) -> int:
        """Items that fill whole ciphertexts; what OTs make is made to measure (they come in batches)."""
        if key[0] == "scalars":
            return max(1, self._cross.slots // int(key[1]))
        return self._cross.slots if key[0] in _IN_SLOTS else 1


def _key(kind: str, arguments: tuple[Any, ...]) -> Kind:
    if kind == "scalars":
        return kind, _bucket(arguments[0])
    if kind == "wraps":
        return kind, tuple(arguments[0])
    return kind, *arguments


def _bucket(length: int) -> int:
    """Powers of two below 32, multiples of 32 above."""
    return 1 << (length - 1).bit_length() if length < 32 else -(-length // 32) * 32
