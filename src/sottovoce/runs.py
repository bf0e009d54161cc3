"""Runs of benchmarks and attacks on disk: a JSON list, in which a run replaces the one that it repeats."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sottovoce.errors import CorruptFileError

Run = dict[str, Any]


def add(path: Path, run: Mapping[str, Any], keys: Sequence[str]) -> None:
    """Put a run into a file. keys: what tells runs apart; one with the same values there is replaced."""

    def key(of: Mapping[str, Any]) -> list[Any]:
        return [of.get(name) for name in keys]

    runs = [*(kept for kept in load(path) if key(kept) != key(run)), dict(run)]
    runs.sort(key=lambda one: [(str(type(value)), value) for value in key(one)])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(runs, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def load(path: Path) -> list[Run]:
    """The runs in a file, none if it does not exist. CorruptFileError for what is no list of runs."""
    try:
        runs = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except ValueError as error:
        raise CorruptFileError(f"{path} is not JSON ({error}); delete it or restore it") from None
    if not isinstance(runs, list) or not all(isinstance(run, dict) for run in runs):
        raise CorruptFileError(f"{path} is not a list of results; delete it or restore it")
    return runs
