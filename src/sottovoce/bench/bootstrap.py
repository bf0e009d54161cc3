"""`bench bootstrap`: one CKKS bootstrap here and in Lattigo, each in a process of its own on the same cores.

Both refresh a ciphertext of level 0 with uniform real slots in [−1, 1] in the ring of degree 2^16. Ours
treats slots as complex numbers, as theirs does. Lattigo comes with the wheel `orion-fhe` 1.0.2, whose library
LATTIGO_SO names; it is no dependency.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from sottovoce.bench.bootstrap_runner import SETS, available_bytes
from sottovoce.bench.lattigo_runner import CHAIN, SPECIAL, WEIGHT
from sottovoce.bench.machine import header
from sottovoce.engines.base import Progress
from sottovoce.errors import UsageError

LIBRARY_VARIABLE = "LATTIGO_SO"
PEER = f"Lattigo 6 (orion-fhe 1.0.2), residual chain {CHAIN}, special {SPECIAL}, h = {WEIGHT}"
_PEER_BYTES = 19 << 30
_PATIENCE = 1800.0


def run(
    slots: int = 1 << 15,
    set: str = "boot16",
    message_ratio: int = 4,
    threads: int = 1,
    repeat: int = 3,
    peer_python: str | None = None,
    progress: Progress = lambda done, total, what: None,
) -> dict[str, Any]:
    """Medians; the peer's figures are null where its library or the memory for it is missing.

    CPU seconds hardly depend on what else the machine does.
    """
    if set not in SETS:
        raise UsageError(f"{set!r} is no parameter set; known are {', '.join(SETS)}")
    job = {"set": set, "slots": slots, "message_ratio": message_ratio, "threads": threads, "repeat": repeat}
    progress(0, 2, "ours")
    ours = _child([sys.executable, "-m", "sottovoce.bench.bootstrap_runner"], job)
    progress(1, 2, "Lattigo")
    peer = _peer(peer_python or sys.executable, job, progress)
    progress(2, 2, "bootstraps")
    return {**header(), "parameters": _parameters(set, ours), **job, **_compared(ours, peer)}


def _compared(ours: dict[str, Any], peer: dict[str, Any] | None) -> dict[str, Any]:
    absent = ("seconds", "cpu_seconds", "levels", "bits", "worst_bits", "key_seconds", "memory_bytes")
    theirs = peer or dict.fromkeys(absent)
    return {
        "ours_s": ours["seconds"],
        "peer_s": theirs["seconds"],
        "ratio": theirs["seconds"] / ours["seconds"] if theirs["seconds"] else None,
        "ours_cpu_s": ours["cpu_seconds"],
        "peer_cpu_s": theirs["cpu_seconds"],
        "cpu_ratio": theirs["cpu_seconds"] / ours["cpu_seconds"] if peer else None,
        "steps": ours["steps"],
        "levels": ours["levels"],
        "level_bits": ours["level_bits"],
        "bits": ours["bits"],
        "worst_bits": ours["worst_bits"],
        "memory_bytes": ours["memory_bytes"],
        "key_bytes": ours["key_bytes"],
        "key_seconds": ours["key_seconds"],
        "rotation_keys": ours["rotation_keys"],
        "peer": PEER if peer else None,
        "peer_levels": theirs["levels"],
        "peer_bits": theirs["bits"],
        "peer_worst_bits": theirs["worst_bits"],
        "peer_memory_bytes": theirs["memory_bytes"],
        "peer_key_seconds": theirs["key_seconds"],
    }


def _parameters(name: str, ours: dict[str, Any]) -> dict[str, Any]:
    kept = {key: ours[key] for key in ("degree", "log_qp", "secret")}
    return {"security_bits": 128, "set": name, **kept}


def _peer(python: str, job: dict[str, Any], progress: Progress) -> dict[str, Any] | None:
    library = os.environ.get(LIBRARY_VARIABLE)
    if not library:
        progress(1, 2, f"Lattigo is skipped: set {LIBRARY_VARIABLE} to its shared library")
        return None
    free = available_bytes()
    if free is not None and free < _PEER_BYTES:
        progress(1, 2, f"Lattigo is skipped: it needs {_PEER_BYTES / 1e9:.0f} GB, {free / 1e9:.0f} are free")
        return None
    script = Path(__file__).with_name("lattigo_runner.py")
    return _child([python, str(script)], job, {"GOMAXPROCS": str(job["threads"])})


def _child(
    command: list[str], job: dict[str, Any], environment: dict[str, str] | None = None
) -> dict[str, Any]:
    """The last JSON object that the command prints."""
    try:
        done = subprocess.run(
            [*command, json.dumps(job)],
            capture_output=True,
            text=True,
            timeout=_PATIENCE,
            check=False,
            env=os.environ | (environment or {}),
        )
    except OSError as error:
        raise UsageError(f"cannot run {command[0]}: {error.strerror or error}") from error
    except subprocess.TimeoutExpired:
        raise UsageError(f"a bootstrap did not finish within {_PATIENCE:.0f} seconds") from None
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        raise UsageError(f"{' '.join(command[-2:])} failed; its last words: {done.stderr.strip()[-800:]}")
    result: dict[str, Any] = json.loads(lines[-1])
    return result
