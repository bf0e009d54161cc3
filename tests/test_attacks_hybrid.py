"""Attacks on hybrid fail on its defaults, and succeed where a safeguard is left out."""

import json

import pytest
from click.testing import CliRunner

from sottovoce.attacks.base import Setting
from sottovoce.attacks.hybrid_reuse import rolled_back
from sottovoce.attacks.registry import ATTACKS, attack_named
from sottovoce.cli.attack import attack as command


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
