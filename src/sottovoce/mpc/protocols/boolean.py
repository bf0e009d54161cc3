"""Protocols on XOR-shared bits: AND, conversion to arithmetic shares, bit times value (protocols.md 4.2,
4.3).

Leakage of all three: none; what is opened is masked by a one-time random bit or value.
"""

import numpy as np

from sottovoce.mpc import field
from sottovoce.mpc.field import Bits, Field
from sottovoce.mpc.protocols.wire import Party, Piece, Steps
from sottovoce.mpc.requests import And, Mux, ToArithmetic


def and_bits(party: Party, request: And) -> Steps[Bits]:
    """a ∧ b from a bit triple (Beaver). Cost: one exchange, 2 bits each way and element."""
    a, b = request.a, request.b
    ta, tb, tc = (bits.reshape(a.shape) for bits in party.source.ands(a.size))
    mine = np.stack([a ^ ta, b ^ tb])
    (theirs,) = yield [Piece(mine, 2)]
    d, e = mine ^ theirs
    result: Bits = tc ^ (d & tb) ^ (e & ta)
    return result ^ (d & e) if party.is_client else result


def to_arithmetic(party: Party, request: ToArithmetic) -> Steps[Field]:
    """The bit as a share of 0 or 1 mod M: open b ⊕ β = c, then b = c + (1 − 2c)·β. Cost: one exchange, 1
    bit each way.
    """
    shape, modulus = request.bit.shape, request.modulus
    bits, values = party.source.b2a(request.bit.size, modulus)
    mine = request.bit ^ bits.reshape(shape)
    (theirs,) = yield [Piece(mine, 2)]
    c = mine ^ theirs
    signed = field.negate_where(c, values.reshape(shape), modulus)
    own = c.astype(np.uint64) if party.is_client else np.zeros(shape, np.uint64)
    return field.add(own, signed, modulus)


def mux(party: Party, request: Mux) -> Steps[Field]:
    """bit · value mod M: open c = b ⊕ β and d = v − ν, then b·v = c·v + (1 − 2c)·(d·β + β·ν).

    Cost: one exchange, 1 bit and 1 residue each way and element.
    """
    shape, modulus = request.value.shape, request.modulus
    prepared = party.source.bit_values(request.value.size, modulus)
    my_bit = request.bit ^ prepared.bits.reshape(shape)
    my_value = field.sub(request.value, prepared.values.reshape(shape), modulus)
    bit_theirs, value_theirs = yield [Piece(my_bit, 2), Piece(my_value, modulus)]
    c: Bits = my_bit ^ bit_theirs
    d = field.add(my_value, value_theirs, modulus)
    inner = field.mul(d, prepared.arithmetic.reshape(shape), modulus)
    inner = field.add(inner, prepared.products.reshape(shape), modulus)
    own = request.value * c  # uint64 times a bit
    return field.add(own, field.negate_where(c, inner, modulus), modulus)
