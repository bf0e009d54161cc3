"""Attacks on hybrid fail on its defaults, and succeed where a safeguard is left out."""

import json

import pytest
from click.testing import CliRunner

from sottovoce.attacks import plot, report
from sottovoce.attacks.base import Setting
from sottovoce.attacks.hybrid_reuse import rolled_back
from sottovoce.attacks.registry import ATTACKS, attack_named
from sottovoce.cli.attack import attack as command
from sottovoce.runs import load


@pytest.mark.parametrize("name", ["weight-extraction", "transcript-uniformity", "correlation-reuse"])
def test_it_fails_and_its_controls_break(name):
    found = attack_named(name).run(Setting("default", samples=2))
    assert found.success_rate == 0.0 and found.controls
    assert all(control.success_rate == 1.0 for control in found.controls)


@pytest.mark.parametrize("party", ["client", "server"])
def test_a_pool_that_was_rolled_back_is_not_used(party):
    assert rolled_back(party) == (False, True)


def test_the_command_lists_and_refuses():
    listed = CliRunner().invoke(command, ["--json"])
    assert [entry["name"] for entry in json.loads(listed.output)] == list(ATTACKS)
    for arguments in (["brute-force", "--engine", "hybrid"], ["brute-force", "--profile", "default"]):
        assert CliRunner().invoke(command, arguments).exit_code == 2


def test_the_command_prints_the_stable_keys():
    ran = CliRunner().invoke(command, ["correlation-reuse", "--samples", "1", "--json", "-q"])
    found = json.loads(ran.output)
    assert list(found)[:7] == [
        "attack",
        "target",
        "profile",
        "samples",
        "success_rate",
        "control_success_rate",
        "controls",
    ]
    assert found["control_success_rate"] == 1.0


def test_a_decryption_that_is_shared_gives_the_key_away():
    found = attack_named("ckks-key-recovery").run(Setting("default", samples=2))
    assert found.success_rate == 0.0 and found.details["after_flooding"] == 0.0
    assert [control.success_rate for control in found.controls] == [1.0]


def test_results_become_a_table_and_a_plot(tmp_path):
    folder, speeds = tmp_path / "security", tmp_path / "benchmarks"
    speeds.mkdir()
    run = {"what": "e2e", "engine": "scx", "profile": "paper", "model": "tiny"}
    run["seconds_per_token"] = 0.1
    speeds.joinpath("scx.json").write_text(json.dumps([run, {**run, "what": "quality"}]))
    outcome = {
        "attack": "brute-force",
        "target": "scx",
        "profile": "paper",
        "samples": 3,
        "success_rate": 0.25,
        "control_success_rate": 1.0,
        "controls": [{"name": "short", "success_rate": 1.0}],
        "details": {"bits": 12.5},
    }
    for rate in (0.5, 0.25):
        report.save({**outcome, "success_rate": rate}, folder)
    (kept,) = load(folder / report.DATA)
    assert kept["success_rate"] == 0.25
    assert (
        "| scx | paper | `brute-force` | 25.0 % | short: 100.0 % | 3 |" in (folder / report.TABLE).read_text()
    )
    assert plot.points([kept], speeds) == [plot.Point("paper", "tiny", 0.1, 0.25, "brute-force")]
    table = (folder / report.TABLE).read_text()
    assert "| scx paper | tiny | 0.1 | 25.0 % | `brute-force` |" in table
