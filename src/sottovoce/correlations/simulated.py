"""Correlations that both parties compute from one shared seed: for tests and for the clear engine only.

Whoever holds the seed knows both halves of every item, so nothing is private. The source therefore refuses to
be used on anything but an in-memory channel between two threads of one process.
"""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from sottovoce.correlations.interface import (
    U64,
    Ands,
    Bits,
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
from sottovoce.errors import RefusedError
from sottovoce.ot.modular import add_mod, mul_field, sub_mod
from sottovoce.ring.primes import P_FIELD

if TYPE_CHECKING:
    from sottovoce.net import Channel, Role


class SimulatedSource(CorrelationSource):
    """Every item from `shared_seed` and the number of the call; no communication, no security."""

    def __init__(self, role: "Role", shared_seed: int, channel: "Channel | None" = None) -> None:
        self.role = role
        self.consumed = Counter()
        self._seed = shared_seed
        self._calls = 0
        if channel is not None:
            self.bind(channel)

    def bind(self, channel: "Channel") -> None:
        """Refuse a channel that leaves the process: there the items would protect nothing."""
        if channel.is_network:
            raise RefusedError(
                "simulated correlations were asked for on a network channel; both parties know all of them,"
                " so nothing would be private. Use PairSource."
            )

    def wraps(self, n: int, targets: Sequence[tuple[int, int]]) -> Wraps:
        rng = self._next("wraps", n)
        bits = _random_bits(rng, (2, n))
        both = bits[0] & bits[1]
        products = []
        for value, modulus in targets:
            constant = np.uint64(value % modulus)
            products.append(self._share(rng, both.astype(np.uint64) * constant, modulus))
        return Wraps(bits[self.role], products)

    def ands(self, n: int) -> Ands:
        rng = self._next("ands", n)
        a, b = _random_bits(rng, (2, n)), _random_bits(rng, (2, n))
        return Ands(a[self.role], b[self.role], self._xor_share(rng, (a[0] ^ a[1]) & (b[0] ^ b[1])))

    def bit_values(self, n: int, modulus: int) -> BitValues:
        rng = self._next("bit_values", n)
        bit, value = _random_bits(rng, (n,)), _random_elements(rng, (n,), modulus)
        wide = bit.astype(np.uint64)
        return BitValues(
            self._xor_share(rng, bit),
            self._share(rng, value, modulus),
            self._share(rng, wide, modulus),
            self._share(rng, wide * value, modulus),
        )

    def b2a(self, n: int, modulus: int) -> SharedBits:
        rng = self._next("b2a", n)
        bit = _random_bits(rng, (n,))
        return SharedBits(self._xor_share(rng, bit), self._share(rng, bit.astype(np.uint64), modulus))

    def send_ots(self, n: int, m_bits: int, words: int = 1) -> U64:
        pads, _ = self._ots(n, m_bits, words)
        return pads

    def receive_ots(self, n: int, m_bits: int, words: int = 1) -> ChosenPads:
        pads, index = self._ots(n, m_bits, words)
        return ChosenPads(index, pads[np.arange(n), index])

    def triples(self, n: int) -> Triples:
        rng = self._next("triples", n)
        a, b = _random_elements(rng, (n,), P_FIELD), _random_elements(rng, (n,), P_FIELD)
        c = mul_field(a, b)
        return Triples(*(self._share(rng, x, P_FIELD) for x in (a, b, c)))

    def squares(self, n: int) -> Squares:
        rng = self._next("squares", n)
        a = _random_elements(rng, (n,), P_FIELD)
        return Squares(self._share(rng, a, P_FIELD), self._share(rng, mul_field(a, a), P_FIELD))

    def scalars(self, groups: int, length: int) -> Scalars:
        rng = self._next("scalars", groups * length)
        r, t = _random_elements(rng, (groups, length), P_FIELD), _random_elements(rng, (groups,), P_FIELD)
        c = mul_field(r, np.broadcast_to(t[:, None], r.shape))
        return Scalars(*(self._share(rng, x, P_FIELD) for x in (r, t, c)))

    def cross_products(self, n: int, terms: int = 1) -> CrossProducts:
        rng = self._next("cross_products", n * terms)
        factors = _random_elements(rng, (2, n, terms), P_FIELD)
        total = np.zeros(n, np.uint64)
        for term in range(terms):
            total = add_mod(total, mul_field(factors[0, :, term], factors[1, :, term]), P_FIELD)
        return CrossProducts(factors[self.role], self._share(rng, total, P_FIELD))

    def _next(self, kind: str, items: int) -> np.random.Generator:
        """The generator of this call: the same at both parties as long as they are in lockstep."""
        self.consumed[kind] += items
        self._calls += 1
        return np.random.default_rng([self._seed, self._calls, *kind.encode()])

    def _ots(self, n: int, m_bits: int, words: int) -> tuple[U64, U64]:
        rng = self._next("ots", n)
        pads = _random_elements(rng, (n, 1 << m_bits, words), 1 << 64)
        return pads, _random_elements(rng, (n,), 1 << m_bits)

    def _share(self, rng: np.random.Generator, value: U64, modulus: int) -> U64:
        """This party's additive share of `value`, which both parties know."""
        mask = _random_elements(rng, value.shape, modulus)
        return mask if self.role == 0 else sub_mod(value, mask, modulus)

    def _xor_share(self, rng: np.random.Generator, bit: Bits) -> Bits:
        mask = _random_bits(rng, bit.shape)
        return mask if self.role == 0 else bit ^ mask


def _random_bits(rng: np.random.Generator, shape: tuple[int, ...]) -> Bits:
    return rng.integers(0, 2, shape, dtype=np.uint8)


def _random_elements(rng: np.random.Generator, shape: tuple[int, ...], modulus: int) -> U64:
    return rng.integers(0, modulus - 1, shape, dtype=np.uint64, endpoint=True)
