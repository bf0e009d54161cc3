"""Reading a Hugging Face `config.json`: typed access, and refusals that name the operation."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, NoReturn

from sottovoce.errors import CorruptFileError, UnsupportedModelError

_MISSING = object()


class HfConfig:
    """A parsed `config.json` with checked look-ups; `where` names the file in messages."""

    def __init__(self, data: Any, where: str) -> None:
        if not isinstance(data, Mapping):
            raise CorruptFileError(f"{where}: not a JSON object")
        self.data: Mapping[str, Any] = data
        self.where = where

    def integer(self, name: str, default: int | None = None) -> int:
        value = self._get(name, default)
        if not isinstance(value, int) or isinstance(value, bool):
            raise CorruptFileError(f"{self.where}: {name} = {value!r} is not an integer")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        return self._float(name, self._get(name, default))

    def flag(self, name: str, default: bool) -> bool:
        value = self._get(name, default)
        if not isinstance(value, bool):
            raise CorruptFileError(f"{self.where}: {name} = {value!r} is not true or false")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        value = self._get(name, default)
        if not isinstance(value, str):
            raise CorruptFileError(f"{self.where}: {name} = {value!r} is not text")
        return value

    def require(self, name: str, wanted: object, operation: str, default: object) -> None:
        """Refuse a model in which the entry has another value than the one implemented."""
        value = self.data.get(name, default)
        if value is not None and value != wanted:
            self.refuse(operation, f"{name} = {value!r}", (f"{name} = {wanted!r}",))

    def rope_theta(self, default: float) -> float:
        """The rotary base. Newer files hold it in `rope_parameters`; every kind of scaling is refused."""
        scaling = self.data.get("rope_parameters") or self.data.get("rope_scaling") or {}
        if not isinstance(scaling, Mapping):
            raise CorruptFileError(f"{self.where}: rope_scaling is not an object")
        kind = scaling.get("rope_type", scaling.get("type", "default"))
        if kind != "default":
            self.refuse("rotary positions (every layer) with scaling", repr(kind), ("no scaling",))
        if "partial_rotary_factor" in self.data and self.data["partial_rotary_factor"] not in (None, 1, 1.0):
            self.refuse("partial rotary positions", "partial_rotary_factor", ("the whole head rotated",))
        return self._float("rope_theta", scaling.get("rope_theta", self.data.get("rope_theta", default)))

    def _float(self, name: str, value: object) -> float:
        # Whole numbers of JSON have any size.
        if not isinstance(value, (int, float)) or isinstance(value, bool) or abs(value) > sys.float_info.max:
            raise CorruptFileError(f"{self.where}: {name} = {value!r:.40} is not a number")
        return float(value)

    def refuse(self, operation: str, found: str, supported: tuple[str, ...]) -> NoReturn:
        raise UnsupportedModelError(
            f"{self.where}: {operation}: {found} is not implemented; supported: {', '.join(supported)}"
        )

    def _get(self, name: str, default: object) -> object:
        value = self.data.get(name, _MISSING)
        if value is _MISSING or value is None:
            if default is None:
                raise CorruptFileError(f"{self.where}: {name} is missing")
            return default
        return value
