"""The matrices of a model in one session: online homomorphic products (`sottovoce.mpc.linear`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sottovoce.engines.public import PublicModel
from sottovoce.models.config import Config
from sottovoce.models.fixed import FixedModel
from sottovoce.mpc import field
from sottovoce.mpc.linear import EncodedMatrix, HomomorphicLinear
from sottovoce.mpc.requests import Share
from sottovoce.net import Role
from sottovoce.packing import Side
from sottovoce.ring.primes import P_FIELD

NAMES = ("qkv", "o", "gate_up", "down")


def matrix_shapes(config: Config) -> dict[str, tuple[int, int]]:
    """(outputs, inputs) of every kind of matrix, by name."""
    gates = 2 if config.gated else 1
    return {
        "qkv": (config.q_width + 2 * config.kv_width, config.width),
        "o": (config.width, config.q_width),
        "gate_up": (gates * config.ffn_width, config.width),
        "down": (config.width, config.ffn_width),
        "embedding": (config.width, config.vocab_size),
        "head": (config.vocab_size, config.width),
    }


@dataclass(frozen=True)
class EncodedModel:
    """All matrices of a fixed-point model as plaintexts.

    24 bytes per weight, shared by the server's sessions.
    """

    blocks: tuple[dict[str, EncodedMatrix], ...]
    embedding: EncodedMatrix
    head: EncodedMatrix

    @classmethod
    def encode(cls, model: FixedModel, progress: Callable[[int, int], None] | None = None) -> EncodedModel:
        total, done = len(model.blocks) + 2, 0

        def step() -> None:
            nonlocal done
            done += 1
            if progress is not None:
                progress(done, total)

        blocks = []
        for block in model.blocks:
            blocks.append(
                {
                    name: EncodedMatrix.encode(getattr(block, name), getattr(block, name + "_bias"))
                    for name in NAMES
                }
            )
            step()
        embedding = EncodedMatrix.encode(np.ascontiguousarray(model.embedding.T))
        step()
        head = EncodedMatrix.encode(model.head, model.head_bias)
        step()
        return cls(tuple(blocks), embedding, head)


class HomomorphicLinears:
    """Every matrix of the model at one party; `encoded` is None at the client."""

    def __init__(self, public: PublicModel, side: Side, encoded: EncodedModel | None) -> None:
        shapes = matrix_shapes(public.config)
        self._side = side
        self._blocks = [
            {
                name: HomomorphicLinear(
                    side, *shapes[name], None if encoded is None else encoded.blocks[i][name]
                )
                for name in NAMES
            }
            for i in range(public.config.layers)
        ]
        self._embedding = HomomorphicLinear(
            side, *shapes["embedding"], None if encoded is None else encoded.embedding
        )
        self._head = HomomorphicLinear(side, *shapes["head"], None if encoded is None else encoded.head)

    def apply(self, layer: int, name: str, x: Share) -> Share:
        return self._blocks[layer][name].apply(np.ascontiguousarray(x))

    def prepare(self, tokens: int, *, progress: object = None) -> None:
        """Online products need no preparation."""

    def guard_bits(self, tokens: int) -> int:
        """Online products are exact: one-hot vectors need no more than 2^12."""
        return 0

    def embedding(self, one_hot: Share) -> Share:
        """one_hot: (T, vocab), the client's; zeros at the server."""
        return self._embedding.apply(one_hot)

    def head(self, h: Share) -> npt.NDArray[np.int64] | None:
        """h (T, width) at 2^-12 -> the logits (T, vocab) at 2^-23 at the client, None at the server.

        This is the engine's only reveal(to=client).
        """
        logits = self._head.apply(np.ascontiguousarray(h), reveal_to_client=True)
        return field.centred(logits, P_FIELD) if self._side.channel.role is Role.CLIENT else None
