"""`bench peers`: one decoder block here and in SecretFlow SPU (Cheetah), and lattice operations here and in
SEAL, in one run.

SPU needs a Python environment of its own (Python 3.11, `pip install spu==0.9.5`), whose interpreter is given.
Bytes of SPU are counted on the loopback interface of a private network namespace, TCP and HTTP included; ours
are frames with their headers, without TCP and TLS.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from statistics import median
from typing import Any

from sottovoce.bench import gpt2_block, he
from sottovoce.bench.machine import header
from sottovoce.engines.base import Progress
from sottovoce.errors import UsageError

SPU_VARIABLE = "SOTTOVOCE_SPU_PYTHON"
_HE_KEYS = ("ntt", "ct_pt_acc", "rotate", "ct_ct_relin")
_PATIENCE = 1800.0
# With a user namespace anybody may make a network namespace where the system allows it; root always may.
_NAMESPACES = (["unshare", "--net"], ["unshare", "--map-root-user", "--net"])


def run(
    spu_python: str | None = None,
    kv: str = "ciphertext",
    context: int = 64,
    repeat: int = 16,
    spu_repeat: int = 3,
    prepared: int = 0,
    progress: Progress = lambda done, total, what: None,
) -> dict[str, Any]:
    """Medians; our preparation is counted. Without SPU or TenSEAL the peer's figures are null.

    CPU seconds, of both parties together, hardly depend on what else the machine does.

    prepared: as for `bench e2e`.
    """
    peer = spu_block(spu_python, context, spu_repeat, progress)
    ours = gpt2_block.measure(kv, context, repeat, progress, prepared)
    peer_s = median(peer["seconds"]) if peer else None
    peer_bytes = median(peer["bytes"]) if peer and peer["bytes"] else None
    peer_cpu = median(peer["cpu_seconds"]) if peer else None
    ours_cpu = sum(ours["cpu_seconds_per_token"].values())
    lattice = he.run()
    return {
        **header(),
        "kv": kv,
        "context": context,
        "prepared": prepared,
        "preparation_batch": ours["preparation_batch"],
        "spu_block": {
            "ours_s": ours["seconds_per_token"],
            "peer_s": peer_s,
            "ratio": peer_s / ours["seconds_per_token"] if peer_s else None,
            "ours_bytes": ours["bytes_per_token"],
            "peer_bytes": peer_bytes,
            "bytes_ratio": peer_bytes / ours["bytes_per_token"] if peer_bytes else None,
            "ours_cpu_s": ours_cpu,
            "peer_cpu_s": peer_cpu,
            "cpu_ratio": peer_cpu / ours_cpu if peer_cpu else None,
            "ours_rounds": ours["rounds_per_token"],
            "ours_online_s": ours["online_seconds_per_token"],
            "ours_max_error": ours["max_error"],
            "peer_max_error": peer["max_error"] if peer else None,
            "peer_version": peer["version"] if peer else None,
        },
        "by_operation": ours["by_operation"],
        "he": {key: lattice[key] for key in _HE_KEYS},
    }


def spu_block(python: str | None, context: int, repeat: int, progress: Progress) -> dict[str, Any] | None:
    """`seconds`, `cpu_seconds`, `bytes` of every repetition, `max_error`, `version`.

    None if no interpreter is given.
    """
    python = python or os.environ.get(SPU_VARIABLE)
    if not python:
        progress(1, 1, f"SPU is skipped: give --spu-python, or set {SPU_VARIABLE}")
        return None
    namespace = private_network()
    job = {
        "width": gpt2_block.WIDTH,
        "heads": gpt2_block.HEADS,
        "ffn": gpt2_block.FFN,
        "context": context,
        "repeat": repeat,
        "private": namespace is not None,
    }
    script = Path(__file__).with_name("spu_runner.py")
    command = [*(namespace or []), python, str(script), json.dumps(job)]
    progress(0, 1, "SPU")
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE, check=False)
    except OSError as error:
        raise UsageError(f"cannot run {python}: {error.strerror or error}") from error
    except subprocess.TimeoutExpired:
        raise UsageError(f"SPU did not finish within {_PATIENCE:.0f} seconds") from None
    progress(1, 1, "SPU")
    return parse(done.stdout, done.stderr)


def parse(output: str, messages: str) -> dict[str, Any]:
    """The JSON object among the lines of the runner's output; SPU writes its log between them."""
    try:
        result = json.loads([line for line in output.splitlines() if line.startswith("{")][-1])
        return {key: result[key] for key in ("seconds", "bytes", "cpu_seconds", "max_error", "version")}
    except (IndexError, ValueError, KeyError, TypeError):
        raise UsageError(f"the SPU runner failed; its last words: {messages.strip()[-800:]}") from None


def private_network() -> list[str] | None:
    """The command that runs another one in a network namespace of its own, or None if that is not allowed."""
    if shutil.which("unshare") is None:
        return None
    for command in _NAMESPACES:
        if subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0:
            return command
    return None
