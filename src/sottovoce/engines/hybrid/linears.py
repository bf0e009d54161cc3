"""The matrices of a model in one session: online homomorphic products (`sottovoce.mpc.linear`)."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sottovoce.engines.public import PublicModel
from sottovoce.models.config import Config
from sottovoce.models.fixed import FixedModel
from sottovoce.mpc import field
from sottovoce.mpc.encoded import EncodedMatrix
from sottovoce.mpc.linear import HomomorphicLinear
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
    """All matrices of a fixed-point model, shared by the server's sessions.

    Their plaintexts take 24 bytes per weight. Each matrix's are made when a token's product is first made
    online, or all at once by `make`.
    """

    blocks: tuple[dict[str, EncodedMatrix], ...]
    embedding: EncodedMatrix
    head: EncodedMatrix

    @classmethod
    def of(cls, model: FixedModel, progress: Callable[[int, int], None] | None = None) -> EncodedModel:
        """Plan all matrices. progress(done, total): matrices whose plaintexts are made, now or later."""
        encoded = cls(
            tuple(
                {
                    name: EncodedMatrix.of(getattr(block, name), getattr(block, name + "_bias"))
                    for name in NAMES
                }
                for block in model.blocks
            ),
            EncodedMatrix.of(np.ascontiguousarray(model.embedding.T)),
            EncodedMatrix.of(model.head, model.head_bias),
        )
        if progress is not None:
            done, total, one_at_a_time = itertools.count(1), len(encoded.matrices), threading.Lock()

            def made() -> None:
                with one_at_a_time:
                    progress(next(done), total)

            for matrix in encoded.matrices:
                matrix.made = made
        return encoded

    def make(self) -> None:
        """Make all plaintexts."""
        for matrix in self.matrices:
            matrix.make()

    @property
    def matrices(self) -> list[EncodedMatrix]:
        """All of them, in the order in which a token meets them."""
        return [self.embedding, *(block[name] for block in self.blocks for name in NAMES), self.head]


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

    def cost(self, tokens: int) -> tuple[int, int]:
        """Bytes (client to server, server to client) of the blocks' products for `tokens` in one pass."""
        costs = [linear.cost(tokens) for block in self._blocks for linear in block.values()]
        return sum(up for up, _ in costs), sum(down for _, down in costs)

    def put_together(self, sizes: tuple[int, ...]) -> None:
        """Let so many tokens share ciphertexts, the same at both parties; for comparisons."""
        for linear in [
            self._embedding,
            self._head,
            *(one for block in self._blocks for one in block.values()),
        ]:
            linear.sizes = sizes

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
