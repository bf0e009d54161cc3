"""Row blocks elsewhere give the same words, bit for bit."""

import numpy as np
import pytest

from sottovoce.correlations import ray_rows
from sottovoce.correlations.hints import ModelHints
from sottovoce.correlations.matrix_maker import MatrixMaker
from sottovoce.correlations.row_products import LocalRows, RowProducts
from sottovoce.dense import DENSE
from sottovoce.errors import UsageError
from sottovoce.net import memory_pair, run_pair
from sottovoce.ring.primes import P_FIELD

SHAPES = {("qkv", 0): (97, 63), ("down", 0): (64, 4100), ("head", 0): (1300, 32)}


def weights():
    rng = np.random.default_rng(0)
    return {key: rng.integers(-4096, 4096, shape, dtype=np.int16) for key, shape in SHAPES.items()}


class Recorded(RowProducts):
    """Calls, with what a local product gives."""

    def __init__(self, matrices):
        self.local, self.calls = LocalRows(matrices), []

    def product(self, key, row, first, words, out, accumulate):
        before = out.copy()
        result = self.local.product(key, row, first, words, out, accumulate)
        self.calls.append((key, row, first, words.copy(), before, accumulate, result.copy()))
        return result


def recorded():
    """The products of a real batch between two parties."""
    hints = ModelHints(DENSE, SHAPES, weights())
    hints.products = Recorded(hints.matrices)

    def client(channel):
        maker = MatrixMaker(channel, SHAPES)
        maker.prepare(5)
        return {key: maker.stock.take_client(key, 5) for key in SHAPES}

    def server(channel):
        maker = MatrixMaker(channel, SHAPES, hints)
        maker.prepare(5)
        return {key: maker.stock.take_server(key, 5) for key in SHAPES}

    mine, theirs = run_pair(client, server, memory_pair())
    for key, w in weights().items():
        r, u = mine[key]
        exact = (r.astype(object) @ w.T.astype(object)) % P_FIELD
        error = (u.astype(object) + theirs[key].astype(object) - exact) % P_FIELD
        assert np.minimum(error, P_FIELD - error).max() < 1 << 24
    return hints.products.calls


def test_products_go_through_the_executor():
    calls = recorded()
    assert {call[0] for call in calls} == set(SHAPES)
    assert any(call[5] for call in calls)  # more features than a frame holds: sums are added to


def test_without_ray_the_error_says_what_to_install(monkeypatch):
    import builtins

    real = builtins.__import__

    def missing(name, *arguments, **named):
        if name == "ray":
            raise ImportError(name)
        return real(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(UsageError, match=r"sottovoce\[ray\]"):
        ray_rows.RayRows(weights(), 2)


def test_a_cluster_of_two_nodes():
    ray = pytest.importorskip("ray", reason="ray is not installed")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
    try:
        rows = ray_rows.RayRows(weights(), 2)
        assert len(set(rows.nodes())) == 2
        for key, row, first, words, before, accumulate, wanted in recorded():
            assert np.array_equal(rows.product(key, row, first, words, before, accumulate), wanted)
        rows.close()
    finally:
        ray.shutdown()
        cluster.shutdown()
