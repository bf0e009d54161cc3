"""The client's half of a session with nobody at the other end: what it would send and receive, to the byte.

Everything that travels follows from public shapes, so the real session code runs on zeros. Only what is
cryptography is replaced by its sizes: ciphertexts, oblivious transfers, products of masks, prepared matrices.
The ledger of such a session has the bytes and rounds of a real one (a test compares them). Its counters say
what work is left out: `he_us` (microseconds of homomorphic products on the machine of `packing.CostModel`),
`he_sent` and `he_returned` (ciphertexts), `mask_cts` (small ciphertexts of mask products), `cots`,
`prepared_macs` (multiplications of prepared matrices, made or used).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sottovoce.bgv import flooded_bytes, fresh_bytes
from sottovoce.correlations.coefficients import CoefficientKey
from sottovoce.correlations.cross import CrossMaker
from sottovoce.correlations.hints import ROWS, MatrixKey
from sottovoce.correlations.mask_products import MaskLayout, MaskProducts
from sottovoce.correlations.matrix_maker import FEATURES, OUTPUTS
from sottovoce.correlations.shelf import NoShelf
from sottovoce.dense import DENSE, SENT_BYTES, answer_bytes, public_key_bytes
from sottovoce.dense import fresh_bytes as prepared_input_bytes
from sottovoce.engines.base import EngineOptions, Progress
from sottovoce.engines.hybrid.execution import PARAMETERS, Execution
from sottovoce.engines.hybrid.linears import HomomorphicLinears, matrix_shapes
from sottovoce.engines.hybrid.parties import HybridDataParty
from sottovoce.engines.hybrid.prepared import PreparedLinears, Result, model_shapes
from sottovoce.engines.hybrid.rehearsal import Nobody
from sottovoce.engines.hybrid.repeating import RepeatingDecoder, TapedLedger, TapedSource
from sottovoce.engines.public import PublicModel
from sottovoce.kvcache.masked import MaskedCache
from sottovoce.mpc.linear import rotation_steps
from sottovoce.mpc.requests import Share
from sottovoce.net import Channel, Role
from sottovoce.net.codec import packed_size
from sottovoce.ot import OtExtension
from sottovoce.ot.base import KEY_BYTES, POINT_BYTES
from sottovoce.ot.direction import TREES
from sottovoce.ot.ggm import DEPTH
from sottovoce.ot.modular import bit_width
from sottovoce.packing import DataSide, exchange_keys, give_back_bytes, group_tokens, upload_bytes
from sottovoce.packing.cost import CostModel

_SERVER = CostModel(sent=0.0, returned=0.0)  # ciphertexts are counted where they travel

U8 = npt.NDArray[np.uint8]
U64 = npt.NDArray[np.uint64]


class CountingParty(HybridDataParty):
    """A client of the hybrid engine whose sessions cost only what they would cost."""

    def __init__(self, options: EngineOptions, public: PublicModel) -> None:
        super().__init__(options, public.to_json())

    def setup(self, channel: Channel, progress: Progress | None = None) -> None:
        ledger, config = channel.ledger, self.public.config
        with ledger.operation("keys"):
            steps = rotation_steps(matrix_shapes(config).values())
            side = _Side(**vars(exchange_keys(channel, steps, PARAMETERS)))
        with ledger.operation("oblivious transfer"):
            source = TapedSource(channel, side, _Transfers(channel))
            source._cross = _Cross(channel, side)
        linears = _Linears(channel, self.public, side)
        with ledger.operation("pool"):
            NoShelf().borrow(channel)
        kv = self.options.kv
        self._execution = Execution(channel, self.public, side, source, linears, None, None, kv)
        for cache in self._execution.caches[:1]:
            if isinstance(cache, MaskedCache):
                cache.source._maker._products = _Products(channel)
        if isinstance(ledger, TapedLedger):
            self._execution.decoder = RepeatingDecoder(self._execution.decoder, ledger, self._skip)

    def _skip(self, layer: int, tokens: int) -> None:
        """Material is made when all layers are at the same token."""
        cache = self.execution.caches[layer]
        if isinstance(cache, MaskedCache):
            cache.source.append(layer, tokens)


def nobody(repeating: bool = True) -> Channel:
    """A channel for such a session. repeating: of equal blocks only one is run; same figures, much sooner."""
    channel = Nobody(Role.CLIENT)
    if repeating:
        channel.ledger = TapedLedger()
    return channel


@dataclass(frozen=True)
class _Side(DataSide):
    """Ciphertexts by their sizes."""

    def upload(self, slots: U64) -> None:
        self.channel.ledger.count("he_sent", len(slots))
        self.channel.send(np.zeros(upload_bytes(self.parameters, len(slots)), np.uint8))

    def take_back(self, count: int) -> U64:
        self.channel.ledger.count("he_returned", count)
        self.channel.recv(give_back_bytes(self.parameters, count))
        return np.zeros((count, self.parameters.degree), np.uint64)


class _Cross(CrossMaker):
    """Products of factors: one frame up and one down for each batch."""

    def _sums(self, factors: U64) -> U64:
        self._channel.ledger.count("he_sent", factors.shape[0] * factors.shape[1])
        self._channel.ledger.count("he_returned", len(factors))
        for _ in factors:
            self._channel.send(np.zeros(fresh_bytes(self._parameters, factors.shape[1]), np.uint8))
        for _ in factors:
            self._channel.recv(flooded_bytes(self._parameters, 1))
        return np.zeros((len(factors), self.slots), np.uint64)


class _Direction:
    """Indices made and not yet used."""

    def __init__(self) -> None:
        self.available = 0

    def extend(self, count: int) -> U8:
        self.available += count
        return np.zeros((TREES - 1) * count // 8, np.uint8)

    def begin(self, count: int) -> None:
        self.available += count

    def finish(self, message: memoryview) -> None:
        pass


class _Transfers(OtExtension):
    """Oblivious transfers without secrets: `reserve` is the real one."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self._batch = 1 << 16
        self._send, self._receive = _Direction(), _Direction()  # type: ignore[assignment]
        base = TREES * DEPTH
        with channel.ledger.operation("ot-setup"):
            for size in (32 + POINT_BYTES, base * POINT_BYTES, base * 2 * KEY_BYTES):
                channel.exchange(bytes(size), size)

    def send_folded(self, n: int, m_bits: int = 1, words: int = 1) -> tuple[U64]:  # type: ignore[override]
        self.reserve(n * m_bits, 0)
        self._send.available -= n * m_bits  # type: ignore[misc]
        return (np.broadcast_to(np.zeros((), np.uint64), (n, 1 << m_bits, words)),)

    def receive_random(self, n: int, m_bits: int = 1, words: int = 1) -> tuple[U64, U64]:
        self.reserve(0, n * m_bits)
        self._receive.available -= n * m_bits  # type: ignore[misc]
        return np.zeros(n, np.uint64), np.zeros((n, words), np.uint64)

    def send_correlated(
        self, n: int, targets: Sequence[tuple[U64, int]], free: Sequence[int] = ()
    ) -> tuple[list[U64], list[tuple[U64, U64]]]:
        self.reserve(n, 0)
        self._send.available -= n  # type: ignore[misc]
        zeros = np.zeros(n, np.uint64)
        if targets:
            self.channel.send(bytes(sum(packed_size(n, bit_width(modulus)) for _, modulus in targets)))
        return [zeros] * len(targets), [(zeros, zeros)] * len(free)

    def receive_correlated(
        self, n: int, moduli: Sequence[int], free: Sequence[int] = ()
    ) -> tuple[U8, list[U64], list[U64]]:
        self.reserve(0, n)
        self._receive.available -= n  # type: ignore[misc]
        zeros = np.zeros(n, np.uint64)
        if moduli:
            self.channel.recv(sum(packed_size(n, bit_width(modulus)) for modulus in moduli))
        return np.zeros(n, np.uint8), [zeros] * len(moduli), [zeros] * len(free)


class _Products(MaskProducts):
    """Products of masks: two exchanges of the layouts' sizes."""

    def multiply(self, pairs: list[tuple[U64, U64]]) -> list[U64]:
        self.keys()
        sent = returned = 0
        for x, y in pairs:
            layout = MaskLayout.plan(x.shape[1], x.shape[2], y.shape[2])
            sent += len(x) * layout.sent
            returned += len(x) * layout.returned
            self._channel.ledger.count("mask_cts", len(x) * (layout.inputs + layout.outputs))
        for size in (sent, returned):
            self._channel.exchange(np.zeros(size, np.uint8), size)
        return [np.zeros((len(x), x.shape[1], y.shape[2]), np.uint64) for x, y in pairs]

    def keys(self) -> tuple[CoefficientKey, object]:  # type: ignore[override]
        if self._own is None:
            self._own = CoefficientKey.generate()
            public = self._own.public.to_bytes()
            self._channel.exchange(public, len(public))
        return self._own, None


class _Stock:
    """Prepared products by number."""

    def __init__(self, keys: Iterable[MatrixKey]) -> None:
        self.shapes = list(keys)
        self._left: Counter[MatrixKey] = Counter()

    def available(self, key: MatrixKey) -> int:
        return self._left[key]

    def add(self, key: MatrixKey, n: int) -> None:
        self._left[key] += n


class _Linears(PreparedLinears):
    """Matrices: the real choice between prepared and online products."""

    def __init__(self, channel: Channel, public: PublicModel, side: DataSide) -> None:
        super().__init__(channel, public.config, HomomorphicLinears(public, side, None), None, None)
        self._shapes = model_shapes(public.config)
        self.stock = _Stock(self._shapes)  # type: ignore[assignment]
        self._has_hints = False

    def prepare(self, tokens: int, keys: Iterable[MatrixKey] | None = None, progress: object = None) -> None:
        """The hints, once, and batches of products: what `MatrixMaker.make` sends and receives."""
        ledger, chosen = self._channel.ledger, list(self._shapes if keys is None else keys)
        with ledger.phase("offline"), ledger.operation("matrix hints"):
            self._take_hints()
        batches = -(-tokens // DENSE.block)
        with ledger.phase("offline"), ledger.operation("matrix products"):
            for number in range(batches):
                self._batch(tokens * (number + 1) // batches - tokens * number // batches, chosen)
        for key in chosen:
            d_out, d_in = self._shapes[key]
            ledger.count("prepared_macs", tokens * d_out * d_in)
            self.stock.add(key, tokens)  # type: ignore[attr-defined]

    def _take_hints(self) -> None:
        if self._has_hints:
            return
        self._has_hints = True
        self._channel.recv(64)
        self._channel.send(b"\0")
        for d_out, _ in self._shapes.values():
            for first in range(0, d_out, ROWS):
                self._channel.recv(min(ROWS, d_out - first) * SENT_BYTES * DENSE.degree)

    def _batch(self, n: int, keys: list[MatrixKey]) -> None:
        self._channel.send(bytes(public_key_bytes(DENSE)))
        for i in range(len(keys) + 2):
            if i < len(keys):
                for size in _cut(self._shapes[keys[i]][1], FEATURES):
                    self._channel.send(np.zeros(prepared_input_bytes(size, n), np.uint8))
            if i >= 2:
                for size in _cut(self._shapes[keys[i - 2]][0], OUTPUTS):
                    self._channel.recv(answer_bytes(size, n))

    def _unprepared(self, key: MatrixKey, x: Share, online: Callable[[Share], Result]) -> Result:
        groups = group_tokens(*self._shapes[key], len(x), PARAMETERS.degree)
        self._channel.ledger.count(
            "he_us", round(1000 * sum(group.milliseconds(_SERVER) for group in groups))
        )
        return super()._unprepared(key, x, online)

    def _prepared(self, key: MatrixKey, x: Share) -> Share:
        with self._channel.ledger.operation("prepared"):
            self._channel.ledger.count("prepared_macs", x.size * self._shapes[key][0])
            self._spend(key, len(x))
            self._channel.send(np.zeros(packed_size(x.size, 43), np.uint8))
            return np.zeros((len(x), self._shapes[key][0]), np.uint64)

    def _spend(self, key: MatrixKey, tokens: int) -> None:
        def spend(layer: int) -> None:
            self.stock.add((key[0], layer), -tokens)  # type: ignore[attr-defined]

        ledger = self._channel.ledger
        if isinstance(ledger, TapedLedger):
            ledger.write(spend)
        spend(key[1])


def _cut(length: int, width: int) -> list[int]:
    return [min(width, length - first) for first in range(0, length, width)]
