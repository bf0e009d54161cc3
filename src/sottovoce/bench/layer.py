"""`bench layer`: one decoder layer of a model's shape under FHE, by operation, on ciphertexts.

Random weights in the model's shapes (one layer, a vocabulary of 512 to skip embedding and head), 32,768
slots, the parameters that `estimate` takes. The cache is filled with the plain model's keys and values:
private tokens encrypted, public ones in the clear; one token more is timed, and the plain model checks the
result. With a public prefix the same private tokens alone come first, under the same keys.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from sottovoce.bench.machine import header
from sottovoce.bench.parties import peak_memory
from sottovoce.ckks import Ciphertext, Decryptor, Encryptor, Evaluator, KeyGenerator
from sottovoce.ckks.bootstrap import Bootstrapper, BootstrapSpec
from sottovoce.engines.base import Progress
from sottovoce.engines.fhe.calibration import calibrate
from sottovoce.engines.fhe.ciphertexts import CkksSlots, scales
from sottovoce.engines.fhe.estimate import Plan, plan_model
from sottovoce.engines.fhe.flow import PlannedFlow
from sottovoce.engines.fhe.functions import Functions, degrees_for
from sottovoce.engines.fhe.placement import EMBED_LEVELS, cache_levels, rotation_levels
from sottovoce.engines.fhe.program import Program
from sottovoce.engines.fhe.scores import PublicTokens
from sottovoce.engines.fhe.weights import slot_weights
from sottovoce.errors import UsageError
from sottovoce.models.config import Config
from sottovoce.models.model import Model, build
from sottovoce.models.shapes import SHAPES
from sottovoce.models.weights import BlockWeights, Weights, expected_shapes
from sottovoce.packing.slots import Vector, place
from sottovoce.packing.slots import attention as att

_VOCABULARY = 512


def run(
    shape: str = "smollm2-135m",
    public: int = 0,
    private: int = 32,
    progress: Progress = lambda done, total, what: None,
) -> dict[str, Any]:
    """Seconds of one layer by operation for the last of `private` tokens, alone and, if there are `public`
    ones, behind them."""
    if shape not in SHAPES:
        raise UsageError(f"no shapes are known of {shape!r}; there are {', '.join(SHAPES)}")
    tokens = public + private
    config = replace(
        SHAPES[shape], layers=1, vocab_size=_VOCABULARY, tied_head=False, context_length=max(tokens, 2)
    )
    plans = [plan_model(config, private)]
    if public:
        plans.append(plan_model(config, tokens, public=public))
    return {**header(), "shape": shape, "private_tokens": private} | measure(config, plans, progress)


def measure(
    config: Config, plans: Sequence[Plan], progress: Progress = lambda done, total, what: None
) -> dict[str, Any]:
    """Each plan's layer, with the same keys. The last plan has all tokens, the others the last of them."""
    rng, tokens = np.random.default_rng(1), plans[-1].shape.tokens
    model = random_model(config)
    # Ranges need rows of scores: of many short texts or of a few long ones.
    texts = rng.integers(0, config.vocab_size, (48 if tokens <= 64 else 24, max(tokens, 4))).tolist()
    progress(0, 2 + len(plans), "maps of a refresh, keys")
    ring = Ring(plans)
    cases = []
    for i, plan in enumerate(plans):
        progress(1 + i, 2 + len(plans), f"a layer behind {plan.shape.tokens - 1} tokens")
        size = plan.shape.tokens
        ends = [text[-max(size, 4) :] for text in texts[: 48 if size <= 64 else 4]]
        functions = calibrate(model, size, degrees=degrees_for(size), texts=ends)
        cases.append(ring.case(model, functions, plan, texts[0][-size:]))
    progress(2 + len(plans), 2 + len(plans), "layers")
    first, last = cases[0]["seconds"], cases[-1]["seconds"]
    return {
        "parameters": {
            "security_bits": ring.parameters.spec.security,
            "N": ring.parameters.degree,
            "moduli": [int(q) for q in (*ring.parameters.primes, *ring.parameters.special)],
            "slots": ring.n,
        },
        "cases": cases,
        "growth": last / first,
        "memory_bytes": peak_memory(),
        "key_bytes": max(plan.key_bytes for plan in plans),
    }


class Ring:
    """Keys that serve all plans, and a clock."""

    def __init__(self, plans: Sequence[Plan]) -> None:
        self.parameters, self.n = plans[0].parameters, plans[0].shape.n
        self._bootstrapper = Bootstrapper(self.parameters, BootstrapSpec(self.n))
        steps = dict(self._bootstrapper.steps)
        for plan in plans:
            top, degrees = self.parameters.working_top, degrees_for(plan.shape.tokens)
            needed = rotation_levels(plan.shape, degrees, plan.placement, top, plan.public)
            for step, level in needed.items():
                steps[step] = max(steps.get(step, 0), level)
        keys = KeyGenerator(self.parameters)
        products = keys.relinearization_key(self.parameters.top - self.parameters.spec.refresh[2])
        self._evaluator = Evaluator(
            self.parameters, products, keys.galois_keys(steps), keys.encapsulation_keys()
        )
        self._encryptor = Encryptor(self.parameters, keys.secret_key)
        self._decryptor = Decryptor(self.parameters, keys.secret_key)

    def case(self, model: Model, functions: Functions, plan: Plan, tokens: Sequence[int]) -> dict[str, Any]:
        """The last token behind the others, timed."""
        shape, placement, clock = plan.shape, plan.placement, Clock()
        ar = CkksSlots(self._evaluator, self.n, self._bootstrapper, clock.operation)
        weights = slot_weights(model.weights, shape, functions)
        program = Program(ar, shape, weights, functions, PlannedFlow(placement.decisions))
        self._fill(program, model, plan, tokens[:-1])
        one_hot = np.zeros(shape.vocabulary)
        one_hot[tokens[-1]] = 1.0
        level = placement.entry + EMBED_LEVELS
        x = program.embed([self._encrypt(shape.embed.place(one_hot), level)], program.length)
        clock.seconds.clear()
        start = time.perf_counter()
        x = program.attention(x, 0)
        attention = time.perf_counter() - start
        x = program.mlp(x, 0)
        seconds = time.perf_counter() - start
        by_operation = dict(clock.seconds)
        program.length += 1
        logits = shape.head.read(self._decryptor.decrypt_slots(program.logits(x)[0], self.n)).real
        reference = model.forward(list(tokens))[-1]
        return {
            "public_tokens": plan.public,
            "private_tokens": shape.tokens - plan.public,
            "score_ciphertexts": program.blocks.ciphertexts,
            "classes": program.blocks.classes,
            "seconds": seconds,
            "attention_seconds": attention,
            "mlp_seconds": seconds - attention,
            "bootstraps": placement.bootstraps(0),
            "estimated_seconds": placement.seconds,
            "plan": plan.layer(),
            "by_operation": [
                {"name": name, "seconds": s} for name, s in sorted(by_operation.items(), key=lambda i: -i[1])
            ],
            "largest_error": float(np.abs(logits[: len(reference)] - reference).max()),
            "logits_range": float(np.abs(reference).max()),
        }

    def _fill(self, program: Program[Ciphertext], model: Model, plan: Plan, tokens: Sequence[int]) -> None:
        """The cache behind tokens, as if they had been generated."""
        if not tokens:
            return
        public, shape, cache = plan.public, plan.shape, model.new_cache()
        model.hidden(list(tokens), cache)
        k, v = (np.asarray(x(0), np.float64) for x in (cache.k, cache.v))
        if public:
            program.append_public([k[:public]], [v[:public]])
        rows = PublicTokens(shape, k[public:], v[public:])
        blocks, t = program.blocks, shape.heads.t
        key_level, value_level = cache_levels(
            shape, degrees_for(shape.tokens), plan.placement, self.parameters.working_top, public
        )
        keys = rows.keys * program.functions.key_scale(model.config.head_dim)
        lanes = [np.zeros(self.n) for _ in range(blocks.classes)]
        groups = [np.zeros(self.n) for _ in range(-(-rows.tokens // t))]
        for i in range(rows.tokens):
            columns = (place(x[:, :, i].reshape(-1), self.n) for x in (keys, rows.values))
            for lane, part in zip(lanes, att.plain_lanes(blocks, next(columns), i), strict=True):
                lane += part
            groups[i // t] += np.roll(next(columns), i % t)
        program.caches[0].keys = [self._encrypt(lane, key_level) for lane in lanes]
        program.caches[0].values = [self._encrypt(group, value_level) for group in groups]
        program.length = len(tokens)

    def _encrypt(self, values: Vector, level: int) -> Ciphertext:
        encoder = self._evaluator.encoder
        return self._encryptor.encrypt(encoder.encode(values, level, scales(self.parameters)[level]))


class Clock:
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
