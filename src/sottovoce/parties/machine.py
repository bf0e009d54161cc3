"""How fast this machine is at what sessions spend their time on: a calibration of a few seconds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from ..bgv import SIMD, Encoder, Encryptor, Evaluator, KeyGenerator
from ..ckks.speed import MODEL, Speed
from ..net import Role, memory_pair, run_pair
from ..ot import OtExtension
from ..packing.cost import CostModel
from ..ring.primes import P_FIELD
from .paths import ckks_speed_path

_PRODUCTS = 16
_TRANSFERS = 1 << 17
_ROUNDS = 3


@dataclass(frozen=True)
class MachineSpeed:
    """lattice: time of homomorphic work here over `packing.CostModel`'s machine. transfer: seconds of one
    oblivious transfer, both parties on this machine. wide: seconds of the parts of CKKS."""

    lattice: float = 1.0
    transfer: float = 1.5e-7
    wide: Speed = MODEL

    @classmethod
    def measured(cls, repetitions: int = 9) -> MachineSpeed:
        """About a second, half of it where those of CKKS are known from the last day."""
        return cls(_lattice(repetitions), _transfer(), Speed.kept(ckks_speed_path()))


def _lattice(repetitions: int) -> float:
    """The mean ratio for products and rotations, the two that most of the time goes to."""
    keys, model = KeyGenerator(SIMD), CostModel()
    evaluator = Evaluator(SIMD, keys.relinearization_key(), keys.galois_keys([1]))
    encoder, encryptor = Encoder(SIMD), Encryptor(SIMD, keys.secret_key)
    slots = np.random.default_rng(1).integers(0, P_FIELD, (_PRODUCTS, SIMD.degree), np.uint64)
    plain = encoder.encode(slots)
    cts, operands = encryptor.encrypt(plain), list(encoder.to_ntt(plain))
    product = _best(lambda: evaluator.mul_plain_accumulate(cts, operands), repetitions) / _PRODUCTS
    rotation = _best(lambda: evaluator.rotate(cts[0], 1), repetitions)
    return (1e3 * product / model.product + 1e3 * rotation / model.rotation) / 2


def _transfer() -> float:
    """Correlated transfers as most correlations take them."""

    def client(channel: object) -> float:
        transfers = OtExtension(ends[0])
        times = []
        for _ in range(_ROUNDS):
            start = perf_counter()
            transfers.receive_correlated(_TRANSFERS, [P_FIELD])
            times.append(perf_counter() - start)
        return min(times)

    def server(channel: object) -> None:
        transfers = OtExtension(ends[1])
        for _ in range(_ROUNDS):
            transfers.send_correlated(_TRANSFERS, [(np.zeros(_TRANSFERS, np.uint64), P_FIELD)])

    ends = memory_pair()
    assert ends[0].role is Role.CLIENT
    seconds, _ = run_pair(client, server, ends)
    return seconds / _TRANSFERS


def _best(operation: Callable[[], object], repetitions: int) -> float:
    """The least of several times: the one that other work on the machine disturbed least."""
    operation()
    times = []
    for _ in range(repetitions):
        start = perf_counter()
        operation()
        times.append(perf_counter() - start)
    return min(times)
