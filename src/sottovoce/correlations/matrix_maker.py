"""The protocol that makes matrix products ahead: fresh ciphertexts up, masked products down.

For every batch the client has a new secret. Matrix by matrix it encrypts random inputs; the server multiplies
and masks. Two matrices are under way at any time, so that both parties always have work. Per token and
matrix: 49 bits per input up, 40 bits per output down, and 49 N bits up per batch.

Leaks nothing: the client sees values masked uniformly modulo q (and the hint, made once), the server
ciphertexts. Source: protocols.md 2 (recipe Z) and 5.1.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sottovoce import _native
from sottovoce.correlations.hints import (
    HintFile,
    HintShelf,
    MatrixKey,
    ModelHints,
    Shapes,
    receive_hints,
    send_hints,
)
from sottovoce.correlations.matrix import MatrixItems, MatrixStock
from sottovoce.dense import (
    DENSE,
    SENT_BYTES,
    BatchAnswers,
    BatchSecret,
    DenseParameters,
    answer_bytes,
    fresh_bytes,
    public_key_bytes,
)
from sottovoce.errors import ParameterError
from sottovoce.net import Channel, Role
from sottovoce.ring.sampling import fresh_seed

U64 = npt.NDArray[np.uint64]
Report = Callable[[int, int, str], None]  # done, total, what

FEATURES = 4096  # input features per frame
OUTPUTS = 1024  # output rows per frame


class MatrixMaker:
    """Makes products of a model's matrices with the other party and puts them into `stock`.

    shapes: of all matrices, the same at both parties. hints: ModelHints at the server, where the matrices
    are; a HintShelf (or None) at the client. opened: matrices whose products the client gets to see. Both
    call every method alike.
    """

    def __init__(
        self,
        channel: Channel,
        shapes: Shapes,
        hints: ModelHints | HintShelf | None = None,
        parameters: DenseParameters = DENSE,
        on_take: Callable[[MatrixKey, int], None] | None = None,
        opened: Collection[MatrixKey] = (),
    ) -> None:
        if isinstance(hints, ModelHints) != (channel.role is Role.SERVER):
            raise ParameterError("matrix products: the server, and only the server, has the matrices")
        if isinstance(hints, ModelHints) and (
            dict(hints.shapes) != dict(shapes) or hints.parameters != parameters
        ):
            raise ParameterError("matrix products: the hints belong to other matrices")
        self.shapes, self.parameters = shapes, parameters
        self.stock = MatrixStock(channel.role, parameters, shapes, on_take)
        self._opened = frozenset(opened)
        self._channel = channel
        self._hints = hints
        self._numbers = {key: number for number, key in enumerate(shapes)}
        self._client: _Client | None = None
        self._ready = False

    def open(self, progress: Report | None = None) -> None:
        """Hand over the hints, once; `make` calls it. Cost: see `send_hints`."""
        if self._ready:
            return
        channel = self._channel
        report = None if progress is None else lambda done, total: progress(done, total, "receiving hints")
        with channel.ledger.phase("offline"), channel.ledger.operation("matrix hints"):
            if isinstance(self._hints, ModelHints):
                send_hints(channel, self._hints, report)
            else:
                shelf = self._hints or HintShelf()
                file, seed = receive_hints(channel, self.parameters, self.shapes, shelf, report)
                self._client = _Client(file, seed)
        self._ready = True

    def prepare(
        self, tokens: int, keys: Iterable[MatrixKey] | None = None, progress: Report | None = None
    ) -> None:
        """Put `tokens` more slots of every matrix (of `keys`) into the stock, in batches of up to one
        block."""
        chosen = list(self.shapes) if keys is None else list(keys)
        for key, items in self.make(tokens, chosen, progress):
            self.stock.put(key, items)

    def make(
        self, tokens: int, keys: list[MatrixKey], progress: Report | None = None
    ) -> list[tuple[MatrixKey, MatrixItems]]:
        """`tokens` slots of every matrix in `keys`, for a pool; nothing goes into the stock."""
        if tokens < 1 or len(set(keys)) != len(keys):
            raise ParameterError("matrix products: a positive number of tokens, every matrix once")
        self.open(progress)
        made: list[tuple[MatrixKey, MatrixItems]] = []
        ledger = self._channel.ledger
        batches = -(-tokens // self.parameters.block)
        with ledger.phase("offline"), ledger.operation("matrix products"):
            for number in range(batches):
                # Batches of nearly equal size: what a batch costs hardly depends on its tokens.
                n = (tokens * (number + 1)) // batches - (tokens * number) // batches
                steps = self._ask(n, keys) if self._client is not None else self._answer(n, keys)
                for i, item in enumerate(steps):
                    made.append(item)
                    if progress is not None:
                        progress(number * len(keys) + i + 1, batches * len(keys), "preparing matrix products")
        return made

    def _ask(self, n: int, keys: list[MatrixKey]) -> Iterable[tuple[MatrixKey, MatrixItems]]:
        """The client: upload i and i + 1 are on their way when answer i − 1 is opened."""
        assert self._client is not None
        secret, seed = BatchSecret(self.parameters, self._client.seed), fresh_seed()
        self._channel.send(secret.public_key())
        for i in range(len(keys) + 2):
            if i < len(keys):
                self._upload(secret, seed, keys[i], n)
            if i >= 2:
                yield keys[i - 2], self._open(secret, seed, keys[i - 2], n)

    def _upload(self, secret: BatchSecret, seed: bytes, key: MatrixKey, n: int) -> None:
        # Transposed once: the slots' rows become a row for each feature.
        inputs = np.ascontiguousarray(self.stock.inputs(key, seed, 0, n).T)
        for first in range(0, len(inputs), FEATURES):
            part = inputs[first : first + FEATURES]
            self._channel.send(secret.encrypt(self._numbers[key], first, part))

    def _open(self, secret: BatchSecret, seed: bytes, key: MatrixKey, n: int) -> MatrixItems:
        assert self._client is not None
        d_out = self.shapes[key][0]
        phases = np.empty((n, SENT_BYTES * d_out), np.uint8)
        for first in range(0, d_out, OUTPUTS):
            rows = min(OUTPUTS, d_out - first)
            answer = self._channel.recv(answer_bytes(rows, n))
            words = secret.open(self._client.hints.rows(key, first, rows), answer, n)
            _native.dense_store(words, SENT_BYTES * first, phases)
        return MatrixItems(seed, 0, n, phases)

    def _answer(self, n: int, keys: list[MatrixKey]) -> Iterable[tuple[MatrixKey, MatrixItems]]:
        """The server: computes answer i − 1 while upload i + 1 is being made; the messages stay in the
        client's order."""
        assert isinstance(self._hints, ModelHints)
        key_bytes = self._channel.recv(public_key_bytes(self.parameters))
        answers = BatchAnswers(self._hints.secret, key_bytes, n)
        loaded: dict[int, U64] = {}
        computed: list[bytes | npt.NDArray[np.uint8]] = []
        for i in range(len(keys) + 2):
            if i < len(keys):
                loaded[i] = self._load(answers, keys[i])
            if i >= 2:
                for frame in computed:
                    self._channel.send(frame)
                yield keys[i - 2], MatrixItems(answers.masks, 0, n)
            if 1 <= i <= len(keys):
                computed = self._multiply(answers, keys[i - 1], loaded.pop(i - 1))

    def _load(self, answers: BatchAnswers, key: MatrixKey) -> U64:
        """The ciphertexts of a matrix's inputs; or their products, where they come in several frames."""
        assert isinstance(self._hints, ModelHints)
        d_out, d_in = self.shapes[key]
        words = answers.load(
            self._channel.recv(fresh_bytes(min(d_in, FEATURES), answers.n)), min(d_in, FEATURES)
        )
        if d_in <= FEATURES:
            return words
        rows = self._hints.products
        sums = rows.product(key, 0, 0, words, np.empty((d_out, answers.n), np.uint64), False)
        for first in range(FEATURES, d_in, FEATURES):
            count = min(FEATURES, d_in - first)
            words = answers.load(self._channel.recv(fresh_bytes(count, answers.n)), count)
            rows.product(key, 0, first, words, sums, True)
        return sums

    def _multiply(
        self, answers: BatchAnswers, key: MatrixKey, loaded: U64
    ) -> list[bytes | npt.NDArray[np.uint8]]:
        """The frames of an answer."""
        assert isinstance(self._hints, ModelHints)
        d_out, d_in = self.shapes[key]
        frames: list[bytes | npt.NDArray[np.uint8]] = []
        for first in range(0, d_out, OUTPUTS):
            rows = min(OUTPUTS, d_out - first)
            if d_in > FEATURES:
                sums = loaded[first : first + rows]
            else:
                sums = np.empty((rows, answers.n), np.uint64)
                self._hints.products.product(key, first, 0, loaded, sums, False)
            frames.append(answers.answer(self._numbers[key], sums, first, key in self._opened))
        return frames


@dataclass
class _Client:
    hints: HintFile
    seed: bytes


def prepared_bytes(
    shapes: Mapping[MatrixKey, tuple[int, int]], tokens: int, parameters: DenseParameters = DENSE
) -> tuple[int, int]:
    """Bytes (up, down) of `make` for one batch, the hints not counted."""
    up = public_key_bytes(parameters)
    for _, d_in in shapes.values():
        up += sum(fresh_bytes(min(FEATURES, d_in - first), tokens) for first in range(0, d_in, FEATURES))
    return up, sum(answer_bytes(d_out, tokens) for d_out, _ in shapes.values())
