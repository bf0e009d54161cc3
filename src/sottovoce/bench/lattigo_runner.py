"""The same bootstrap in Lattigo, for `bench bootstrap`.

A script for any Python with ctypes: Lattigo comes as the shared library of the `orion-fhe` wheel (a fork of
Lattigo 6), named by LATTIGO_SO. Needs about 18 GB at 2^15 slots. Prints one JSON object among the library's
own output.

    LATTIGO_SO=…/lattigo-linux.so python lattigo_runner.py '{"slots": 32768, "threads": 1, "repeat": 2}'
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import random
import resource
import signal
import statistics
import sys
import time
from typing import Any

LOG_DEGREE, SCALE_BITS, WEIGHT = 16, 40, 192
CHAIN, SPECIAL = (60, *[SCALE_BITS] * 9), (61,) * 5


class _Array(ctypes.Structure):
    _fields_ = (("data", ctypes.POINTER(ctypes.c_float)), ("count", ctypes.c_ulong))


def pin(threads: int) -> None:
    """Keep this process on its first `threads` cores; garbage collectors and pools stay there too."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def end_with_parent() -> None:
    """A benchmark that is stopped must not leave a process with 18 GB behind (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _integers(values: tuple[int, ...]) -> Any:
    return (ctypes.c_int * len(values))(*values)


def _encode(library: Any, values: list[float]) -> Any:
    array = (ctypes.c_float * len(values))(*values)
    return library.Encode(array, len(values), 0, ctypes.c_ulong(1 << SCALE_BITS))


def measure(library: Any, slots: int, repeat: int) -> dict[str, Any]:
    """Seconds of every run after the first, levels and precision of uniform slots in [−1, 1], peak memory."""
    library.Decode.restype = _Array
    chain, special = _integers(CHAIN), _integers(SPECIAL)
    library.NewScheme(
        LOG_DEGREE, chain, len(CHAIN), special, len(SPECIAL), SCALE_BITS, WEIGHT, b"standard", b"", b"none"
    )
    steps = ("NewKeyGenerator", "GenerateSecretKey", "GeneratePublicKey", "GenerateRelinearizationKey")
    for step in (*steps, "GenerateEvaluationKeys", "NewEncoder", "NewEncryptor", "NewDecryptor"):
        getattr(library, step)()
    start = time.perf_counter()
    library.NewBootstrapper(special, len(SPECIAL), slots)
    key_seconds = time.perf_counter() - start
    # Without it the library's bootstrap has no evaluator for its last product.
    library.NewEvaluator()
    copies = (1 << (LOG_DEGREE - 1)) // slots
    rng = random.Random(1)
    values = [rng.uniform(-1, 1) for _ in range(slots)]
    x = library.Encrypt(_encode(library, values * copies))
    seconds, cpu = [], []
    for _ in range(repeat + 1):
        start, before = time.perf_counter(), time.process_time()
        result = library.Bootstrap(x, slots)
        seconds.append(time.perf_counter() - start)
        cpu.append(time.process_time() - before)
    decoded = library.Decode(library.Decrypt(result))
    # A bootstrap of sparse slots returns the sum of the copies.
    errors = [abs(decoded.data[i] / copies - value) for i, value in enumerate(values)]
    return {
        "seconds": statistics.median(seconds[1:]),
        "cpu_seconds": statistics.median(cpu[1:]),
        "levels": library.GetCiphertextLevel(ctypes.c_longlong(result)),
        "bits": -math.log2(sum(errors) / slots),
        "worst_bits": -math.log2(max(errors)),
        "key_seconds": key_seconds,
        "memory_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }


def main() -> None:
    job = json.loads(sys.argv[1])
    end_with_parent()
    pin(job["threads"])
    library = ctypes.CDLL(os.environ["LATTIGO_SO"])
    print("\n" + json.dumps(measure(library, job["slots"], job["repeat"])), flush=True)


if __name__ == "__main__":
    main()
