"""Chunks of private tokens on slots in NumPy: logits against the plain model, keys and values against single
steps, every length, public prefixes, prices."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import models_common
from fhe_numbers import NumberSession, divergence
from sottovoce.ckks.encoder import to_coefficients
from sottovoce.engines.fhe import chunk as chunks
from sottovoce.engines.fhe.calibration import calibrate, sample
from sottovoce.engines.fhe.chunk_plaintexts import fits, one_hots
from sottovoce.engines.fhe.chunk_plan import ChunkPlan
from sottovoce.engines.fhe.costs import CostModel
from sottovoce.engines.fhe.flow import PlannedFlow
from sottovoce.engines.fhe.functions import Degrees, degrees_for
from sottovoce.engines.fhe.placement import place_bootstraps, record, rotation_levels
from sottovoce.engines.fhe.program import Program
from sottovoce.engines.fhe.shape import Shape
from sottovoce.engines.fhe.weights import slot_weights
from sottovoce.errors import PromptTooLongError, UsageError
from sottovoce.models import load_model
from sottovoce.models.shapes import SHAPES
from sottovoce.packing.slots import PlainSlots
from tiny_model import tiny_model

FIXTURES = Path(__file__).parent / "fixtures"
TOP = 16
COST = CostModel(3.0)


class MeasuredSlots(PlainSlots):
    """Also the largest coefficient that was refreshed: what has to be small there."""

    largest = 0.0

    def bootstrap(self, x):
        self.largest = max(self.largest, np.abs(to_coefficients(x.values.astype(complex))).max())
        return super().bootstrap(x)


class Simulation(NumberSession):
    """Steps and chunks of a model on numbers: one session."""

    def __init__(self, model, shape, noise=0.0, refresh_noise=0.0, sequences=8, functions=None, public=0):
        self.model, self.shape = model, shape
        degrees = degrees_for(shape.tokens)
        functions = functions or calibrate(model, min(shape.tokens, 64), sequences)
        self.functions = replace(functions, polish=degrees.polish)
        segments = record(shape, degrees, shape.tokens - 1, public)
        self.placement = place_bootstraps(segments, TOP, COST)
        self.plan = ChunkPlan(shape, degrees, self.placement, TOP, COST, public)
        self.weights = slot_weights(model.weights, shape, self.functions)
        self.ar = MeasuredSlots(shape.n, TOP, noise, refresh_noise, np.random.default_rng(1))
        self.reset()

    def reset(self):
        flow = PlannedFlow(self.placement.decisions)
        self.program = Program(self.ar, self.shape, self.weights, self.functions, flow)
        flow = PlannedFlow(self.plan.placement.decisions)
        self.chunks = chunks.ChunkProgram(self.program, flow, self.plan.value_level)
        return self

    def chunk(self, tokens):
        one_hot = one_hots(self.shape, tokens)
        fresh = [self.ar.fresh(values, self.plan.entry) for values in one_hot]
        return self.read(self.chunks.run(fresh, len(tokens)))


@pytest.fixture(scope="module")
def tiny():
    model = tiny_model(layers=2)
    return Simulation(model, Shape(model.config, 256, 16))  # T = 16


@pytest.mark.parametrize("public", [1, 3])
def test_every_length(tiny, public):
    """A chunk and a step behind it against the plain model; keys and values against those of steps."""
    text = sample(tiny.model, 1, 17, seed=5)[0]
    plain = tiny.model.forward(text)
    tiny.reset().public(text[:public])
    steps = [tiny.step(token) for token in text[public:16]]
    keys = [cache.keys[0].values for cache in tiny.program.caches]
    values = [cache.values[0].values for cache in tiny.program.caches]
    for count in range(1, 16 - public + 1):
        tiny.reset().public(text[:public])
        end = public + count
        logits = tiny.chunk(text[public:end])
        assert divergence(plain[end - 1], logits) < 1e-3
        assert np.abs(logits - steps[count - 1]).max() < 1e-2
        places = np.arange(256) % 16
        for layer, cache in enumerate(tiny.program.caches):
            here = (places >= public) & (places < end)
            assert np.abs(cache.keys[0].values - keys[layer])[here].max() < 1e-3
            assert np.abs(cache.values[0].values - values[layer])[places < end].max() < 1e-2
        if end < 16:
            assert divergence(plain[end], tiny.step(text[end])) < 1e-3
        tiny.program.length, tiny.program.caches = end - 1, tiny.chunks.before
        assert divergence(plain[end - 1], tiny.step(text[end - 1])) < 1e-3
        assert tiny.ar.largest < 0.2501


def test_chunk_after_chunk(tiny):
    text = sample(tiny.model, 1, 16, seed=6)[0]
    plain = tiny.model.forward(text)
    tiny.reset().public(text[:2])
    ends = (5, 6, 13, 16)
    for start, end in pairwise((2, *ends)):
        assert divergence(plain[end - 1], tiny.chunk(text[start:end])) < 1e-3
    assert tiny.program.length == 16 and not tiny.chunks.room()


def test_a_chunk_behind_single_steps(tiny):
    """Their keys are refreshed, once for each layer."""
    text = sample(tiny.model, 1, 16, seed=9)[0]
    plain = tiny.model.forward(text)
    tiny.reset().public(text[:1])
    tiny.chunk(text[1:4])
    for i in (4, 5):
        tiny.step(text[i])
    assert divergence(plain[9], tiny.chunk(text[6:10])) < 1e-3
    assert divergence(plain[10], tiny.step(text[10])) < 1e-3
    assert divergence(plain[15], tiny.chunk(text[11:])) < 1e-3
    assert tiny.ar.largest < 0.2501


@pytest.mark.parametrize(("n", "split", "public"), [(256, 2, 35), (128, 1, 20), (512, 4, 3)])
def test_behind_a_public_prefix(n, split, public):
    """Public tokens in blocks of their own: plaintext by ciphertext; a step goes on behind the chunk."""
    model = tiny_model(layers=1)
    shape = Shape(model.config, n, public + n // model.config.width, split)
    run = Simulation(model, shape, public=public)
    text = sample(model, 1, public + 8, seed=7)[0]
    plain = model.forward(text)
    for count in (1, 3, 6):
        run.reset().public(text[:public])
        assert divergence(plain[public + count - 1], run.chunk(text[public : public + count])) < 1e-3
        caches, run.program.length = run.program.caches, public + count - 1
        if count > 1:
            run.program.caches = run.chunks.before
            last = text[public + count - 1]
            assert divergence(plain[public + count - 1], run.step(last)) < 1e-3
        run.program.caches, run.program.length = caches, public + count
        assert divergence(plain[public + count], run.step(text[public + count])) < 1e-3
        assert divergence(plain[public + count + 1], run.step(text[public + count + 1])) < 1e-3
    assert run.ar.largest < 0.2501
    # Behind single steps, whose keys are gathered out of their lanes.
    run.reset().public(text[:public])
    for i in range(public, public + 2):
        run.step(text[i])
    assert divergence(plain[public + 4], run.chunk(text[public + 2 : public + 5])) < 1e-3
    assert divergence(plain[public + 5], run.step(text[public + 5])) < 1e-3
    levels = run.plan.steps()
    rotations = run.plan.rotations(0, 6).items()
    assert all(level <= levels[step] for step, level in rotations)


@pytest.mark.parametrize("sizes", [(16, 16, 8), (10, 6, 3, 9, 4, 8)])
def test_several_groups_of_private_tokens(sizes):
    """Chunks behind full groups, ciphertext by ciphertext; a step behind each."""
    model = tiny_model(layers=1)
    run = Simulation(model, Shape(model.config, 256, 51, 4), public=3)
    text = sample(model, 1, 51, seed=8)[0]
    plain, end = model.forward(text), 3
    run.public(text[:3])
    assert run.program.blocks.private == 3
    for size in sizes:
        end += size
        assert divergence(plain[end - 1], run.chunk(text[end - size : end])) < 1e-3
    assert divergence(plain[end], run.step(text[end])) < 1e-3
    assert run.chunks.room() == min(48 - (end + 1 - 3), 16 - (end + 1 - 3) % 16)
    assert divergence(plain[end + 3], run.chunk(text[end + 1 : end + 4])) < 1e-3
    assert set(run.ar.steps) <= set(run.plan.steps()) | set(
        rotation_levels(run.shape, degrees_for(51), run.placement, TOP, 3)
    )


def test_biases():
    model = load_model(FIXTURES / "tiny-qwen2")
    shape = Shape(model.config, 512, 16)
    if not fits(shape):
        pytest.skip("heads are not as wide as the model")
    run = Simulation(model, shape)
    text = [int(t) for t in np.random.default_rng(3).integers(0, model.config.vocab_size, 8)]
    run.public(text[:1])
    logits = [run.chunk(text[1:5]), run.chunk(text[5:])]
    assert divergence(model.forward(text)[[4, 7]], logits).max() < 5e-3


def test_what_does_not_fit_is_refused(tiny):
    tiny.reset().public([256])
    with pytest.raises(PromptTooLongError, match="does not fit"):
        tiny.chunks.run([], 16)
    with pytest.raises(UsageError, match="do not come in"):
        tiny.chunks.run([], 2)
    tiny.step(1)
    assert tiny.chunks.room() == 14
    assert not fits(Shape(SHAPES["gpt2"], 32768, 64))
    assert fits(Shape(SHAPES["smollm2-135m"], 32768, 32))


def test_keys_serve_every_split(tiny):
    levels = tiny.plan.steps()
    for start, count in ((0, 16), (1, 5), (6, 8), (15, 1)):
        for step, level in tiny.plan.rotations(start, count).items():
            assert level <= levels[step]


def test_prices_of_stories260k():
    """Fifteen tokens refresh as often as one; no rotation that a step does not have."""
    shape = Shape(SHAPES["stories260k"], 4096, 64)
    step = place_bootstraps(record(shape, Degrees(), 63), TOP, COST)
    plan = ChunkPlan(shape, Degrees(), step, TOP, COST)
    assert plan.one().bootstraps == 20
    assert [plan.chunk(1, count).bootstraps for count in (1, 15, 31, 63)] == [20, 20, 30, 85]
    assert plan.split(1, 15) == (15,)
    assert plan.least == 2
    for count in (2, 33, 40, 63):
        sizes = plan.split(1, count)
        assert sum(sizes) == count
        assert plan.price(1, sizes).seconds <= plan.chunk(1, count).seconds < count * plan.one().seconds
    assert set(plan.steps()) <= set(rotation_levels(shape, Degrees(), step, TOP))


@pytest.mark.parametrize("shared", [True, False])
def test_stories260k(shared):
    """The real model with the noise that a refresh has at N = 2^16, a step behind every chunk: a public token
    in the group of the private ones, and in a block of its own as in sessions of 512 tokens."""
    model = models_common.stories()
    shape = Shape(model.config, 4096, 64) if shared else Shape(model.config, 4096, 512, 8)
    public = 0 if shared else 512 - 64
    run = Simulation(model, shape, 2.0**-28, 2.0**-20.6, sequences=16, public=public)
    text = sample(model, 1, 34, seed=77)[0]
    plain = model.forward(text)
    for sizes in ((15,), (8, 24)):
        run.reset().public(text[:1])
        end = 1
        for size in sizes:
            end += size
            assert divergence(plain[end - 1], run.chunk(text[end - size : end])) < 1e-3
        assert divergence(plain[end], run.step(text[end])) < 1e-3
    assert run.ar.largest_refresh < 0.2501
    keys = rotation_levels(shape, degrees_for(shape.tokens), run.placement, TOP, public)
    assert set(run.ar.steps) <= set(keys)
