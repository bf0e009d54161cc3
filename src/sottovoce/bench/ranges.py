"""`bench ranges`: the extremes that polynomials under FHE have to cover, before and after outlier control."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from sottovoce.bench.machine import header
from sottovoce.engines.base import Progress
from sottovoce.engines.fhe.calibration import sample
from sottovoce.engines.fhe.rotations import extremes, rotated
from sottovoce.models import load_model

_TOKENS, _SEED = 48, 3


def run(
    model: str = "smollm2-135m", texts: int = 6, progress: Progress = lambda done, total, what: None
) -> dict[str, Any]:
    """The largest |x| by layer: all tokens; without the first, which is public; and with rotations folded in.

    texts: sequences of 48 tokens that the model writes itself.
    """
    plain = load_model(model)
    found = sample(plain, texts, _TOKENS, _SEED)
    turned = rotated(plain)
    rows = []
    for i, (name, which, first) in enumerate(
        (("all tokens", plain, 0), ("first token public", plain, 1), ("and rotated", turned, 1))
    ):
        progress(i, 3, name)
        rows.append({"case": name, **asdict(extremes(which, found, first))})
    progress(3, 3, "ranges")
    difference = np.abs(turned.forward(found[0]) - plain.forward(found[0])).max()
    return {
        **header(),
        "model": model,
        "texts": texts,
        "tokens": _TOKENS,
        "largest_difference_of_logits": float(difference),
        "rows": rows,
    }
