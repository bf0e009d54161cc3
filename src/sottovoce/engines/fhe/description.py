"""What both parties know: parameters, layout, which keys exist, at which levels ciphertexts travel."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sottovoce.ckks import CONJUGATE, ENGINE16, Parameters
from sottovoce.engines.fhe.chunk_plaintexts import fits
from sottovoce.engines.fhe.shape import Shape
from sottovoce.errors import CorruptFileError, ParameterMismatchError
from sottovoce.models.config import Config
from sottovoce.models.weights import Weights

# The sets that a client agrees to. All of them have 128-bit security; tests add small ones.
PARAMETERS: dict[str, Parameters] = {"engine16": ENGINE16}
_ENTRIES = {"config", "parameters", "slots", "tokens", "entry", "steps", "chunk", "largest"}
_MAX_KEYS = 512
_LARGEST = 1e9


@dataclass(frozen=True)
class Description:
    """entry: the level of a token's one-hot ciphertexts. steps: rotation -> level of its key, CONJUGATE
    included. chunk: a prefill of as many private tokens or more is a chunk; 0: none is. largest: no logit of
    the model is larger (`largest_logit`)."""

    name: str
    shape: Shape
    entry: int
    steps: Mapping[int, int]
    chunk: int = 0
    largest: float = math.inf

    @property
    def parameters(self) -> Parameters:
        return PARAMETERS[self.name]

    @property
    def product_level(self) -> int:
        """The level of the relinearisation key: products happen below the maps of a refresh."""
        return self.parameters.top - self.parameters.spec.refresh[2]

    @property
    def key_bytes(self) -> int:
        """Memory of all evaluation keys at the server."""
        parameters = self.parameters
        levels = [*self.steps.values(), self.product_level, parameters.top]
        words = sum(parameters.digits(level) * (level + 1 + parameters.alpha) for level in levels)
        return 8 * words * parameters.degree

    def to_json(self) -> dict[str, Any]:
        return {
            "config": self.shape.config.to_json(),
            "parameters": self.name,
            "slots": self.shape.n,
            "tokens": self.shape.tokens,
            "entry": self.entry,
            "steps": [[step, level] for step, level in sorted(self.steps.items())],
            "chunk": self.chunk,
            "largest": self.largest,
        }

    @classmethod
    def from_json(cls, data: Any) -> Description:
        """From the server's handshake; everything is checked before a key is made for it."""
        if not isinstance(data, dict) or set(data) != _ENTRIES:
            raise CorruptFileError("model description: unexpected or missing entries")
        config, name = Config.from_json(data["config"]), data["parameters"]
        if not isinstance(name, str) or name not in PARAMETERS:
            raise ParameterMismatchError(
                f"the server uses parameters {name!r:.40}; this version knows {', '.join(PARAMETERS)}"
            )
        parameters = PARAMETERS[name]
        slots = _integer(data, "slots", 2, parameters.slots)
        if slots & (slots - 1):
            raise CorruptFileError("model description: slots is not a power of two")
        tokens = _integer(data, "tokens", 1, config.context_length)
        entry = _integer(data, "entry", 1, parameters.working_top)
        shape = Shape(config, slots, tokens)
        # Fail here, not in the middle of a session, if the layout does not fit.
        _ = shape.heads, shape.embed, shape.head
        chunk = _integer(data, "chunk", 0, tokens)
        if chunk and not fits(shape):
            raise CorruptFileError("model description: chunks do not fit this model")
        largest = data["largest"]
        if type(largest) is not float or not 0 < largest < _LARGEST:
            raise CorruptFileError("model description: no logit can be that large")
        return cls(name, shape, entry, _steps(data["steps"], slots, parameters), chunk, largest)


def largest_logit(weights: Weights) -> float:
    """Behind an RMSNorm a vector of width d has the norm √d before its gain g: |logit v| ≤ √d·‖g ⊙ W_v‖."""
    rows = weights.output.astype(np.float64) * weights.norm
    return float(math.sqrt(rows.shape[1]) * np.linalg.norm(rows, axis=1).max())


def _integer(data: Mapping[str, Any], name: str, low: int, high: int) -> int:
    value = data[name]
    if type(value) is not int or not low <= value <= high:
        raise CorruptFileError(f"model description: {name} = {value!r:.40} is not between {low} and {high}")
    return value


def _steps(entries: Any, slots: int, parameters: Parameters) -> dict[int, int]:
    if not isinstance(entries, list) or len(entries) > _MAX_KEYS:
        raise CorruptFileError("model description: malformed list of rotations")
    found: dict[int, int] = {}
    for entry in entries:
        if not isinstance(entry, list) or len(entry) != 2 or any(type(value) is not int for value in entry):
            raise CorruptFileError("model description: malformed rotation")
        step, level = entry
        if not (step == CONJUGATE or 0 < step < parameters.slots) or not 0 <= level <= parameters.top:
            raise CorruptFileError("model description: a rotation is out of range")
        found[step] = level
    return found
