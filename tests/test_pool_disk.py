"""A disk that is full: prepared material is not kept, and neither sessions nor what is there suffer."""

import os

import pytest

from pool_rows import pool, put, rows, taken  # noqa: F401  (a fixture)
from sottovoce.correlations import pool as pool_module
from sottovoce.correlations.hints import HintFile
from sottovoce.correlations.marks import Marks
from sottovoce.correlations.producer import store
from sottovoce.correlations.records import Record
from sottovoce.correlations.shelf import ClientShelf
from sottovoce.dense import DENSE
from sottovoce.errors import PoolFullError, StorageError
from sottovoce.net import Role
from test_pool_agreement import Home, fill, spend


def full(*arguments):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("whose", list(Role))
def test_a_batch_that_does_not_fit_is_dropped_by_both(tmp_path, monkeypatch, whose):
    """The session goes on, and what was prepared before is there."""
    home, original = Home(tmp_path), pool_module.write_records

    def write(file, records, made):
        return full() if records["a"].arrays[0][0] == 5 + whose else original(file, records, made)

    def overfill(channel, pool):  # noqa: F811
        fill(channel, pool)
        monkeypatch.setattr(pool_module, "write_records", write)
        values = rows(8)
        values[0] = 5 + channel.role
        with pytest.raises(PoolFullError) as caught:
            store(channel, pool, {"a": Record((values,))})
        return str(caught.value), spend(16)(channel, pool)

    found = home.meet(overfill)
    assert "No space left" in found[whose][0] and "other side" in found[whose.other][0]
    assert found[0][1] == list(rows(16, 5)) and found[1][1] == list(rows(16, 6))


def test_nothing_is_left_of_a_batch_that_could_not_be_written(pool, monkeypatch):  # noqa: F811
    put(pool, a=rows(8))
    before = sorted(path.name for path in pool.directory.iterdir())
    monkeypatch.setattr(pool_module.os, "fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        pool.stage({"a": Record((rows(8),), granule=1)})
    monkeypatch.undo()
    assert sorted(path.name for path in pool.directory.iterdir()) == before
    assert taken(pool, a=8)["a"] == list(rows(8))


def test_rows_whose_mark_cannot_be_written_are_not_handed_out(pool, monkeypatch):  # noqa: F811
    put(pool, a=rows(8))
    original = Marks._set
    monkeypatch.setattr(
        Marks,
        "_set",
        lambda self, values: self._db.execute("INSERT INTO facts VALUES('x', zeroblob(4000000))"),
    )
    (pages,) = pool.marks._db.execute("PRAGMA page_count").fetchone()
    pool.marks._db.execute(f"PRAGMA max_page_count={pages}")
    with pytest.raises(StorageError, match="full"):
        pool.take({"a": 4})
    monkeypatch.setattr(Marks, "_set", original)
    pool.marks._db.execute("PRAGMA max_page_count=1000000")
    assert taken(pool, a=8)["a"] == list(rows(8))


def test_a_new_pool_needs_room(tmp_path, monkeypatch):
    monkeypatch.setattr(pool_module, "_sync", full)
    with pytest.raises(StorageError, match="cannot be kept"):
        ClientShelf(tmp_path / "pool", make=True).create()


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="zeros are written instead")
def test_room_for_hints_is_taken_before_they_are_mapped(tmp_path, monkeypatch):
    """A write into mapped memory for which the disk has no room would end the process."""
    path, shapes = tmp_path / "hint", {("q", 0): (3, 5)}
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(StorageError, match="No space left"):
        HintFile(path, DENSE, shapes, bytes(32))
    assert path.stat().st_size == 0
    monkeypatch.undo()
    file = HintFile(path, DENSE, shapes, bytes(32))
    assert path.stat().st_size > file.rows(("q", 0), 0, 3).nbytes
    file.close()
