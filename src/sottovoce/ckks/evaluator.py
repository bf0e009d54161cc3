"""Arithmetic on ciphertexts with keys: products, rotations, and the passage to the modulus of a bootstrap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from sottovoce import _native
from sottovoce.ckks.ciphertext import Ciphertext, Plaintext, Wide, empty
from sottovoce.ckks.galois import CONJUGATE, galois_element
from sottovoce.ckks.keys import EncapsulationKeys, GaloisKeys, RelinearizationKey
from sottovoce.ckks.linear import NOTHING, Linear, same_scale
from sottovoce.ckks.parameters import Parameters
from sottovoce.ckks.switching import SwitchingKey, key_ring
from sottovoce.errors import ForeignKeyError, LevelError, MissingKeyError, ParameterError
from sottovoce.ring import threads

Words = npt.NDArray[np.uint64]


class Evaluator(Linear):
    """Everything the model party does. Keys are needed only by the operations that use them.

    Lazy sums: a rotation ends in a division by P whose transforms are most of its cost. `rotate_wide` leaves
    it out; products with wide plaintexts and sums stay modulo Q·P, and one `mod_down` serves all of them.
    """

    def __init__(
        self,
        parameters: Parameters,
        relinearization_key: RelinearizationKey | None = None,
        galois_keys: GaloisKeys | None = None,
        encapsulation_keys: EncapsulationKeys | None = None,
    ) -> None:
        super().__init__(parameters)
        keys = [k for k in (relinearization_key, galois_keys, encapsulation_keys) if k is not None]
        for key in keys:
            if key.parameters != parameters:
                raise ParameterError("a key belongs to other parameters")
            if key.key_id != keys[0].key_id:
                raise ForeignKeyError("the evaluation keys belong to different secrets")
        self.key_id = keys[0].key_id if keys else None
        self.relinearization_key, self.galois_keys = relinearization_key, galois_keys
        self.encapsulation_keys = encapsulation_keys

    # Products of ciphertexts

    def tensor(
        self,
        a: Ciphertext,
        b: Ciphertext,
        factor: int = 1,
        constant: float = 0.0,
        plus: Ciphertext | None = None,
    ) -> Ciphertext:
        """factor·a·b + constant + plus in one pass: three components, at the product of the scales.

        factor: below 2^20. plus: of that scale (ScaleError otherwise) and of the product's level or above.
        """
        self._same_key(a, b)
        if a.size != 2 or b.size != 2:
            raise ParameterError("relinearise before the next product")
        level, scale, slots = min(a.level, b.level), a.scale * b.scale, max(a.slots, b.slots)
        a, b, more = self.drop_to(a, level), self.drop_to(b, level), NOTHING
        if plus is not None:
            self._same_key(a, plus)
            same_scale(scale, plus.scale, "add up products of")
            more, slots = self.drop_to(plus, level).data, max(slots, plus.slots)
        added = self._constant(constant, level, scale)
        ring, out = self.parameters.ring(level), empty(3, level + 1, self.parameters.degree)
        _native.ckks_tensor(ring._native, a.data, b.data, factor, added, more, out, threads())
        return replace(a, data=out, scale=scale, slots=slots)

    def relinearize(self, a: Ciphertext, rescale: int = 0) -> Ciphertext:
        """Three components to two by one key switch, divided by the top `rescale` primes in the same step."""
        if self.relinearization_key is None:
            raise MissingKeyError("this evaluator has no relinearization key")
        if a.size != 3:
            raise ParameterError(f"relinearisation takes ciphertexts of three components, not {a.size}")
        key = self.relinearization_key.key
        if key.level < a.level:
            raise MissingKeyError(
                f"the relinearization key was generated for levels up to {key.level}, not for level {a.level}"
            )
        self._levels_left(a, rescale, "rescale a product")
        self._own(a)
        product = self._switch(a.data[2], a.level, [key], more=a.data[:2])[0]
        data = self._mod_down(product, a.level, rescale)
        return replace(a, data=data, scale=self._rescaled(a.scale, a.level, rescale))

    def mul(self, a: Ciphertext, b: Ciphertext, rescale: int = 1) -> Ciphertext:
        """a·b slot by slot, relinearised and rescaled. One key switch; a level for every rescaling."""
        if min(a.level, b.level) < rescale:
            self._levels_left(a if a.level <= b.level else b, rescale, "multiply")
        return self.relinearize(self.tensor(a, b), rescale)

    def square(self, a: Ciphertext, rescale: int = 1) -> Ciphertext:
        """a·a."""
        return self.mul(a, a, rescale)

    # Rotations

    def rotate(self, a: Ciphertext, step: int) -> Ciphertext:
        """new[j] = old[(j + step) mod n], n the period; CONJUGATE (-1) is not a step here. One key switch."""
        return self.rotate_hoisted(a, [step])[0]

    def conjugate(self, a: Ciphertext) -> Ciphertext:
        """Every slot conjugated. One key switch."""
        return self._turned(a, [CONJUGATE])[0]

    def rotate_hoisted(self, a: Ciphertext, steps: Sequence[int]) -> list[Ciphertext]:
        """a rotated by every step, decomposed once."""
        return self._turned(a, [step % a.slots for step in steps])

    # Lazily, modulo Q·P

    def rotate_wide(self, a: Ciphertext, step: int) -> Wide:
        """A rotation (or CONJUGATE) that is not divided by P yet."""
        return self.rotate_wide_hoisted(a, [step])[0]

    def rotate_wide_hoisted(self, a: Ciphertext, steps: Sequence[int]) -> list[Wide]:
        """`rotate_wide` by every step, decomposed once."""
        steps = [step if step == CONJUGATE else step % a.slots for step in steps]
        products = iter(self._products(a, [step for step in steps if step], a.data[:1]))
        return [
            self._wide(next(products), a.scale, a.slots, a.key_id) if step else self.widen(a)
            for step in steps
        ]

    def widen(self, a: Ciphertext) -> Wide:
        """P·a modulo Q·P."""
        if a.size != 2:
            raise ParameterError("relinearise before lazy sums")
        limbs = a.level + 1
        out = empty(2, limbs + self.parameters.alpha, self.parameters.degree)
        ring = self.parameters.ring(a.level)
        for part in range(2):
            ring.mul_scalar(a.data[part], self.parameters.special_modulus, out[part, :limbs])
            out[part, limbs:] = 0
        return self._wide(out, a.scale, a.slots, a.key_id)

    def mul_plain_wide(self, wides: Sequence[Wide], plains: Sequence[Plaintext]) -> Wide:
        """Σ_k wides[k]·plains[k] with one reduction.

        All operands of one level; plaintexts wide and of that level or above.
        """
        if not wides or len(wides) != len(plains):
            raise ParameterError("a sum of products takes as many operands as plaintexts, at least one")
        first, scale = wides[0], wides[0].scale * plains[0].scale
        rows = [self._wide_rows(plain, first.level) for plain in plains]
        size = max(row.shape[1] for row in rows)
        rows = [r if r.shape[1] == size else np.repeat(r, size // r.shape[1], axis=1) for r in rows]
        for wide, plain in zip(wides, plains, strict=True):
            self._same_wide(first, wide)
            if abs(wide.scale * plain.scale / scale - 1) > 2.0**-40:
                raise ParameterError("the products of a lazy sum have different scales")
        out = empty(1, *first.data.shape)
        ring = self.parameters.wide_ring(first.level)
        ring.mac_matrix(out, [wide.data for wide in wides], [rows], accumulate=False)
        slots = max([wide.slots for wide in wides] + [plain.slots for plain in plains])
        return self._wide(out[0], scale, slots, first.key_id)

    def add_wide(self, a: Wide, b: Wide) -> Wide:
        """a + b."""
        self._same_wide(a, b)
        out = self.parameters.wide_ring(a.level).add(a.data, b.data, empty(*a.data.shape))
        return replace(a, data=out, slots=max(a.slots, b.slots))

    def turn_wide(self, a: Wide, step: int, total: Wide | None = None) -> Wide:
        """A rotation of a lazy sum: c_1 alone is divided by P, switched again, and the result stays lazy.

        total: a lazy sum of nobody else's that the rotation is added to, in place.
        """
        step = step if step == CONJUGATE else step % a.slots
        if step == 0:
            return a if total is None else self.add_wide(total, a)
        key = self._galois_key(step, a.level)
        element = galois_element(self.parameters.degree, step)
        narrow = self._mod_down(a.data[1:], a.level, 0)
        if total is not None:
            self._same_wide(a, total)
        into = None if total is None else total.data[None]
        data = self._switch(narrow[0], a.level, [key], [element], a.data[:1], into=into)[0]
        return replace(a, data=data, slots=a.slots if total is None else max(a.slots, total.slots))

    def mod_down(self, a: Wide, rescale: int = 0) -> Ciphertext:
        """Divided by P, and by the top `rescale` primes in the same step."""
        if a.level < rescale:
            raise LevelError(f"cannot rescale a lazy sum at level {a.level} by {rescale} primes")
        data = self._mod_down(a.data, a.level, rescale)
        scale = self._rescaled(a.scale, a.level, rescale)
        return Ciphertext(self.parameters, data, scale, a.slots, a.key_id)

    # The way into a bootstrap

    def mod_raise(self, a: Ciphertext, level: int) -> Ciphertext:
        """A ciphertext of level 0 read modulo Q_level: message + q_0·I, |I| ≤ 16 by the ephemeral secret.

        Two key switches (to the ephemeral secret at q_0·p_0, back at the full modulus). The scale stays.
        """
        if self.encapsulation_keys is None:
            raise MissingKeyError("this evaluator has no encapsulation keys")
        if a.size != 2:
            raise ParameterError("relinearise before raising the modulus")
        keys, n = self.encapsulation_keys, self.parameters.degree
        if keys.up.level < level:
            raise MissingKeyError(f"the encapsulation keys reach up to level {keys.up.level}, not {level}")
        self._own(a)
        a = self.drop_to(a, 0)
        low = self._switched(a.data, keys.down, 0)
        # One digit modulo q_0, read modulo every prime: the centred lift.
        raised, ring = empty(2, level + 1, n), self.parameters.ring(self.parameters.check_level(level))
        for part in range(2):
            if level == 0:
                raised[part] = low[part]
            else:
                _native.ckks_decompose(ring._native, low[part], 1, raised[part : part + 1], threads())
        return replace(a, data=self._switched(raised, keys.up, level))

    # Helpers

    def _switched(self, data: Words, key: SwitchingKey, level: int) -> Words:
        product = self._switch(data[1], level, [key])[0]
        return self._mod_down(product, level, 0, data[:1], special=key.special)

    def _switch(
        self,
        rows: Words,
        level: int,
        keys: Sequence[SwitchingKey],
        elements: Sequence[int] = (1,),
        more: Words = NOTHING,
        into: Words | None = None,
    ) -> Words:
        """(S, 2, L + K, N): the component `rows` under every key, plus `more` (times P if it lacks the
        special primes), turned by the automorphisms; added to `into`, in place, if it is given."""
        ring = key_ring(self.parameters, level, keys[0].special)
        out = empty(len(keys), 2, ring.limbs, ring.n) if into is None else into
        halves, seeds = [key.b for key in keys], [key.uniform for key in keys]
        _native.ckks_switch_keys(
            ring._native, rows, halves, seeds, more, list(elements), into is not None, out, threads()
        )
        return out

    def _products(self, a: Ciphertext, steps: Sequence[int], more: Words = NOTHING) -> Words:
        """(S, 2, L + K, N): c_1 under the keys of rotations, plus `more`; turned only if there is `more`."""
        if a.size != 2:
            raise ParameterError("relinearise before rotating")
        self._own(a)
        if not steps:
            return NOTHING
        keys = [self._galois_key(step, a.level) for step in steps]
        elements = [galois_element(self.parameters.degree, step) for step in steps]
        return self._switch(a.data[1], a.level, keys, elements if more.size else [1] * len(steps), more)

    def _turned(self, a: Ciphertext, steps: Sequence[int]) -> list[Ciphertext]:
        """Rotations (0 for none, or CONJUGATE), turned after the division by P: there is less to move."""
        moved = [step for step in steps if step]
        products, degree = iter(self._products(a, moved) if moved else ()), self.parameters.degree
        return [
            replace(
                a,
                data=self._mod_down(next(products), a.level, 0, a.data[:1], galois_element(degree, step)),
            )
            if step
            else a
            for step in steps
        ]

    def _mod_down(
        self,
        x: Words,
        level: int,
        rescale: int,
        more: Words = NOTHING,
        element: int = 1,
        special: int | None = None,
    ) -> Words:
        ring = key_ring(self.parameters, level, self.parameters.alpha if special is None else special)
        out = empty(len(x), level + 1 - rescale, ring.n)
        _native.ckks_mod_down(ring._native, x, more, element, out, threads())
        return out

    def _galois_key(self, step: int, level: int) -> SwitchingKey:
        if self.galois_keys is None:
            raise MissingKeyError("this evaluator has no Galois keys")
        return self.galois_keys.get(step, level)

    def _own(self, a: Ciphertext) -> None:
        if self.key_id is not None and a.key_id != self.key_id:
            raise ForeignKeyError("the ciphertext belongs to another key or session than the keys")

    def _wide(self, data: Words, scale: float, slots: int, key_id: bytes) -> Wide:
        return Wide(self.parameters, data, scale, slots, key_id)

    def _wide_rows(self, plain: Plaintext, level: int) -> Words:
        if not plain.wide or plain.level < level:
            raise LevelError(f"a lazy sum at level {level} takes wide plaintexts of that level or above")
        if plain.level == level:
            return plain.data
        return np.concatenate([plain.data[: level + 1], plain.data[plain.level + 1 :]])

    def _same_wide(self, a: Wide, b: Wide) -> None:
        if a.data.shape != b.data.shape:
            raise LevelError("the operands of a lazy sum have different levels")
        if a.key_id != b.key_id:
            raise ForeignKeyError("ciphertexts of different keys cannot be combined")
