"""What a figure was measured on and with: goes into every benchmark's JSON object."""

from __future__ import annotations

import os
import platform
from typing import Any

from sottovoce import __version__, _native
from sottovoce.bgv import SIMD
from sottovoce.models.fixed import ACTIVATION_BITS
from sottovoce.ring.primes import P_FIELD


def machine() -> dict[str, Any]:
    """CPU name, instruction set in use, cores this process may run on, memory in bytes, load average."""
    return {
        "cpu": _cpu_name(),
        "isa": _native.active_isa(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "load": round(os.getloadavg()[0], 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def header() -> dict[str, Any]:
    """The keys every benchmark object carries: machine, version, parameters."""
    return {
        "machine": machine(),
        "version": __version__,
        "parameters": {
            "security_bits": 128,
            "statistical_bits": 40,
            "N": SIMD.degree,
            "moduli": [int(q) for q in SIMD.primes],
            "p": P_FIELD,
            "f": ACTIVATION_BITS,
        },
    }


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"
