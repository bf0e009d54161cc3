"""The masked cache between two parties, with real parameters: integers, stated bytes, dead slots, one use."""

import numpy as np
import pytest
from masked_sessions import SHAPE, Driver, run_script

from sottovoce.errors import ParameterError, ProtocolError


def test_tokens_one_by_one_over_several_blocks():
    def actions(d: Driver) -> None:
        for _ in range(12):
            d.step(1)
        assert d.source.used == 12

    run_script(actions, layers=2, block=5)


def test_public_prefix_then_a_batch():
    def actions(d: Driver) -> None:
        d.public(7)
        d.step(5)
        d.step(1)

    run_script(actions)
