"""The attack lab on the engine scx: the published profile is read, the hardened one is not, controls
break."""

from __future__ import annotations

import numpy as np
import pytest

from models_common import tiny
from sottovoce.attacks.base import Setting, to_json
from sottovoce.attacks.candidates import Sequences
from sottovoce.attacks.registry import attack_named
from sottovoce.attacks.scx_gram import blocks_to_keep
from sottovoce.attacks.scx_order import likely_orders
from sottovoce.engines.scx import PROFILES
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
    if name == "vocabulary-matching":
        assert found.details["from_queries"] >= 0.95 and found.details["from_keys"] >= 0.95


@pytest.mark.parametrize("name", ["vocabulary-matching", "greedy-matching", "kv-inversion"])
def test_masked_vectors_are_not_read(model, name):
    found = outcome(model, name, "hardened", samples=12)
    assert found.success_rate <= 0.15 and min(c.success_rate for c in found.controls) >= 0.5


def test_lengths_survive_every_orthogonal_encoding(model):
    assert outcome(model, "gram-matrix", "paper").success_rate >= 0.95
    found = outcome(model, "gram-matrix", "hardened", samples=12)
    assert found.success_rate <= 0.12
    # Attention at the server is read at every depth: why `hardened` has none there.
    assert len(found.controls) >= 4 and min(c.success_rate for c in found.controls) >= 0.95
    layers = model.config.layers
    assert PROFILES["hardened"].blocks_at_user(layers) == found.details["blocks_to_keep"] == layers


def test_the_number_of_early_blocks_follows_from_what_the_attack_reads():
    assert blocks_to_keep({0: 1.0, 1: 1.0, 2: 0.04, 5: 0.0}, 6) == 2
    assert blocks_to_keep({0: 0.01, 1: 0.3, 5: 0.02}, 6) == 5  # it must stay unread at every greater depth
    assert blocks_to_keep({0: 0.0, 5: 0.0}, 6) == 0 and blocks_to_keep({0: 1.0, 5: 0.06}, 6) == 6


def test_noise_on_every_coordinate_does_not_hide_the_row(model):
    found = outcome(model, "dp-accounting", "paper")
    assert found.details["epsilon_of_a_row_largest"] > 3 * found.details["epsilon_of_a_coordinate"] > 3
    assert min(c.success_rate for c in found.controls) >= 0.95
    hidden = outcome(model, "dp-accounting", "hardened", samples=12)
    assert hidden.success_rate <= 0.3 and hidden.details["total_variation_of_a_token"] < 1e-5
    assert min(c.success_rate for c in hidden.controls) >= 0.5


def test_orders_are_checked_exactly_but_there_are_too_many(model):
    found = outcome(model, "brute-force", "paper")
    assert min(c.success_rate for c in found.controls) >= 0.95
    assert found.success_rate <= 0.4 and found.details["bits_of_orders"] > 20


@pytest.mark.parametrize("profile", ["paper", "hardened"])
@pytest.mark.parametrize("name", ["two-layer-fitting", "lm-reordering", "brute-force"])
def test_the_other_attacks_run(model, name, profile):
    found = outcome(model, name, profile, samples=4)
    assert 0.0 <= found.success_rate <= 1.0 and found.controls


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_sequences_side_by_side_are_those_one_by_one(name):
    model = tiny(name)
    tokens = np.random.default_rng(0).integers(0, 256, (3, 5))
    many = Sequences(model, len(tokens))
    for place in range(tokens.shape[1]):
        hidden = many.append(tokens[:, place])
        for row, sequence in zip(hidden, tokens, strict=True):
            alone = model.hidden(sequence[: place + 1])[-1]
            assert np.abs(row - alone).max() < 1e-5 * np.abs(alone).max()


def test_the_likeliest_order_is_one_of_the_tokens(model):
    tokens = np.random.default_rng(0).integers(0, 256, (3, 6))
    found = likely_orders(model, tokens)
    assert (np.sort(found, axis=1) == np.sort(tokens, axis=1)).all()
    public = list(model.card.plain("a").public)
    first = model.forward([*public])[-1][tokens[0]]
    assert found[0, 0] == tokens[0][first.argmax()]
