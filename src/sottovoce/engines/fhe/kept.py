"""Calibrated functions on disk, under the model's digest, so that a restart does not measure again."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from sottovoce.engines.fhe.calibration import calibrate
from sottovoce.engines.fhe.functions import BlockFunctions, Functions, Predictor, Spread
from sottovoce.models.calibrate import cache_directory
from sottovoce.models.model import Model
from sottovoce.packing.slots import Chebyshev

_VERSION = 4


def kept_functions(model: Model, tokens: int, directory: Path | None = None) -> Functions:
    """`calibrate`, remembered. A damaged entry is measured again."""
    path = (directory or cache_directory()) / f"fhe-{model.digest[:32]}-{tokens}.json"
    known = _read(path)
    if known is not None:
        return known
    functions = calibrate(model, tokens)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Ranges and predictors are made from private weights.
        partial = path.with_suffix(f".{os.getpid()}")
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(_dump(functions), file)
        os.replace(partial, path)
    except OSError:
        pass
    return functions


def functions_digest(functions: Functions) -> bytes:
    """16 bytes that name them: what was encrypted under other ones means something else. Made from private
    weights; stays at the server."""
    return hashlib.blake2b(json.dumps(_dump(functions)).encode(), digest_size=16).digest()


def _dump(f: Functions) -> dict[str, Any]:
    return {
        "version": _VERSION,
        "blocks": [
            {
                "polynomials": [_polynomial(p) for p in (b.norm1, b.norm2, b.activation)],
                "predictor": [
                    a.tolist()
                    for a in (b.predictor.direct, b.predictor.rotated, b.predictor.offset, b.predictor.slope)
                ],
                "spread": [b.spread.offset.tolist(), b.spread.slope.tolist()],
            }
            for b in f.blocks
        ],
        "norm": _polynomial(f.norm),
        "exponential": _polynomial(f.exponential),
        "inverses": [_polynomial(p) for p in (*f.coarse, f.accurate)],
        "sums": list(f.sums),
        "squarings": f.squarings,
        "residual": f.residual,
    }


def _read(path: Path) -> Functions | None:
    """An entry; None if there is none that can be used."""
    try:
        return _load(json.loads(path.read_text()))
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None


def _load(data: Any) -> Functions:
    """Anything odd raises ValueError, KeyError or TypeError."""
    if data["version"] != _VERSION:
        raise ValueError("another version")
    blocks = []
    for entry in data["blocks"]:
        norm1, norm2, activation = (_chebyshev(p) for p in entry["polynomials"])
        predictor = Predictor(*(np.asarray(a, np.float64) for a in entry["predictor"]))
        spread = Spread(*(np.asarray(a, np.float64) for a in entry["spread"]))
        blocks.append(BlockFunctions(norm1, norm2, activation, predictor, spread))
    *coarse, accurate = (_chebyshev(p) for p in data["inverses"])
    sums = tuple(float(s) for s in data["sums"])
    shapes = {a.shape[:1] for b in blocks for a in (b.spread.offset, b.spread.slope)}
    if len(sums) != len(coarse) + 1 or shapes != {(len(coarse),)}:
        raise ValueError("rounds without sums or spread")
    return Functions(
        tuple(blocks),
        _chebyshev(data["norm"]),
        _chebyshev(data["exponential"]),
        tuple(coarse),
        accurate,
        sums,
        int(data["squarings"]),
        float(data["residual"]),
    )


def _polynomial(p: Chebyshev) -> list[Any]:
    return [p.low, p.high, list(p.coefficients)]


def _chebyshev(entry: Any) -> Chebyshev:
    low, high, coefficients = entry
    return Chebyshev(float(low), float(high), tuple(float(c) for c in coefficients))
