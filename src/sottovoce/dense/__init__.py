"""Products of a fixed matrix with many vectors at once: coefficients are tokens, words are multiplied by
weights.

A batch of n vectors is encrypted feature by feature; the server multiplies ciphertexts by its matrix as
plain integers, and returns masked results (recipe Z). Both parties end with shares of W·R. The half of the
product that does not depend on the vectors, the hint, is made and sent once.
"""

from sottovoce.dense.data import (
    BatchSecret,
    answer_bytes,
    fresh_bytes,
    public_key_bytes,
    share_of_phase,
)
from sottovoce.dense.keystream import row_keys, row_residues, row_words
from sottovoce.dense.model import BatchAnswers, HintSecret, matrix_product, server_share
from sottovoce.dense.parameters import DENSE, FRESH_BITS, LOG_Q, SENT_BITS, SENT_BYTES, DenseParameters

__all__ = [
    "DENSE",
    "FRESH_BITS",
    "LOG_Q",
    "SENT_BITS",
    "SENT_BYTES",
    "BatchAnswers",
    "BatchSecret",
    "DenseParameters",
    "HintSecret",
    "answer_bytes",
    "fresh_bytes",
    "matrix_product",
    "public_key_bytes",
    "row_keys",
    "row_residues",
    "row_words",
    "server_share",
    "share_of_phase",
]
