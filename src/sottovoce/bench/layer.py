"""`bench layer`: one decoder layer of a model's shape under FHE, by operation, on ciphertexts.

Random weights in the model's shapes (one layer, a vocabulary of 512 to skip embedding and head), 32,768
slots, the parameters that `estimate` takes. One token behind a public one; the plain model checks the result.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from sottovoce.bench.machine import header
from sottovoce.bench.parties import peak_memory
from sottovoce.ckks import Decryptor, Encryptor, Evaluator, KeyGenerator
from sottovoce.ckks.bootstrap import Bootstrapper, BootstrapSpec
from sottovoce.engines.base import Progress
from sottovoce.engines.fhe.calibration import calibrate
from sottovoce.engines.fhe.ciphertexts import CkksSlots, scales
from sottovoce.engines.fhe.estimate import plan_model
from sottovoce.engines.fhe.flow import PlannedFlow
from sottovoce.engines.fhe.functions import Degrees
from sottovoce.engines.fhe.placement import EMBED_LEVELS, rotation_levels
from sottovoce.engines.fhe.program import Program
from sottovoce.engines.fhe.weights import slot_weights
from sottovoce.errors import UsageError
from sottovoce.models.config import Config
from sottovoce.models.model import Model, build
from sottovoce.models.shapes import SHAPES
from sottovoce.models.weights import BlockWeights, Weights, expected_shapes

_VOCABULARY = 512


def run(shape: str = "smollm2-135m", progress: Progress = lambda done, total, what: None) -> dict[str, Any]:
    """Seconds of one layer by operation, and of every part between two points."""
    if shape not in SHAPES:
        raise UsageError(f"no shapes are known of {shape!r}; there are {', '.join(SHAPES)}")
    config = replace(SHAPES[shape], layers=1, vocab_size=_VOCABULARY, tied_head=False, context_length=64)
    model = random_model(config)
    plan = plan_model(config, 4)
    parameters, n, placement = plan.parameters, plan.shape.n, plan.placement
    functions = calibrate(model, 4, sequences=48)
    progress(0, 4, "maps of a refresh")
    bootstrapper = Bootstrapper(parameters, BootstrapSpec(n))
    steps = rotation_levels(plan.shape, Degrees(), placement, parameters.working_top)
    for step, level in bootstrapper.steps.items():
        steps[step] = max(steps.get(step, 0), level)
    progress(1, 4, "keys")
    keys = KeyGenerator(parameters)
    products = keys.relinearization_key(parameters.top - parameters.spec.refresh[2])
    evaluator = Evaluator(parameters, products, keys.galois_keys(steps), keys.encapsulation_keys())
    clock = _Clock()
    ar = CkksSlots(evaluator, n, bootstrapper, clock.operation)
    weights = slot_weights(model.weights, plan.shape, functions)
    program = Program(ar, plan.shape, weights, functions, PlannedFlow(placement.decisions))
    public, token = 1, 5
    cache = model.new_cache()
    model.hidden([public], cache)
    program.append_public([cache.k(0)], [cache.v(0)])
    one_hot = np.zeros(plan.shape.vocabulary)
    one_hot[token] = 1.0
    level = placement.entry + EMBED_LEVELS
    plain = evaluator.encoder.encode(plan.shape.embed.place(one_hot), level, scales(parameters)[level])
    x = program.embed([Encryptor(parameters, keys.secret_key).encrypt(plain)], 1)
    clock.seconds.clear()
    progress(2, 4, "attention")
    start = time.perf_counter()
    x = program.attention(x, 0)
    attention = time.perf_counter() - start
    progress(3, 4, "MLP")
    x = program.mlp(x, 0)
    seconds = time.perf_counter() - start
    by_operation = dict(clock.seconds)
    program.length += 1
    out = program.logits(x)[0]
    logits = plan.shape.head.read(Decryptor(parameters, keys.secret_key).decrypt_slots(out, n)).real
    reference = model.forward([public, token])[-1]
    progress(4, 4, "layer")
    return {
        **header(),
        "parameters": {
            "security_bits": 128,
            "N": parameters.degree,
            "moduli": [int(q) for q in (*parameters.primes, *parameters.special)],
            "slots": n,
        },
        "shape": shape,
        "seconds": seconds,
        "attention_seconds": attention,
        "mlp_seconds": seconds - attention,
        "bootstraps": placement.bootstraps(0),
        "estimated_seconds": plan.placement.seconds,
        "plan": plan.layer(),
        "by_operation": [
            {"name": name, "seconds": s} for name, s in sorted(by_operation.items(), key=lambda i: -i[1])
        ],
        "largest_error": float(np.abs(logits - reference).max()),
        "logits_range": float(np.abs(reference).max()),
        "memory_bytes": peak_memory(),
        "key_bytes": plan.key_bytes,
    }


class _Clock:
    """Seconds by the outermost operation."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._inside = False

    @contextmanager
    def operation(self, name: str) -> Iterator[None]:
        if self._inside:
            yield
            return
        self._inside, start = True, time.perf_counter()
        try:
            yield
        finally:
            self._inside = False
            self.seconds[name] += time.perf_counter() - start


def random_model(config: Config, seed: int = 0) -> Model:
    """Weights of the size that training leaves, gains of one."""
    rng = np.random.default_rng(seed)
    found: dict[str, np.ndarray] = {}
    for name, shape in expected_shapes(config).items():
        if len(shape) == 2:
            spread = 1.0 / np.sqrt(shape[-1]) if name not in ("embedding", "positions") else 0.5
            found[name] = (spread * rng.standard_normal(shape)).astype(np.float32)
        else:
            make = np.zeros if name.endswith("bias") else np.ones
            found[name] = make(shape, np.float32)
    block = {
        name.removeprefix("blocks.0."): value for name, value in found.items() if name.startswith("blocks.")
    }
    rest = {name: value for name, value in found.items() if not name.startswith("blocks.")}
    return build("random", config, Weights(blocks=(BlockWeights(**block),), **rest))
