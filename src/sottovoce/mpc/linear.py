"""Linear layers on shares: y = W x + b, W and b of the server, x and y shared.

The client encrypts its share x0, laid out in slots as the plan says; the server multiplies it with W under
encryption, returns the product masked (recipe Z), and adds W x1 + b, computed in the clear, to its own
share. The sums that a plan leaves open are taken by both parties on their shares.

Several tokens of a forward pass share ciphertexts (`sottovoce.packing.groups`): one plan for one token, with
plaintexts that are kept, and others for 2, 4, 8, …, whose plaintexts are encoded in use.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
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
                product = multiply(self.side.evaluator, self.matrix, inputs, group.plan)
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
    sums = _kept_sums if plan is matrix.plan else _sums_in_use
    total: Ciphertext | None = None
    for inner in sums(evaluator, matrix, plan, _rotated(evaluator, plan, inputs)):
        if total is not None:
            inner = evaluator.add(evaluator.rotate(total, plan.giant_step), inner)
        total = inner
    assert total is not None
    return total


def _rotated(evaluator: Evaluator, plan: MatVecPlan, sent: Ciphertext) -> list[list[Ciphertext]]:
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


def _kept_sums(
    evaluator: Evaluator, matrix: EncodedMatrix, plan: MatVecPlan, babies: list[list[Ciphertext]]
) -> Iterator[Ciphertext]:
    """The sums (O, G) of all giant steps, the last first; every ciphertext is read once for all full ones."""
    outputs = range(plan.output_count)
    diagonals = [[matrix.diagonals(o, c) for c in range(plan.input_count)] for o in outputs]

    def partial(first: int, giants: int, width: int) -> list[Ciphertext]:
        plains = [
            [rows[first + giant * plan.babies + i] for rows in row for i in range(width)]
            for giant in range(giants)
            for row in diagonals
        ]
        sums = evaluator.mul_plain_matrix([baby for row in babies for baby in row[:width]], plains)
        return [sums[giant * plan.output_count : (giant + 1) * plan.output_count] for giant in range(giants)]

    full, rest = divmod(plan.rotations, plan.babies)
    if rest:
        yield partial(full * plan.babies, 1, rest)[0]
    if full:
        yield from reversed(partial(0, full, plan.babies))


def _sums_in_use(
    evaluator: Evaluator, matrix: EncodedMatrix, plan: MatVecPlan, babies: list[list[Ciphertext]]
) -> Iterator[Ciphertext]:
    """The same with plaintexts that are encoded for one giant step at a time, for all ciphertexts."""
    for giant in reversed(range(plan.giants)):
        first = giant * plan.babies
        last = min(first + plan.babies, plan.rotations)
        plains = matrix.encoded_in_use(plan, first, last)
        flat = [baby for row in babies for baby in row[: last - first]]
        yield evaluator.mul_plain_matrix(flat, plains.reshape(plan.output_count, -1, *plains.shape[-2:]))


def _slices(group: Group) -> list[slice]:
    """Parts of a batch whose rotated inputs fit into memory together."""
    size = max(1, _ROTATED_AT_ONCE // (group.plan.input_count * group.plan.babies))
    return [slice(first, min(first + size, group.count)) for first in range(0, group.count, size)]


def rotation_steps(shapes: Iterable[tuple[int, int]], degree: int = SIMD.degree) -> set[int]:
    """The rotation keys that matrices of these shapes (d_out, d_in) need together; for `exchange_keys`."""
    return set().union(*(plan.steps() for shape in shapes for plan in all_plans(*shape, degree)))
