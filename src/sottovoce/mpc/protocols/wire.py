"""Pieces of a message: arrays of residues, each packed densely and starting on a byte."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from sottovoce.correlations import CorrelationSource
from sottovoce.errors import IntegrityError
from sottovoce.mpc.field import Bits, Field, checked, width
from sottovoce.net import Channel, Role, pack_bits, packed_size, unpack_bits
from sottovoce.ring.sampling import Stream


@dataclass(frozen=True)
class Party:
    """What a protocol needs of the side it runs on."""

    role: Role
    channel: Channel
    source: CorrelationSource
    stream: Stream

    @property
    def is_client(self) -> bool:
        return self.role == Role.CLIENT


class Piece(NamedTuple):
    """Residues mod `modulus` to send, any shape; modulus 2 is an array of bits (uint8)."""

    values: NDArray[Any]
    modulus: int


class Expected(NamedTuple):
    """Shape and modulus of residues to receive."""

    shape: tuple[int, ...]
    modulus: int

    @property
    def size(self) -> int:
        """Bytes of the packed piece."""
        return packed_size(prod(self.shape), width(self.modulus))


Result = TypeVar("Result")
Opened = list[NDArray[Any]]
# Yields the pieces this party opens, receives the other party's pieces (same shapes, same moduli).
Steps = Generator[list[Piece], Opened, Result]


def expected(pieces: Sequence[Piece]) -> list[Expected]:
    """What the other party sends when it opens the same kinds of pieces."""
    return [Expected(piece.values.shape, piece.modulus) for piece in pieces]


def pack(pieces: Sequence[Piece]) -> NDArray[np.uint8]:
    """All pieces as one message."""
    parts = [_pack(piece) for piece in pieces]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def unpack(raw: memoryview, pieces: Sequence[Expected]) -> Opened:
    """A message into its pieces. IntegrityError where a value is not a residue."""
    arrays, at = [], 0
    for piece in pieces:
        size = piece.size
        arrays.append(_unpack(raw[at : at + size], piece))
        at += size
    return arrays


def _pack(piece: Piece) -> NDArray[np.uint8]:
    if piece.modulus == 2:
        return np.packbits(piece.values.reshape(-1), bitorder="little")
    return pack_bits(piece.values, width(piece.modulus))


def _unpack(raw: memoryview, piece: Expected) -> Field | Bits:
    count = prod(piece.shape)
    if piece.modulus == 2:
        packed = np.frombuffer(raw, np.uint8)
        if count % 8 and int(packed[-1]) >> (count % 8):
            raise IntegrityError("the padding of packed bits is not zero; the stream is corrupt")
        return np.unpackbits(packed, count=count, bitorder="little").reshape(piece.shape)
    return checked(unpack_bits(raw, count, width(piece.modulus)), piece.modulus).reshape(piece.shape)
