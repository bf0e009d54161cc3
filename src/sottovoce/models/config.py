"""What a model is, without its weights: the public description that both parties hold.

Everything here is public. A `Config` that can be constructed can be executed: whatever the reference and
the engines do not implement is refused by the loader of its file format, with the name of the operation and
of the layer.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from sottovoce.errors import CorruptFileError, UnsupportedModelError

NormKind = Literal["rms", "layer"]
MlpKind = Literal["swiglu", "geglu", "gelu"]
Activation = Literal["silu", "gelu", "gelu_tanh"]
RopeStyle = Literal["half", "interleaved"]

MODEL_TYPES = ("gpt2", "llama", "qwen2")


@dataclass(frozen=True)
class Rope:
    """Rotary positions. `half` pairs dimension j with j + head_dim/2, `interleaved` pairs 2j with 2j + 1."""

    theta: float = 10000.0
    style: RopeStyle = "half"


@dataclass(frozen=True, kw_only=True)
class Config:
    """Shapes and operations of a decoder: embedding, `layers` equal blocks, final norm, head.

    A block is x += attention(norm1(x)); x += mlp(norm2(x)). Without `rope` the positions are learned: a
    table of (context_length, width) is added to the embedding.
    """

    model_type: str
    vocab_size: int
    width: int  # of the residual stream
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn_width: int
    context_length: int
    norm: NormKind = "rms"
    eps: float = 1e-5
    mlp: MlpKind = "swiglu"
    activation: Activation = "silu"
    rope: Rope | None = None
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    tied_head: bool = False

    def __post_init__(self) -> None:
        for name, limit in _LIMITS.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= limit:
                raise CorruptFileError(f"model description: {name} = {value!r} is not between 1 and {limit}")
        if self.heads % self.kv_heads:
            raise CorruptFileError(
                f"model description: {self.heads} query heads cannot share {self.kv_heads} key-value heads"
            )
        if self.rope is not None and self.head_dim % 2:
            raise CorruptFileError(
                f"model description: rotary positions need an even head_dim, not {self.head_dim}"
            )
        if not 0.0 < self.eps < 1.0:
            raise CorruptFileError(f"model description: eps = {self.eps!r} is not between 0 and 1")
        _supported("model type", self.model_type, MODEL_TYPES)
        _supported("norm", self.norm, ("rms", "layer"))
        _supported("mlp", self.mlp, ("swiglu", "geglu", "gelu"))
        _supported("activation", self.activation, ("silu", "gelu", "gelu_tanh"))
        if (self.activation == "silu") != (self.mlp == "swiglu"):
            raise UnsupportedModelError(
                f"mlp {self.mlp!r} with activation {self.activation!r} is not implemented; supported: "
                "swiglu with silu, geglu and gelu with gelu or gelu_tanh"
            )
        if self.rope is not None:
            _supported("rotary style", self.rope.style, ("half", "interleaved"))
            if not 1.0 < self.rope.theta < 1e12:
                raise CorruptFileError(f"model description: rotary base {self.rope.theta!r} is out of range")

    @property
    def gated(self) -> bool:
        """Whether the MLP multiplies an activated gate with `up` (swiglu, geglu)."""
        return self.mlp != "gelu"

    @property
    def q_width(self) -> int:
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        return self.kv_heads * self.head_dim

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Any) -> Config:
        """The inverse of `to_json`, for untrusted input: unknown, missing or mistyped entries are refused."""
        if not isinstance(data, dict):
            raise CorruptFileError("model description: not a JSON object")
        names = {field.name for field in dataclasses.fields(cls)}
        if set(data) != names:
            odd = sorted(set(data) ^ names)
            raise CorruptFileError(f"model description: unexpected or missing entries {odd[:8]}")
        values = dict(data)
        for name in ("qkv_bias", "o_bias", "mlp_bias", "tied_head"):
            if not isinstance(values[name], bool):
                raise CorruptFileError(f"model description: {name} is not true or false")
        if not isinstance(values["eps"], float):
            raise CorruptFileError("model description: eps is not a number")
        rope = values["rope"]
        if rope is not None:
            if (
                not isinstance(rope, dict)
                or set(rope) != {"theta", "style"}
                or not isinstance(rope["theta"], float)
            ):
                raise CorruptFileError("model description: rope is malformed")
            values["rope"] = Rope(**rope)
        return cls(**values)


# Bounds against absurd descriptions in untrusted files; generous for any model this package could run.
_LIMITS = {
    "vocab_size": 1 << 20,
    "width": 1 << 15,
    "layers": 256,
    "heads": 256,
    "kv_heads": 256,
    "head_dim": 1024,
    "ffn_width": 1 << 17,
    "context_length": 1 << 20,
}


def _supported(what: str, value: object, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UnsupportedModelError(f"{what} {value!r} is not implemented; supported: {', '.join(known)}")
