"""Polynomials of Z_Q[X]/(X^N + 1) in residue form: the arithmetic that every scheme is written on.

A polynomial is a C-contiguous ``np.uint64`` array of shape (..., L, N): L limbs, limb l reduced modulo the
prime q_l. Leading axes are a batch. The caller knows whether an array holds coefficients or evaluations
("NTT form"); in NTT form position i holds the value at ψ^(2·brv(i)+1), brv the reversal of lg N bits, and
products are pointwise.

Kernels work in place or into ``out`` and release the GIL; without ``out`` the wrapper allocates. All operands
must be reduced and their shapes must agree: a wrong shape raises ParameterError.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sottovoce import _native
from sottovoce.errors import ParameterError, UsageError

Words = npt.NDArray[np.uint64]
IndexArray = npt.NDArray[np.uint32]


def _available_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _lower_isa(name: str) -> None:
    """Kernels of a lower instruction set than this machine has: to compare, or where a running process may be
    moved to a machine that has less."""
    try:
        _native.set_isa(name)
    except ValueError as error:
        raise UsageError(f"SOTTOVOCE_ISA: {error}") from None


if "SOTTOVOCE_ISA" in os.environ:
    _lower_isa(os.environ["SOTTOVOCE_ISA"])
_threads = int(os.environ.get("SOTTOVOCE_THREADS", "0")) or _available_cores()


def threads() -> int:
    """How many threads a kernel uses unless told otherwise (SOTTOVOCE_THREADS, or all cores)."""
    return _threads


def set_threads(count: int) -> None:
    """Change the default of `threads()`."""
    global _threads
    if count < 1:
        raise ParameterError(f"a thread count must be at least 1, not {count}")
    _threads = count


class RingContext:
    """The ring of degree N over a list of primes; tables are shared between all contexts of a process.

    N: a power of two up to 2^17. primes: distinct, below 2^61, each ≡ 1 mod 2N; else ParameterError.
    """

    def __init__(self, n: int, primes: Sequence[int]) -> None:
        self.n = n
        self.primes = tuple(int(q) for q in primes)
        if len(set(self.primes)) != len(self.primes):
            raise ParameterError("the primes of a ring must be distinct")
        try:
            self._native = _native.Ring(n, list(self.primes))
        except (ValueError, TypeError) as error:
            raise ParameterError(f"no ring of degree {n} over these primes: {error}") from error

    @property
    def limbs(self) -> int:
        """L, the number of primes."""
        return len(self.primes)

    @functools.cached_property
    def modulus(self) -> int:
        """Q, the product of the primes."""
        return functools.reduce(lambda a, b: a * b, self.primes, 1)

    def drop(self, count: int = 1) -> RingContext:
        """The ring without its last `count` primes."""
        if not 0 < count < self.limbs:
            raise ParameterError(f"cannot drop {count} of {self.limbs} primes")
        return context(self.n, self.primes[:-count])

    def zeros(self, *batch: int) -> Words:
        """The zero polynomial, shape (*batch, L, N)."""
        return np.zeros((*batch, self.limbs, self.n), np.uint64)

    def _out(self, like: Words, out: Words | None) -> Words:
        return np.empty_like(like) if out is None else out

    def ntt(self, x: Words, threads: int | None = None) -> Words:
        """Coefficients to NTT form, in place; returns x."""
        with _shapes("ntt"):
            self._native.ntt(x, threads or _threads)
        return x

    def intt(self, x: Words, threads: int | None = None) -> Words:
        """NTT form to coefficients, in place; returns x."""
        with _shapes("intt"):
            self._native.intt(x, threads or _threads)
        return x

    def add(self, a: Words, b: Words, out: Words | None = None) -> Words:
        """a + b; b may be one polynomial against a batch. out may be a or b."""
        out = self._out(a, out)
        with _shapes("add"):
            self._native.add(a, b, out, _threads)
        return out

    def sub(self, a: Words, b: Words, out: Words | None = None) -> Words:
        """a − b; b may be one polynomial against a batch."""
        out = self._out(a, out)
        with _shapes("sub"):
            self._native.sub(a, b, out, _threads)
        return out

    def neg(self, a: Words, out: Words | None = None) -> Words:
        """−a."""
        return self.mul_scalar(a, -1, out)

    def mul(self, a: Words, b: Words, out: Words | None = None) -> Words:
        """The pointwise product: the ring product of operands in NTT form. b may be one against a batch."""
        out = self._out(a, out)
        with _shapes("mul"):
            self._native.mul(a, b, out, _threads)
        return out

    def mul_add(self, acc: Words, a: Words, b: Words) -> Words:
        """acc += a·b pointwise, in place; b may be one polynomial against a batch."""
        with _shapes("mul_add"):
            self._native.mul_add(a, b, acc, _threads)
        return acc

    def mul_scalar(self, a: Words, scalars: int | Sequence[int], out: Words | None = None) -> Words:
        """a times an integer, or times one integer per limb (any size and sign; reduced here)."""
        out = self._out(a, out)
        values = [scalars] * self.limbs if isinstance(scalars, int) else list(scalars)
        reduced = np.array([int(s) % q for s, q in zip(values, self.primes, strict=True)], np.uint64)
        with _shapes("mul_scalar"):
            self._native.mul_scalar(a, reduced, out, _threads)
        return out

    def automorphism_ntt(self, x: Words, k: int, out: Words | None = None) -> Words:
        """x(X^k) for x in NTT form: a permutation of positions. out must not be x."""
        out = self._out(x, out)
        with _shapes("automorphism_ntt"):
            self._native.automorphism_ntt(x, k % (2 * self.n), out, _threads)
        return out

    def automorphism_coeff(self, x: Words, k: int, out: Words | None = None) -> Words:
        """x(X^k) for x in coefficient form. out must not be x."""
        out = self._out(x, out)
        with _shapes("automorphism_coeff"):
            self._native.automorphism_coeff(x, k % (2 * self.n), out, _threads)
        return out

    def mac_many(
        self,
        acc: Words,
        cts: Sequence[Words] | Words,
        pts: Sequence[Words] | Words,
        threads: int | None = None,
    ) -> Words:
        """acc += Σ_k cts[k] ⊙ pts[k], reduced once at the end; in place.

        acc: (C, L, N), or (L, N). cts: K arrays of acc's shape. pts: K arrays (L, M), M dividing N: a
        plaintext that is a polynomial in X^r, r = N/M, has runs of r equal values in NTT form and is stored
        once per run. This is the hottest kernel of the package; `mac_matrix` does several sums over the
        same ciphertexts.
        """
        with _shapes("mac_many"):
            self._native.mac(acc, list(cts), list(pts), 1, threads or _threads)
        return acc

    def mac_matrix(
        self,
        acc: Words,
        cts: Sequence[Words] | Words,
        pts: Sequence[Sequence[Words]] | Words,
        threads: int | None = None,
        accumulate: bool = True,
    ) -> Words:
        """acc[g] += Σ_k cts[k] ⊙ pts[g][k] for every g; reads the ciphertexts once per cache block, in place.

        acc: (G, C, L, N). cts: K arrays (C, L, N). pts: G lists of K arrays (L, M), as for `mac_many`. What
        acc held is forgotten if not `accumulate`.
        """
        flat = [plaintext for row in pts for plaintext in row]
        with _shapes("mac_matrix"):
            self._native.mac(acc, list(cts), flat, len(acc), threads or _threads, accumulate)
        return acc

    def reduce_signed(self, values: npt.NDArray[np.signedinteger], out: Words | None = None) -> Words:
        """Residues of small signed integers: (..., N) of magnitude below every prime -> (..., L, N)."""
        if out is None:
            out = np.empty((*values.shape[:-1], self.limbs, self.n), np.uint64)
        wide = values.astype(np.int64, copy=False)
        for limb, q in enumerate(self.primes):
            # Adding q to the negative ones without a branch: the values are secrets or errors.
            out[..., limb, :] = (wide + ((wide >> 63) & q)).view(np.uint64)
        return out


class _shapes:
    """Turn a kernel's complaint about shapes or types into a ParameterError that names the operation."""

    def __init__(self, operation: str) -> None:
        self.operation = operation

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, ValueError | TypeError):
            raise ParameterError(f"{self.operation}: {error}") from error


@functools.lru_cache(maxsize=256)
def context(n: int, primes: tuple[int, ...]) -> RingContext:
    """The shared context of a ring; prefer it to the constructor, which only looks its tables up."""
    return RingContext(n, primes)


@functools.lru_cache(maxsize=32)
def bit_reversal(n: int) -> IndexArray:
    """brv(i) for i < n, n a power of two: (n,) uint32."""
    order = np.zeros(1, np.uint32)
    while len(order) < n:
        order = np.concatenate([2 * order, 2 * order + 1])
    return order
