"""Which function makes the table of which benchmark."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sottovoce.bench import (
    decode_tables,
    fhe_tables,
    lattice_tables,
    quality_tables,
    ray_tables,
    robust_tables,
    scx_tables,
)
from sottovoce.bench.cells import Run

RENDERERS: dict[str, Callable[[Sequence[Run]], list[str]]] = {
    "agreement": quality_tables.agreement,
    "bootstrap": lattice_tables.bootstrap,
    "chunk": fhe_tables.chunk,
    "draft": decode_tables.draft,
    "e2e": decode_tables.e2e,
    "faults": robust_tables.faults,
    "fhe": fhe_tables.fhe,
    "growth": decode_tables.growth,
    "he": lattice_tables.he,
    "layer": fhe_tables.layer,
    "load": robust_tables.load,
    "matrix": lattice_tables.matrix,
    "network": decode_tables.network,
    "packings": fhe_tables.packings,
    "peers": lattice_tables.peers,
    "polynomials": lattice_tables.polynomials,
    "prefill": decode_tables.prefill,
    "proxy": robust_tables.proxy,
    "quality": quality_tables.quality,
    "ranges": fhe_tables.ranges,
    "ray": ray_tables.ray,
    "scx": scx_tables.scx,
}
