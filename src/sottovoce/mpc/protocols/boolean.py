"""Protocols on XOR-shared bits: AND, conversion to arithmetic shares, bit times value (protocols.md 4.2,
4.3).

Leakage of all three: none; what is opened is masked by a one-time random bit or value.
"""

import numpy as np

from sottovoce import _native
from sottovoce.mpc.field import Bits, Field, width
from sottovoce.mpc.protocols.wire import Party, Steps, intact
from sottovoce.mpc.requests import And, Mux, ToArithmetic
from sottovoce.net import packed_size


def and_bits(party: Party, request: And) -> Steps[Bits]:
    """a ∧ b from a bit triple (Beaver). Cost: one exchange, 2 bits each way and element."""
    a, b = np.ascontiguousarray(request.a), np.ascontiguousarray(request.b)
    ta, tb, tc = party.source.ands(a.size)
    mine, packed = np.empty(2 * a.size, np.uint8), np.empty(packed_size(2 * a.size, 1), np.uint8)
    _native.and_open(a, b, ta, tb, mine, packed)
    theirs = yield packed
    result: Bits = np.empty(a.shape, np.uint8)
    intact(_native.and_share(mine, theirs, ta, tb, tc, party.is_client, result))
    return result


def to_arithmetic(party: Party, request: ToArithmetic) -> Steps[Field]:
    """The bit as a share of 0 or 1 mod M: open b ⊕ β = c, then b = c + (1 − 2c)·β. Cost: one exchange, 1
    bit each way.
    """
    bit = np.ascontiguousarray(request.bit)
    bits, values = party.source.b2a(bit.size, request.modulus)
    mine, packed = np.empty(bit.size, np.uint8), np.empty(packed_size(bit.size, 1), np.uint8)
    _native.bits_open(bit, bits, mine, packed)
    theirs = yield packed
    result: Field = np.empty(bit.shape, np.uint64)
    intact(_native.bit_share(mine, theirs, values, request.modulus, party.is_client, result))
    return result


def mux(party: Party, request: Mux) -> Steps[Field]:
    """bit · value mod M: open c = b ⊕ β and d = v − ν, then b·v = c·v + (1 − 2c)·(d·β + β·ν).

    Cost: one exchange, 1 bit and 1 residue each way and element.
    """
    bit, value = np.ascontiguousarray(request.bit), np.ascontiguousarray(request.value)
    n, modulus = value.size, request.modulus
    prepared = party.source.bit_values(n, modulus)
    my_bits, my_values = np.empty(n, np.uint8), np.empty(n, np.uint64)
    bits = packed_size(n, 1)
    packed = np.empty(bits + packed_size(n, width(modulus)), np.uint8)
    _native.bits_open(bit, prepared.bits, my_bits, packed[:bits])
    _native.residues_open(value, prepared.values, modulus, my_values, packed[bits:])
    theirs = yield packed
    result: Field = np.empty(value.shape, np.uint64)
    intact(
        _native.mux_share(
            value, my_bits, my_values, theirs, prepared.arithmetic, prepared.products, modulus, result
        )
    )
    return result
