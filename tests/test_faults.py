"""Some of the points of `sottovoce bench faults`, and the harness itself: it must find what is wrong."""

import pytest

from sottovoce.bench import faults
from sottovoce.bench.faults import run_faults
from sottovoce.bench.faulty import Fault, Plan
from sottovoce.net import Role
from sottovoce.parties.store import SessionStore


def sound(report):
    assert report.failures == []
    assert report.seamless + report.reopened + report.restarted == report.points
    return report


def test_random_points():
    report = sound(run_faults(40, seed=3, kv="clear"))
    assert report.resumed_connections and report.reopened
    assert {fault.split()[0] for fault in report.faults} == set(Fault)


@pytest.mark.parametrize("kv", ["masked", "ciphertext"])
def test_random_points_with_cryptography(kv):
    sound(run_faults(1, seed=5, kv=kv))


def test_points_are_repeatable():
    first, second = (run_faults(5, seed=7) for _ in range(2))
    assert first.faults == second.faults


def test_the_harness_notices_other_tokens(monkeypatch):
    calls, original = [], faults._answer

    def wrong(client):
        calls.append(original(client))
        return calls[-1] if len(calls) == 1 else [*calls[-1][:-1], 0]

    monkeypatch.setattr(faults, "_answer", wrong)
    report = run_faults(2, seed=1)
    assert len(report.failures) == 2 and all("other tokens" in failure for failure in report.failures)


def test_the_harness_notices_repeated_frames():
    plan = Plan(Fault.DELAY, Role.CLIENT, 1)
    for payload in (b"a" * 64, b"b" * 64, b"a" * 64):
        plan.note(Role.CLIENT, memoryview(payload))
    plan.note(Role.SERVER, memoryview(b"b" * 64))
    assert plan.repeated == 1


def test_the_harness_notices_damage(tmp_path, monkeypatch):
    def forgetful(self, id, number, pieces):
        self._path(id, number).write_bytes(b"")
        return b"", 0

    monkeypatch.setattr(SessionStore, "_write", forgetful)
    report = run_faults(2, seed=2)
    assert len(report.failures) == 2
