"""Seconds of CKKS operations: what is counted, measured and kept in a file."""

import dataclasses
import json
import math

import pytest

from sottovoce.ckks import ENGINE16, FULL16
from sottovoce.ckks.speed import MODEL, Speed, refresh_maps
from sottovoce.ckks.transform import babies


def test_more_primes_cost_more():
    costs = [MODEL.key_switch(limbs) for limbs in range(1, 33)]
    assert costs == sorted(costs)
    slow = dataclasses.replace(MODEL, many=2.0)
    assert slow.key_switch(3) == MODEL.key_switch(3)
    assert slow.key_switch(30) == pytest.approx(2 * MODEL.key_switch(30))
    assert MODEL.key_switch(9) < slow.key_switch(9) < 2 * MODEL.key_switch(9)


def test_a_refresh_is_the_sum_of_its_operations():
    few, many = MODEL.refresh(ENGINE16, 1024), MODEL.refresh(FULL16, FULL16.slots)
    assert 20 * MODEL.key_switch(20) < few < many < 200 * MODEL.key_switch(32)
    twice = Speed(*(2 * value for value in dataclasses.astuple(MODEL)[:4]))
    assert twice.refresh(ENGINE16, 1024) == pytest.approx(2 * few)


@pytest.mark.parametrize(("parameters", "slots"), [(ENGINE16, 1024), (FULL16, FULL16.slots)])
def test_maps_stand_where_a_refresh_has_its_levels(parameters, slots):
    stc, sine, cts = parameters.spec.refresh
    maps = refresh_maps(parameters, slots)
    levels = [level for level, _ in maps]
    assert levels[:cts] == list(range(parameters.top, parameters.top - cts, -1))
    assert levels[cts:] == list(range(parameters.working_top + stc, parameters.working_top, -1))
    assert all(babies(each.diagonals) for _, each in maps)


def test_measured_on_this_machine():
    speed = Speed.measured(repetitions=1)
    values = dataclasses.astuple(speed)
    assert all(math.isfinite(value) and value >= 0 for value in values)
    assert speed.transform > 0 and speed.key_switch(10) > 0


def test_kept_for_a_day(tmp_path, monkeypatch):
    path, calls = tmp_path / "somewhere" / "speed.json", []

    def measured(cls):
        calls.append(1)
        return Speed(transform=1e-4 * len(calls))

    monkeypatch.setattr(Speed, "measured", classmethod(measured))
    first = Speed.kept(path)
    assert Speed.kept(path) == first and len(calls) == 1
    content = json.loads(path.read_text())
    for change in ({"time": 0.0}, {"machine": "another"}, {"transform": None}):
        path.write_text(json.dumps(content | change))
        calls_before = len(calls)
        assert Speed.kept(path) != first and len(calls) == calls_before + 1
    path.write_text("{")
    Speed.kept(path)
    assert json.loads(path.read_text())["transform"] == 1e-4 * len(calls)
    # Where nothing can be written it is measured every time.
    blocked = tmp_path / "file"
    blocked.write_text("")
    before = len(calls)
    Speed.kept(blocked / "speed.json")
    assert len(calls) == before + 1
