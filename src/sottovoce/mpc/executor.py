"""Who multiplies encoded matrices with a client's ciphertexts; this process, if nobody else is named."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sottovoce.bgv import Ciphertext, Evaluator
    from sottovoce.mpc.encoded import EncodedMatrix
    from sottovoce.packing import MatVecPlan


class OnlineProducts(ABC):
    """Products of all matrices of a model; shared by its sessions, whose threads may call at once."""

    @abstractmethod
    def attach(self, matrices: Sequence[EncodedMatrix], now: bool) -> None:
        """Take over the products of these matrices. now: make their plaintexts at once, not at first use."""

    @abstractmethod
    def multiply(
        self, evaluator: Evaluator, matrix: EncodedMatrix, inputs: Ciphertext, plan: MatVecPlan
    ) -> Ciphertext:
        """inputs (G, I) as the client sent them -> (O, G), what `linear.multiply` gives, bit for bit.

        evaluator: of the session, whose rotation keys it holds.
        """
