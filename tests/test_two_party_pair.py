"""Nothing simulated: a gated activation, a norm and a softmax between two parties over a socket."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sottovoce.bgv import SIMD, KeyGenerator
from sottovoce.correlations import PairSource
from sottovoce.mpc import field
from sottovoce.mpc.field import P_FIELD
from sottovoce.mpc.functions import norm, silu, softmax
from sottovoce.mpc.two_party import TwoPartyArithmetic
from sottovoce.net import Channel, Role, run_pair, socket_pair
from sottovoce.ot import OtExtension

RNG = np.random.default_rng(17)


@pytest.fixture(scope="module")
def keys() -> Any:
    generator = KeyGenerator(SIMD)
    return generator.secret_key, generator.public_key()


def shared(x: np.ndarray, frac_bits: int) -> tuple[np.ndarray, np.ndarray]:
    encoded = field.encode(x, frac_bits)
    x0 = RNG.integers(0, P_FIELD, x.shape, dtype=np.uint64)
    return x0, field.sub(encoded, x0, P_FIELD)


def test_functions_with_real_correlations_over_a_socket(keys: Any) -> None:
    gate, up, row = RNG.normal(0, 3, 96), RNG.normal(0, 3, 96), RNG.normal(0, 2, (1, 64))
    scores = RNG.normal(0, 3, (2, 12))
    public = norm.NormRange(64, 0.5, 32.0)
    shift = np.rint((scores.max(axis=-1) + 3) * 2.0**softmax.IN_BITS).astype(np.int64)
    inputs = [shared(gate, 23), shared(up, 23), shared(row, 23), shared(scores, softmax.IN_BITS)]

    def party(channel: Channel) -> list[np.ndarray]:
        role = channel.role
        side = SimpleNamespace(parameters=SIMD)
        if role == Role.CLIENT:
            side.secret = keys[0]
        else:
            side.public_key = keys[1]
        arithmetic = TwoPartyArithmetic(channel, PairSource(channel, side, OtExtension(channel, 1 << 14)))
        g, u, r, s = (pair[role] for pair in inputs)
        return [
            silu.gated_silu(arithmetic, g, u),
            norm.rms_norm(arithmetic, r, public),
            softmax.softmax(arithmetic, s, shift if role == Role.SERVER else None),
        ]

    client, server = run_pair(party, party, socket_pair())
    z, y, p = (field.add(a, b, P_FIELD) for a, b in zip(client, server, strict=True))
    assert np.abs(field.decode(z, 12) - silu.silu_reference(gate) * up).max() < 0.02 * 12
    np.testing.assert_allclose(field.decode(y, 12), norm.rms_norm_reference(row), rtol=4e-4, atol=4e-4)
    assert np.abs(field.decode(p, softmax.OUT_BITS) - softmax.softmax_reference(scores)).max() < 2e-3
