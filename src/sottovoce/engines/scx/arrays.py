"""Which array library the engine computes with: NumPy, or PyTorch or CuPy where they are installed.

Everything in this engine is written against the Python array API standard and asks an array for its
namespace, so that a party may keep its tensors on a GPU. What travels is always little-endian NumPy memory.
"""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sottovoce.errors import UsageError

Array = Any  # of whichever library; the standard has no common base class
VARIABLE = "SOTTOVOCE_SCX_ARRAYS"


@dataclass(frozen=True)
class Arrays:
    """An array namespace and the device that its arrays live on (None: the library's default)."""

    xp: Any
    device: Any = None

    def put(self, x: npt.NDArray[Any]) -> Array:
        """A NumPy array in this library; without a copy where the library allows it."""
        if self.xp is np:
            return x
        # Memory received from the wire may be read-only, which PyTorch does not take.
        return self.xp.asarray(x if x.flags.writeable else x.copy(), device=self.device)

    def get(self, x: Array) -> npt.NDArray[Any]:
        """The same values in NumPy."""
        if isinstance(x, np.ndarray):
            return x
        for method in ("cpu", "get"):  # PyTorch's tensors and CuPy's arrays leave the GPU when asked
            if hasattr(x, method):
                x = getattr(x, method)()
        return np.asarray(x)


def arrays(name: str | None = None) -> Arrays:
    """`numpy`, `cupy`, `torch` or `torch:DEVICE`; None: what SOTTOVOCE_SCX_ARRAYS says, or NumPy.

    UsageError if the library is not installed.
    """
    name = name or os.environ.get(VARIABLE) or "numpy"
    library, _, device = name.partition(":")
    if library == "numpy":
        return Arrays(np)
    if library not in ("torch", "cupy"):
        raise UsageError(f"{VARIABLE}={name!r}: known are numpy, cupy, torch and torch:DEVICE")
    try:
        return Arrays(importlib.import_module(f"array_api_compat.{library}"), device or None)
    except ImportError:
        raise UsageError(
            f"{VARIABLE}={name!r} needs {library} and array-api-compat; "
            f"run: pip install sottovoce[scx] {library}"
        ) from None


def namespace(x: Array) -> Any:
    """The array API namespace that x belongs to."""
    if isinstance(x, np.ndarray):
        return np
    if hasattr(x, "__array_namespace__"):
        return x.__array_namespace__()
    return importlib.import_module("array_api_compat").array_namespace(x)
