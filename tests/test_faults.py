"""Some of the points of `sottovoce bench faults`, and the harness itself: it must find what is wrong."""

import os
import time

import pytest

from sottovoce.bench import faults, faulty_point
from sottovoce.bench.faults import run_faults
from sottovoce.bench.faulty import Board, Fault, Plan
from sottovoce.bench.faulty_point import Point, _fork
from sottovoce.engines.base import EngineOptions
from sottovoce.engines.registry import make_engine
from sottovoce.models.tiny import tiny_model
from sottovoce.net import Role
from sottovoce.parties.store import SessionStore

CLEAR = EngineOptions("clear")


def sound(report):
    assert report.failures == []
    assert report.seamless + report.reopened + report.restarted == report.points
    return report


def test_random_points():
    report = sound(run_faults(40, seed=3, kv="clear"))
    assert report.resumed_connections and report.reopened
    assert {fault.split()[0] for fault in report.faults} == set(Fault)


@pytest.mark.parametrize(("kv", "pool"), [("masked", True), ("ciphertext", False), ("hardened", False)])
def test_random_points_with_cryptography(kv, pool):
    sound(run_faults(3, seed=5, kv=kv, pool=pool))


def test_killed_behind_many_tokens(tmp_path):
    """Either side, after some 35 tokens; the engine without cryptography says what the others have to be.

    Each of them is the likeliest by 0.07 or more, far beyond what roundings do to the logits.
    """
    clear, masked = (make_engine(options, tiny_model()) for options in (CLEAR, EngineOptions(kv="masked")))
    clear.prepare()
    masked.prepare()
    expected = Point(clear, tmp_path / "clear", None, 40).run()
    for plan in (Plan(Fault.KILL, Role.SERVER, 5200), Plan(Fault.KILL, Role.CLIENT, 3900)):
        point = Point(masked, tmp_path / plan.party.name, plan, 40)
        course = point.run()
        assert course.tokens == expected.tokens and len(set(course.tokens)) > 30
        assert (course.how, course.resumed) == (
            ("reopened", 0) if plan.party is Role.CLIENT else ("seamless", 1)
        )
        assert point.board.repeated("frame") == 0 and point.damage() == []


def test_points_are_repeatable():
    first, second = (run_faults(5, seed=7, jobs=jobs) for jobs in (1, 2))
    assert sound(first).faults == sound(second).faults


def test_the_harness_notices_other_tokens(monkeypatch):
    expected = [1, 2, 3]
    monkeypatch.setattr(faults, "_undisturbed", lambda engine, pools: (expected, dict.fromkeys(Role, 100)))
    report = run_faults(2, seed=1)
    assert len(report.failures) == 2 and all("other tokens" in failure for failure in report.failures)


def test_the_harness_notices_what_comes_twice(tmp_path):
    board = Board(tmp_path)
    for payload in (b"a" * 64, b"b" * 64, b"a" * 64):
        board.sent(Role.CLIENT, memoryview(payload))
    board.sent(Role.SERVER, memoryview(b"b" * 64))
    for first, stop in ((0, 10), (20, 30), (8, 21), (40, 41)):
        board.taken(Role.CLIENT, b"id", "stream of rows", first, stop)
    board.taken(Role.SERVER, b"id", "stream of rows", 0, 10)
    board.taken(Role.CLIENT, b"id", "another", 0, 10)
    assert (board.repeated("frame"), board.repeated("row")) == (1, 3)
    board.close()


def test_the_harness_counts_over_processes(tmp_path):
    board, plan = Board(tmp_path), Plan(Fault.DELAY, Role.SERVER, 2)
    child = _fork(lambda: board.due(plan, Role.SERVER))
    os.waitpid(child, 0)
    assert [board.due(plan, role) for role in (Role.CLIENT, Role.SERVER, Role.SERVER)] == [False, True, False]
    assert board.frames == {Role.CLIENT: 1, Role.SERVER: 3}
    board.close()


@pytest.mark.parametrize(("broken", "found"), [("hang", "hangs"), ("crash", "ZeroDivisionError")])
def test_the_harness_notices_hangs_and_crashes(broken, found, monkeypatch):
    if broken == "hang":
        monkeypatch.setattr(faulty_point, "_PATIENCE", 1.0)
    monkeypatch.setattr(faults, "_undisturbed", lambda engine, pools: ([], dict.fromkeys(Role, 100)))
    monkeypatch.setattr(faulty_point, "_answer", lambda *_: time.sleep(60) if broken == "hang" else 1 / 0)
    (failure,) = run_faults(1, seed=1).failures
    assert found in failure


def test_the_harness_notices_damage(monkeypatch):
    def forgetful(self, id, number, pieces):
        self._path(id, number).write_bytes(b"")
        return b"", 0

    monkeypatch.setattr(SessionStore, "_write", forgetful)
    report = run_faults(2, seed=2)
    assert len(report.failures) == 2
