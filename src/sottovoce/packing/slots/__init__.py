"""Layouts of vectors, heads and caches in the slots of approximate ciphertexts, over an abstract
arithmetic."""

from sottovoce.packing.slots.arithmetic import Plain, SlotArithmetic, Vector, constant, every, power_of_two
from sottovoce.packing.slots.blocks import Blocks
from sottovoce.packing.slots.heads import Heads
from sottovoce.packing.slots.interleaved import Interleaved, padded, place
from sottovoce.packing.slots.model import CountingSlots, PlainSlots, Slots
from sottovoce.packing.slots.polynomial import Chebyshev

__all__ = [
    "Blocks",
    "Chebyshev",
    "CountingSlots",
    "Heads",
    "Interleaved",
    "Plain",
    "PlainSlots",
    "SlotArithmetic",
    "Slots",
    "Vector",
    "constant",
    "every",
    "padded",
    "place",
    "power_of_two",
]
