"""`bench packings`: one private token times a square matrix, in four layouts on the same ciphertexts.

All rows run at N = 2^16, 32,768 slots, the same level and the same kernels. IRP and plain diagonals run in
full. MOAI's columns and THOR's tiles are timed on a slice of the outputs and scaled; what they need before
the first output (THOR's rotations) is timed in full. Their figures for a full batch stand beside: a
ciphertext of columns carries 32,768 tokens, one of tiles 128. IRP and THOR use complex slots, which halve
their plaintexts: THOR as its authors do. Conjugations count as rotations: each is a key switch.

Weights are polynomials of integers before the clock starts, as a server would keep them (0.5 MiB for 32,768
slots); their residues and transforms modulo ten primes are timed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sottovoce.bench.layer import Clock
from sottovoce.bench.machine import header
from sottovoce.ckks import CONJUGATE, Decryptor, Encryptor, Evaluator, KeyGenerator, Plaintext
from sottovoce.ckks.encoder import to_coefficients
from sottovoce.ckks.parameters import Parameters, ParametersSpec, chain
from sottovoce.engines.base import Progress
from sottovoce.engines.fhe.ciphertexts import CkksSlots, scales
from sottovoce.errors import UsageError
from sottovoce.packing.slots import CountingSlots, Interleaved, Plain, SlotArithmetic, Slots, baselines, chunk
from sottovoce.packing.slots.arithmetic import V

LEVEL = 9  # ten limbs
_MOAI_SLICE = 0.01
_Work = Callable[[SlotArithmetic[Any], list[Any]], list[Any]]


def run(
    width: int = 1024,
    degree: int = 1 << 16,
    repeat: int = 1,
    progress: Progress = lambda done, total, what: None,
) -> dict[str, Any]:
    """Rows irp, bsgs, moai, thor. width: a power of two, at least 256. degree: of the ring, for tests."""
    n = degree // 2
    if width & (width - 1) or not 256 <= width <= n:
        raise UsageError(f"packings are compared at a power of two from 256 to {n}, not {width}")
    parameters = _parameters(degree)
    rng = np.random.default_rng(1)
    weights = rng.standard_normal((width, width)) / np.sqrt(width)
    x = rng.uniform(-1, 1, width)
    cases = [_irp(n, width, weights, x), _bsgs(n, weights, x), _moai(n, weights, x), _thor(n, weights, x)]
    steps = {CONJUGATE}
    for case in cases:
        counting = CountingSlots(n, LEVEL)
        case.work(counting, [counting.fresh() for _ in range(case.timed_inputs)])
        case.count(counting)
        steps |= counting.steps.keys()
    keys = KeyGenerator(parameters)
    progress(0, len(cases), "making keys")
    galois = keys.galois_keys(dict.fromkeys(steps, LEVEL), LEVEL)
    evaluator = Evaluator(parameters, None, galois)
    rows = []
    for i, case in enumerate(cases):
        progress(i, len(cases), case.name)
        rows.append(case.measure(evaluator, keys, n, repeat))
    progress(len(cases), len(cases), "packings")
    irp = rows[0]["seconds"]
    for row in rows:
        row["over_irp"] = row["seconds"] / irp
    result = {**header(), "width": width, "slots": n, "limbs": LEVEL + 1, "repeat": repeat, "rows": rows}
    result["parameters"] = {
        "security_bits": 128 if parameters.spec.security == 128 else 0,
        "N": degree,
        "moduli": [int(q) for q in parameters.primes],
    }
    return result


def _parameters(degree: int) -> Parameters:
    """Ten limbs and six special primes, as in the engine: two digits. 718 of 1,747 bits at N = 2^16."""
    primes = chain(degree, [49, *[41] * LEVEL, *[50] * 6])
    security: int | str = 128 if degree >= 1 << 15 else "unchecked"
    return Parameters(ParametersSpec(degree, primes[: LEVEL + 1], primes[LEVEL + 1 :], security=security))


class _Weights(CountingSlots):
    """Runs a product only to see its plaintexts: the polynomials, in the order in which they are used. scale:
    of plaintexts at the one level of a product."""

    def __init__(self, n: int, scale: float) -> None:
        super().__init__(n, LEVEL)
        self._scale = scale
        self.polynomials: list[np.ndarray] = []

    def sum_plain(self, terms: Sequence[tuple[Slots, Plain]]) -> Slots:
        for _, p in terms:
            values = p()
            real = values if len(values) == 1 else to_coefficients(values.astype(complex))
            self.polynomials.append(np.rint(real * self._scale).astype(np.int64))
        return super().sum_plain(terms)


class _Served(CkksSlots):
    """The product on ciphertexts, with those polynomials."""

    def serve(self, polynomials: Sequence[np.ndarray]) -> None:
        self._next = iter(polynomials)

    def plaintext_scale(self) -> float:
        return self._factor_scale(LEVEL)

    def _encode(self, p: Plain, level: int, scale: float) -> Plaintext:
        return self.evaluator.encoder.encode_integers(next(self._next), level, scale)


class Case:
    """One packing. first: slots of the input ciphertexts that are made; inputs: how many there are in all.

    work: on those, what is timed; share: the part of all outputs that it makes. tokens: carried when full.
    """

    def __init__(
        self,
        name: str,
        inputs: Sequence[np.ndarray],
        work: _Work,
        check: Callable[[list[np.ndarray]], float],
        total_inputs: int,
        outputs: int,
        plaintexts: int,
        tokens: int = 1,
        share: float = 1.0,
        prelude: _Work | None = None,
    ) -> None:
        self.name, self.inputs, self.work, self.check = name, inputs, work, check
        self.total_inputs, self.outputs, self.plaintexts = total_inputs, outputs, plaintexts
        self.tokens, self.share, self.prelude = tokens, share, prelude
        self.timed_inputs = len(inputs)

    def count(self, counting: CountingSlots) -> None:
        """Rotations of the whole product, from what was counted of the timed part."""
        rotations = _switches(counting)
        if self.prelude is not None:
            only = CountingSlots(counting.n, LEVEL)
            self.prelude(only, [only.fresh() for _ in self.inputs])
            rotations = _switches(only) + round((rotations - _switches(only)) / self.share)
        self.rotations = rotations

    def measure(self, evaluator: Evaluator, keys: KeyGenerator, n: int, repeat: int) -> dict[str, Any]:
        clock = Clock()
        ar = _Served(evaluator, n, operation=clock.operation)
        weights = _Weights(n, ar.plaintext_scale())
        self.work(weights, [weights.fresh() for _ in range(self.timed_inputs)])
        parameters = evaluator.parameters
        encryptor = Encryptor(parameters, keys.secret_key)
        scale = scales(parameters)[LEVEL]
        inputs = [encryptor.encrypt(evaluator.encoder.encode(values, LEVEL, scale)) for values in self.inputs]
        prelude, seconds, out = 0.0, [], []
        if self.prelude is not None:
            start = time.perf_counter()
            self.prelude(ar, list(inputs))
            prelude = time.perf_counter() - start
        clock.seconds.clear()
        for _ in range(repeat):
            ar.serve(weights.polynomials)
            start = time.perf_counter()
            out = self.work(ar, list(inputs))
            seconds.append(time.perf_counter() - start)
        timed = float(np.median(seconds))
        rotating = clock.seconds["rotations"] / repeat
        whole, turns = (prelude + max(s - prelude, 0.0) / self.share for s in (timed, rotating))
        decryptor = Decryptor(parameters, keys.secret_key)
        error = self.check([decryptor.decrypt_slots(y, n) for y in out])
        size = 2 * parameters.degree * 8
        return {
            "packing": self.name,
            "seconds": whole,
            "plaintexts": self.plaintexts,
            "rotations": self.rotations,
            "rotation_seconds": turns,
            "levels": LEVEL - out[0].level,
            "memory_bytes": (self.total_inputs * (LEVEL + 1) + self.outputs * LEVEL) * size,
            "scaled": self.share < 1,
            "timed_share": self.share,
            "ciphertexts": self.total_inputs,
            "tokens_when_full": self.tokens,
            "seconds_per_token_when_full": whole / self.tokens,
            "largest_error": error,
        }


def _switches(counting: CountingSlots) -> int:
    return counting.total("rotate", "hoisted", "conjugate")


def _irp(n: int, width: int, weights: np.ndarray, x: np.ndarray) -> Case:
    plan = Interleaved(n, width, width, radix=4)
    plaintexts = plan.folded_plaintexts(weights)

    def work(ar: SlotArithmetic[V], values: list[V]) -> list[V]:
        return [plan.apply_folded(ar, values[0], plaintexts)]

    def check(out: list[np.ndarray]) -> float:
        return float(np.abs(plan.read(out[0]) - x @ weights).max())

    return Case("irp", [plan.place(x)], work, check, 1, 1, len(plaintexts))


def _bsgs(n: int, weights: np.ndarray, x: np.ndarray) -> Case:
    width = len(x)
    plaintexts: list[Plain] = baselines.diagonal_plaintexts(weights, width)

    def work(ar: SlotArithmetic[V], values: list[V]) -> list[V]:
        return [chunk.diagonals(ar, values[0], plaintexts, 1)]

    def check(out: list[np.ndarray]) -> float:
        return float(np.abs(out[0][:width] - x @ weights).max())

    return Case("bsgs", [np.tile(x, n // width)], work, check, 1, 1, width)


def _moai(n: int, weights: np.ndarray, x: np.ndarray) -> Case:
    """Columns are alike: one ciphertext stands for all of them, with the sum of a column as its check."""
    width = len(x)
    outputs = max(1, round(width * _MOAI_SLICE))

    def work(ar: SlotArithmetic[V], values: list[V]) -> list[V]:
        return baselines.column_product(ar, values * width, weights[:, :outputs])

    def check(out: list[np.ndarray]) -> float:
        expected = x[0] * weights[:, :outputs].sum(axis=0)
        return float(np.abs(np.array([y[0] for y in out]) - expected).max())

    column = np.zeros(n)
    column[0] = x[0]
    share = outputs / width
    return Case("moai", [column], work, check, width, width, width * width, n, share)


def _thor(n: int, weights: np.ndarray, x: np.ndarray) -> Case:
    width = len(x)
    tile = baselines.DiagonalMajor(n, width, width)
    rows = np.zeros((tile.rows, width))
    rows[0] = x

    def prelude(ar: SlotArithmetic[V], values: list[V]) -> list[V]:
        tile.babies(ar, values)
        return []

    def work(ar: SlotArithmetic[V], values: list[V]) -> list[V]:
        return [tile.output(ar, tile.babies(ar, values), weights, 0)]

    def check(out: list[np.ndarray]) -> float:
        found = out[0].real.reshape(-1, tile.rows)[: tile.lanes, 0]
        return float(np.abs(found - (x @ weights)[: tile.lanes]).max())

    share = 1 / tile.outputs
    return Case(
        "thor",
        tile.place(rows),
        work,
        check,
        tile.pairs,
        tile.outputs,
        tile.count,
        tile.rows,
        share,
        prelude,
    )
