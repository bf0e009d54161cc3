"""A source that keeps a stock of every kind and has more made when it runs dry: what the real ones share."""

from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

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
from sottovoce.errors import ParameterError
from sottovoce.ot import FoldedPads
from sottovoce.ot.modular import sum_mod
from sottovoce.ring.forks import generation, require_same_process
from sottovoce.ring.primes import P_FIELD

if TYPE_CHECKING:
    from sottovoce.net import Role

# Inner products of up to this many terms are made as such, longer ones from single products.
_FUSED_TERMS = 4

Kind = tuple[Any, ...]  # the name of a method and its arguments besides the number of items


class StockedSource(CorrelationSource):
    """Hands items out of stocks, one for each kind. `make` says where they come from."""

    def __init__(self, role: "Role") -> None:
        self.role = role
        self._process = generation()
        self.consumed = Counter()
        self._stocks: dict[Kind, Stock] = {}
        self._demand: Counter[Kind] = Counter()  # since the last refill

    @abstractmethod
    def make(self, key: Kind, n: int) -> Arrays | FoldedPads:
        """At least n new items of a kind; both parties call it alike. Kinds as in `prepare`."""

    def reserve(self, demand: Mapping[Kind, int]) -> None:  # noqa: B027  (a hook)
        """The demand is about to be made: do in one step what can be done for all of it."""

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
        """Made in rounded lengths, so that a growing context finds groups of its length."""
        vectors, scalars, products = self._take(self.kind("scalars", length), groups)
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
        self._fill(self.kind(kind, *arguments), n)

    def in_stock(self, kind: str, *arguments: Any) -> int:
        """How many items of a kind are ready."""
        key = self.kind(kind, *arguments)
        return len(self._stocks[key]) if key in self._stocks else 0

    def kind(self, kind: str, *arguments: Any) -> Kind:
        """The stock from which a request of these arguments is served."""
        if kind == "scalars":
            return kind, self._rounded(arguments[0])
        return (kind, tuple(arguments[0])) if kind == "wraps" else (kind, *arguments)

    @staticmethod
    def _rounded(length: int) -> int:
        """Powers of two below 32, multiples of 32 above."""
        return 1 << (length - 1).bit_length() if length < 32 else -(-length // 32) * 32

    def _take(self, key: Kind, n: int) -> Arrays:
        require_same_process(self._process)
        stock = self._stocks.get(key)
        if stock is None or not 0 < n <= len(stock):
            stock = self._fill(key, n)
        self.consumed[key[0]] += n
        self._demand[key] += n
        return stock.take(n)

    def _fill(self, key: Kind, n: int) -> Stock:
        if n < 1:
            raise ParameterError(f"{key[0]}: correlations are handed out one or more at a time, not {n}")
        stock = self._stocks.setdefault(key, Stock())
        if n > len(stock):
            stock.put(self.make(key, n - len(stock)))
        return stock

    def _forecast(self, tokens: int) -> dict[Kind, int]:
        """A token's share of the demand since the last refill, which is forgotten."""
        demand = {key: -(-n // tokens) for key, n in self._demand.items()}
        self._demand.clear()
        return demand
