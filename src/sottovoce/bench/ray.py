"""`bench ray`: products of matrices on a Ray cluster against one process, and whether the bits are the same.

Without an address the cluster is one of two nodes on this machine, a core each: it shows what the messages
cost, and a speed-up only where the machine has cores to spare.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from sottovoce.bench.machine import header
from sottovoce.bgv import SIMD, Ciphertext, Encryptor, Evaluator, KeyGenerator, load_many
from sottovoce.correlations.row_products import LocalRows, RowProducts
from sottovoce.engines.base import Progress
from sottovoce.engines.cluster import ClusterProducts, ClusterRows, Router
from sottovoce.engines.cluster.ray_link import RayLink, connect
from sottovoce.engines.hybrid.linears import matrix_shapes
from sottovoce.errors import UsageError
from sottovoce.models.describe import describe_model
from sottovoce.mpc.encoded import EncodedMatrix
from sottovoce.mpc.linear import multiply, rotation_steps
from sottovoce.ring import set_threads, threads
from sottovoce.ring.primes import P_FIELD

_NODES = 2
_MOST = 1 << 25  # weights of a matrix that is measured: 0.8 GB as plaintexts, here and at the workers
Int16 = npt.NDArray[np.int16]


@dataclass(frozen=True)
class _Clock:
    """seconds: of one thread, of all, and of the cluster; taking turns, medians."""

    one: float
    all: float
    cluster: float
    same: bool


def run(
    model: str = "smollm2-135m",
    workers: int = 2,
    ray: str | None = None,
    tokens: int = 64,
    repeat: int = 5,
    progress: Progress = lambda done, total, what: None,
) -> dict[str, Any]:
    """Rows for one product online with every kind of matrix, and for one batch of `tokens` made ahead.

    ray: a cluster's address. workers: of one team.
    """
    shapes = {
        name: shape
        for name, shape in matrix_shapes(describe_model(model)).items()
        if name != "embedding" and shape[0] * shape[1] <= _MOST
    }
    rng = np.random.default_rng(0)
    weights = {name: rng.integers(-4096, 4096, shape, np.int16) for name, shape in shapes.items()}
    rows: list[dict[str, Any]] = []
    with _cluster(ray) as nodes:
        link = RayLink(1, workers)
        try:
            places = len(set(link.nodes().values()))
            router = Router(1)
            cases = [
                *_online(ClusterProducts(link, router), weights),
                *_ahead(
                    ClusterRows(link, router, {(name, 0): w for name, w in weights.items()}), weights, tokens
                ),
            ]
            for number, (kind, name, count, here, there) in enumerate(cases):
                progress(number, len(cases), f"{kind} {name}")
                clock = _measure(here, there, repeat)
                if not router.alive():
                    raise UsageError("a worker of the cluster is gone; is there enough memory?")
                rows.append(_row(kind, name, shapes[name], count, clock))
            progress(len(cases), len(cases), "ray")
        finally:
            link.close()
    result = {**header(), "model": model, "workers": workers, "nodes": nodes, "nodes_used": places}
    return {**result, "cluster": ray or "two nodes on this machine", "threads": threads(), "rows": rows}


def _row(kind: str, name: str, shape: tuple[int, int], tokens: int, clock: _Clock) -> dict[str, Any]:
    return {
        "work": kind,
        "matrix": name,
        "shape": list(shape),
        "tokens": tokens,
        "one_core_s": clock.one,
        "one_process_s": clock.all,
        "cluster_s": clock.cluster,
        "over_one_core": clock.one / clock.cluster,
        "over_one_process": clock.all / clock.cluster,
        "same_bits": clock.same,
    }


def _online(products: ClusterProducts, weights: dict[str, Int16]) -> Iterator[tuple[str, str, int, Any, Any]]:
    """One token's product with every matrix."""
    keys = KeyGenerator(SIMD)
    galois = keys.galois_keys(sorted(rotation_steps(w.shape for w in weights.values())))
    evaluator, encryptor = Evaluator(SIMD, None, galois), Encryptor(SIMD, keys.secret_key)
    rng = np.random.default_rng(1)
    matrices = {name: EncodedMatrix.of(w) for name, w in weights.items()}
    products.attach(list(matrices.values()), now=False)
    for name, matrix in matrices.items():
        plan = matrix.plan
        slots = rng.integers(0, P_FIELD, (plan.sent_count, SIMD.degree), np.uint64)
        loaded = load_many(SIMD, encryptor.encrypt_many(slots), len(slots))
        sent = replace(loaded, data=loaded.data[None])

        def here(matrix: EncodedMatrix = matrix, sent: Ciphertext = sent) -> object:
            return multiply(evaluator, matrix, sent).data

        def there(matrix: EncodedMatrix = matrix, sent: Ciphertext = sent) -> object:
            return products.multiply(evaluator, matrix, sent, matrix.plan).data

        yield "online", name, 1, here, there
        matrix._plaintexts = None  # its memory is wanted for the next one


def _ahead(
    rows: ClusterRows, weights: dict[str, Int16], tokens: int
) -> Iterator[tuple[str, str, int, Any, Any]]:
    """A batch of prepared products with every matrix."""
    rng = np.random.default_rng(2)
    local = LocalRows({(name, 0): w for name, w in weights.items()})
    for name, matrix in weights.items():
        words = rng.integers(0, 1 << 52, (matrix.shape[1], tokens), np.uint64)

        def product(by: RowProducts, name: str = name, words: Any = words) -> object:
            out = np.empty((len(weights[name]), tokens), np.uint64)
            return by.product((name, 0), 0, 0, words, out, False)

        yield "ahead", name, tokens, (lambda p=product: p(local)), (lambda p=product: p(rows))


def _measure(here: Callable[[], Any], there: Callable[[], Any], repeat: int) -> _Clock:
    before = threads()
    same = bool(np.array_equal(here(), there()))  # and whatever is made at the first use is there
    times: dict[str, list[float]] = {"one": [], "all": [], "cluster": []}
    try:
        for _ in range(repeat):
            for name, work, count in (("one", here, 1), ("all", here, before), ("cluster", there, before)):
                set_threads(count)
                start = perf_counter()
                work()
                times[name].append(perf_counter() - start)
    finally:
        set_threads(before)
    return _Clock(**{name: statistics.median(found) for name, found in times.items()}, same=same)


@contextmanager
def _cluster(address: str | None) -> Iterator[int]:
    """The number of nodes of a cluster that is joined, or made here."""
    if address is not None:
        connect(address)
        import ray

        yield len([node for node in ray.nodes() if node["Alive"]])
        ray.shutdown()
        return
    try:
        import ray
        from ray.cluster_utils import Cluster
    except ImportError:
        raise UsageError("bench ray needs Ray; install it with: pip install 'sottovoce[ray]'") from None
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    head = {"num_cpus": 1, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(_NODES - 1):
            cluster.add_node(num_cpus=1)
        ray.init(address=cluster.address, log_to_driver=False)
        yield _NODES
    finally:
        ray.shutdown()
        cluster.shutdown()
