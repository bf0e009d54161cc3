"""Linear layers on shares: y = W x + b, W and b of the server, x and y shared.

The client encrypts its share x0, laid out in slots as the plan says; the server multiplies it with W under
encryption, returns the product masked (recipe Z), and adds W x1 + b, computed in the clear, to its own
share. The sums that a plan leaves open are taken by both parties on their shares.

An `EncodedMatrix` is a matrix ready for products and holds nothing of any session: one server process
encodes once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from sottovoce._native import field_matvec_i16
from sottovoce.bgv import SIMD, Ciphertext, Encoder, Evaluator, Parameters
from sottovoce.errors import ParameterError
from sottovoce.mpc.field import Field, add, from_signed
from sottovoce.net import recv_field, send_field
from sottovoce.net.codec import packed_size
from sottovoce.packing import DataSide, MatVecPlan, Side, give_back_bytes, plan_matvec, upload_bytes
from sottovoce.packing.cover import EMPTY
from sottovoce.ring import threads

Int16 = npt.NDArray[np.int16]
Words = npt.NDArray[np.uint64]

_ROTATED_AT_ONCE = 256  # rotated inputs held in memory: 100 MB
_ENCODE_AT_ONCE = 32  # diagonals per call: 2 MB of slots, 6 MB of plaintexts


@dataclass(frozen=True)
class EncodedMatrix:
    """W (d_out, d_in) int16 with its plan, and its diagonals as plaintexts in NTT form unless they are made
    on the fly.

    plaintexts: (O, I, K, L, N), 24 N bytes per diagonal, or None. bias: (d_out,) residues or None.
    """

    plan: MatVecPlan
    weights: Int16 = field(repr=False)
    bias: Words | None = field(default=None, repr=False)
    parameters: Parameters = SIMD
    plaintexts: Words | None = field(default=None, repr=False)

    @classmethod
    def encode(
        cls,
        weights: Int16,
        bias: npt.NDArray[np.int64] | None = None,
        parameters: Parameters = SIMD,
        keep: bool = True,
    ) -> EncodedMatrix:
        """Plan and encode a matrix. keep: hold all plaintexts in memory (24 bytes per weight), else encode
        in use."""
        if weights.ndim != 2 or weights.dtype != np.int16:
            raise ParameterError(
                f"linear: a matrix is int16 (outputs, inputs), not {weights.dtype} {weights.shape}"
            )
        plan = plan_matvec(weights.shape[0], weights.shape[1], parameters.degree)
        residues = None if bias is None else from_signed(bias, parameters.plaintext)
        bare = cls(plan, np.ascontiguousarray(weights), residues, parameters)
        if not keep:
            return bare
        shape = (plan.output_count, plan.input_count, plan.rotations, parameters.limbs, parameters.degree)
        plaintexts = np.empty(shape, dtype=np.uint64)
        for o in range(plan.output_count):
            for c in range(plan.input_count):
                bare._encode_diagonals(o, c, plaintexts[o, c])
        return cls(plan, bare.weights, residues, parameters, plaintexts)

    def diagonals(self, o: int, c: int) -> Words:
        """Plaintexts (K, L, N) of the products of input ciphertext c for output ciphertext o."""
        if self.plaintexts is not None:
            kept: Words = self.plaintexts[o, c]
            return kept
        shape = (self.plan.rotations, self.parameters.limbs, self.parameters.degree)
        return self._encode_diagonals(o, c, np.empty(shape, dtype=np.uint64))

    def clear_product(self, x: Words) -> Words:
        """W x + b mod p for x (T, d_in) of the server.

        A share of zeros, as for one-hot vectors that only the client knows, is not multiplied: it is no
        secret.
        """
        y = np.zeros((len(x), self.plan.d_out), dtype=np.uint64)
        if x.any():
            field_matvec_i16(self.weights, np.ascontiguousarray(x), self.parameters.plaintext, y, threads())
        return y if self.bias is None else add(y, self.bias, self.parameters.plaintext)

    def _encode_diagonals(self, o: int, c: int, out: Words) -> Words:
        encoder, flat = Encoder(self.parameters), self.weights.ravel()
        modulus = np.int64(self.parameters.plaintext)
        indices = self.plan.diagonal_indices(o, c)
        for start in range(0, self.plan.rotations, _ENCODE_AT_ONCE):
            count = min(_ENCODE_AT_ONCE, self.plan.rotations - start)
            slots = np.empty((count, self.parameters.degree), dtype=np.int64)
            for row in slots:
                index = next(indices)
                row[:] = flat[index]
                row[index == EMPTY] = 0
            slots += (slots >> 63) & modulus
            encoder.to_ntt(encoder.encode(slots.view(np.uint64)), out=out[start : start + count])
        return out


class HomomorphicLinear:
    """One matrix in one session; both parties hold one and call `apply` in lockstep.

    matrix: the encoded matrix at the server, None at the client, who knows the shape only.
    """

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
        parameters, plan = self.side.parameters, self.plan
        revealed = packed_size(tokens * plan.d_out, 43) if reveal_to_client else 0
        up = upload_bytes(parameters, tokens * plan.input_count)
        return up, give_back_bytes(parameters, tokens * plan.output_count) + revealed

    def _at_client(self, x: Field) -> Field:
        assert isinstance(self.side, DataSide)
        tokens, plan = len(x), self.plan
        self.side.upload(plan.lay_out(x).reshape(tokens * plan.input_count, plan.degree))
        slots = self.side.take_back(tokens * plan.output_count)
        return plan.collect(
            slots.reshape(tokens, plan.output_count, plan.degree), self.side.parameters.plaintext
        )

    def _at_server(self, x: Field) -> Field:
        assert not isinstance(self.side, DataSide) and self.matrix is not None
        tokens, plan, parameters = len(x), self.plan, self.side.parameters
        sent = self.side.download(tokens * plan.input_count)
        shape = (parameters.limbs, parameters.degree)
        inputs = replace(sent, data=sent.data.reshape(tokens, plan.input_count, 2, *shape))
        results = np.empty((tokens, plan.output_count, 2, *shape), dtype=np.uint64)
        at_once = max(1, _ROTATED_AT_ONCE // (plan.input_count * plan.babies))
        noise = 0.0
        for first in range(0, tokens, at_once):
            product = multiply(self.side.evaluator, self.matrix, inputs[first : first + at_once])
            results[first : first + at_once] = product.data.swapaxes(0, 1)
            noise = max(noise, product.noise)
        masked = self.side.give_back(replace(sent, data=results.reshape(-1, 2, *shape), noise=noise))
        slots = masked.reshape(tokens, plan.output_count, plan.degree)
        return add(
            plan.collect(slots, parameters.plaintext), self.matrix.clear_product(x), parameters.plaintext
        )


def multiply(evaluator: Evaluator, matrix: EncodedMatrix, inputs: Ciphertext) -> Ciphertext:
    """The product of an encoded matrix with encrypted vectors: inputs (T, I) -> outputs (O, T), before
    masking.

    Baby steps are hoisted; giant steps follow Horner's rule on all outputs together. Plaintexts and
    rotation keys are read once for all T, which is why several tokens cost less than as many times one.
    """
    plan = matrix.plan
    babies = [
        evaluator.rotate_hoisted(
            replace(inputs, data=np.ascontiguousarray(inputs.data[:, c])), range(plan.babies)
        )
        for c in range(plan.input_count)
    ]
    diagonals = [[matrix.diagonals(o, c) for c in range(plan.input_count)] for o in range(plan.output_count)]

    def partial(first: int, giants: int, width: int) -> list[Ciphertext]:
        """For each of `giants` steps from diagonal `first` on: sums of `width` products, (O, T)."""
        plains = [
            [rows[first + giant * plan.babies + i] for rows in row for i in range(width)]
            for giant in range(giants)
            for row in diagonals
        ]
        sums = evaluator.mul_plain_matrix([baby for row in babies for baby in row[:width]], plains)
        return [sums[giant * plan.output_count : (giant + 1) * plan.output_count] for giant in range(giants)]

    full, rest = divmod(plan.rotations, plan.babies)
    sums = partial(0, full, plan.babies) if full else []
    if rest:
        sums += partial(full * plan.babies, 1, rest)
    total = sums[-1]
    for inner in reversed(sums[:-1]):
        total = evaluator.add(evaluator.rotate(total, plan.babies), inner)
    return total


def rotation_steps(shapes: Iterable[tuple[int, int]], degree: int = SIMD.degree) -> set[int]:
    """The rotation keys that matrices of these shapes (d_out, d_in) need together; for `exchange_keys`."""
    return set().union(*(plan_matvec(d_out, d_in, degree).steps() for d_out, d_in in shapes))
