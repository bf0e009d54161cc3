"""Correlations from one hand: both halves of every kind, most of them expanded from two seeds.

A dealer gives each party a seed. Of every item each party expands what is random in its half; the client's
shares of the results are random too, and what is left is computed by the dealer and sent: the server's
shares of them, or the pads that the receiver of an OT chose.
"""

from dataclasses import dataclass

import numpy as np

from sottovoce.correlations.interface import U64
from sottovoce.correlations.stock import Arrays
from sottovoce.correlations.stocked import Kind
from sottovoce.errors import ParameterError
from sottovoce.net import Role, packed_size
from sottovoce.net.codec import pack_bits, unpack_bits
from sottovoce.ot import FoldedPads
from sottovoce.ot.hashing import ZERO_OFFSET, hash_rows, polynomial_multiples
from sottovoce.ot.modular import add_mod, bit_width, checked, mul_field, sub_mod, sum_mod
from sottovoce.ring.primes import P_FIELD
from sottovoce.ring.sampling import Stream

# Values of one request at most: a dealer works for strangers.
MOST_VALUES = 1 << 26
_XOR = 2  # the modulus of bits


@dataclass
class Hand:
    """One party's seed and how far it is used; the dealer holds both parties'. Never used twice."""

    role: Role
    seed: bytes
    hash_key: bytes  # of the OTs' pads; public
    requests: int = 0
    transfers: int = 0

    def next(self) -> Stream:
        """The randomness of one request."""
        self.requests += 1
        return Stream(self.seed, b"dealt items", self.requests)

    def delta(self) -> U64:
        return Stream(self.seed, b"dealt delta").words(2)

    def number(self, n: int) -> int:
        """The first of n new indices of transfers."""
        self.transfers += n
        return self.transfers - n


def recipient(key: Kind) -> Role:
    """Who gets something explicit of a kind."""
    return key[1].other if key[0] == "ots" else Role.SERVER


def random_part(hand: Hand, key: Kind, n: int) -> Arrays | FoldedPads:
    """What a party's half has from its seed: all of it, or all but the last arrays (`explicit_size`)."""
    stream = hand.next()
    if key[0] == "ots":
        _, sender, m_bits, words = key
        first = hand.number(n)
        if hand.role is sender:
            hash_key = np.frombuffer(hand.hash_key, np.uint8)
            return FoldedPads(stream.words(n, 2), hand.delta(), hash_key, first, m_bits, words)
        return (stream.uniform(1 << m_bits, n),)
    own = _factors(stream, key, n)
    if hand.role is Role.SERVER:
        return own
    return (*own, *(_uniform(stream, modulus, shape) for modulus, shape in _results(key, n)))


def explicit_part(key: Kind, client: Arrays | FoldedPads, server: Arrays | FoldedPads) -> bytes:
    """The dealer's work: what `recipient` gets, from both random parts. Packed, see `explicit_size`."""
    if key[0] == "ots":
        pads, indices = (server, client) if isinstance(server, FoldedPads) else (client, server)
        assert isinstance(pads, FoldedPads) and not isinstance(indices, FoldedPads)
        multiples = polynomial_multiples(pads.delta, pads.m_bits)[indices[0].astype(np.int64)]
        chosen = hash_rows(pads.hash_key, pads.rows ^ multiples, ZERO_OFFSET, pads.first, pads.words)
        return chosen.tobytes()
    assert not isinstance(client, FoldedPads) and not isinstance(server, FoldedPads)
    own = len(server)
    values, n = _values(key, client[:own], server), len(server[0])
    pieces = []
    for value, share, (modulus, _) in zip(values, client[own:], _results(key, n), strict=True):
        difference = value ^ share if modulus == _XOR else sub_mod(value, share, modulus)
        pieces.append(pack_bits(difference, bit_width(modulus)).tobytes())
    return b"".join(pieces)


def explicit_size(key: Kind, n: int) -> int:
    """Bytes of `explicit_part`."""
    if key[0] == "ots":
        return 8 * n * int(key[3])
    return sum(packed_size(int(np.prod(shape)), bit_width(modulus)) for modulus, shape in _results(key, n))


def completed(key: Kind, own: Arrays, explicit: memoryview) -> Arrays:
    """The recipient's half. IntegrityError if the dealer sent what is not possible."""
    n, at = len(own[0]), 0
    if key[0] == "ots":
        return (*own, np.frombuffer(explicit, np.uint64).reshape(n, -1))
    results = []
    for modulus, shape in _results(key, n):
        count = int(np.prod(shape))
        size = packed_size(count, bit_width(modulus))
        values = checked(unpack_bits(explicit[at : at + size], count, bit_width(modulus)), modulus)
        results.append(values.astype(np.uint8) if modulus == _XOR else values.reshape(shape))
        at += size
    return (*own, *results)


def check(key: Kind, n: int) -> None:
    """ParameterError for a request that is not to be served."""
    kind, *arguments = key
    sizes = {"wraps": 2, "ands": 1, "bit_values": 3, "b2a": 2, "triples": 2, "squares": 2}
    if kind in ("scalars", "cross_products"):
        values = 2 * arguments[0]
    elif kind == "ots":
        values = arguments[2] + 2
        if not 1 <= arguments[1] <= 8:
            raise ParameterError("1-of-2^m transfers exist for m from 1 to 8")
    else:
        values = sizes.get(kind, 0) + (len(arguments[0]) if kind == "wraps" else 0)
    if not 0 < values <= MOST_VALUES or not 0 < n <= MOST_VALUES // values:
        raise ParameterError(f"a dealer does not deal {n} items of the kind {kind!r:.20}")


def _factors(stream: Stream, key: Kind, n: int) -> Arrays:
    """The random arrays at the beginning of both parties' halves."""
    match key:
        case ("wraps", _) | ("b2a", _):
            return (stream.bits(n),)
        case ("ands",):
            return stream.bits(n), stream.bits(n)
        case "bit_values", modulus:
            return stream.bits(n), stream.uniform(modulus, n)
        case ("triples",):
            return stream.uniform(P_FIELD, n), stream.uniform(P_FIELD, n)
        case ("squares",):
            return (stream.uniform(P_FIELD, n),)
        case "scalars", length:
            return stream.uniform(P_FIELD, n, length), stream.uniform(P_FIELD, n)
        case "cross_products", terms:
            return (stream.uniform(P_FIELD, n, terms),)
    raise ParameterError(f"a dealer does not deal {key[0]!r:.20}")


def _results(key: Kind, n: int) -> list[tuple[int, tuple[int, ...]]]:
    """(modulus, shape) of the arrays behind them: shares of functions of both parties' factors."""
    match key:
        case "wraps", targets:
            return [(modulus, (n,)) for _, modulus in targets]
        case ("ands",):
            return [(_XOR, (n,))]
        case "bit_values", modulus:
            return [(modulus, (n,)), (modulus, (n,))]
        case "b2a", modulus:
            return [(modulus, (n,))]
        case "scalars", length:
            return [(P_FIELD, (n, length))]
    return [(P_FIELD, (n,))]


def _values(key: Kind, a: Arrays, b: Arrays) -> list[U64]:
    """The functions themselves, of the client's factors a and the server's b."""
    match key:
        case "wraps", targets:
            both = np.uint64(0) - (a[0] & b[0]).astype(np.uint64)
            return [both & np.uint64(value % modulus) for value, modulus in targets]
        case ("ands",):
            return [(a[0] ^ b[0]) & (a[1] ^ b[1])]  # type: ignore[list-item]
        case "bit_values", modulus:
            bit = (a[0] ^ b[0]).astype(np.uint64)
            return [bit, add_mod(a[1], b[1], modulus) & (np.uint64(0) - bit)]
        case "b2a", _:
            return [(a[0] ^ b[0]).astype(np.uint64)]
        case "cross_products", terms:
            products = np.stack([mul_field(a[0][:, i], b[0][:, i]) for i in range(terms)], axis=1)
            return [sum_mod(products, P_FIELD)]
    left, right = add_mod(a[0], b[0], P_FIELD), add_mod(a[-1], b[-1], P_FIELD)
    if key[0] == "scalars":
        right = np.broadcast_to(right[:, None], left.shape)
    return [mul_field(left, right)]


def _uniform(stream: Stream, modulus: int, shape: tuple[int, ...]) -> U64:
    return stream.bits(*shape) if modulus == _XOR else stream.uniform(modulus, *shape)  # type: ignore[return-value]
