"""Bit packing against big-integer arithmetic, and the checks on what arrives."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sottovoce.errors import IntegrityError, ParameterError, RangeError
from sottovoce.net import (
    exchange_bits,
    exchange_field,
    memory_pair,
    pack_bits,
    packed_size,
    recv_bits,
    recv_field,
    run_pair,
    send_bits,
    send_field,
    unpack_bits,
)
from sottovoce.net.codec import FIELD_MODULUS
from sottovoce.ring.primes import P_FIELD


def reference(values, width: int) -> bytes:
    """The stream as one big integer."""
    whole = sum(int(v) << (i * width) for i, v in enumerate(values))
    return whole.to_bytes(packed_size(len(values), width), "little")


@given(st.integers(1, 64), st.integers(0, 300), st.integers(0, 2**32))
def test_matches_big_integers(width, count, seed):
    values = (
        np.random.default_rng(seed).integers(0, 1 << width, count, np.uint64, endpoint=False)
        if width < 64
        else (np.random.default_rng(seed).integers(0, (1 << 64) - 1, count, np.uint64))
    )
    packed = pack_bits(values, width)
    assert packed.tobytes() == reference(values, width)
    assert np.array_equal(unpack_bits(packed, count, width), values)


@pytest.mark.parametrize("width", [5, 8, 13, 28, 43, 48, 50, 53, 63, 64])
@pytest.mark.parametrize("count", [1024, 1025, 4096, 10_001])
def test_long_arrays(width, count):
    top = (1 << width) - 1
    values = np.random.default_rng(count).integers(0, top, count, np.uint64, endpoint=True)
    packed = pack_bits(values, width)
    assert packed.size == packed_size(count, width)
    assert packed.tobytes() == reference(values, width)
    assert np.array_equal(unpack_bits(packed, count, width), values)


def test_values_too_wide():
    with pytest.raises(RangeError):
        pack_bits(np.array([8], np.uint64), 3)
    with pytest.raises(ParameterError):
        pack_bits(np.array([8], np.uint64), 65)


def test_wrong_size_and_padding():
    with pytest.raises(IntegrityError):
        unpack_bits(bytes(4), 4, 5)
    with pytest.raises(IntegrityError, match="padding"):
        unpack_bits(b"\xff\xff\xff", 4, 5)


def test_field_constant_agrees():
    assert FIELD_MODULUS == P_FIELD


def test_field_elements_over_a_channel():
    x = np.random.default_rng(1).integers(0, P_FIELD, (3, 7), np.uint64)

    def client(ch):
        send_field(ch, x)
        return exchange_field(ch, x, shape=(2,))

    def server(ch):
        got = recv_field(ch, (3, 7))
        return got, exchange_field(ch, x[0, :2], shape=(3, 7))

    two, (got, again) = run_pair(client, server)
    assert np.array_equal(got, x) and np.array_equal(again, x) and np.array_equal(two, x[0, :2])


def test_elements_outside_the_field_are_refused():
    client, server = memory_pair()
    send_field(client, np.array([P_FIELD], np.uint64))
    with pytest.raises(IntegrityError):
        recv_field(server, 1)


@given(st.integers(1, 70))
def test_bits(count):
    bits = np.random.default_rng(count).integers(0, 2, (2, count), np.uint8)

    def client(ch):
        send_bits(ch, bits)
        return exchange_bits(ch, bits)

    def server(ch):
        return recv_bits(ch, bits.shape), exchange_bits(ch, 1 - bits)

    flipped, (got, again) = run_pair(client, server)
    assert np.array_equal(flipped, 1 - bits) and np.array_equal(got, bits) and np.array_equal(again, bits)


def test_bit_padding_is_checked():
    client, server = memory_pair()
    client.send(b"\xff")
    with pytest.raises(IntegrityError):
        recv_bits(server, 3)
