"""The matrices of a model in one session, with products prepared ahead (`sottovoce.correlations.matrix`).

For a prepared slot (R, U at the client, Z at the server, U + Z = W·R + ε) the client sends X0 − R and is
done: its share of W·X is U. The server multiplies in the clear, W·(X1 + X0 − R) + Z. One message of 43 bits
per input. Slots are counted per matrix; where none is left the product is made online.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from sottovoce.correlations.hints import HintShelf, MatrixKey, ModelHints
from sottovoce.correlations.matrix_maker import MatrixMaker, Report
from sottovoce.dense import DENSE, DenseParameters
from sottovoce.engines.hybrid.linears import NAMES, EncodedModel, HomomorphicLinears, matrix_shapes
from sottovoce.models.config import Config
from sottovoce.mpc import field
from sottovoce.mpc.encoded import EncodedMatrix
from sottovoce.mpc.requests import Share
from sottovoce.net import Channel, Role, recv_field, send_field
from sottovoce.ring.primes import P_FIELD
from sottovoce.ring.sampling import Stream

Result = TypeVar("Result")

HEAD: MatrixKey = ("head", 0)
EMBEDDING: MatrixKey = ("embedding", 0)

# The noise of a prepared product grows with the row: 49,152 columns of an embedding reach 2^-12. One-hot
# vectors are therefore scaled by this many bits more, which a rescale takes off again.
GUARD_BITS = 6

# Logits are opened, and carry a product's noise, which depends on weights and on the server's
# re-randomisation. A uniform error of this many bits at 2^-23, ±2^-11 in a logit, covers what of it the
# client could average, up to about 10^10 opened tokens; it is no flooding of 40 bits. See SECURITY.md.
BLUR_BITS = 13


def model_shapes(config: Config) -> dict[MatrixKey, tuple[int, int]]:
    """(outputs, inputs) of all matrices, numbered in this order. The two large ones come first: the client
    encrypts for one while the server multiplies by the other."""
    shapes = matrix_shapes(config)
    keys = [HEAD, EMBEDDING, *((name, layer) for layer in range(config.layers) for name in NAMES)]
    return {key: shapes[key[0]] for key in keys}


def encoded_matrix(encoded: EncodedModel, key: MatrixKey) -> EncodedMatrix:
    """A matrix by its key."""
    if key == HEAD:
        return encoded.head
    return encoded.embedding if key == EMBEDDING else encoded.blocks[key[1]][key[0]]


def model_hints(
    config: Config,
    encoded: EncodedModel,
    directory: Path | None = None,
    parameters: DenseParameters = DENSE,
) -> ModelHints:
    """The server's hints, one object for all sessions; made when the first client asks."""
    shapes = model_shapes(config)
    weights = {key: encoded_matrix(encoded, key).weights for key in shapes}
    return ModelHints(parameters, shapes, weights, directory)


class PreparedLinears:
    """Every matrix of the model at one party; the interface of `HomomorphicLinears`, which `online` is.

    encoded and hints: at the server. hints at the client: where it keeps them, None to forget them.
    """

    def __init__(
        self,
        channel: Channel,
        config: Config,
        online: HomomorphicLinears,
        encoded: EncodedModel | None,
        hints: ModelHints | HintShelf | None,
        parameters: DenseParameters = DENSE,
        on_take: Callable[[MatrixKey, int], None] | None = None,
    ) -> None:
        self.maker = MatrixMaker(channel, model_shapes(config), hints, parameters, on_take, {HEAD})
        self.stock = self.maker.stock
        self._channel, self.online, self._encoded = channel, online, encoded

    def prepare(
        self, tokens: int, keys: Iterable[MatrixKey] | None = None, progress: Report | None = None
    ) -> None:
        """Prepare all matrices (or `keys`) for `tokens` more tokens; both parties in lockstep."""
        self.maker.prepare(tokens, keys, progress)

    def ready(self) -> int:
        """Tokens for which every matrix is prepared."""
        return min(self.stock.available(key) for key in self.stock.shapes)

    def guard_bits(self, tokens: int) -> int:
        """By how many bits one-hot vectors are to be scaled beyond 2^12, and the embedding rescaled."""
        return GUARD_BITS if self.stock.available(EMBEDDING) else 0

    def apply(self, layer: int, name: str, x: Share) -> Share:
        """W·x + bias, x (T, inputs) shares."""
        return self._product((name, layer), x, lambda rest: self.online.apply(layer, name, rest))

    def embedding(self, one_hot: Share) -> Share:
        """one_hot: (T, vocab), the client's; zeros at the server."""
        return self._product(EMBEDDING, one_hot, self.online.embedding)

    def head(self, h: Share) -> npt.NDArray[np.int64] | None:
        """h (T, width) at 2^-12 -> the logits (T, vocab) at 2^-23 at the client, None at the server.

        reveal(to=client), with an error of up to 2^-11.
        """
        count = self._ready(HEAD, len(h))
        parts: list[npt.NDArray[np.int64]] = []
        if count:
            logits = self._open(self._prepared(HEAD, h[:count]))
            parts += [] if logits is None else [logits]
        if count < len(h):
            rest = self._unprepared(HEAD, h[count:], self.online.head)
            parts += [] if rest is None else [rest]
        return np.concatenate(parts) if parts else None

    def _product(self, key: MatrixKey, x: Share, online: Callable[[Share], Share]) -> Share:
        count = self._ready(key, len(x))
        parts = [self._prepared(key, x[:count])] if count else []
        if count < len(x):
            parts.append(self._unprepared(key, x[count:], online))
        return np.concatenate(parts)

    def _ready(self, key: MatrixKey, tokens: int) -> int:
        return min(tokens, self.stock.available(key))

    def _unprepared(self, key: MatrixKey, x: Share, online: Callable[[Share], Result]) -> Result:
        """The online product, under a name of its own in the ledger."""
        with self._channel.ledger.operation("not prepared"):
            self._channel.ledger.count("products_not_prepared", len(x))
            return online(x)

    def _prepared(self, key: MatrixKey, x: Share) -> Share:
        """Shares of W·x + bias. Cost: one message, 43 bits per input."""
        with self._channel.ledger.operation("prepared"):
            self._channel.ledger.count("prepared_products", len(x))
            if self._encoded is None:
                r, u = self.stock.take_client(key, len(x))
                send_field(self._channel, field.sub(x, r, P_FIELD))
                return u
            z = self.stock.take_server(key, len(x))
            opened = recv_field(self._channel, x.shape)
            product = encoded_matrix(self._encoded, key).clear_product(field.add(x, opened, P_FIELD))
            return field.add(product, z, P_FIELD)

    def _open(self, y: Share) -> npt.NDArray[np.int64] | None:
        if self._channel.role is Role.CLIENT:
            other = recv_field(self._channel, y.shape)
            return field.centred(field.add(y, other, P_FIELD), P_FIELD)
        blur = Stream().uniform(1 << BLUR_BITS, *y.shape).astype(np.int64) - (1 << (BLUR_BITS - 1))
        send_field(self._channel, field.add(y, field.from_signed(blur, P_FIELD), P_FIELD))
        return None
