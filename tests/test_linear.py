"""Linear layers between two parties, with real parameters: exact, and at the stated cost."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from sottovoce.bgv import SIMD
from sottovoce.errors import ParameterError
from sottovoce.mpc import linear as linear_module
from sottovoce.mpc.encoded import EncodedMatrix
from sottovoce.mpc.linear import HomomorphicLinear, rotation_steps
from sottovoce.net import Channel, memory_pair, run_pair
from sottovoce.packing import Group, exchange_keys, plan_matvec, upload_bytes
from sottovoce.ring.primes import P_FIELD

U64 = np.uint64


def exact(weights: np.ndarray, x: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    """W x + b mod p on rows of x, by splitting x so that int64 suffices."""
    w = weights.astype(np.int64)
    low = (x & U64(0xFFFFF)).astype(np.int64) @ w.T
    high = (x >> U64(20)).astype(np.int64) @ w.T
    y = (low + (high % P_FIELD) * (1 << 20)) % P_FIELD
    return ((y if bias is None else y + bias) % P_FIELD).astype(U64)


def run_linear(weights, x, bias=None, keep=True, reveal=False):
    """Both parties' results of one layer on random shares of x, the ledger's bytes and the stated cost."""
    rng = np.random.default_rng(7)
    x0 = rng.integers(0, P_FIELD, x.shape, dtype=U64)
    x1 = (x + (U64(P_FIELD) - x0)) % U64(P_FIELD)
    d_out, d_in = weights.shape
    steps = rotation_steps([(d_out, d_in)])

    def client(channel: Channel):
        linear = HomomorphicLinear(exchange_keys(channel, steps), d_out, d_in)
        channel.exchange(b"-", 1)  # so that the upload opens a round of its own
        before = channel.ledger.snapshot()
        y = linear.apply(x0, reveal)
        row = channel.ledger.since(before)[0]
        return y, (row.bytes_up, row.bytes_down), row.rounds, linear.cost(len(x), reveal)

    def server(channel: Channel):
        matrix = EncodedMatrix.encode(weights, bias, keep=keep)
        linear = HomomorphicLinear(exchange_keys(channel, steps), d_out, d_in, matrix)
        channel.exchange(b"-", 1)
        return linear.apply(x1, reveal)

    return run_pair(client, server)


@pytest.mark.parametrize(
    ("d_out", "d_in", "tokens", "keep"),
    [(64, 64, 2, True), (172, 64, 1, True), (64, 172, 3, False), (96, 576, 1, True), (512, 64, 1, True)],
)
def test_product_is_exact_on_shares(d_out, d_in, tokens, keep):
    rng = np.random.default_rng(d_out)
    weights = rng.integers(-(2**15), 2**15, (d_out, d_in), dtype=np.int16)
    bias = rng.integers(-(2**40), 2**40, d_out)
    x = rng.integers(0, P_FIELD, (tokens, d_in), dtype=U64)
    (y0, spent, rounds, stated), y1 = run_linear(weights, x, bias, keep)
    assert np.array_equal((y0 + y1) % U64(P_FIELD), exact(weights, x, bias))
    assert spent == stated
    assert rounds == 2


@pytest.mark.parametrize(
    ("d_out", "d_in", "tokens"), [(64, 64, 21), (172, 64, 8), (64, 172, 37), (960, 576, 11), (2048, 576, 9)]
)
def test_several_tokens_share_ciphertexts(d_out, d_in, tokens):
    rng = np.random.default_rng(tokens)
    weights = rng.integers(-(2**15), 2**15, (d_out, d_in), dtype=np.int16)
    bias = rng.integers(-(2**40), 2**40, d_out)
    x = rng.integers(0, P_FIELD, (tokens, d_in), dtype=U64)
    (y0, spent, rounds, stated), y1 = run_linear(weights, x, bias, keep=False)
    assert np.array_equal((y0 + y1) % U64(P_FIELD), exact(weights, x, bias))
    assert spent == stated and rounds == 2
    assert spent[0] < tokens * upload_bytes(SIMD, 1)


@pytest.mark.parametrize("tokens", [2, 4, 8, 16])
@pytest.mark.parametrize(("d_out", "d_in"), [(64, 40), (40, 64), (300, 576)])
def test_every_number_of_tokens_in_a_ciphertext(monkeypatch, d_out, d_in, tokens):
    only = Group(plan_matvec(d_out, d_in, tokens=tokens), 2)
    monkeypatch.setattr(linear_module, "group_tokens", lambda *sizes: (only,))
    monkeypatch.setattr(
        linear_module, "_ROTATED_AT_ONCE", 1
    )  # one ciphertext at a time: results stay in order
    rng = np.random.default_rng(tokens)
    weights = rng.integers(-(2**15), 2**15, (d_out, d_in), dtype=np.int16)
    x = rng.integers(0, P_FIELD, (2 * tokens - 1, d_in), dtype=U64)
    (y0, spent, _, stated), y1 = run_linear(weights, x, keep=False)
    assert np.array_equal((y0 + y1) % U64(P_FIELD), exact(weights, x))
    assert spent == stated


def test_plaintexts_are_made_at_first_use_by_one_thread():
    weights = np.arange(64 * 48, dtype=np.int16).reshape(64, 48)
    calls = []
    matrix = EncodedMatrix.of(weights)
    matrix.made = lambda: calls.append(1)
    assert not matrix.is_made
    matrix.clear_product(np.ones((1, 48), U64))
    assert not matrix.is_made  # a product with a clear share needs none
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: matrix.make(), range(4)))
    assert all(one is made[0] for one in made) and calls == [1] and matrix.is_made
    assert np.array_equal(made[0], EncodedMatrix.encode(weights).make())


def test_results_can_be_revealed_to_the_client_only():
    rng = np.random.default_rng(3)
    weights = rng.integers(-(2**11), 2**11, (300, 64), dtype=np.int16)
    x = rng.integers(0, P_FIELD, (1, 64), dtype=U64)
    (y0, spent, rounds, stated), y1 = run_linear(weights, x, reveal=True)
    assert np.array_equal(y0, exact(weights, x))
    assert not y1.any()
    assert spent == stated and rounds == 2


def test_shares_of_results_are_fresh():
    weights = np.zeros((1024, 64), dtype=np.int16)
    x = np.zeros((1, 64), dtype=U64)
    (first, *_), _ = run_linear(weights, x)
    (second, *_), _ = run_linear(weights, x)
    assert (first != second).mean() > 0.99
    # 1024 uniform values leave none of 25 equal ranges empty, but for a chance of 2^-55.
    assert np.unique(first // U64(P_FIELD // 25 + 1)).size == 25
    assert abs(float(first.mean()) / P_FIELD - 0.5) < 0.06


@pytest.mark.slow
@pytest.mark.parametrize(("d_out", "d_in"), [(960, 576), (576, 1536)])
def test_model_shapes(d_out, d_in):
    rng = np.random.default_rng(d_in)
    weights = rng.integers(-(2**15), 2**15, (d_out, d_in), dtype=np.int16)
    x = rng.integers(0, P_FIELD, (1, d_in), dtype=U64)
    (y0, spent, _, stated), y1 = run_linear(weights, x)
    assert np.array_equal((y0 + y1) % U64(P_FIELD), exact(weights, x))
    assert spent == stated


def test_several_ciphertexts_each_way():
    # More inputs than one ciphertext holds, and more outputs, on shapes that stay quick.
    rng = np.random.default_rng(11)
    for shape in [(20000, 3), (3, 20000)]:
        weights = rng.integers(-(2**15), 2**15, shape, dtype=np.int16)
        x = rng.integers(0, P_FIELD, (1, shape[1]), dtype=U64)
        (y0, _, _, _), y1 = run_linear(weights, x)
        assert np.array_equal((y0 + y1) % U64(P_FIELD), exact(weights, x))


def test_wrong_shapes_are_refused():
    a, _ = memory_pair()
    with pytest.raises(ParameterError):
        EncodedMatrix.encode(np.zeros((3, 4), dtype=np.int32))

    def client(channel: Channel):
        side = exchange_keys(channel, [])
        with pytest.raises(ParameterError, match="inputs"):
            HomomorphicLinear(side, 4, 4).apply(np.zeros((1, 5), dtype=U64))
        with pytest.raises(ParameterError, match="server"):
            HomomorphicLinear(side, 4, 4, EncodedMatrix.encode(np.zeros((4, 4), dtype=np.int16), keep=False))

    run_pair(client, lambda channel: exchange_keys(channel, []))
