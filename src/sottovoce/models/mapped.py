"""A model file's bytes, read as they are needed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from sottovoce.errors import CorruptFileError


def mapped(path: Path) -> npt.NDArray[np.uint8]:
    """The file as an array. OSError as `open`; CorruptFileError for an empty one, which cannot be mapped."""
    try:
        return np.memmap(path, dtype=np.uint8, mode="r")
    except ValueError as error:
        raise CorruptFileError(f"{path.name}: the file is empty") from error
