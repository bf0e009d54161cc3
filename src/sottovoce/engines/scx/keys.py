"""The user's secrets: permutations, redundant rows, Laplace noise, Gaussian masks. All from the system's
CSPRNG."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sottovoce.engines.scx.arrays import Array, Arrays, namespace
from sottovoce.models.config import Config
from sottovoce.ring.sampling import Stream

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]


def permutation(stream: Stream, n: int) -> Indices:
    """A uniform permutation of n things: the order of n random 64-bit words."""
    return np.argsort(stream.words(n), kind="stable").astype(np.int64)


def _uniform(stream: Stream, *shape: int) -> Floats:
    """In (0, 1), 53 bits."""
    return ((stream.words(*shape) >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def laplace(stream: Stream, scale: float, *shape: int) -> Floats:
    """Density exp(-|x|/scale)/(2·scale)."""
    u = _uniform(stream, *shape) - 0.5
    return np.asarray(-scale * np.sign(u) * np.log1p(-2.0 * np.abs(u)))


def normal(stream: Stream, *shape: int) -> Floats:
    """Standard normal values (Box and Muller)."""
    count = int(np.prod(shape))
    half = (count + 1) // 2
    u, v = _uniform(stream, 2, half)
    radius, angle = np.sqrt(-2.0 * np.log(u)), 2.0 * np.pi * v
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count].reshape(shape)


@dataclass(frozen=True, repr=False)
class RowKey:
    """π^l and the redundant rows: token t travels as row place[t] of `rows`, the others are made up."""

    place: Indices
    rows: int

    @classmethod
    def draw(cls, stream: Stream, tokens: int, redundant: int) -> RowKey:
        return cls(permutation(stream, tokens + redundant)[:tokens].copy(), tokens + redundant)

    def encode(self, arrays: Arrays, x: Array, redundant: Array) -> Array:
        """π^l(x ⊕ r): x (T, d), redundant (R, d) -> (T + R, d)."""
        xp = namespace(x)
        order = np.empty(self.rows, np.int64)
        free = np.ones(self.rows, bool)
        free[self.place] = False
        order[self.place] = np.arange(len(self.place))
        order[free] = np.arange(len(self.place), self.rows)
        return xp.take(xp.concat([x, redundant], axis=0), arrays.put(order), axis=0)

    def decode(self, arrays: Arrays, y: Array) -> Array:
        """The tokens' rows of y (T + R, d), in order."""
        return namespace(y).take(y, arrays.put(self.place), axis=0)


def redundant_rows(stream: Stream, x: npt.NDArray[np.float32], count: int) -> npt.NDArray[np.float32]:
    """Rows that look like those of x (T, d): normal, with each column's mean and deviation; (count, d)."""
    mean, spread = x.mean(axis=0, dtype=np.float64), x.std(axis=0, dtype=np.float64)
    if len(x) == 1:  # one row has no deviation
        mean, spread = (
            np.zeros_like(mean),
            np.full_like(mean, float(np.sqrt(np.mean(x.astype(np.float64) ** 2)))),
        )
    return np.asarray(mean + spread * normal(stream, count, x.shape[1]), np.float32)


@dataclass(frozen=True, repr=False)
class HeadKey:
    """π^r of one block: for each key-value head a permutation of the keys' features, and one of the
    values'."""

    keys: Indices  # (kv_heads, head_dim)
    values: Indices

    @classmethod
    def draw(cls, stream: Stream, config: Config) -> HeadKey:
        def table() -> Indices:
            return np.stack([permutation(stream, config.head_dim) for _ in range(config.kv_heads)])

        return cls(table(), table())

    def encode(self, arrays: Arrays, q: Array, k: Array, v: Array) -> tuple[Array, Array, Array]:
        """Qπ^r, Kπ^r, Vπ^r; a query head shares its keys' permutation, so that q·k stays what it is."""
        group = q.shape[1] // k.shape[1]
        return (
            _permuted(arrays, q, np.repeat(self.keys, group, axis=0)),
            _permuted(arrays, k, self.keys),
            _permuted(arrays, v, self.values),
        )

    def decode(self, arrays: Arrays, mixed: Array) -> Array:
        """Undo the values' permutation in what attention returned, (T, heads, head_dim)."""
        inverse = np.argsort(self.values, axis=1)
        return _permuted(arrays, mixed, np.repeat(inverse, mixed.shape[1] // len(inverse), axis=0))


def _permuted(arrays: Arrays, x: Array, tables: Indices) -> Array:
    """x (T, heads, d), tables (heads, d): features of every head in another order."""
    xp, (tokens, heads, d) = namespace(x), x.shape
    flat = (tables + d * np.arange(heads)[:, None]).ravel()
    return xp.reshape(xp.take(xp.reshape(x, (tokens, heads * d)), arrays.put(flat), axis=1), x.shape)
