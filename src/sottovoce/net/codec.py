"""Arrays as dense bits: a field element of 43 bits costs 43 bits on the wire, not 64.

Packing is little endian: value i occupies bits [i*width, (i+1)*width) of the byte stream, lowest bit first.
The last byte is padded with zeros, and a receiver insists on them.
"""

from math import prod

import numpy as np
import numpy.typing as npt

from .. import _native
from ..errors import IntegrityError, ParameterError, RangeError
from .channel import Channel, Payload

U8 = npt.NDArray[np.uint8]
U64 = npt.NDArray[np.uint64]
Shape = int | tuple[int, ...]

# The share field, `ring.primes.P_FIELD` (a test compares them: this package lies below `ring` and cannot
# import it).
FIELD_MODULUS = 8796092858369


def packed_size(count: int, width: int) -> int:
    """Bytes that `count` values of `width` bits take."""
    return (count * width + 7) // 8


def pack_bits(values: npt.NDArray[np.unsignedinteger], width: int) -> U8:
    """(…) unsigned values below 2^width -> packed_size(count, width) bytes. RangeError if a value does not
    fit.
    """
    _check_width(width)
    flat = np.ascontiguousarray(values, dtype=np.uint64).reshape(-1)
    if width < 64 and flat.size and int(flat.max()) >> width:
        raise RangeError(f"a value does not fit the {width} bits it is to be sent in")
    out = np.empty(packed_size(flat.size, width), np.uint8)
    _native.pack_bits(flat, width, out)
    return out


def unpack_bits(buffer: Payload, count: int, width: int) -> U64:
    """The inverse of pack_bits: (count,) uint64. IntegrityError if the size or the padding is wrong."""
    _check_width(width)
    raw = np.frombuffer(buffer, np.uint8)
    if raw.size != packed_size(count, width):
        raise IntegrityError(
            f"{count} values of {width} bits take {packed_size(count, width)} bytes, got {raw.size}"
        )
    _check_padding(raw, count * width)
    out = np.empty(count, np.uint64)
    _native.unpack_bits(raw, width, out)
    return out


def send_field(channel: Channel, x: U64, width: int = 43) -> None:
    """Send field elements, any shape. Cost: one message of packed_size(x.size, width) bytes."""
    channel.send(pack_bits(x, width))


def recv_field(channel: Channel, shape: Shape, width: int = 43, modulus: int = FIELD_MODULUS) -> U64:
    """Receive an array of elements of [0, modulus). IntegrityError for any element outside."""
    count = _count(shape)
    return _checked_field(channel.recv(packed_size(count, width)), shape, width, modulus)


def exchange_field(
    channel: Channel, x: U64, shape: Shape | None = None, width: int = 43, modulus: int = FIELD_MODULUS
) -> U64:
    """Both parties send field elements at once; `shape` is the other party's (default: the same as x).

    Cost: one round, packed_size(count, width) bytes each way.
    """
    shape = x.shape if shape is None else shape
    raw = channel.exchange(pack_bits(x, width), packed_size(_count(shape), width))
    return _checked_field(raw, shape, width, modulus)


def send_bits(channel: Channel, bits: npt.NDArray[np.uint8]) -> None:
    """Send an array of 0/1 bytes, eight to a byte."""
    channel.send(np.packbits(bits.reshape(-1), bitorder="little"))


def recv_bits(channel: Channel, shape: Shape) -> U8:
    """Receive an array of 0/1 bytes."""
    return _checked_bits(channel.recv(packed_size(_count(shape), 1)), shape)


def exchange_bits(channel: Channel, bits: npt.NDArray[np.uint8], shape: Shape | None = None) -> U8:
    """Both parties send bits at once; `shape` is the other party's (default: the same as ours). One round."""
    shape = bits.shape if shape is None else shape
    raw = channel.exchange(np.packbits(bits.reshape(-1), bitorder="little"), packed_size(_count(shape), 1))
    return _checked_bits(raw, shape)


def _checked_field(raw: memoryview, shape: Shape, width: int, modulus: int) -> U64:
    values = unpack_bits(raw, _count(shape), width)
    if values.size and int(values.max()) >= modulus:
        raise IntegrityError(
            f"the other side sent a number outside the field modulo {modulus}; end the session"
        )
    return values.reshape(shape)


def _checked_bits(raw: memoryview, shape: Shape) -> U8:
    packed, count = np.frombuffer(raw, np.uint8), _count(shape)
    _check_padding(packed, count)
    return np.unpackbits(packed, count=count, bitorder="little").reshape(shape)


def _check_padding(raw: U8, used_bits: int) -> None:
    if used_bits % 8 and int(raw[-1]) >> (used_bits % 8):
        raise IntegrityError("the padding of a packed array is not zero; the stream is corrupt")


def _check_width(width: int) -> None:
    if not 1 <= width <= 64:
        raise ParameterError(f"values are packed in 1 to 64 bits, not {width}")


def _count(shape: Shape) -> int:
    return shape if isinstance(shape, int) else prod(shape)
