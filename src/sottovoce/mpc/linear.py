"""Linear layers on shares: y = W x + b, W and b of the server, x and y shared.

The client encrypts its share x0, laid out in slots as the plan says; the server multiplies it with W under
encryption, returns the product masked (recipe Z), and adds W x1 + b, computed in the clear, to its own
share. The sums that a plan leaves open are taken by both parties on their shares.

Several tokens of a forward pass share ciphertexts (`sottovoce.packing.groups`): one plan for one token, with
plaintexts that are kept, and others for 2, 4, 8, …, whose plaintexts are encoded in use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from sottovoce.bgv import SIMD, Ciphertext, Evaluator
from sottovoce.errors import ParameterError
from sottovoce.mpc.encoded import EncodedMatrix
from sottovoce.mpc.field import Field, add
from sottovoce.net import recv_field, send_field
from sottovoce.net.codec import packed_size
from sottovoce.packing import (
    DataSide,
    Group,
    MatVecPlan,
    Side,
    all_plans,
    give_back_bytes,
    group_tokens,
    plan_matvec,
    upload_bytes,
)
from sottovoce.packing.groups import SIZES
from sottovoce.packing.rotations import sources
from sottovoce.rlwe import ROW_SWAP

Words = npt.NDArray[np.uint64]

_ROTATED_AT_ONCE = 512  # rotated inputs held in memory: 200 MB
_SUMS_AT_ONCE = 8  # sums of a giant step, or of several, with plaintexts that are encoded for them


class HomomorphicLinear:
    """One matrix in one session; both parties hold one and call `apply` in lockstep.

    matrix: the encoded matrix at the server, None at the client, who knows the shape only. sizes: numbers of
    tokens that may share a ciphertext, the same at both parties; (1,) keeps them apart.
    """

    sizes: tuple[int, ...] = SIZES

    def __init__(self, side: Side, d_out: int, d_in: int, matrix: EncodedMatrix | None = None) -> None:
        self.side = side
        self.plan = plan_matvec(d_out, d_in, side.parameters.degree)
        self.matrix = matrix
        if isinstance(side, DataSide) != (matrix is None):
            raise ParameterError("linear: the server, and only the server, has the matrix")
        if matrix is not None and (matrix.plan.d_out, matrix.plan.d_in) != (d_out, d_in):
            raise ParameterError(f"linear: the matrix is not {d_out} x {d_in}")

    def apply(self, x: Field, reveal_to_client: bool = False) -> Field:
        """x: (T, d_in) shares mod p -> (T, d_out) shares of W x + b mod p, exact.

        Cost: two messages, `cost(T)` bytes. With reveal_to_client the server's share follows (43 bits per
        output): the client returns the values themselves and the server zeros. Leaks nothing else.
        """
        if x.ndim != 2 or x.shape[1] != self.plan.d_in:
            raise ParameterError(
                f"linear: shares of shape {x.shape} for a matrix with {self.plan.d_in} inputs"
            )
        y = self._at_client(x) if isinstance(self.side, DataSide) else self._at_server(x)
        if not reveal_to_client:
            return y
        if isinstance(self.side, DataSide):
            return add(y, recv_field(self.side.channel, y.shape), self.side.parameters.plaintext)
        send_field(self.side.channel, y)
        return np.zeros_like(y)

    def cost(self, tokens: int, reveal_to_client: bool = False) -> tuple[int, int]:
        """Bytes (client to server, server to client) of `apply` on this many tokens."""
        parameters, groups = self.side.parameters, self._groups(tokens)
        revealed = packed_size(tokens * self.plan.d_out, 43) if reveal_to_client else 0
        up = upload_bytes(parameters, sum(group.sent_count for group in groups))
        return up, give_back_bytes(parameters, sum(group.output_count for group in groups)) + revealed

    def _groups(self, tokens: int) -> tuple[Group, ...]:
        return group_tokens(self.plan.d_out, self.plan.d_in, tokens, self.plan.degree, self.sizes)

    def _at_client(self, x: Field) -> Field:
        assert isinstance(self.side, DataSide)
        groups, first, slots = self._groups(len(x)), 0, []
        for group in groups:
            rows = np.zeros((group.tokens, self.plan.d_in), dtype=np.uint64)  # zero where there is no token
            there = x[first : first + group.tokens]
            rows[: len(there)] = there
            slots.append(group.plan.lay_out(rows).reshape(-1, self.plan.degree))
            first += group.tokens
        self.side.upload(np.concatenate(slots))
        return self._collect(groups, self.side.take_back(sum(group.output_count for group in groups)))[
            : len(x)
        ]

    def _at_server(self, x: Field) -> Field:
        assert not isinstance(self.side, DataSide) and self.matrix is not None
        groups = self._groups(len(x))
        sent = self.side.download(sum(group.sent_count for group in groups))
        results, noise, first = [], 0.0, 0
        for group in groups:
            last = first + group.sent_count
            batch = sent.data[first:last].reshape(group.count, group.plan.sent_count, *sent.data.shape[1:])
            for part in _slices(group):
                inputs = replace(sent, data=batch[part])
                by = multiply if self.matrix.elsewhere is None else self.matrix.elsewhere.multiply
                product = by(self.side.evaluator, self.matrix, inputs, group.plan)
                results.append(product.data.swapaxes(0, 1).reshape(-1, *sent.data.shape[1:]))
                noise = max(noise, product.noise)
            first = last
        masked = self.side.give_back(replace(sent, data=np.concatenate(results), noise=noise))
        y = self._collect(groups, masked)[: len(x)]
        return add(y, self.matrix.clear_product(x), self.side.parameters.plaintext)

    def _collect(self, groups: Sequence[Group], slots: Words) -> Field:
        """Slots of all results, group by group -> (tokens, d_out)."""
        parts, first = [], 0
        for group in groups:
            last = first + group.output_count
            apart = slots[first:last].reshape(group.count, -1, self.plan.degree)
            parts.append(group.plan.collect(apart, self.side.parameters.plaintext))
            first = last
        return np.concatenate(parts)


def multiply(
    evaluator: Evaluator, matrix: EncodedMatrix, inputs: Ciphertext, plan: MatVecPlan | None = None
) -> Ciphertext:
    """The product of an encoded matrix with encrypted vectors: inputs (G, I) as sent -> outputs (O, G),
    before masking.

    plan: of several tokens in a ciphertext; by default the matrix's own, for one. Baby steps are hoisted;
    giant steps follow Horner's rule on all outputs together. Plaintexts and rotation keys are read once for
    all G, which is why several ciphertexts cost less than as many times one.
    """
    plan = plan if plan is not None and plan.tokens > 1 else matrix.plan
    total: Ciphertext | None = None
    for inner in _sums(evaluator, matrix, plan, baby_steps(evaluator, plan, inputs)):
        if total is not None:
            inner = evaluator.add(evaluator.rotate(total, plan.giant_step), inner)
        total = inner
    assert total is not None
    return total


def baby_steps(evaluator: Evaluator, plan: MatVecPlan, sent: Ciphertext) -> list[list[Ciphertext]]:
    """The baby steps of every input: [c][i], batches of G."""
    inputs = [replace(sent, data=np.ascontiguousarray(sent.data[:, c])) for c in range(plan.sent_count)]
    if plan.swapped:
        inputs += [evaluator.rotate(one, ROW_SWAP) for one in inputs]
    babies = []
    for one in inputs:
        made = {0: one}
        for origin, steps in sources(plan.baby_steps).items():
            turned = evaluator.rotate_hoisted(made[origin], [step - origin for step in steps])
            made.update(zip(steps, turned, strict=True))
        babies.append([made[step] for step in plan.baby_steps])
    return babies


def _sums(
    evaluator: Evaluator, matrix: EncodedMatrix, plan: MatVecPlan, babies: list[list[Ciphertext]]
) -> Iterator[Ciphertext]:
    """The sums (O, G) of all giant steps, the last first; several at a time, which share the ciphertexts.

    Those are read from memory once for all sums.
    """
    full, rest = divmod(plan.rotations, plan.babies)
    most = full if plan is matrix.plan else _SUMS_AT_ONCE // plan.output_count
    at_once = max(1, min(most, full))
    diagonals = _diagonals(matrix, plan, at_once * plan.babies)
    if rest:
        first = full * plan.babies
        short = [row[:rest] for row in babies]
        yield from _some_sums(evaluator, plan, short, diagonals(first, plan.rotations))
    for last in range(full, 0, -at_once):
        first = max(0, last - at_once)
        yield from _some_sums(evaluator, plan, babies, diagonals(first * plan.babies, last * plan.babies))


def _diagonals(matrix: EncodedMatrix, plan: MatVecPlan, most: int) -> Callable[[int, int], list[Words]]:
    """A function of the first diagonal and the last: their plaintexts for every pair (o, c), in order.

    Those of the matrix's own plan are kept; others are made at every call, at most `most` of them.
    """
    pairs = list(np.ndindex(plan.output_count, plan.input_count))
    if plan is matrix.plan:
        kept = [matrix.diagonals(o, c) for o, c in pairs]
        return lambda first, last: [one[first:last] for one in kept]
    room = np.empty((len(pairs) * most, matrix.parameters.limbs, plan.degree), np.uint64)

    def encode(first: int, last: int) -> list[Words]:
        in_use = matrix.encoded_in_use(plan, first, last, room)
        return [in_use[o, c] for o, c in pairs]

    return encode


def _some_sums(
    evaluator: Evaluator, plan: MatVecPlan, babies: list[list[Ciphertext]], diagonals: list[Words]
) -> Iterator[Ciphertext]:
    """The sums over these babies with these diagonals, the last first."""
    width, inputs = len(babies[0]), plan.input_count
    giants = len(diagonals[0]) // width
    plains = [
        [one[giant * width + i] for one in diagonals[o * inputs : (o + 1) * inputs] for i in range(width)]
        for giant in range(giants)
        for o in range(plan.output_count)
    ]
    sums = evaluator.mul_plain_matrix([baby for row in babies for baby in row], plains)
    for giant in reversed(range(giants)):
        yield sums[giant * plan.output_count : (giant + 1) * plan.output_count]


def _slices(group: Group) -> list[slice]:
    """Parts of a batch whose rotated inputs fit into memory together."""
    size = max(1, _ROTATED_AT_ONCE // (group.plan.input_count * group.plan.babies))
    return [slice(first, min(first + size, group.count)) for first in range(0, group.count, size)]


def rotation_steps(shapes: Iterable[tuple[int, int]], degree: int = SIMD.degree) -> set[int]:
    """The rotation keys that matrices of these shapes (d_out, d_in) need together; for `exchange_keys`."""
    return set().union(*(plan.steps() for shape in shapes for plan in all_plans(*shape, degree)))
