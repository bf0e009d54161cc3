"""Arithmetic on ciphertexts. Operations return new ciphertexts; operands are never changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from sottovoce import _native
from sottovoce.bgv import noise
from sottovoce.bgv.ciphertext import Ciphertext, Plaintext
from sottovoce.bgv.encoder import Encoder
from sottovoce.errors import ParameterError
from sottovoce.ring import context, threads
from sottovoce.rlwe import GaloisKeys, Parameters, RelinearizationKey, galois_element, key_switcher

Words = npt.NDArray[np.uint64]
# A plaintext operand: still to be transformed, or already (L, M) in NTT form as from `Encoder.to_ntt`.
PlainOperand = Plaintext | Words


class Evaluator:
    """Everything the model party does. Keys are needed only by the operations that use them."""

    def __init__(
        self,
        parameters: Parameters,
        relinearization_key: RelinearizationKey | None = None,
        galois_keys: GaloisKeys | None = None,
    ) -> None:
        for key in (relinearization_key, galois_keys):
            if key is not None and key.parameters != parameters:
                raise ParameterError("a key belongs to other parameters")
        self.parameters = parameters
        self.relinearization_key, self.galois_keys = relinearization_key, galois_keys
        self.encoder = Encoder(parameters)

    # Linear

    def add(self, a: Ciphertext, b: Ciphertext) -> Ciphertext:
        """a + b; b may be a single ciphertext against a batch."""
        self._same(a, b)
        data = self.parameters.ring(a.limbs).add(*_operands(a.data, b.data))
        return replace(a, data=data, noise=noise.add(a.noise, b.noise))

    def sub(self, a: Ciphertext, b: Ciphertext) -> Ciphertext:
        """a − b; b may be a single ciphertext against a batch."""
        self._same(a, b)
        data = self.parameters.ring(a.limbs).sub(*_operands(a.data, b.data))
        return replace(a, data=data, noise=noise.add(a.noise, b.noise))

    def sum(self, batch: Ciphertext) -> Ciphertext:
        """The sum over the first axis of a batch."""
        ring = self.parameters.ring(batch.limbs)
        total = batch.data[0].copy()
        for item in batch.data[1:]:
            ring.add(total, np.ascontiguousarray(item), total)
        return replace(batch, data=total, noise=noise.add(*[batch.noise] * len(batch)))

    def negate(self, a: Ciphertext) -> Ciphertext:
        """−a."""
        return replace(a, data=self.parameters.ring(a.limbs).neg(np.ascontiguousarray(a.data)))

    def add_plain(self, a: Ciphertext, plain: PlainOperand) -> Ciphertext:
        """a + plain; one plaintext per ciphertext of the batch, or one for all. Adds one unit of noise."""
        ring, operand = self.parameters.ring(a.limbs), self._plain(plain, a)
        if a.factor != 1:
            operand = ring.mul_scalar(operand, _centred(a.factor, self.parameters.plaintext))
        data = a.data.copy()
        # Where the plaintext is one for all, the kernel broadcasts it over the batch.
        first = np.ascontiguousarray(data[..., 0, :, :])
        data[..., 0, :, :] = ring.add(first, self._full(operand, a))
        return replace(a, data=data, noise=noise.add_plain(a.noise))

    def sub_plain(self, a: Ciphertext, plain: PlainOperand) -> Ciphertext:
        """a − plain."""
        ring = self.parameters.ring(a.limbs)
        return self.add_plain(a, ring.neg(self._full(self._plain(plain, a), a)))

    def trivial(self, plain: PlainOperand, batch: tuple[int, ...] = ()) -> Ciphertext:
        """A "ciphertext" (m, 0) of public or own data, encrypting nothing, to add others to."""
        empty = np.zeros((*batch, 2, self.parameters.limbs, self.parameters.degree), np.uint64)
        return self.add_plain(Ciphertext(self.parameters, empty, 0.0), plain)

    def mul_plain(self, a: Ciphertext, plain: PlainOperand) -> Ciphertext:
        """a·plain (slot by slot); one plaintext per ciphertext of the batch, or one for all."""
        ring, operand = self.parameters.ring(a.limbs), self._plain(plain, a)
        degree = operand.shape[-1]
        operand = self._full(operand, a)
        if operand.ndim > 2:
            operand = np.ascontiguousarray(np.broadcast_to(operand[..., None, :, :], a.data.shape))
        data = ring.mul(np.ascontiguousarray(a.data), operand)
        return replace(a, data=data, noise=noise.mul_plain(self.parameters, a.noise, degree))

    def mul_plain_accumulate(
        self,
        cts: Ciphertext | Sequence[Ciphertext],
        plains: Words | Sequence[Words],
        into: Ciphertext | None = None,
    ) -> Ciphertext:
        """Σ_k cts[k]·plains[k] (+ into). plains: K arrays (L, M) from `Encoder.to_ntt`, M = N unless
        periodic.

        One pass with a single reduction per coefficient: the operation to give thousands of products to.
        """
        return self.mul_plain_matrix(
            cts, [plains], None if into is None else replace(into, data=into.data[None])
        )[0]

    def mul_plain_matrix(
        self,
        cts: Ciphertext | Sequence[Ciphertext],
        plains: Sequence[Sequence[Words] | Words] | Words,
        into: Ciphertext | None = None,
    ) -> Ciphertext:
        """G sums over the same K ciphertexts: result[g] = Σ_k cts[k]·plains[g][k] (+ into[g]); a batch of G.

        Reads every ciphertext once per cache block for all sums, which is what a layer with many outputs
        wants.
        """
        items = [cts[k] for k in range(len(cts))]
        groups, first = len(plains), items[0]
        ring = self.parameters.ring(first.limbs)
        for item in items[1:]:
            self._same(first, item)
        if into is None:
            acc = np.zeros((groups, *first.data.shape), np.uint64)
        else:
            self._same(first, into)
            acc = into.data.copy()
        ring.mac_matrix(
            acc, [np.ascontiguousarray(item.data) for item in items], [list(row) for row in plains]
        )
        degree = int(plains[0][0].shape[-1])
        terms = [noise.mul_plain(self.parameters, item.noise, degree) for item in items]
        bits = noise.add(*terms, *([] if into is None else [into.noise]))
        return Ciphertext(self.parameters, acc, bits, first.factor)

    # Products of ciphertexts

    def tensor_accumulate(self, a: Ciphertext, b: Ciphertext, into: Ciphertext | None = None) -> Ciphertext:
        """Σ_k a[k]·b[k] (+ into) over two batches of K: one ciphertext of three components."""
        if a.size != 2 or b.size != 2 or a.batch != b.batch or a.limbs != b.limbs or len(a.batch) > 1:
            raise ParameterError(
                "a tensor product takes two batches of equal length and level, of two components"
            )
        left, right = a.flat(), b.flat()
        factor = a.factor * b.factor % self.parameters.plaintext
        if into is None:
            out = np.empty((3, *left.shape[2:]), np.uint64)
        else:
            if into.size != 3 or into.factor != factor or into.limbs != a.limbs or into.batch:
                raise ParameterError("products accumulate into a single ciphertext of three components")
            out = into.data.copy()
        primes = list(self.parameters.primes[: a.limbs])
        _native.bgv_tensor(left, right, primes, out, into is not None, threads())
        one = noise.tensor(self.parameters, a.noise, b.noise)
        bits = noise.add(*[one] * len(left), *([] if into is None else [into.noise]))
        return Ciphertext(self.parameters, out, bits, factor)

    def relinearize(self, a: Ciphertext) -> Ciphertext:
        """Three components to two. One key switch per ciphertext of the batch."""
        if self.relinearization_key is None:
            raise ParameterError("this evaluator has no relinearization key")
        if a.size != 3:
            raise ParameterError(f"relinearisation takes ciphertexts of three components, not {a.size}")
        switcher, data = key_switcher(self.parameters, a.limbs), a.flat()
        key = self.relinearization_key.key.data
        return self._switched(a, switcher.switch(switcher.decompose(data, 2), [key], [1], data, 2)[0])

    # Rotations

    def rotate(self, a: Ciphertext, step: int) -> Ciphertext:
        """new[c] = old[(c + step) mod N/2] in both rows; ROW_SWAP (-1) swaps them. One key switch."""
        return self.rotate_hoisted(a, [step])[0]

    def rotate_hoisted(self, a: Ciphertext, steps: Sequence[int]) -> list[Ciphertext]:
        """a rotated by every step, decomposed once: each further rotation costs about half."""
        keys = self._rotation_keys(a)
        switcher, data = key_switcher(self.parameters, a.limbs), a.flat()
        moved = [step for step in steps if step != 0]
        if not moved:
            return [a] * len(steps)
        n = self.parameters.degree
        turned = iter(
            switcher.switch(
                switcher.decompose(data, 1),
                [keys.aligned(step) for step in moved],
                [galois_element(n, step) for step in moved],
                data,
                1,
            )
        )
        return [a if step == 0 else self._switched(a, next(turned)) for step in steps]

    def rotate_sum(self, cts: Ciphertext | Sequence[Ciphertext], steps: Sequence[int]) -> Ciphertext:
        """Σ_k rotate(cts[k], steps[k]), each cts[k] a single ciphertext: one division by P for the whole sum.

        The giant steps of a matrix product. Noise: one key switch's rounding, and every key's error.
        """
        items = [cts[k] for k in range(len(cts))]
        if not items or len(items) != len(steps):
            raise ParameterError("a sum of rotations takes as many ciphertexts as steps, at least one")
        first = items[0]
        keys, n = self._rotation_keys(first), self.parameters.degree
        switcher = key_switcher(self.parameters, first.limbs)
        wide: Words | None = None
        total = np.zeros((2, first.limbs, n), np.uint64)
        for item, step in zip(items, steps, strict=True):
            self._same(first, item)
            data = np.ascontiguousarray(item.data)
            if step == 0:
                switcher.ring.add(total, data, total)
                continue
            element = galois_element(n, step)
            product = switcher.product(switcher.decompose(data[None], 1), keys.aligned(step))
            turned = switcher.key_ring.automorphism_ntt(product, element)
            wide = turned if wide is None else switcher.key_ring.add(wide, turned, wide)
            switcher.ring.add(total[:1], switcher.ring.automorphism_ntt(data[:1], element), total[:1])
        if wide is not None:
            switcher.ring.add(total, switcher.mod_down(wide)[0], total)
        switch = noise.key_switch(self.parameters, first.limbs)
        bits = noise.add(*[item.noise for item in items], *[switch] * len(items))
        return replace(first, data=total, noise=bits)

    # Levels

    def mod_switch(self, a: Ciphertext) -> Ciphertext:
        """Divide by the last prime: less noise, one limb less, plaintext factor times q_last^-1."""
        if a.limbs < 2:
            raise ParameterError("a ciphertext with one prime left cannot be switched further")
        parameters, kept = self.parameters, a.limbs - 1
        p, last = parameters.plaintext, parameters.primes[kept]
        ring = parameters.ring(kept)
        n = parameters.degree
        tail = np.ascontiguousarray(a.data[..., kept:, :]).reshape(-1, 1, n)
        context(n, (last,)).intt(tail)
        # δ = p·[p^-1·c mod q_last] is c modulo q_last and 0 modulo p, and small.
        lifted = np.empty((len(tail), kept, n), np.uint64)
        _native.bgv_lift(tail[:, 0], last, pow(p, -1, last), list(ring.primes), lifted, threads())
        ring.mul_scalar(ring.ntt(lifted), p, lifted)
        inverses = [pow(last, -1, q) for q in ring.primes]
        rows = np.ascontiguousarray(a.data).reshape(-1, a.limbs, n)
        _native.bgv_sub_scale(rows, lifted, list(ring.primes), inverses, lifted, threads())
        return Ciphertext(
            parameters,
            lifted.reshape(*a.batch, a.size, kept, n),
            noise.mod_switch(parameters, a.noise, last),
            a.factor * pow(last, -1, p) % p,
        )

    # Helpers

    def _same(self, a: Ciphertext, b: Ciphertext) -> None:
        if a.size != b.size or a.limbs != b.limbs or a.factor != b.factor:
            raise ParameterError(
                f"operands differ in size ({a.size}, {b.size}), level ({a.limbs}, {b.limbs}) or "
                "plaintext factor"
            )

    def _plain(self, plain: PlainOperand, a: Ciphertext) -> Words:
        if isinstance(plain, Plaintext):
            return self.encoder.to_ntt(plain, a.limbs)
        if plain.shape[-2] != a.limbs:
            raise ParameterError(f"a plaintext of {plain.shape[-2]} limbs against a ciphertext of {a.limbs}")
        return plain

    def _full(self, operand: Words, a: Ciphertext) -> Words:
        """Repeat a periodic operand to full length."""
        runs = self.parameters.degree // operand.shape[-1]
        return np.ascontiguousarray(operand) if runs == 1 else np.repeat(operand, runs, axis=-1)

    def _rotation_keys(self, a: Ciphertext) -> GaloisKeys:
        if self.galois_keys is None:
            raise ParameterError("this evaluator has no Galois keys")
        if a.size != 2:
            raise ParameterError("relinearise before rotating")
        return self.galois_keys

    def _switched(self, a: Ciphertext, data: Words) -> Ciphertext:
        bits = noise.add(a.noise, noise.key_switch(self.parameters, a.limbs))
        return replace(a, data=data.reshape(*a.batch, *data.shape[1:]), noise=bits)


def _operands(a: Words, b: Words) -> tuple[Words, Words]:
    return np.ascontiguousarray(a), np.ascontiguousarray(np.broadcast_to(b, a.shape))


def _centred(x: int, p: int) -> int:
    return x - p if x > p // 2 else x
