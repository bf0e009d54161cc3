"""Logits on their way back: fresh randomness around them, so that they are all that a client gets.

The client has the key, so everything in a ciphertext that the server computed on is in the clear for it: the
half c_1, which is a function of weights and of nothing that the client does not know, and the error of every
coefficient. Before a ciphertext leaves,

1. it is brought to the lowest level: one prime;
2. a fresh encryption of zero under the client's public key is added: c_1 becomes an RLWE sample;
3. coefficients without a message (all but those of Y = X^(N/2n)) get a mask uniform modulo q: what was in
   them is gone;
4. slots without a logit, and imaginary parts, get Gaussian noise `WIDE`·√n wide;
5. logits get Gaussian noise of standard deviation `FLOOD`, the most that leaves answers as they are (KL of
   about FLOOD²/2).

What stays is each logit with its error, flooded by lg(FLOOD / error): a few bits, no statistical security.
The error depends on weights; many questions average the flood away. SECURITY.md says what follows.

Cost: five transforms of one prime for each ciphertext, 20 ms at N = 2^16.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from sottovoce.ckks import Ciphertext, Encoder, Encryptor, Evaluator, Parameters, PublicKey
from sottovoce.engines.fhe.shape import Shape
from sottovoce.errors import RangeError
from sottovoce.ring import sampling

LEVEL = 0  # at which logits go back, and the client's public key is
FLOOD = 2.0**-7
# Standard deviation of a coefficient of the noise in other slots. A message's coefficients fit ±q_0/2Δ = ±64
# beside it: what is left is more than ten standard deviations.
WIDE = 4.0


_BEYOND = 1.25  # of the largest logit: errors of polynomials inside their ranges are far smaller


class Returned:
    """One session's. Draws from the operating system's randomness."""

    def __init__(self, evaluator: Evaluator, key: PublicKey, shape: Shape) -> None:
        self._evaluator, self._shape = evaluator, shape
        self._parameters: Parameters = evaluator.parameters
        self._encoder, self._encryptor = Encoder(self._parameters), Encryptor(self._parameters, key)

    def __call__(self, x: Ciphertext, block: int) -> Ciphertext:
        """The same logits. block: of the vocabulary."""
        x = self._evaluator.drop_to(x, LEVEL)
        zero = self._encryptor.encrypt(self._encoder.encode(self._noise(block), LEVEL, x.scale))
        x = self._evaluator.add(x, zero.with_scale(x.scale))
        ring, n = self._parameters.ring(LEVEL), self._parameters.degree
        mask = sampling.Stream().uniform_rns(ring.primes, n)
        mask[:, :: n // (2 * self._shape.n)] = 0
        ring.add(x.data[0], ring.ntt(mask), x.data[0])
        return x

    def _noise(self, block: int) -> npt.NDArray[np.complex128]:
        """(n,): what is added to the slots."""
        shape, n = self._shape, self._shape.n
        noise = gaussians(2, n) * WIDE * math.sqrt(n)
        here = min(shape.vocabulary, shape.config.vocab_size - block * shape.vocabulary)
        places = np.arange(here) * (n // shape.vocabulary)
        noise[0, places] = gaussians(here) * FLOOD
        slots: npt.NDArray[np.complex128] = noise[0] + 1j * noise[1]
        return slots


def gaussians(*shape: int) -> npt.NDArray[np.float64]:
    """Standard normal, by Box and Muller from uniforms of 53 bits in (0, 1]."""
    words = sampling.Stream().words(2, *shape)
    uniform = ((words >> np.uint64(11)).astype(np.float64) + 1.0) * 2.0**-53
    normal: npt.NDArray[np.float64] = np.sqrt(-2 * np.log(uniform[0])) * np.cos(2 * np.pi * uniform[1])
    return normal


def check_range(logits: npt.NDArray[np.float64], largest: float) -> None:
    """The client's look at what it decrypted. largest: that any text can give (`Description`).

    RangeError for what cannot be. A value that leaves its range explodes and fills all slots with noise of
    the modulus's size, which is far above any logit.
    """
    if not np.isfinite(logits).all() or np.abs(logits).max() > _BEYOND * largest:
        raise RangeError(
            "the answer decrypts to noise: a value left the range that the server's polynomials hold on, "
            "as a text can make it that is far from what the model writes itself. Begin a new conversation, "
            "or use the engine hybrid, where such a value garbles no more than its token"
        )
