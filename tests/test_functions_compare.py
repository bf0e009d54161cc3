"""The exact sign, by brute force over small rings and at the edges of the large one."""

import numpy as np
import pytest

from sottovoce.errors import RangeError
from sottovoce.mpc import field
from sottovoce.mpc.cost import Cost
from sottovoce.mpc.functions.compare import is_negative, is_negative_cost, top_bit
from sottovoce.mpc.model import ModelArithmetic


@pytest.mark.parametrize("bits", [1, 2, 4, 5, 6, 8])
def test_top_bit_of_every_sharing(bits: int) -> None:
    model = ModelArithmetic(np.random.default_rng(bits))
    grid = np.meshgrid(np.arange(1 << bits), np.arange(1 << bits))
    y = np.stack([g.ravel().astype(np.uint64) for g in grid])
    bit = top_bit(model, y, bits)
    assert np.array_equal(
        bit[0] ^ bit[1], (model.reveal(y, 1 << bits) >> np.uint64(bits - 1)).astype(np.uint8)
    )


@pytest.mark.parametrize("bits", [9, 17, 24, 42])
def test_sign_and_its_cost(bits: int) -> None:
    model = ModelArithmetic(np.random.default_rng(bits))
    top = min(1 << (bits - 1), 2**41 - 2**17)
    edges = np.array([-top, -top + 1, -16, -1, 0, 1, 15, 16, top - 1])
    values = np.concatenate([np.repeat(edges, 50), model.rng.integers(-top, top, size=2000)])
    x = model.share(field.from_signed(values, model.p))
    bit = is_negative(model, x, bits)
    assert np.array_equal(bit[0] ^ bit[1], values < 0)
    assert model.spent == is_negative_cost(len(values), bits)


def test_sign_of_a_value_that_does_not_fit() -> None:
    model = ModelArithmetic(np.random.default_rng(0))
    with pytest.raises(RangeError, match="is_negative"):
        is_negative(model, model.encode(np.array([256.0]), 0), bits=9)
    assert is_negative_cost(0) == Cost(is_negative_cost(1).rounds, 0, 0)
