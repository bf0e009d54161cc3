"""The decoder on slots in NumPy: against the plain model, with several groups of keys, other families, noise;
ranges, placement of refreshes, estimates."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import models_common
from fhe_numbers import NumberSession, divergence
from sottovoce.engines.fhe import estimate as estimates
from sottovoce.engines.fhe import kept, rotations
from sottovoce.engines.fhe.calibration import calibrate, observe, sample
from sottovoce.engines.fhe.costs import CostModel
from sottovoce.engines.fhe.flow import PlannedFlow
from sottovoce.engines.fhe.functions import Degrees, Margins, softmax_functions
from sottovoce.engines.fhe.placement import (
    place_bootstraps,
    record,
    rotation_levels,
)
from sottovoce.engines.fhe.program import Program
from sottovoce.engines.fhe.shape import Shape, slots_for
from sottovoce.engines.fhe.weights import slot_weights
from sottovoce.errors import ParameterError, PromptTooLongError, RangeError, UnsupportedModelError
from sottovoce.models import load_model
from sottovoce.models.shapes import SHAPES
from sottovoce.packing.slots import PlainSlots
from sottovoce.packing.slots import polynomial as polynomials
from tiny_model import tiny_model

FIXTURES = Path(__file__).parent / "fixtures"
TOP = 16


class Simulation(NumberSession):
    """A model's program on numbers: one session."""

    def __init__(
        self,
        model,
        n,
        tokens,
        top=TOP,
        noise=0.0,
        refresh_noise=0.0,
        sequences=8,
        functions=None,
        split=0,
        public=0,
        degrees=Degrees(),  # noqa: B008  (frozen)
    ):
        self.model, self.shape = model, Shape(model.config, n, tokens, split)
        self.functions = functions or calibrate(model, tokens, sequences)
        segments = record(self.shape, degrees, public or tokens - 1, public)
        self.placement = place_bootstraps(segments, top, CostModel(3.0))
        rng = np.random.default_rng(1)
        self.ar = PlainSlots(n, top, noise, refresh_noise, rng)
        weights = slot_weights(model.weights, self.shape, self.functions)
        flow = PlannedFlow(self.placement.decisions)
        self.program = Program(self.ar, self.shape, weights, self.functions, flow)


def test_a_session_with_one_group_of_keys():
    model = tiny_model(layers=2)
    run = Simulation(model, slots_for(model.config, 4096), 12)
    text = sample(model, 1, 8, seed=5)[0]
    run.public(text[:2])
    logits = [run.step(token) for token in text[2:]]
    assert run.shape.shared
    assert divergence(model.forward(text)[2:], logits).max() < 1e-3
    assert run.ar.largest_refresh < 0.25
    assert run.ar.counts["bootstrap", TOP] == len(text[2:]) * run.placement.total
    assert set(run.ar.steps) <= set(rotation_levels(run.shape, Degrees(), run.placement, TOP))
    with pytest.raises(PromptTooLongError):
        for token in text:
            run.step(token)


def test_several_groups_of_keys_and_blocks_of_the_vocabulary():
    model = tiny_model(layers=1)
    run = Simulation(model, 256, 40)
    assert not run.shape.shared and run.shape.vocabulary_blocks == 2
    text = sample(model, 1, 20, seed=6)[0]
    logits = [run.step(token) for token in text]
    assert len(run.program.caches[0].keys) == 4 and len(run.program.caches[0].values) == 2
    assert divergence(model.forward(text)[1:], logits[1:]).max() < 1e-3


@pytest.mark.parametrize(
    ("n", "split", "public", "ciphertexts"),
    [(1024, 2, 20, 1), (1024, 4, 33, 1), (256, 2, 70, 2), (128, 1, 70, 3)],
)
def test_a_private_tail_behind_a_public_prefix(n, split, public, ciphertexts):
    """Public tokens in blocks of their own, in one ciphertext of scores and in several."""
    model = tiny_model(layers=1)
    run = Simulation(model, n, public + 8, split=split, public=public)
    text = sample(model, 1, public + 4, seed=8)[0]
    run.public(text[:public])
    assert run.program.blocks.ciphertexts == ciphertexts
    logits = [run.step(token) for token in text[public:]]
    assert divergence(model.forward(text)[public:], logits).max() < 1e-3
    assert run.ar.largest_refresh < 0.25
    assert run.ar.counts["bootstrap", TOP] == len(logits) * run.placement.total
    assert set(run.ar.steps) <= set(rotation_levels(run.shape, Degrees(), run.placement, TOP, public))


def test_noise_of_refreshes_behind_many_tokens():
    """Rows of many tokens are small; they are made larger before a refresh."""
    model, n = tiny_model(layers=1), 256
    text = sample(model, 1, 74, seed=8)[0]
    run = Simulation(model, n, 80, noise=2.0**-28, refresh_noise=2.0**-20, split=8, public=70)
    run.public(text[:70])
    logits = [run.step(token) for token in text[70:]]
    assert divergence(model.forward(text)[70:], logits).max() < 2e-4
    assert run.ar.largest_refresh < 0.25


def test_flat_rows_of_any_length_add_up_to_one_again():
    """What a round multiplies by follows the length of a row: the last range is as narrow as rows of
    one length need."""
    groups, lengths = np.zeros(60, int), np.repeat([2, 8, 40, 200], 15)
    z = np.where(np.arange(200) < lengths[:, None], 0.0, np.nan) - 4 * np.log(lengths)[:, None]
    z += 0.1 * np.random.default_rng(4).standard_normal(z.shape)
    found = softmax_functions(z, groups, Margins(), Degrees())
    assert found.accurate.high / found.accurate.low < 5
    assert np.allclose(found.spread.slope, -0.5, atol=0.05)
    assert np.allclose(found.spread.weights(1, [4, 100])[0], [0.5, 0.1], rtol=0.1)
    assert max(found.sums) < 4


def test_an_inverse_that_is_not_accurate_is_polished():
    model, n = tiny_model(layers=1), 256
    text, found = sample(model, 1, 34, seed=8)[0], []
    for polish in (0, 1, 2):
        degrees = Degrees(accurate=3, polish=polish)
        functions = calibrate(model, 36, 8, degrees=degrees)
        run = Simulation(model, n, 36, functions=functions, split=2, public=30, degrees=degrees)
        run.public(text[:30])
        found.append(divergence(model.forward(text)[30:], [run.step(token) for token in text[30:]]).max())
    assert found[1] < found[0] / 2 and found[2] < found[1] / 2


def test_a_public_prefix_costs_a_layer_less_than_half_more():
    """Counted: 1,024 public tokens before 32 private ones, SmolLM2's shape."""
    config = replace(SHAPES["smollm2-135m"], layers=1)
    alone = estimates.plan_model(config, 32)
    behind = estimates.plan_model(config, 1056, public=1024)
    assert behind.shape.blocks(1024).ciphertexts == 1
    assert behind.placement.bootstraps(0) <= alone.placement.bootstraps(0) + 1
    assert behind.placement.seconds < 1.25 * alone.placement.seconds
    further = estimates.plan_model(config, 2080, public=2048)
    assert further.to_json()["score_ciphertexts"] == 2 and further.to_json()["public_tokens_apart"] == 2048


def test_several_groups_of_private_tokens_behind_public_ones():
    model = tiny_model(layers=1)
    run = Simulation(model, 256, 80, split=4, public=40)
    text = sample(model, 1, 72, seed=9)[0]
    run.public(text[:40])
    assert run.program.blocks.private == 2
    logits = [run.step(token) for token in text[40:]]
    assert divergence(model.forward(text)[40:], logits).max() < 1e-3
    with pytest.raises(PromptTooLongError, match="private tokens do not fit"):
        run.step(text[9])


def test_a_public_prefix_that_is_too_long():
    model = tiny_model(layers=1)
    run = Simulation(model, 256, 20, split=2, public=9)
    with pytest.raises(PromptTooLongError, match="public tokens"):
        run.public(list(range(21)))
    run = Simulation(model, 256, 20)
    with pytest.raises(PromptTooLongError, match="blocks of their own"):
        run.public([1, 2])


@pytest.mark.parametrize("split", [0, 4])
@pytest.mark.parametrize("name", ["tiny-gpt2", "tiny-qwen2"])
def test_other_families(name, split):
    """Learned positions, LayerNorm, GELU, biases; biased queries and keys."""
    model = load_model(FIXTURES / name)
    c = model.config
    run = Simulation(model, max(256, slots_for(c, 4096)), 8, split=split, public=int(split > 0))
    text = [int(t) for t in np.random.default_rng(3).integers(0, c.vocab_size, 6)]
    run.public(text[:1])
    logits = [run.step(token) for token in text[1:]]
    plain = model.forward(text)
    assert divergence(plain[1:], logits).max() < 5e-3


def test_noise_of_refreshes_does_not_grow():
    model = tiny_model(layers=1)
    n = slots_for(model.config, 4096)
    functions = calibrate(model, 8, 8)
    text, found = [256, 1, 2, 3, 4], []
    for noise in (0.0, 2.0**-20):
        run = Simulation(model, n, 8, noise=noise / 100, refresh_noise=noise, functions=functions)
        run.public(text[:1])
        found.append(np.stack([run.step(token) for token in text[1:]]))
    assert 0 < np.abs(found[1] - found[0]).max() < 1e-2


def test_functions_are_kept(tmp_path):
    model = tiny_model(layers=1)
    first = kept.kept_functions(model, 8, tmp_path)
    again = kept.kept_functions(model, 8, tmp_path)
    assert again.norm == first.norm and again.blocks[0].norm1 == first.blocks[0].norm1
    assert np.array_equal(again.blocks[0].predictor.direct, first.blocks[0].predictor.direct)
    next(tmp_path.iterdir()).write_text("{")
    assert kept.kept_functions(model, 8, tmp_path).coarse == first.coarse


def test_a_polynomial_is_useless_outside_its_range():
    """What the margins are for: at 1.25 of the range the value is off by more than the range itself."""
    for p in (polynomials.silu(8.0, 31), polynomials.inverse_root(0.1, 8.0, 31)):
        inside = np.linspace(p.low, p.high, 1001)
        assert np.abs(p(inside)).max() < 20
        assert abs(p(np.array([p.high + 0.25 * (p.high - p.low)]))[0]) > 1e3


def test_arguments_leave_no_range_on_other_text():
    model = tiny_model(layers=1)
    functions = calibrate(model, 12, 12)
    seen = observe(model, sample(model, 12, 12, seed=99))
    for values, p in zip(seen.norms[:2], (functions.blocks[0].norm1, functions.blocks[0].norm2), strict=True):
        assert p.low < min(values) and max(values) < p.high
    assert seen.inputs[0] < functions.blocks[0].activation.high


@pytest.mark.parametrize(
    ("p", "exact", "bits"),
    [
        (polynomials.reciprocal(0.1, 1.6, 31), lambda x: 1 / x, 22),
        (polynomials.inverse_root(0.1, 3.2, 31), lambda x: 1 / np.sqrt(x), 17),
        (polynomials.exponential(-4.0, 15), np.exp, 35),
    ],
)
def test_fits_reach_the_errors_of_the_literature(p, exact, bits):
    x = np.linspace(p.low, p.high, 4001)
    assert np.abs(p(x) / exact(x) - 1).max() < 2.0**-bits


def test_placement_of_a_small_model():
    """Four refreshes a layer with sixteen levels; fewer levels cost more, too few are refused."""
    shape = Shape(SHAPES["stories260k"], 4096, 64)
    segments = record(shape, Degrees(), 63)
    plan = place_bootstraps(segments, 16, CostModel(3.0))
    assert plan.total == 20 and plan.bootstraps(2) == 4
    assert place_bootstraps(segments, 11, CostModel(3.0)).total > 20
    with pytest.raises(ParameterError, match="levels are needed"):
        place_bootstraps(segments, 7, CostModel(3.0))


def test_a_program_without_refreshes_runs_out_of_levels():
    model = tiny_model(layers=1)
    run = Simulation(model, 512, 8)
    for key, decision in run.placement.decisions.items():
        run.placement.decisions[key] = type(decision)(False, decision.level)
    with pytest.raises(RangeError, match="level exhausted"):
        run.step(1)


@pytest.mark.parametrize(
    ("name", "tokens", "most"),
    [("stories260k", 64, 20), ("smollm2-135m", 128, 7 * 30), ("gpt2", 128, 7 * 12), ("llama-3-8b", 512, 256)],
)
def test_estimates_of_known_shapes(name, tokens, most):
    plan = estimates.plan_model(SHAPES[name], tokens)
    described = plan.to_json()
    assert 0 < described["bootstraps_per_token"] <= most
    assert described["layer"]["bootstraps"] >= 4
    assert plan.parameters.spec.security == 128
    assert 2e9 < plan.key_bytes < 2e10


def test_an_estimate_refuses_what_does_not_fit():
    with pytest.raises(UnsupportedModelError):
        estimates.plan_model(SHAPES["llama-3-8b"], 4096)


def test_stories260k():
    """The real model with the noise that a refresh has at N = 2^16: KL and the likeliest token."""
    model = models_common.stories()
    run = Simulation(model, 4096, 64, noise=2.0**-28, refresh_noise=2.0**-20.6, sequences=16)
    text = sample(model, 1, 14, seed=77)[0]
    run.public(text[:1])
    logits = [run.step(token) for token in text[1:]]
    plain = model.forward(text)[1:]
    assert run.placement.total == 20
    assert divergence(plain, logits).max() < 1e-3
    chosen = np.take_along_axis(plain, np.stack(logits).argmax(axis=1)[:, None], axis=1)[:, 0]
    assert (chosen > plain.max(axis=1) - 0.1).all()


@pytest.mark.parametrize("make", [tiny_model, lambda: load_model(FIXTURES / "tiny-llama")])
def test_rotations_do_not_change_logits(make):
    model = make()
    turned = rotations.rotated(model)
    tokens = [int(t) for t in np.random.default_rng(2).integers(0, model.config.vocab_size, 12)]
    assert np.allclose(turned.forward(tokens), model.forward(tokens), atol=2e-4)
    assert not np.allclose(turned.weights.blocks[0].v, model.weights.blocks[0].v, atol=0.1)


def test_rotations_spread_what_stands_out():
    """One dimension of the stream that is ten times the others."""
    model = tiny_model(layers=2)
    for tokens in ([256, 1, 2, 3],):
        model.weights.embedding[:, 3] *= 10
        before = rotations.extremes(model, [tokens], 1)
        after = rotations.extremes(rotations.rotated(model), [tokens], 1)
    assert after.stream[0] < before.stream[0]
    assert np.allclose(after.activations, before.activations, rtol=1e-3)
    assert np.allclose(after.scores, before.scores, rtol=1e-3, atol=1e-3)


def test_rotations_refuse_layer_norm():
    with pytest.raises(UnsupportedModelError):
        rotations.rotated(load_model(FIXTURES / "tiny-gpt2"))
