"""Oblivious transfer between the two parties, in both directions, from one setup.

`OtExtension` keeps a stock of correlated OTs for each direction and turns them into what protocols use. All
methods are called by both parties in lockstep, the sender's variant at one and the receiver's at the other.
"""

import hashlib
import os
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sottovoce.errors import ParameterError
from sottovoce.net import Channel, Role, pack_bits, packed_size, unpack_bits
from sottovoce.ot.base import KEY_BYTES, POINT_BYTES, BaseReceiver, BaseSender
from sottovoce.ot.direction import GRANULE, TREES, CotReceiver, CotSender
from sottovoce.ot.folded import FoldedPads
from sottovoce.ot.ggm import DEPTH, chosen_sides, full_trees, punctured_trees
from sottovoce.ot.hashing import ZERO_OFFSET, combine_rows, hash_rows
from sottovoce.ot.modular import add_mod, bit_width, checked, reduce_words, sub_mod

U8 = npt.NDArray[np.uint8]
U64 = npt.NDArray[np.uint64]

_NONCE = 32
_BASE_OTS = TREES * DEPTH
MAX_M_BITS = 8


class OtExtension:
    """Random, 1-of-2^m and correlated OTs in both directions.

    Setup: 128 base OTs and 16 trees a direction, 3 exchanges, 8 256 bytes each way, about 30 ms of
    computation. Then 15/8 bytes an index from receiver to sender, in batches of at least `batch` (all that a
    call needs, if more). Leaks: nothing but the counts. Source: protocols.md 3; Roy, "SoftSpokenOT", 2022
    (semi-honest version).
    """

    def __init__(self, channel: Channel, batch: int = 1 << 16, threads: int = 1) -> None:
        if batch < GRANULE:
            raise ParameterError(f"oblivious transfers are made at least {GRANULE} at a time, not {batch}")
        self.channel = channel
        self._batch = batch
        with channel.ledger.operation("ot-setup"):
            self._send, self._receive = _set_up(channel, threads)

    @property
    def sent(self) -> int:
        """Indices used so far in the direction in which this party sends."""
        return self._send.issued

    @property
    def received(self) -> int:
        return self._receive.issued

    def reserve(self, send: int, receive: int) -> None:
        """Have at least so many indices in stock; both directions in one exchange.

        The other party calls with the two numbers swapped.
        """
        more_send = self._missing(self._send.available, send)
        more_receive = self._missing(self._receive.available, receive)
        if not more_send and not more_receive:
            return
        message = self._receive.extend(more_receive) if more_receive else np.empty(0, np.uint8)
        size = (TREES - 1) * more_send // 8
        with self.channel.ledger.operation("cot"):
            self.channel.ledger.count("cots", more_send + more_receive)
            if more_send and more_receive:
                # The own part of the computation comes before the exchange, so that both parties work at
                # once.
                self._send.begin(more_send)
                self._send.finish(self.channel.exchange(message, size))
            elif more_receive:
                self.channel.send(message)
            else:
                self._send.begin(more_send)
                self._send.finish(self.channel.recv(size))

    def send_cots(self, n: int) -> tuple[int, U64, U64]:
        """n correlated OTs, raw: (first index, rows q (n, 2), Δ (2,)). Callers must hash rows before use."""
        self.reserve(n, 0)
        first, rows = self._send.take(n)
        return first, rows, self._send.delta

    def receive_cots(self, n: int) -> tuple[int, U8, U64]:
        """n correlated OTs, raw: (first index, bits b (n,), rows t = q ⊕ b·Δ (n, 2))."""
        self.reserve(0, n)
        return self._receive.take(n)

    def send_random(self, n: int, m_bits: int = 1, words: int = 1) -> U64:
        """n random 1-of-2^m OTs as sender: pads (n, 2^m, words). Cost: m indices each."""
        return self.send_folded(n, m_bits, words).unfold()

    def send_folded(self, n: int, m_bits: int = 1, words: int = 1) -> FoldedPads:
        """The same with the hashing left for later: 16 bytes each until `unfold`."""
        _check_m(m_bits)
        first, rows, delta = self.send_cots(n * m_bits)
        return FoldedPads(combine_rows(rows, m_bits), delta, self._send.hash_key, first, m_bits, words)

    def receive_random(self, n: int, m_bits: int = 1, words: int = 1) -> tuple[U64, U64]:
        """The receiver's half: (indices (n,), pads (n, words))."""
        _check_m(m_bits)
        first, bits, rows = self.receive_cots(n * m_bits)
        weights = np.uint64(1) << np.arange(m_bits, dtype=np.uint64)
        index = (bits.reshape(n, m_bits) * weights).sum(axis=1, dtype=np.uint64)
        pads = hash_rows(self._receive.hash_key, combine_rows(rows, m_bits), ZERO_OFFSET, first, words)
        return index, pads[:, 0]

    def send_correlated(
        self, n: int, targets: Sequence[tuple[U64, int]], free: Sequence[int] = ()
    ) -> tuple[list[U64], list[tuple[U64, U64]]]:
        """n correlated OTs as sender: for targets (c (n,), M) returns r (n,) mod M each.

        The receiver gets random bits b (one for all targets) and r + b·c mod M. For every modulus in `free`
        the same OTs also give the sender two uniform residues (s_0, s_1) and the receiver s_b, free of cost.
        Cost: n indices, and one message of lg M bits for each target from sender to receiver (none without
        targets).
        """
        first, rows, delta = self.send_cots(n)
        offsets = np.stack([np.zeros(2, np.uint64), delta])
        moduli = [modulus for _, modulus in targets] + list(free)
        width = 2 * len(moduli)  # words for one entry: 128 bits a residue
        pads = hash_rows(self._send.hash_key, rows, offsets, first, width).reshape(n, 2 * width)
        both = [
            (reduce_words(pads, 2 * j, modulus), reduce_words(pads, width + 2 * j, modulus))
            for j, modulus in enumerate(moduli)
        ]
        message = []
        for (correlation, modulus), (zero, one) in zip(targets, both, strict=False):
            difference = sub_mod(add_mod(zero, correlation, modulus), one, modulus)
            message.append(pack_bits(difference, bit_width(modulus)))
        if message:
            self.channel.send(np.concatenate(message))
        return [zero for zero, _ in both[: len(targets)]], both[len(targets) :]

    def receive_correlated(
        self, n: int, moduli: Sequence[int], free: Sequence[int] = ()
    ) -> tuple[U8, list[U64], list[U64]]:
        """The receiver's half: (bits b (n,), r + b·c mod M for every target, s_b for every free modulus)."""
        first, bits, rows = self.receive_cots(n)
        width = 2 * (len(moduli) + len(free))
        pads = hash_rows(self._receive.hash_key, rows, ZERO_OFFSET, first, width).reshape(n, width)
        own = [reduce_words(pads, 2 * j, modulus) for j, modulus in enumerate([*moduli, *free])]
        if not moduli:
            return bits, [], own
        sizes = [packed_size(n, bit_width(modulus)) for modulus in moduli]
        message, at = self.channel.recv(sum(sizes)), 0
        choose = np.uint64(0) - bits.astype(np.uint64)
        for j, (modulus, size) in enumerate(zip(moduli, sizes, strict=True)):
            difference = checked(unpack_bits(message[at : at + size], n, bit_width(modulus)), modulus)
            own[j] = add_mod(own[j], difference & choose, modulus)
            at += size
        return bits, own[: len(moduli)], own[len(moduli) :]

    def _missing(self, available: int, wanted: int) -> int:
        """How many indices to make so that `wanted` are in stock."""
        if wanted <= available:
            return 0
        short = max(wanted - available, self._batch)
        return -(-short // GRANULE) * GRANULE


def _check_m(m_bits: int) -> None:
    if not 1 <= m_bits <= MAX_M_BITS:
        raise ParameterError(f"1-of-2^m transfers exist for m from 1 to {MAX_M_BITS}, not {m_bits}")


def _set_up(channel: Channel, threads: int) -> tuple[CotSender, CotReceiver]:
    """Base OTs and trees in both directions.

    Whoever sends OTs receives the base OTs: their choices are its Δ. Keys depend on what the handshake agreed
    on (`Channel.agreed`: model, parameters, options), so that parties which understood it differently share
    none.
    """
    nonce, base = os.urandom(_NONCE), BaseSender()
    theirs = bytes(channel.exchange(nonce + base.public, _NONCE + POINT_BYTES))
    nonces = (nonce, theirs[:_NONCE]) if channel.role == Role.CLIENT else (theirs[:_NONCE], nonce)
    outgoing, incoming = (
        hashlib.blake2b(
            b"".join(nonces) + bytes([sender]) + channel.agreed, person=b"sottovoce ot", digest_size=32
        ).digest()
        for sender in (channel.role, channel.role.other)
    )
    delta = np.frombuffer(os.urandom(TREES), np.uint8)
    choice = BaseReceiver(outgoing, theirs[_NONCE:], chosen_sides(delta).reshape(-1))
    answers = channel.exchange(choice.answers, _BASE_OTS * POINT_BYTES)
    leaves, sums = full_trees(TREES)
    offered = base.keys(incoming, answers).reshape(sums.shape) ^ sums
    masked = np.frombuffer(channel.exchange(offered, offered.size), np.uint8).reshape(_BASE_OTS, 2, KEY_BYTES)
    opened = choice.keys ^ _chosen(masked, chosen_sides(delta).reshape(-1))
    theirs_leaves = punctured_trees(delta, opened.reshape(TREES, DEPTH, KEY_BYTES))
    return (
        CotSender(delta, theirs_leaves, _hash_key(outgoing), threads),
        CotReceiver(leaves, _hash_key(incoming), threads),
    )


def _chosen(pairs: U8, choices: U8) -> U8:
    """pairs[i, choices[i]] without an index that depends on the choice."""
    mask = (np.uint8(0) - choices)[:, None]
    return pairs[:, 0] ^ ((pairs[:, 0] ^ pairs[:, 1]) & mask)


def _hash_key(session: bytes) -> bytes:
    """The AES key of this session's and direction's hash; public, but never the same twice."""
    return hashlib.blake2b(session, person=b"sottovoce othash", digest_size=16).digest()
