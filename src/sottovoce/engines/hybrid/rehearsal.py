"""What a forward pass takes of every kind of correlation, found by running it on zeros without a peer.

Everything that a pass consumes follows from public shapes. So each party can go through it alone: a channel
that swallows what is sent and receives zeros, a source that counts and hands out zeros, linear layers and a
cache that return zeros. The result is the same at both parties and for every prompt.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np

from sottovoce.correlations.stock import Arrays
from sottovoce.correlations.stocked import Kind, StockedSource
from sottovoce.engines.decoder import Decoder
from sottovoce.engines.hybrid.linears import matrix_shapes
from sottovoce.engines.hybrid.prepared import GUARD_BITS
from sottovoce.engines.public import PublicModel
from sottovoce.mpc.requests import Share
from sottovoce.mpc.two_party import TwoPartyArithmetic
from sottovoce.net import Channel, Role

# Demands are found for contexts of these lengths, and for one less than multiples of 128; a shorter one takes
# less of the same kinds. (Which kinds a reciprocal of a sum of n terms takes changes at powers of 8.)
_LENGTHS = (7, 15, 31, 63, 127, 255)


class Rehearsal:
    """The profile of one model at one party: `rehearsal(tokens, length)` -> kind -> count."""

    def __init__(self, public: PublicModel, role: Role) -> None:
        self.public = public
        self.role = role
        self._known: dict[int, Counter[Kind]] = {}

    def __call__(self, tokens: int, length: int) -> Mapping[Kind, int]:
        """What a pass over `tokens` tokens behind `length` others takes, rounded up to a longer context.

        About 0.15 s for a model of 135M parameters, once for every length that is rounded to.
        """
        context = _rounded(length + tokens)
        if context not in self._known:
            self._known[context] = self._run(context)
        return {key: n * tokens for key, n in self._known[context].items()}

    def _run(self, context: int) -> Counter[Kind]:
        """One token, the last of a context."""
        source, c = _Counting(self.role), self.public.config
        shifts = [np.zeros(c.heads, np.int64)] * c.layers if self.role is Role.SERVER else None
        decoder = Decoder(
            self.public,
            TwoPartyArithmetic(Nobody(self.role), source),
            _NoLinears(self.public),
            [_NoCache(context, c.head_dim)] * c.layers,
            shifts,
        )
        x = decoder.ar.rescale(np.zeros((1, c.width), np.uint64), GUARD_BITS)
        for i in range(c.layers):
            x = decoder.block(i, x, context - 1)
        decoder.final_norm(x)
        return source.counted


def _rounded(context: int) -> int:
    return next((n for n in _LENGTHS if n >= context), -(-(context + 1) // 128) * 128 - 1)


class Nobody(Channel):
    """A channel whose other end sends zeros."""

    is_network = False

    def wait(self, timeout: float) -> bool:
        return True

    def close(self) -> None:
        pass

    def abort(self, error: BaseException) -> None:
        pass

    def _write(self, payload: memoryview) -> None:
        pass

    def _read(self, minimum: int, maximum: int) -> memoryview:
        return np.zeros(maximum, np.uint8).data


class _Counting(StockedSource):
    """Zeros of the right shape, counted."""

    def __init__(self, role: Role) -> None:
        super().__init__(role)
        self.counted: Counter[Kind] = Counter()

    @staticmethod
    def _rounded(length: int) -> int:
        return length  # whoever uses the count rounds

    def make(self, key: Kind, n: int) -> Arrays:
        self.counted[key] += n
        bits, values = np.zeros(n, np.uint8), np.zeros(n, np.uint64)
        match key:
            case "wraps", targets:
                return bits, *[values] * len(targets)
            case ("ands",):
                return bits, bits, bits
            case "bit_values", _:
                return bits, values, values, values
            case "b2a", _:
                return bits, values
            case "ots", sender, m_bits, words:
                if sender is self.role:
                    # One row for all: what is hashed does not matter here, its size does.
                    return (np.broadcast_to(np.zeros((), np.uint64), (n, 1 << m_bits, words)),)
                return values, np.zeros((n, words), np.uint64)
            case "cross_products", terms:
                return np.zeros((n, terms), np.uint64), values
            case "scalars", length:
                return np.zeros((n, length), np.uint64), values, np.zeros((n, length), np.uint64)
            case ("squares",):
                return values, values
            case _:
                return values, values, values


class _NoLinears:
    def __init__(self, public: PublicModel) -> None:
        self._shapes = matrix_shapes(public.config)

    def apply(self, layer: int, name: str, x: Share) -> Share:
        return np.zeros((len(x), self._shapes[name][0]), np.uint64)


class _NoCache:
    def __init__(self, context: int, head_dim: int) -> None:
        self._context, self._head_dim = context, head_dim

    def append(self, k: Share, v: Share) -> None:
        pass

    def scores(self, q: Share) -> Share:
        return np.zeros((*q.shape[:2], self._context), np.uint64)

    def mix(self, p: Share) -> Share:
        return np.zeros((*p.shape[:2], self._head_dim), np.uint64)
