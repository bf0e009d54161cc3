"""What a protocol sends and receives: bits or residues, packed densely, each block starting on a byte.

A protocol on an opening is a generator that yields its own packed bytes and is sent the other party's, of the
same size. Packing, masking and checking are in `native/steps.cpp`, one pass each; `reference.py` has the same
in NumPy.
"""

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from sottovoce.correlations import CorrelationSource
from sottovoce.errors import IntegrityError
from sottovoce.net import Channel, Role
from sottovoce.ring.sampling import Stream

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Party:
    """What a protocol needs of the side it runs on."""

    role: Role
    channel: Channel
    source: CorrelationSource
    stream: Stream
    is_client: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "is_client", self.role == Role.CLIENT)


Result = TypeVar("Result")
# Yields the bytes that this party opens, receives the other party's, as many.
Steps = Generator[Bytes, Bytes, Result]


def intact(well_formed: bool) -> None:
    """IntegrityError unless a kernel found every value of a message in its range, and its padding zero."""
    if not well_formed:
        raise IntegrityError(
            "the other side sent a number that is no residue, or padding that is not zero; end the session"
        )
