"""Channels between the two parties, framing, packing of arrays, and the ledger of bytes and rounds."""

from .channel import Channel, Payload
from .codec import (
    exchange_bits,
    exchange_field,
    pack_bits,
    packed_size,
    recv_bits,
    recv_field,
    send_bits,
    send_field,
    unpack_bits,
)
from .ledger import Ledger, LedgerRow
from .memory import MemoryChannel, memory_pair, run_pair
from .role import Role
from .sockets import SocketChannel, socket_pair

__all__ = [
    "Channel",
    "Ledger",
    "LedgerRow",
    "MemoryChannel",
    "Payload",
    "Role",
    "SocketChannel",
    "exchange_bits",
    "exchange_field",
    "memory_pair",
    "pack_bits",
    "packed_size",
    "recv_bits",
    "recv_field",
    "run_pair",
    "send_bits",
    "send_field",
    "socket_pair",
    "unpack_bits",
]
