"""What a source of correlations hands out, whoever produced it.

A *correlation* is a random item of which each party holds one half, made before the data is known. Protocols
spend one to turn an expensive step (a product of secret values) into the opening of a masked value. Notation:
a value with suffix 0 belongs to the client, with suffix 1 to the server; arithmetic shares add up modulo M,
boolean shares XOR.

Rules of every source:

- Both parties call the same method with the same arguments in the same order (lockstep).
- An item is handed out once. `consumed` counts items per kind; a second use is impossible through this
  interface.
- Each party's half alone is uniformly random, or as stated for the item.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from sottovoce.net import Channel, Role

U64 = npt.NDArray[np.uint64]
Bits = npt.NDArray[np.uint8]


class Wraps(NamedTuple):
    """Material of one wrap bit each: own random bits, and shares of β0·β1·P mod M for every target (P, M)."""

    bits: Bits  # (n,) the own bit β_i, known to this party only; not a share
    products: list[U64]  # one (n,) array for each target


class Ands(NamedTuple):
    """AND triples, XOR-shared: c = a ∧ b."""

    a: Bits
    b: Bits
    c: Bits


class BitValues(NamedTuple):
    """A random bit times a random value, for MUX: with c = b ⊕ β and d = v − ν opened,
    b·v = c·v + (1 − 2c)·(d·β + β·ν), where the first β is `arithmetic`."""

    bits: Bits  # (n,) XOR share of β
    values: U64  # (n,) share of ν mod M
    arithmetic: U64  # (n,) share of β mod M
    products: U64  # (n,) share of β·ν mod M


class SharedBits(NamedTuple):
    """The same random bit shared in both ways, for boolean to arithmetic conversion."""

    bits: Bits  # (n,) XOR share of β
    values: U64  # (n,) share of β mod M


class ChosenPads(NamedTuple):
    """The receiver's half of random 1-of-2^m OTs."""

    indices: U64  # (n,) uniform in [0, 2^m)
    pads: U64  # (n, words): the sender's pads[i, indices[i]]


class Triples(NamedTuple):
    """Element products: c = a·b mod p."""

    a: U64
    b: U64
    c: U64


class Squares(NamedTuple):
    """Squares: c = a² mod p."""

    a: U64
    c: U64


class Scalars(NamedTuple):
    """A random scalar times a random vector, per group: products = scalars[:, None] · vectors mod p."""

    vectors: U64  # (groups, length)
    scalars: U64  # (groups,)
    products: U64  # (groups, length)


class CrossProducts(NamedTuple):
    """Inner products of the client's random vectors with the server's."""

    factors: U64  # (n, terms): own factors, known to this party only; not shares
    products: U64  # (n,) share of Σ_l factors0[:, l]·factors1[:, l] mod p


class CorrelationSource(ABC):
    """One-time material for the protocols of `mpc`. Costs of the real source are in `pair.py`."""

    role: "Role"
    consumed: Counter[str]

    def bind(self, channel: "Channel") -> None:  # noqa: B027  (a hook: most sources accept every channel)
        """Called once by the protocol layer with the channel on which the items will be spent.

        Raises RefusedError where items of this source would be insecure on that channel.
        """

    def refill(self, tokens: int = 1) -> None:  # noqa: B027  (a hook: not every source makes ahead)
        """Make ahead what one token takes, in few messages; both parties call it between two tokens.

        tokens: how many tokens were processed since the last refill; a token's share of what they consumed is
        what the next one is expected to take.
        """

    def expect(self, tokens: int, length: int) -> None:  # noqa: B027  (a hook: most sources do not foresee)
        """A forward pass over `tokens` tokens behind `length` others begins: have in stock what it will take.

        Both parties call it before every pass.
        """

    def close(self) -> None:  # noqa: B027  (a hook)
        """The session is over: release what outlives it."""

    @abstractmethod
    def wraps(self, n: int, targets: Sequence[tuple[int, int]]) -> Wraps:
        """n wrap-bit items for targets (P, M): P is taken mod M; M a prime below 2^63, or 2^k with k ≤ 64."""

    @abstractmethod
    def ands(self, n: int) -> Ands:
        """n AND triples."""

    @abstractmethod
    def bit_values(self, n: int, modulus: int) -> BitValues:
        """n products of a random bit with a random value mod M."""

    @abstractmethod
    def b2a(self, n: int, modulus: int) -> SharedBits:
        """n random bits shared by XOR and mod M."""

    @abstractmethod
    def send_ots(self, n: int, m_bits: int, words: int = 1) -> U64:
        """n random 1-of-2^m OTs with this party as sender: pads (n, 2^m, words), all uniform 64-bit words.

        The peer calls `receive_ots` with the same arguments. 1 ≤ m ≤ 8.
        """

    @abstractmethod
    def receive_ots(self, n: int, m_bits: int, words: int = 1) -> ChosenPads:
        """n random 1-of-2^m OTs with this party as receiver: uniform indices and those entries' pads."""

    @abstractmethod
    def triples(self, n: int) -> Triples:
        """n element products in the field."""

    @abstractmethod
    def squares(self, n: int) -> Squares:
        """n squares in the field."""

    @abstractmethod
    def scalars(self, groups: int, length: int) -> Scalars:
        """For each group one random scalar times a random vector of `length` field elements."""

    @abstractmethod
    def cross_products(self, n: int, terms: int = 1) -> CrossProducts:
        """n inner products, each of `terms` factors of the client with as many of the server."""
