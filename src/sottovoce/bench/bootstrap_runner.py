"""Our side of `bench bootstrap`, in a process of its own so that its memory is only its own.

    python -m sottovoce.bench.bootstrap_runner '{"set": "boot16", "slots": 32768, "message_ratio": 4,
                                                 "threads": 1, "repeat": 3}'

Prints one JSON object.
"""

from __future__ import annotations

import json
import math
import resource
import statistics
import sys
import time
from typing import Any

import numpy as np

from sottovoce.bench.lattigo_runner import end_with_parent, pin
from sottovoce.ckks import BOOT16, ENGINE16, FULL16, Parameters
from sottovoce.ckks.bootstrap import Bootstrapper, BootstrapSpec
from sottovoce.ckks.ciphertext import Ciphertext
from sottovoce.ckks.decryptor import Decryptor
from sottovoce.ckks.encoder import Encoder
from sottovoce.ckks.encryptor import Encryptor
from sottovoce.ckks.evaluator import Evaluator
from sottovoce.ckks.keys import KeyGenerator
from sottovoce.errors import UsageError
from sottovoce.ring import set_threads

SETS = {"boot16": BOOT16, "engine16": ENGINE16, "full16": FULL16}
_WORKING_BYTES = 2 << 30  # ciphertexts of one run at N = 2^16
_STEPS = ("raise", "to_slots", "sine", "to_coefficients")


def measure(parameters: Parameters, slots: int, ratio: int = 4, repeat: int = 3) -> dict[str, Any]:
    """Median seconds of a bootstrap and of its steps (the first run, which touches all memory for the first
    time, left out), precision of uniform slots in [−1, 1], keys and memory."""
    start = time.perf_counter()
    bootstrapper = Bootstrapper(parameters, BootstrapSpec(slots, ratio))
    prepared = time.perf_counter()
    _check_memory(bootstrapper)
    generator = KeyGenerator(parameters)
    evaluator = Evaluator(
        parameters,
        generator.relinearization_key(bootstrapper.sine_level),
        generator.galois_keys(bootstrapper.steps),
        generator.encapsulation_keys(),
    )
    keyed = time.perf_counter()
    values = np.random.default_rng(1).uniform(-1, 1, slots)
    x = Encryptor(parameters, generator.secret_key).encrypt(Encoder(parameters).encode(values, 0))
    timings, cpu = [], []
    for _ in range(repeat + 1):
        before = time.process_time()
        result, seconds = _timed(bootstrapper, evaluator, x)
        timings.append(seconds)
        cpu.append(time.process_time() - before)
    found = Decryptor(parameters, generator.secret_key).decrypt_slots(result, slots)
    error = np.abs(found - values)
    steps = {name: statistics.median(t[i] for t in timings[1:]) for i, name in enumerate(_STEPS)}
    return {
        "seconds": statistics.median(sum(t) for t in timings[1:]),
        "cpu_seconds": statistics.median(cpu[1:]),
        "steps": steps,
        "levels": result.level,
        "level_bits": min(math.log2(q) for q in parameters.primes[1 : result.level + 1]),
        "bits": -math.log2(error.mean()),
        "worst_bits": -math.log2(error.max()),
        "key_bytes": bootstrapper.all_key_bytes,
        "map_bytes": bootstrapper.nbytes,
        "rotation_keys": len(bootstrapper.steps),
        "prepare_seconds": prepared - start,
        "key_seconds": keyed - prepared,
        "memory_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "log_qp": parameters.log_qp,
        "secret": parameters.spec.secret,
        "degree": parameters.degree,
    }


def _timed(bootstrapper: Bootstrapper, evaluator: Evaluator, x: Ciphertext) -> tuple[Ciphertext, list[float]]:
    """The circuit of `Bootstrapper.__call__`, a time for every step."""
    marks = [time.perf_counter()]
    raised = bootstrapper.raise_modulus(evaluator, x)
    marks.append(time.perf_counter())
    parts = bootstrapper.to_slots(evaluator, raised)
    marks.append(time.perf_counter())
    reduced = [bootstrapper.reduce(evaluator, part) for part in parts]
    marks.append(time.perf_counter())
    result = bootstrapper.to_coefficients(evaluator, reduced, x.scale)
    marks.append(time.perf_counter())
    return result, [after - before for before, after in zip(marks, marks[1:], strict=False)]


def _check_memory(bootstrapper: Bootstrapper) -> None:
    """Refuse before the keys are made, not when the system runs out."""
    needed, free = bootstrapper.all_key_bytes + _WORKING_BYTES, available_bytes()
    if free is not None and needed > free:
        raise UsageError(
            f"a bootstrap of {bootstrapper.spec.slots} slots needs {needed / 1e9:.1f} GB, of which "
            f"{bootstrapper.all_key_bytes / 1e9:.1f} GB are keys; {free / 1e9:.1f} GB are free"
        )


def available_bytes() -> int | None:
    """Memory that can be had without swapping, where the system says so."""
    try:
        with open("/proc/meminfo") as lines:
            return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return None


def main() -> None:
    job = json.loads(sys.argv[1])
    end_with_parent()
    pin(job["threads"])
    set_threads(job["threads"])
    print(json.dumps(measure(SETS[job["set"]], job["slots"], job["message_ratio"], job["repeat"])))


if __name__ == "__main__":
    try:
        main()
    except UsageError as error:
        sys.exit(str(error))
