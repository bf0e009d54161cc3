"""What each party sees:

every message and every output share is uniform on fixed inputs, and material is spent once.
"""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from scipy import stats

from sottovoce.mpc.field import P_FIELD, P_SMALL, width
from sottovoce.mpc.requests import (
    WrapOutput,
)
from sottovoce.mpc.tables import RegionTable, SplineTable
from two_party_fixtures import both

N = 8192
BIT = np.ones(N, np.uint8)


def constant(value: int, *shape: int) -> np.ndarray:
    return np.full(shape or N, value, np.uint64)


def looks_uniform(counts: np.ndarray) -> bool:
    return bool(stats.chisquare(counts).pvalue > 1e-7)


SPLINE = SplineTable(3, P_FIELD, np.full((32, 3), 7, np.uint64), np.full((2, 4), 9, np.uint64))
PRODUCT = SplineTable(
    4, P_FIELD, np.full((64, 1), 5, np.uint64), np.full((1, 4), 3, np.uint64), constant=False
)
REGIONS = RegionTable(4, 2, 2, np.full(64, 2, np.uint8))
OUTPUTS = [WrapOutput(12), WrapOutput(0, 1 << 18), WrapOutput(3, P_SMALL)]

# name -> (program, alphabet of each output)
PROGRAMS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "wrap": (lambda a: a.wrap(constant(12345), OUTPUTS), (P_FIELD, 1 << 18, P_SMALL)),
    "wrap of large shares": (lambda a: a.wrap(constant(P_FIELD - 5), [WrapOutput(12)]), (P_FIELD,)),
    "and": (lambda a: [a.and_(BIT, BIT)], (2,)),
    "mux": (lambda a: [a.mux(BIT, constant(1))], (P_FIELD,)),
    "small mux": (lambda a: [a.mux(BIT, constant(1), P_SMALL)], (P_SMALL,)),
    "bit": (lambda a: [a.to_arithmetic(BIT)], (P_FIELD,)),
    "mul": (lambda a: [a.mul(constant(1), constant(2))], (P_FIELD,)),
    "squares": (lambda a: [a.sum_squares(constant(3, N, 4))], (P_FIELD,)),
    "rows": (lambda a: [a.scale_rows(a.mask_rows(constant(3, N, 2)), constant(1))], (P_FIELD,)),
    "spline": (lambda a: [a.spline(constant(11), SPLINE)], (P_FIELD,)),
    "product table": (lambda a: [a.spline(constant(11), PRODUCT)], (P_FIELD,)),
    "regions": (lambda a: [a.region_bits(constant(17), REGIONS)], (2,)),
}  # fmt: skip


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_message_and_every_output_share_is_uniform(name: str) -> None:
    program, alphabets = PROGRAMS[name]
    seen: dict[int, list[bytes]] = {0: [], 1: []}
    results, _ = both(lambda a, role: program(a), seed=5, tap=lambda role, raw: seen[role].append(raw))
    for role in (0, 1):
        assert seen[role]
        for message in seen[role]:
            # Residues of p = 2^43 - 163839 and p_s = 2^28 - 65535 fill their bits up to 2^-12, so that the
            # bytes of a packed message are uniform as far as this many samples can tell. Lengths leave no
            # padding.
            assert looks_uniform(np.bincount(np.frombuffer(message, np.uint8), minlength=256))
    for result, modulus in zip(results, alphabets, strict=True):
        for role in (0, 1):
            buckets = (result[role].astype(np.uint64) >> np.uint64(max(0, width(modulus) - 6))).ravel()
            assert looks_uniform(np.bincount(buckets.astype(np.int64), minlength=min(modulus, 64)))


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_same_request_twice_spends_fresh_material(name: str) -> None:
    program, _ = PROGRAMS[name]
    seen: list[bytes] = []
    both(lambda a, role: (program(a), program(a)), tap=lambda role, raw: seen.append(raw) if role else None)
    half = len(seen) // 2
    for first, second in zip(seen[:half], seen[half:], strict=True):
        assert len(first) == len(second)
        # Two messages under one mask would differ in a pattern; under fresh masks they agree in 1/256 of the
        # bytes.
        agree = np.mean(np.frombuffer(first, np.uint8) == np.frombuffer(second, np.uint8))
        assert agree < 1 / 256 + 0.03


def test_each_request_takes_exactly_its_items_from_the_source() -> None:
    x, bits = constant(1, 6, 4), np.zeros((6, 4), np.uint8)

    def program(a: Any, role: int) -> dict[str, Counter[str]]:
        spent = {}

        def record(name: str, run: Any) -> Any:
            before = a.source.consumed.copy()
            result = run()
            spent[name] = a.source.consumed - before
            return result

        record("wrap", lambda: a.wrap(x, [WrapOutput(1), WrapOutput(2, P_SMALL)]))
        record("and", lambda: a.and_(bits, bits))
        record("mux", lambda: a.mux(bits, x))
        record("b2a", lambda: a.to_arithmetic(bits))
        record("mul", lambda: a.mul(x, x))
        record("squares", lambda: a.sum_squares(x))
        rows = record("rows", lambda: a.mask_rows(x))
        record("scale", lambda: a.scale_rows(rows, constant(1, 6)))
        record("spline", lambda: a.spline(x, SPLINE))
        record("regions", lambda: a.region_bits(x, REGIONS))
        spent_list = [dict(spent[name]) for name in spent]
        assert spent_list == [
            {"wraps": 24},
            {"ands": 24},
            {"bit_values": 24},
            {"b2a": 24},
            {"triples": 24},
            {"cross_products": 24},
            {"scalars": 24},
            {},
            {"ots": 24, "cross_products": 48},
            {"ots": 24},
        ]
        return np.zeros(1)

    both(program)
