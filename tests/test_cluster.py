"""Work on matrices elsewhere gives the same bits, and a session finds the machines that have its keys."""

import gc

import numpy as np
import pytest

from hybrid_sessions import TOLERANCE, run_session
from models_common import tiny
from sottovoce.bgv import SIMD, Encryptor, Evaluator, KeyGenerator, load_many
from sottovoce.correlations.hints import ModelHints
from sottovoce.correlations.matrix_maker import MatrixMaker
from sottovoce.correlations.row_products import LocalRows, RowProducts
from sottovoce.dense import DENSE
from sottovoce.engines.base import EngineOptions
from sottovoce.engines.cluster import ClusterProducts, ClusterRows, Inline, Router, ray_link
from sottovoce.engines.hybrid import HybridEngine
from sottovoce.errors import UsageError
from sottovoce.mpc.encoded import EncodedMatrix
from sottovoce.mpc.linear import multiply, rotation_steps
from sottovoce.mpc.tiles import cut
from sottovoce.net import memory_pair, run_pair
from sottovoce.packing import plan_matvec
from sottovoce.ring.primes import P_FIELD

SHAPES = {("qkv", 0): (97, 63), ("down", 0): (64, 4100), ("head", 0): (1300, 32)}
# Several giant steps, several outputs, several inputs, rows that are exchanged.
ONLINE = [(300, 576), (20000, 3), (3, 20000)]


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


@pytest.fixture(scope="module")
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


class Online:
    """Matrices, and the model's side of sessions with keys for them."""

    def __init__(self, shapes=ONLINE):
        rng = np.random.default_rng(1)
        self.weights = [rng.integers(-(2**15), 2**15, shape, dtype=np.int16) for shape in shapes]
        self.keys = KeyGenerator(SIMD)
        self._galois = self.keys.galois_keys(sorted(rotation_steps(shapes))).to_bytes()

    def session(self):
        return Evaluator(SIMD, None, type(self.keys.galois_keys([])).from_bytes(SIMD, self._galois))

    def inputs(self, count, plan):
        slots = np.random.default_rng(2).integers(
            0, P_FIELD, (count * plan.sent_count, SIMD.degree), np.uint64
        )
        data = Encryptor(SIMD, self.keys.secret_key).encrypt_many(slots)
        sent = load_many(SIMD, data, len(slots))
        return type(sent)(SIMD, sent.data.reshape(count, plan.sent_count, *sent.data.shape[1:]), sent.noise)


@pytest.fixture(scope="module")
def online():
    return Online()


def check_rows(rows, recorded):
    for key, row, first, words, before, accumulate, wanted in recorded:
        assert np.array_equal(rows.product(key, row, first, words, before.copy(), accumulate), wanted)


def check_products(products, online, evaluator, tokens=(1, 4), count=2):
    """Ciphertexts and noise bounds of every product are those of this process."""
    matrices = [EncodedMatrix.of(w, keep=False) for w in online.weights]
    products.attach(matrices, now=False)
    for matrix in matrices:
        for b in tokens:
            if b > 1 and max(matrix.weights.shape) > 8192:
                continue
            plan = plan_matvec(*matrix.weights.shape, SIMD.degree, tokens=b)
            sent = online.inputs(count, plan)
            wanted = multiply(evaluator, matrix, sent, plan)
            found = products.multiply(evaluator, matrix, sent, plan)
            assert np.array_equal(found.data, wanted.data)
            assert (found.noise, found.factor) == (wanted.noise, wanted.factor)


def test_products_go_through_the_executor(recorded):
    assert {call[0] for call in recorded} == set(SHAPES)
    assert any(call[5] for call in recorded)  # more features than a frame holds: sums are added to


@pytest.mark.parametrize(("shape", "parts"), [((300, 576), 3), ((20000, 3), 5), ((64, 64), 40)])
def test_tiles_cover_every_giant_step_once(shape, parts):
    plan = plan_matvec(*shape, SIMD.degree)
    tiles = cut(plan, parts)
    found = [(t.output, g) for part in tiles for t in part for g in range(t.first, t.last)]
    assert len(tiles) == parts
    assert found == [(o, g) for o in range(plan.output_count) for g in range(plan.giants)]


@pytest.mark.parametrize("workers", [1, 3])
def test_products_have_the_bits_of_one_process(online, recorded, workers):
    link, router = Inline(2, workers), Router(2)
    check_products(ClusterProducts(link, router), online, online.session())
    check_rows(ClusterRows(link, router, weights()), recorded)
    if workers > 1:
        assert {(0, w, "finish") for w in range(workers)} <= set(link.calls)


def test_sessions_are_routed_by_id_and_forgotten(online):
    link, router = Inline(2, 1), Router(2)
    products = ClusterProducts(link, router)
    matrix = EncodedMatrix.of(online.weights[0], keep=False)
    products.attach([matrix], now=True)
    assert (0, 0, "warm") in link.calls and (1, 0, "warm") in link.calls
    sent = online.inputs(1, matrix.plan)
    sessions = [online.session() for _ in range(3)]
    for _ in range(2):
        for evaluator in sessions:
            products.multiply(evaluator, matrix, sent, matrix.plan)
    ids = [products.session(evaluator) for evaluator in sessions]
    assert [router.team(name) for name in ids] == [0, 1, 0] and len(set(ids)) == 3
    # Keys went once, and only to the team of their session.
    assert link.calls.count((0, 0, "open")) == 2 and link.calls.count((1, 0, "open")) == 1
    del sessions[0], evaluator
    gc.collect()
    products.multiply(sessions[0], matrix, sent, matrix.plan)
    assert (0, 0, "close") in link.calls
    assert set(link.made[0, 0]._sessions) == {ids[2]} and set(link.made[1, 0]._sessions) == {ids[1]}


def test_a_lost_worker_costs_no_session(online, recorded):
    link, router, said = Inline(2, 2), Router(2), []
    products = ClusterProducts(link, router, said.append)
    rows = ClusterRows(link, router, weights(), said.append)
    evaluator = online.session()
    for killed in [(0, 1), (1, 0)]:
        link.killed.add(killed)
        check_products(products, online, evaluator, tokens=(1,), count=1)
        check_rows(rows, recorded)
    assert router.alive() == [] and len(said) == 2 and "team 0" in said[0]


class Compared(ClusterProducts):
    """Every product of a session beside that of this process."""

    products = 0

    def multiply(self, evaluator, matrix, inputs, plan):
        found = super().multiply(evaluator, matrix, inputs, plan)
        assert np.array_equal(found.data, multiply(evaluator, matrix, inputs, plan).data)
        self.products += 1
        return found


def test_every_product_of_a_session_has_the_same_bits():
    model = tiny("llama")
    public, private = [0, 5], [7, 250, 31, 4]
    link = Inline(1, 2)
    engine = HybridEngine(EngineOptions(), model)
    engine.elsewhere = Compared(link, Router(1))
    engine.prepare()
    record = run_session(engine, public, private)
    # Two blocks of four matrices, the embedding and the head, for all tokens of the prompt together.
    assert engine.elsewhere.products >= 4 * model.config.layers + 2 and (0, 1, "finish") in link.calls
    expected = model.forward(np.asarray(public + private))[-1:]
    assert np.abs(np.stack(record.logits) - expected).max() < TOLERANCE


def test_without_ray_the_error_says_what_to_install(monkeypatch):
    import builtins

    real = builtins.__import__

    def missing(name, *arguments, **named):
        if name == "ray":
            raise ImportError(name)
        return real(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(UsageError, match=r"sottovoce\[ray\]"):
        ray_link.RayLink(1, 2)


def test_a_cluster_of_two_nodes(online, recorded):
    ray = pytest.importorskip("ray", reason="ray is not installed")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
    try:
        link, router, said = ray_link.RayLink(1, 2), Router(1), []
        assert len(set(link.nodes().values())) == 2
        rows = ClusterRows(link, router, weights(), said.append)
        check_rows(rows, recorded)
        products = ClusterProducts(link, router, said.append)
        evaluator = online.session()
        check_products(products, online, evaluator, count=1)
        assert router.alive() == [0] and not said
        link.kill(0, 1)
        check_products(products, online, evaluator, tokens=(1,), count=1)
        assert router.alive() == [] and len(said) == 1
        link.close()
    finally:
        ray.shutdown()
        cluster.shutdown()
