"""A pool on disk: what goes in comes out once, is private, limited, wiped, and never used from a copy."""

# ruff: noqa: F811  (fixtures are imported)

import os
import stat

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pool_rows import ID, KEY, pool, put, rows, taken  # noqa: F401  (a fixture)
from sottovoce.correlations.marks import EPOCH_BYTES
from sottovoce.correlations.pool import Pool
from sottovoce.correlations.records import Record, read_rows, wipe_rows, write_records
from sottovoce.errors import (
    CorruptFileError,
    ParameterError,
    RefusedError,
    StorageError,
    UsageError,
)

# Records


ARRAYS = st.sampled_from(
    [
        ("u1", 1, ()),
        ("u1", 255, ()),
        ("u8", (1 << 43) - 1, ()),
        ("u8", (1 << 64) - 1, (3,)),
        ("u8", (1 << 43) - 1, (5, 2)),
        ("i8", 1000, ()),
        ("f8", 1000, (2,)),
    ]
)


@settings(deadline=None, max_examples=40)
@given(st.lists(ARRAYS, min_size=1, max_size=4), st.sampled_from([1, 3, 8]), st.data())
def test_parts_of_a_record_are_read_and_wiped(tmp_path_factory, kinds, granule, data):
    n = granule * data.draw(st.integers(1, 9))
    rng = np.random.default_rng(3)
    arrays = tuple(
        rng.integers(0, high, (n, *shape), np.uint64, endpoint=True).astype(dtype)
        for dtype, high, shape in kinds
    )
    record = Record(arrays, (np.arange(4, dtype=np.uint64), np.arange(16, dtype=np.uint8)), granule)
    file = os.open(tmp_path_factory.mktemp("r") / "x", os.O_RDWR | os.O_CREAT)
    layouts, size = write_records(file, {"before": record, "s": record}, {"s": 40})
    layout = type(layouts["s"]).from_json(layouts["s"].to_json())
    assert os.fstat(file).st_size == size and layout == layouts["s"] and layout.first == 40
    stop = granule * data.draw(st.integers(1, n // granule))
    start = granule * data.draw(st.integers(0, stop // granule - 1))
    part = read_rows(file, layout, start, stop)
    assert part.offset == start and part.granule == granule
    for got, array in zip(part.arrays, arrays, strict=True):
        assert got.dtype == array.dtype and np.array_equal(got, array[start:stop])
    wipe_rows(file, layout, start, stop)
    after = read_rows(file, layout, 0, n)
    for got, array in zip(after.arrays, arrays, strict=True):
        assert not np.any(got[start:stop])
        assert np.array_equal(got[:start], array[:start]) and np.array_equal(got[stop:], array[stop:])
    assert (stop == n) == (not np.any(after.constants[0]))
    untouched = read_rows(file, layouts["before"], 0, n)
    assert all(np.array_equal(x, y) for x, y in zip(untouched.arrays, arrays, strict=True))
    os.close(file)


def test_bits_are_stored_as_bits(tmp_path):
    file = os.open(tmp_path / "x", os.O_RDWR | os.O_CREAT)
    bits, field = np.tile(np.array([0, 1], np.uint8), 4000), np.full(8000, 8796092858368, np.uint64)
    _, size = write_records(file, {"s": Record((bits, field))}, {})
    assert size == 8000 * 44 // 8
    os.close(file)


def test_records_that_make_no_sense_are_refused():
    with pytest.raises(ParameterError, match="granule"):
        Record((rows(9),))
    with pytest.raises(ParameterError, match="as many rows"):
        Record((rows(8), rows(16)))


# One party's half


def test_rows_leave_in_order_and_once_across_restarts(tmp_path):
    directory, values = tmp_path / "pool", rows(10)
    with Pool.create(directory, ID, KEY) as pool:
        pool.begin(b"e" * EPOCH_BYTES, 1)
        put(pool, a=values[:4], b=values[:2])
        put(pool, a=values[4:])
        assert pool.available("a") == 10 and pool.available("none") == 0
        assert taken(pool, a=3) == {"a": list(values[:3])}
    with Pool(directory) as pool:
        assert pool.available("a") == 7
        assert taken(pool, a=2, b=9) == {"a": list(values[3:5]), "b": list(values[:2])}
        assert len(list(directory.glob("*.items"))) == 1, "an exhausted file stays"
    with Pool(directory) as pool:
        assert taken(pool, a=50) == {"a": list(values[5:])}
        assert pool.take({"a": 1}) == {} and pool.size == 0


def test_what_was_taken_is_wiped_from_the_disk(pool):
    values = rows(6)
    put(pool, a=values)
    taken(pool, a=4)
    raw = b"".join(path.read_bytes() for path in pool.directory.iterdir())
    assert not any(values[i].tobytes() in raw for i in range(4))
    assert all(values[i].tobytes() in raw for i in (4, 5))


def test_marks_are_on_the_disk_before_rows_are_read(pool, monkeypatch):
    """A failure while reading burns the rows."""
    put(pool, a=rows(4))

    def broken(*args):
        assert pool.marks.state().streams["a"] == (2, 4)
        raise OSError("unreadable")

    monkeypatch.setattr("sottovoce.correlations.pool.read_rows", broken)
    with pytest.raises(StorageError):
        pool.take({"a": 2})
    monkeypatch.undo()
    assert taken(pool, a=4) == {"a": list(rows(4)[2:])}


def test_files_are_private(pool):
    put(pool, a=rows(4))
    assert stat.S_IMODE(pool.directory.stat().st_mode) == 0o700
    for path in pool.directory.iterdir():
        if path.name != "CACHEDIR.TAG":
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path.name


def test_a_directory_that_others_can_read_is_refused(tmp_path):
    Pool.create(tmp_path / "pool", ID, KEY).close()
    (tmp_path / "pool").chmod(0o750)
    with pytest.raises(RefusedError, match="chmod 700"):
        Pool(tmp_path / "pool")


def test_one_opening_at_a_time(pool):
    with pytest.raises(RefusedError, match="in use by another session"):
        Pool(pool.directory)


def test_the_limit_is_kept(tmp_path):
    with Pool.create(tmp_path / "pool", ID, KEY, limit=100) as pool:
        assert pool.stage({"a": Record((rows(16),))}) is None
        assert not list(pool.directory.glob("*.items"))
        assert pool.stage({"a": Record((rows(8),))}) is not None


def test_missing_and_interrupted_pools(tmp_path):
    with pytest.raises(UsageError, match="sottovoce prepare"):
        Pool(tmp_path / "none")
    (tmp_path / "pool").mkdir(mode=0o700)
    (tmp_path / "pool" / "marks.db").touch(0o600)
    with pytest.raises(UsageError, match="sottovoce prepare"):
        Pool(tmp_path / "pool")
    Pool.create(tmp_path / "pool", ID, KEY).close()
    with pytest.raises(UsageError, match="already"):
        Pool.create(tmp_path / "pool", ID, KEY)


def test_damage_is_found(tmp_path):
    with Pool.create(tmp_path / "pool", ID, KEY) as pool:
        pool.begin(b"e" * EPOCH_BYTES, 1)
        put(pool, a=rows(4))
        (path,) = pool.directory.glob("*.items")
        path.write_bytes(path.read_bytes()[:-8])
        with pytest.raises(CorruptFileError, match="--reset"):
            pool.take({"a": 4})
    with Pool(tmp_path / "pool") as pool:
        assert pool.available("a") == 0
    (tmp_path / "pool" / "marks.db").write_bytes(b"no database" * 100)
    with pytest.raises(CorruptFileError, match="--reset"):
        Pool(tmp_path / "pool")


def test_strange_files_are_removed(tmp_path):
    with Pool.create(tmp_path / "pool", ID, KEY) as pool:
        (pool.directory / "00000007.items").write_bytes(b"half a batch")
    with Pool(tmp_path / "pool") as pool:
        assert not list(pool.directory.glob("*.items"))
        pool.destroy()
    assert not (tmp_path / "pool").exists()
