"""Who multiplies the server's matrices with a client's ciphertext words, when products are made ahead.

Rows are independent of each other and integers modulo 2^52 exact, so that it does not matter where and in
which pieces they are computed: the results are the same, bit for bit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from sottovoce.dense import matrix_product

MatrixKey = tuple[str, int]
U64 = npt.NDArray[np.uint64]
Int16 = npt.NDArray[np.int16]


class RowProducts(ABC):
    """Products of all matrices of a model; shared by its sessions, whose threads may call at once."""

    @abstractmethod
    def product(self, key: MatrixKey, row: int, first: int, words: U64, out: U64, accumulate: bool) -> U64:
        """out (rows, n) (+)= W[row : row + rows, first : first + k] · words (k, n) modulo 2^52."""


class LocalRows(RowProducts):
    """In this process, on its threads."""

    def __init__(self, matrices: Mapping[MatrixKey, Int16]) -> None:
        self._matrices = matrices

    def product(self, key: MatrixKey, row: int, first: int, words: U64, out: U64, accumulate: bool) -> U64:
        weights = self._matrices[key][row : row + len(out)]
        return matrix_product(weights, first, words, out, accumulate)
