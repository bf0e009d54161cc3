"""What matrix products prepared ahead cost, by the number of tokens prepared at once, against online ones.

Both parties run in two threads of one process; core seconds are the time of both threads. One block of the
model is measured and counted as often as there are blocks, of the head and the embedding a slice. The weights
are random: nothing depends on them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sottovoce.bench.machine import header
from sottovoce.bgv import SIMD
from sottovoce.correlations.hints import MatrixKey, ModelHints
from sottovoce.correlations.matrix_maker import MatrixMaker, prepared_bytes
from sottovoce.dense import DENSE, SENT_BYTES, DenseParameters
from sottovoce.engines.hybrid.linears import NAMES, matrix_shapes
from sottovoce.engines.hybrid.prepared import model_shapes
from sottovoce.models.config import Config
from sottovoce.models.shapes import SHAPES
from sottovoce.mpc.encoded import EncodedMatrix
from sottovoce.mpc.linear import HomomorphicLinear, rotation_steps
from sottovoce.net import Channel, memory_pair, run_pair
from sottovoce.packing import exchange_keys, give_back_bytes, plan_matvec, upload_bytes
from sottovoce.ring import set_threads, threads

SMOLLM2 = SHAPES["smollm2-135m"]
_SLICE = 8192  # rows of the head and columns of the embedding that are measured
Shapes = dict[MatrixKey, tuple[int, int]]


def run() -> dict[str, Any]:
    """`bench matrix`: SmolLM2-135M's matrices, batches of several sizes and online."""
    return matrix_products()


def matrix_products(
    batches: Sequence[int] = (2, 8, 32, 128, 512),
    config: Config = SMOLLM2,
    parameters: DenseParameters = DENSE,
    kernel_threads: int = 1,
    online: bool = True,
) -> dict[str, Any]:
    """A benchmark object: `hint` (once per model and client), `rows` (one per batch size), `online` (SIMD,
    one token), `crossover_tokens`.

    core_seconds counts both parties (with more than one kernel thread only what their own threads do), bytes
    both directions; those of a row are per token, hint excluded. More tokens than a block of `parameters` are
    several batches: what is measured is the largest of them.
    """
    before = threads()
    set_threads(kernel_threads)
    try:
        parts = _parts(config)
        hint, rows = _dense(parts, model_shapes(config), parameters, batches)
        simd = _online(parts, model_shapes(config)) if online else None
    finally:
        set_threads(before)
    return {
        **header(),
        "kernel_threads": kernel_threads,
        "block": parameters.block,
        "scaled": True,
        "hint": hint,
        "rows": rows,
        "online": simd,
        "crossover_tokens": None if simd is None else crossover(hint, rows, simd),
    }


def crossover(hint: dict[str, Any], rows: list[dict[str, Any]], online: dict[str, Any]) -> dict[str, Any]:
    """From how many tokens on a prepared batch is cheaper than online products, in core seconds and in bytes.

    `batch`: of a single batch once the hint is there, by a straight line through the smallest and the largest
    batch. `with_hint`: tokens after which the hint has paid for itself, in batches of the largest size.
    """
    small, large = rows[0], max(rows, key=lambda row: row["batch"])
    result: dict[str, Any] = {}
    for name in ("core_seconds", "bytes"):
        a, b = small["batch"], large["batch"]
        slope = (large[name] * b - small[name] * a) / (b - a) if b > a else small[name]
        fixed = max(0.0, (small[name] - slope) * a)
        gain = online[name] - large[name]
        result[name] = {
            "batch": fixed / (online[name] - slope) if online[name] > slope else None,
            "with_hint": hint[name] / gain if gain > 0 else None,
        }
    return result


def _parts(config: Config) -> list[tuple[Shapes, float]]:
    """What is measured, and how often it counts."""
    shapes = matrix_shapes(config)
    slice_size = min(_SLICE, config.vocab_size)
    times = config.vocab_size / slice_size
    return [
        ({(name, 0): shapes[name] for name in NAMES}, config.layers),
        ({("head", 0): (slice_size, config.width)}, times),
        ({("embedding", 0): (config.width, slice_size)}, times),
    ]


def _weights(shapes: Shapes) -> dict[MatrixKey, Any]:
    rng = np.random.default_rng(0)
    return {key: rng.integers(-(2**11), 2**11, shape, dtype=np.int16) for key, shape in shapes.items()}


def _dense(
    parts: list[tuple[Shapes, float]], whole: Shapes, parameters: DenseParameters, batches: Sequence[int]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    rows: list[dict[str, Any]] = []
    for n in batches:
        size = sum(prepared_bytes(whole, min(n, parameters.block), parameters)) / min(n, parameters.block)
        rows.append({"batch": n, "core_seconds": 0.0, "seconds": 0.0, "bytes": size})
    outputs = sum(d_out for d_out, _ in whole.values())
    hint = {"core_seconds": 0.0, "bytes": SENT_BYTES * parameters.degree * outputs}
    for shapes, times in parts:
        hints = ModelHints(parameters, shapes, _weights(shapes))

        def party(
            server: bool, shapes: Shapes = shapes, hints: ModelHints = hints
        ) -> Callable[[Channel], Any]:
            def run(channel: Channel) -> list[tuple[float, float]]:
                maker = MatrixMaker(channel, shapes, hints if server else None, parameters)
                steps: list[Callable[[], object]] = [maker.open]
                for row in rows:
                    n = min(int(row["batch"]), parameters.block)
                    steps.append(lambda n=n: maker.make(n, list(shapes)))  # type: ignore[misc]
                return [_timed(step) for step in steps]

            return run

        client, server = run_pair(party(False), party(True), memory_pair())
        hint["core_seconds"] += times * (client[0][1] + server[0][1])
        for row, mine, theirs in zip(rows, client[1:], server[1:], strict=True):
            n = min(int(row["batch"]), parameters.block)
            row["core_seconds"] += times * (mine[1] + theirs[1]) / n
            row["seconds"] += times * max(mine[0], theirs[0]) / n
    return hint, rows


def _online(parts: list[tuple[Shapes, float]], whole: Shapes) -> dict[str, Any]:
    result = {"core_seconds": 0.0, "seconds": 0.0, "bytes": 0}
    for d_out, d_in in whole.values():
        plan = plan_matvec(d_out, d_in, SIMD.degree)
        result["bytes"] += upload_bytes(SIMD, plan.sent_count) + give_back_bytes(SIMD, plan.output_count)
    for shapes, times in parts:
        encoded = {key: EncodedMatrix.encode(w) for key, w in _weights(shapes).items()}
        steps = rotation_steps(shapes.values())

        def party(
            matrices: dict[MatrixKey, EncodedMatrix] | None, shapes: Shapes = shapes, steps: set[int] = steps
        ) -> Callable[[Channel], Any]:
            def run(channel: Channel) -> Any:
                side = exchange_keys(channel, steps)
                layers = {
                    key: HomomorphicLinear(side, *shape, None if matrices is None else matrices[key])
                    for key, shape in shapes.items()
                }
                inputs = {key: np.ones((1, shape[1]), np.uint64) for key, shape in shapes.items()}
                return _timed(lambda: [layers[key].apply(inputs[key]) for key in shapes])

            return run

        client, server = run_pair(party(None), party(encoded), memory_pair())
        result["core_seconds"] += times * (client[1] + server[1])
        result["seconds"] += times * max(client[0], server[0])
    return result


def _timed(work: Callable[[], object]) -> tuple[float, float]:
    """(seconds, core seconds of this thread)."""
    wall, cpu = time.perf_counter(), time.thread_time()
    work()
    return time.perf_counter() - wall, time.thread_time() - cpu
