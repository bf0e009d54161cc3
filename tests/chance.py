"""Bounds for tests on fresh randomness: the suite runs thousands of times, and chance must fail no run."""

import numpy as np

# Of the p-values of honest randomness. A leak that a test of this kind can see is far below it.
LEAST_P = 1e-9


def all_new(values: np.ndarray) -> bool:
    """Whether uniform values of 43 bits or more were drawn once each.

    n of them hold n² / 2^44 equal pairs on average, so that among thousands one pair comes about by chance
    (n = 12,000: 10^-5) and two pairs do not (10^-10). What is handed out a second time repeats a whole batch.
    """
    repeats = values.size - np.unique(values).size
    return bool(repeats <= (values.size > 1000))
