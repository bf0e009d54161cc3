"""The attack lab on the engine scx: the published profile is read, the hardened one is not, controls
break."""

from __future__ import annotations

import pytest

from sottovoce.attacks.base import Setting, to_json
from sottovoce.attacks.registry import attack_named
from tiny_model import tiny_model


@pytest.fixture(scope="module")
def model():
    return tiny_model(layers=6)


def outcome(model, name, profile, samples=6):
    attack = attack_named(name)
    setting = Setting(profile, samples=samples, length=12, loaded=model)
    found = attack.run(setting)
    shown = to_json(attack, setting, found)
    assert shown["samples"] == found.samples > 0 and shown["attack"] == name
    assert shown["control_success_rate"] == min(c["success_rate"] for c in shown["controls"])
    return found


@pytest.mark.parametrize("name", ["vocabulary-matching", "greedy-matching", "kv-inversion"])
def test_the_published_scheme_is_read(model, name):
    found = outcome(model, name, "paper")
    assert found.success_rate >= 0.95 and min(c.success_rate for c in found.controls) >= 0.95


@pytest.mark.parametrize("name", ["vocabulary-matching", "greedy-matching", "kv-inversion"])
def test_masked_vectors_are_not_read(model, name):
    found = outcome(model, name, "hardened", samples=12)
    assert found.success_rate <= 0.12 and min(c.success_rate for c in found.controls) >= 0.5
