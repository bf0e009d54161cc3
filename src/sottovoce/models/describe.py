"""A model's shapes without its weights: from a `config.json`, wherever there is one."""

from __future__ import annotations

import os
from pathlib import Path

from sottovoce.errors import UnknownModelError
from sottovoce.models.config import Config
from sottovoce.models.huggingface import describe_json
from sottovoce.models.registry import known_names, load_model
from sottovoce.models.shapes import SHAPES


def describe_model(name: str | os.PathLike[str]) -> Config:
    """The shapes of a registered model, a model file, a directory, or a bare `config.json`.

    UnsupportedModelError if no engine could run it, UnknownModelError if there is nothing.
    """
    if (shape := SHAPES.get(str(name).lower())) is not None:
        return shape
    if str(name).lower() in known_names():
        return load_model(name).config
    path = Path(name).expanduser()
    file = path / "config.json" if path.is_dir() else path
    if file.suffix != ".json":
        return load_model(name).config
    if not file.is_file():
        raise UnknownModelError(
            f"no config.json at {path}; known names: {', '.join(known_names())}; or give the path of a model"
        )
    return describe_json(file)
