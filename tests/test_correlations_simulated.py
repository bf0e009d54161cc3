"""The simulated source: right by definition, refused on a network."""

import numpy as np
import pytest

from correlation_checks import CHECKS
from sottovoce.correlations import SimulatedSource
from sottovoce.errors import RefusedError
from sottovoce.net import Role


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_each_kind_is_what_it_says(check):
    sources = [SimulatedSource(role, 7) for role in (Role.CLIENT, Role.SERVER)]
    check(lambda fn: tuple(fn(source) for source in sources))


def test_calls_differ_and_are_counted():
    source = SimulatedSource(Role.CLIENT, 7)
    assert not np.array_equal(source.triples(50).a, source.triples(50).a)
    assert source.consumed == {"triples": 100}


def test_refuses_a_network_channel():
    class Network:
        is_network = True

    with pytest.raises(RefusedError, match="nothing"):
        SimulatedSource(Role.CLIENT, 7, Network())
