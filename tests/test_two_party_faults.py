"""What the other party must not be able to do, and shapes at the margin."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from sottovoce.correlations import SimulatedSource
from sottovoce.errors import FrameError, IntegrityError, ParameterError, ProtocolError, RefusedError
from sottovoce.mpc import field
from sottovoce.mpc.field import P_FIELD, P_SMALL
from sottovoce.mpc.requests import And, Mul, RegionLookup, SplineLookup, Wrap, WrapOutput
from sottovoce.mpc.tables import RegionTable, SplineTable
from sottovoce.mpc.two_party import TwoPartyArithmetic
from sottovoce.net import Channel, Role, memory_pair, run_pair
from two_party_fixtures import both

REGIONS = RegionTable(3, 0, 2, np.arange(8, dtype=np.uint8) % 4)
SPLINE = SplineTable(2, P_FIELD, np.ones((8, 2), np.uint64), np.ones((1, 2), np.uint64))


def against(peer: Callable[[Channel], None], program: Callable[[TwoPartyArithmetic], Any]) -> None:
    """The program at the client, anything at the server."""
    run_pair(
        lambda channel: program(TwoPartyArithmetic(channel, SimulatedSource(Role.CLIENT, 1))),
        lambda channel: peer(channel),
    )


def test_residues_above_the_field_are_refused() -> None:
    x = np.zeros(3, np.uint64)

    def peer(channel: Channel) -> None:
        channel.exchange(b"\xff" * 32 + b"\x03", 33)

    with pytest.raises(IntegrityError, match="no residue"):
        against(peer, lambda arithmetic: arithmetic.mul(x, x))


def test_padding_is_refused() -> None:
    bits = np.zeros(3, np.uint8)
    with pytest.raises(IntegrityError, match="padding"):
        against(
            lambda channel: channel.exchange(b"\xff", 1) and None,
            lambda arithmetic: arithmetic.and_(bits, bits),
        )


def test_a_message_of_another_size_is_refused() -> None:
    x = np.zeros(9, np.uint64)
    with pytest.raises(FrameError):
        against(lambda channel: channel.send(b"\x00"), lambda arithmetic: arithmetic.rescale(x, 12))


def test_no_residue_passes_the_check() -> None:
    with pytest.raises(IntegrityError):
        field.checked(np.array([0, P_FIELD], np.uint64), P_FIELD)
    assert field.checked(np.array([P_FIELD - 1], np.uint64), P_FIELD)[0] == P_FIELD - 1


def test_spline_tables_of_other_moduli_have_no_correlations() -> None:
    table = SplineTable(2, P_SMALL, np.ones((8, 2), np.uint64), np.ones((1, 2), np.uint64))
    with pytest.raises(ParameterError, match="mod"):
        both(lambda arithmetic, role: arithmetic.spline(np.zeros(3, np.uint64), table))


def test_source_and_channel_belong_together() -> None:
    client, _ = memory_pair()
    with pytest.raises(ProtocolError):
        TwoPartyArithmetic(client, SimulatedSource(Role.SERVER, 1))


def test_simulated_correlations_stay_in_the_process() -> None:
    client, _ = memory_pair()
    client.is_network = True
    with pytest.raises(RefusedError):
        TwoPartyArithmetic(client, SimulatedSource(Role.CLIENT, 1))


def test_nothing_asked_costs_nothing() -> None:
    empty, bits = np.zeros((2, 0), np.uint64), np.zeros((2, 0), np.uint8)

    def program(a: Any, role: int) -> np.ndarray:
        assert a.exchange([]) == [] and a.lookup([]) == []
        wrapped, anded, product = a.exchange(
            [Wrap(empty, (WrapOutput(3),)), And(bits, bits), Mul(empty, empty)]
        )
        regions, spline = a.lookup([RegionLookup(empty, REGIONS), SplineLookup(empty, SPLINE)])
        assert wrapped[0].shape == anded.shape == product.shape == spline.shape == (2, 0)
        assert regions.shape == (2, 0, 2)
        return np.zeros(1)

    _, paid = both(program)
    assert paid.bytes_up == paid.bytes_down == 0


def test_memory_layout_does_not_matter() -> None:
    rng = np.random.default_rng(3)
    x = rng.integers(0, 1 << 20, (2, 6, 5), dtype=np.uint64)
    shares = np.stack([x, field.sub(np.full_like(x, 77), x, P_FIELD)])
    table = RegionTable(3, 1, 1, np.arange(16, dtype=np.uint8) & 1)

    def program(a: Any, role: int) -> list[np.ndarray]:
        strided = shares[role].T[::2]
        plain = np.ascontiguousarray(strided)
        results = []
        for v in (strided, plain):
            region = a.region_bits(v & np.uint64(15) if role else np.zeros_like(v), table)
            results += [
                a.rescale(v, 0),
                a.mul(v, v),
                region[..., 0],
                a.mux(np.ones(v.shape, np.uint8) * role, v),
            ]
        return results

    got, _ = both(program)
    for one, other in zip(got[:4], got[4:], strict=True):
        modulus = 2 if one.dtype == np.uint8 else P_FIELD
        first, second = (
            r[0] ^ r[1] if modulus == 2 else field.add(r[0], r[1], modulus) for r in (one, other)
        )
        np.testing.assert_array_equal(first, second)
