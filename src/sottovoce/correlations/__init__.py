"""One-time material: what the two parties prepare before the data is known."""

from sottovoce.correlations.interface import (
    Ands,
    BitValues,
    ChosenPads,
    CorrelationSource,
    CrossProducts,
    Scalars,
    SharedBits,
    Squares,
    Triples,
    Wraps,
)
from sottovoce.correlations.pair import PairSource
from sottovoce.correlations.simulated import SimulatedSource

__all__ = [
    "Ands",
    "BitValues",
    "ChosenPads",
    "CorrelationSource",
    "CrossProducts",
    "PairSource",
    "Scalars",
    "SharedBits",
    "SimulatedSource",
    "Squares",
    "Triples",
    "Wraps",
]
