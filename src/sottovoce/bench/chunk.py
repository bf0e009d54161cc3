"""`bench chunk`: private tokens of a prompt through one layer under FHE, together and one alone.

The first layer of a model, embedding and head around it, on ciphertexts of the engine's parameters, behind
one public token; the plain model of that one layer checks the logits.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from sottovoce.bench.layer import Clock
from sottovoce.bench.machine import header
from sottovoce.bench.parties import peak_memory
from sottovoce.ckks import Ciphertext, Decryptor, Encoder, Encryptor, Evaluator, KeyGenerator
from sottovoce.engines.base import EngineOptions, Progress
from sottovoce.engines.fhe import FheEngine
from sottovoce.engines.fhe.calibration import sample
from sottovoce.engines.fhe.chunk import ChunkProgram
from sottovoce.engines.fhe.chunk_plaintexts import one_hots
from sottovoce.engines.fhe.ciphertexts import CkksSlots, scales
from sottovoce.engines.fhe.flow import PlannedFlow
from sottovoce.engines.fhe.program import Program
from sottovoce.errors import UsageError
from sottovoce.models import load_model
from sottovoce.models.model import Model, build
from sottovoce.packing.slots import Vector


def run(
    model: str = "stories260K",
    tokens: tuple[int, ...] = (16, 32),
    parameters: str = "engine16",
    progress: Progress = lambda done, total, what: None,
) -> dict[str, Any]:
    """Seconds of a layer for one token and for chunks of so many, by operation, and what was estimated."""
    engine = FheEngine(EngineOptions(engine="fhe"), _one_layer(load_model(model)), parameters)
    room = min(engine.shape.heads.t, engine.shape.tokens - 1)
    if max(tokens) > room:
        raise UsageError(f"behind a public token there is room for {room}")
    engine.prepare()
    if engine.chunks is None:
        raise UsageError("this model takes private tokens one by one")
    total = len(tokens) + 2
    progress(0, total, "keys")
    bench = _Bench(engine)
    rows = []
    for i, count in enumerate((1, *tokens)):
        progress(i + 1, total, f"{count} tokens")
        rows.append(bench.measure(count))
    for row in rows:
        row["speed_up"] = rows[0]["seconds"] * row["tokens"] / row["seconds"]
    progress(total, total, "done")
    return {
        **header(),
        "parameters": {"security_bits": bench.parameters.spec.security, "N": bench.parameters.degree},
        "slots": engine.shape.n,
        "model": model,
        "tokens": list(tokens),
        "layers": load_model(model).config.layers,
        "rows": rows,
        "memory_bytes": peak_memory(),
        "key_bytes": bench.key_bytes,
    }


class _Steps(Program[Ciphertext]):
    """Says when the layers are done."""

    ended: Callable[[], None]

    def logits(self, x: Ciphertext) -> list[Ciphertext]:
        self.ended()
        return super().logits(x)


class _Chunks(ChunkProgram[Ciphertext]):
    ended: Callable[[], None]

    def logits(self, x: Ciphertext) -> list[Ciphertext]:
        self.ended()
        return super().logits(x)


class _Bench:
    """Keys and a text for one model."""

    def __init__(self, engine: FheEngine) -> None:
        assert engine.description is not None
        self.engine, self.parameters = engine, engine.description.parameters
        keys = KeyGenerator(self.parameters)
        products = keys.relinearization_key(engine.description.product_level)
        galois = keys.galois_keys(dict(engine.description.steps))
        evaluator = Evaluator(self.parameters, products, galois, keys.encapsulation_keys())
        self._clock = Clock()
        self._slots = CkksSlots(evaluator, engine.shape.n, engine.bootstrapper, self._clock.operation)
        self._encryptor = Encryptor(self.parameters, keys.secret_key)
        self._decryptor = Decryptor(self.parameters, keys.secret_key)
        self._encoder, self.key_bytes = Encoder(self.parameters), engine.description.key_bytes
        self._text = sample(engine.model, 1, engine.shape.tokens, seed=7)[0]

    def measure(self, count: int) -> dict[str, Any]:
        """One row: `count` private tokens behind a public one; alone, a step."""
        engine, shape, plan = self.engine, self.engine.shape, self.engine.chunks
        assert plan is not None
        flow = PlannedFlow[Ciphertext](engine.placement.decisions)
        program = _Steps(self._slots, shape, engine.weights, engine.functions, flow)
        text, cache = self._text[: count + 1], engine.model.new_cache()
        engine.model.hidden(text[:1], cache)
        program.append_public([cache.k(0)], [cache.v(0)])
        marks, by_operation = list[float](), dict[str, float]()

        def begun(layer: int) -> None:
            self._clock.seconds.clear()
            marks.append(time.perf_counter())

        def ended() -> None:
            marks.append(time.perf_counter())
            by_operation.update(self._clock.seconds)

        if count == 1:
            block, at = divmod(text[1], shape.vocabulary)
            one_hot = np.zeros((shape.vocabulary_blocks, shape.vocabulary))
            one_hot[block, at] = 1.0
            fresh = [self._fresh(shape.embed.place(row)) for row in one_hot]
            program.ended = ended
            out, price = program.step(fresh, progress=begun), plan.one()
        else:
            chunks = _Chunks(program, PlannedFlow(plan.placement.decisions), plan.value_level)
            fresh = [self._fresh(vector) for vector in one_hots(shape, text[1:])]
            chunks.ended = ended
            out, price = chunks.run(fresh, count, progress=begun), plan.chunk(0 if shape.split else 1, count)
        found = [shape.head.read(self._decryptor.decrypt_slots(x, shape.n)).real for x in out]
        logits, plain = np.concatenate(found)[: shape.config.vocab_size], engine.model.forward(text)[-1]
        return {
            "tokens": count,
            "ciphertexts": len(fresh),
            "seconds": marks[1] - marks[0],
            "seconds_per_token": (marks[1] - marks[0]) / count,
            "bootstraps": price.bootstraps,
            "estimated_seconds": price.seconds,
            "by_operation": [
                {"name": name, "seconds": s}
                for name, s in sorted(by_operation.items(), key=lambda item: -item[1])
            ],
            "largest_error": float(np.abs(logits - plain).max()),
            "top1": bool(np.argmax(logits) == np.argmax(plain)),
        }

    def _fresh(self, values: Vector) -> Ciphertext:
        assert self.engine.description is not None
        level = self.engine.description.entry
        return self._encryptor.encrypt(self._encoder.encode(values, level, scales(self.parameters)[level]))


def _one_layer(model: Model) -> Model:
    """The same embedding, first block and head."""
    config, weights = replace(model.config, layers=1), replace(model.weights, blocks=model.weights.blocks[:1])
    return build(model.card.name, config, weights, model.card.tokenizer_or_none)
