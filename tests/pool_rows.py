"""Rows of a pool for tests: numbers that go in and come out."""

import numpy as np
import pytest

from sottovoce.correlations.marks import EPOCH_BYTES
from sottovoce.correlations.pool import Pool
from sottovoce.correlations.records import Record

ID, KEY = b"i" * 16, b"k" * 32


def rows(n, seed=0):
    return np.random.default_rng(seed).integers(0, 1 << 64, n, np.uint64)


def put(pool, **streams):
    staged = pool.stage({name: Record((values,), granule=1) for name, values in streams.items()})
    pool.commit(staged)


def taken(pool, **wanted):
    """The rows of each stream as lists."""
    found = pool.take(wanted)
    return {name: [int(x) for part in found.get(name, []) for x in part.arrays[0]] for name in wanted}


@pytest.fixture
def pool(tmp_path):
    with Pool.create(tmp_path / "pool", ID, KEY) as made:
        made.begin(b"e" * EPOCH_BYTES, 1)
        yield made
