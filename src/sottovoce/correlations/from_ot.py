"""Correlations made from oblivious transfers. All arrays have leading axis n; every method is called in
lockstep.

The client's correlated OTs come from the server as sender wherever one direction is enough: the wider message
then goes down, which is the faster way on most links.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sottovoce.correlations.interface import U64, Bits
from sottovoce.correlations.stock import Arrays
from sottovoce.net import Role
from sottovoce.ot import FoldedPads, OtExtension
from sottovoce.ot.modular import add_mod, sub_mod
from sottovoce.ring.sampling import Stream


class OtMaker:
    """Makes what bits are needed for: wraps, conversions, ANDs, selections, and 1-of-2^m transfers."""

    def __init__(self, role: Role, ot: OtExtension) -> None:
        self._role = role
        self._ot = ot
        self._stream = Stream(purpose=b"correlation bits")

    def reserve(self, demand: Mapping[tuple[Any, ...], int]) -> None:
        """Have the indices in stock that so many items of these kinds will take; at most one exchange."""
        send = receive = 0
        for (kind, *arguments), n in demand.items():
            if kind in ("ands", "bit_values"):
                send, receive = send + n, receive + n
            elif kind in ("wraps", "b2a", "ots"):
                sender = arguments[0] if kind == "ots" else Role.SERVER
                count = n * int(arguments[1]) if kind == "ots" else n
                send, receive = (send + count, receive) if sender == self._role else (send, receive + count)
        self._ot.reserve(send, receive)

    def wraps(self, n: int, targets: Sequence[tuple[int, int]]) -> Arrays:
        """(β_i, shares of β0·β1·P mod M per target): β0 is the client's choice, the server offers β1·P.

        Cost: n indices from client to server, then one message down of lg M bits for each target.
        """
        if self._role == Role.CLIENT:
            bits, values, _ = self._ot.receive_correlated(n, [modulus for _, modulus in targets])
            return (bits, *values)
        own = self._stream.bits(n)
        mask = np.uint64(0) - own.astype(np.uint64)
        offered = [(mask & np.uint64(value % modulus), modulus) for value, modulus in targets]
        shares, _ = self._ot.send_correlated(n, offered)
        return (own, *(_negated(share, modulus) for share, (_, modulus) in zip(shares, targets, strict=True)))

    def b2a(self, n: int, modulus: int) -> Arrays:
        """(XOR share of β, share mod M): β = β1 + β0·(1 − 2·β1); the server offers 1 − 2·β1."""
        if self._role == Role.CLIENT:
            bits, values, _ = self._ot.receive_correlated(n, [modulus])
            return bits, values[0]
        own = self._stream.bits(n)
        shares, _ = self._ot.send_correlated(n, [(_sign(own, modulus), modulus)])
        return own, sub_mod(own.astype(np.uint64), shares[0], modulus)

    def ands(self, n: int) -> Arrays:
        """(a, b, c): a_i is the own choice, b_i the XOR of the two bits offered to the peer, so that the bit
        the peer receives is a_j·b_i ⊕ (the first bit offered). Cost: n indices each way, one exchange.
        """
        a, picked, zero, one, _ = self._both_ways(n, 2, conversion=False)
        first, b = zero.astype(np.uint8), (zero ^ one).astype(np.uint8)
        return a, b, (a & b) ^ picked.astype(np.uint8) ^ first

    def bit_values(self, n: int, modulus: int) -> Arrays:
        """(XOR share of β, shares of ν, β and β·ν mod M). With residues s0, s1 offered to the peer j, the own
        ν_i = (1 − 2·β_i)·(s1 − s0) is uniform, and what j picks is s0 + β_j·(1 − 2·β_i)·ν_i: the mixed part
        of β·ν = Σ_i β_i·ν_i + Σ_i β_j·(1 − 2·β_i)·ν_i. Only the arithmetic share of β takes a message.

        Cost: n indices each way in one exchange, then one message down of lg M bits each.
        """
        bits, picked, zero, one, arithmetic = self._both_ways(n, modulus, conversion=True)
        step = sub_mod(one, zero, modulus)
        mask = np.uint64(0) - bits.astype(np.uint64)
        value = (step & ~mask) | (_negated(step, modulus) & mask)
        product = add_mod(sub_mod(picked, zero, modulus), value & mask, modulus)
        return bits, value, arithmetic, product

    def ots(self, n: int, sender: Role, m_bits: int, words: int) -> Arrays | FoldedPads:
        """Sender: pads, still folded. Receiver: (indices, pads (n, words)). Cost: n·m indices."""
        if self._role == sender:
            return self._ot.send_folded(n, m_bits, words)
        return self._ot.receive_random(n, m_bits, words)

    def _both_ways(self, n: int, modulus: int, conversion: bool) -> tuple[Bits, U64, U64, U64, U64]:
        """One OT of uniform residues each way: own choices, the residues picked, and the two offered to the
        peer.

        With `conversion` also a share of the XOR of both choices, from a correlation on the OTs to the
        client.
        """
        self._ot.reserve(n, n)
        targets = [modulus] if conversion else []
        if self._role == Role.CLIENT:
            _, offered = self._ot.send_correlated(n, [], [modulus])
            bits, sums, picked = self._ot.receive_correlated(n, targets, [modulus])
            return bits, picked[0], *offered[0], sums[0] if conversion else picked[0]
        bits, _, picked = self._ot.receive_correlated(n, [], [modulus])
        signs = [(_sign(bits, modulus), modulus) for modulus in targets]
        shares, offered = self._ot.send_correlated(n, signs, [modulus])
        own = bits.astype(np.uint64)
        return bits, picked[0], *offered[0], sub_mod(own, shares[0], modulus) if conversion else picked[0]


def _sign(bits: Bits, modulus: int) -> U64:
    """1 − 2·bit mod M."""
    mask = np.uint64(0) - bits.astype(np.uint64)
    return (np.uint64(1) & ~mask) | (np.uint64(modulus - 1) & mask)


def _negated(x: U64, modulus: int) -> U64:
    return sub_mod(np.zeros_like(x), x, modulus)
