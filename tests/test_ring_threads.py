"""Threads change the time and nothing else: several callers at once, and a forked child."""

import multiprocessing
import multiprocessing.connection
import threading

import numpy as np
import pytest

from sottovoce import ring
from sottovoce.errors import ParameterError
from sottovoce.ring.primes import SIMD_PRIMES


def random_batch(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack([rng.integers(0, q, (8, 1024), dtype=np.uint64) for q in SIMD_PRIMES], axis=1)


def test_callers_at_the_same_time_agree_with_one_thread() -> None:
    """One caller gets the pool; the others, finding it busy, work alone. All results are right."""
    context = ring.context(1024, SIMD_PRIMES)
    inputs = [random_batch(seed) for seed in range(6)]
    expected = [context.ntt(x.copy(), threads=1) for x in inputs]
    results: list[list[np.ndarray]] = [[] for _ in inputs]

    def work(i: int) -> None:
        for _ in range(20):
            results[i].append(context.ntt(inputs[i].copy(), threads=4))

    callers = [threading.Thread(target=work, args=(i,)) for i in range(len(inputs))]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    for values, right in zip(results, expected, strict=True):
        assert len(values) == 20
        assert all(np.array_equal(value, right) for value in values)


def _transform(connection: multiprocessing.connection.Connection) -> None:
    context = ring.context(1024, SIMD_PRIMES)
    connection.send(context.ntt(random_batch(1), threads=3).tobytes())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_has_its_own_threads() -> None:
    if "fork" not in multiprocessing.get_all_start_methods():
        pytest.skip("no fork on this system")
    expected = ring.context(1024, SIMD_PRIMES).ntt(random_batch(1), threads=3)
    here, there = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=_transform, args=(there,))
    child.start()
    assert here.poll(120), "the child waits for threads that only its parent has"
    assert here.recv() == expected.tobytes()
    child.join()


def test_thread_count_is_checked() -> None:
    before = ring.threads()
    ring.set_threads(3)
    assert ring.threads() == 3
    ring.set_threads(before)
    with pytest.raises(ParameterError):
        ring.set_threads(0)
