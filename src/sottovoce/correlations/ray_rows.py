"""Row blocks of a model's matrices on the nodes of a Ray cluster.

Every worker holds some rows of every matrix; the words of a product go to all of them, their rows come back.
What crosses the cluster's network are weights (once), a client's ciphertexts and products before they are
masked: all of it belongs into the server's trust domain, so the cluster must too.

Needs the extra `ray`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sottovoce.correlations.row_products import U64, Int16, MatrixKey, RowProducts
from sottovoce.dense import matrix_product
from sottovoce.errors import ParameterError, UsageError

_WORD = np.uint64((1 << 52) - 1)


class RayRows(RowProducts):
    """`workers` actors, spread over the cluster's nodes; `cpus`: reserved for each.

    Cost of a product: its words to every worker, 8 bytes a number; its result back.
    """

    def __init__(self, matrices: Mapping[MatrixKey, Int16], workers: int, cpus: float = 1.0) -> None:
        if workers < 1:
            raise ParameterError(f"scale-out takes one worker or more, not {workers}")
        self._ray = _ray()
        # Bounds of each worker's rows, by matrix.
        self.bounds = {
            key: [len(matrix) * i // workers for i in range(workers + 1)] for key, matrix in matrices.items()
        }
        actor = self._ray.remote(_Rows).options(num_cpus=cpus, scheduling_strategy="SPREAD")
        self._workers = [
            actor.remote(
                {
                    key: matrix[self.bounds[key][i] : self.bounds[key][i + 1]]
                    for key, matrix in matrices.items()
                }
            )
            for i in range(workers)
        ]

    def product(self, key: MatrixKey, row: int, first: int, words: U64, out: U64, accumulate: bool) -> U64:
        shared = self._ray.put(np.ascontiguousarray(words))
        bounds, asked = self.bounds[key], []
        for i, worker in enumerate(self._workers):
            begin, end = max(row, bounds[i]), min(row + len(out), bounds[i + 1])
            if begin < end:
                part = worker.product.remote(key, begin - bounds[i], end - bounds[i], first, shared)
                asked.append((begin - row, end - row, part))
        for begin, end, part in asked:
            rows = self._ray.get(part)
            out[begin:end] = (out[begin:end] + rows) & _WORD if accumulate else rows
        return out

    def nodes(self) -> list[str]:
        """Where the workers are."""
        return [self._ray.get(worker.node.remote()) for worker in self._workers]

    def close(self) -> None:
        """End the workers; they hold weights."""
        for worker in self._workers:
            self._ray.kill(worker)


class _Rows:
    """A worker: some rows of every matrix."""

    def __init__(self, matrices: dict[MatrixKey, Int16]) -> None:
        # What comes out of the object store is read-only and may be taken away.
        self._matrices = {key: np.array(matrix) for key, matrix in matrices.items()}

    def product(self, key: MatrixKey, begin: int, end: int, first: int, words: U64) -> U64:
        out = np.empty((end - begin, words.shape[1]), np.uint64)
        return matrix_product(self._matrices[key][begin:end], first, words, out, False)

    def node(self) -> str:
        return str(_ray().get_runtime_context().get_node_id())


def connect(address: str) -> None:
    """Join the cluster at `address`, or start one on this machine for `local`. PeerConnection problems are
    Ray's own."""
    ray = _ray()
    if not ray.is_initialized():
        where = {} if address == "local" else {"address": address}
        ray.init(log_to_driver=False, include_dashboard=False, **where)


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise UsageError("scale-out needs Ray; install it with: pip install 'sottovoce[ray]'") from None
    return ray
