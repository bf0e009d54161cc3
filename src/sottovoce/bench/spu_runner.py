"""The same decoder block in SecretFlow SPU (Cheetah, two parties), for `bench peers`.

A script: run by the Python of an environment that holds SPU, never imported here. Two processes over
loopback; rank 0 owns the weights, rank 1 the input, the cached keys and values are shared. Prints one JSON
object: seconds and CPU seconds (of both parties) of every repetition, and bytes if it runs in a network
namespace of its own, where nobody else uses the loopback interface.

    python spu_runner.py '{"width": 576, "heads": 4, "ffn": 1536, "context": 64, "repeat": 3,
                           "private": false}'
"""

from __future__ import annotations

import fcntl
import importlib
import json
import multiprocessing
import socket
import struct
import sys
import time
import traceback
from typing import Any

import numpy as np

SERVER, CLIENT, BOTH = 0, 1, -1
_PORT = 39420
_SIOCSIFFLAGS, _UP_AND_RUNNING = 0x8914, 0x41
_PATIENCE_MS = 600_000


def block(job: dict[str, Any]) -> tuple[Any, list[tuple[np.ndarray[Any, Any], int]]]:
    """(function of JAX arrays, its arguments with their owners)."""
    jax = importlib.import_module("jax")
    jnp = jax.numpy
    width, heads, ffn, context = job["width"], job["heads"], job["ffn"], job["context"]
    dim = width // heads
    rng = np.random.default_rng(0)

    def normal(*shape: int, scale: float) -> np.ndarray[Any, Any]:
        return (rng.standard_normal(shape) * scale).astype(np.float32)

    def norm(x: Any, gain: Any, bias: Any) -> Any:
        centred = x - x.mean(-1, keepdims=True)
        return centred * jax.lax.rsqrt((centred * centred).mean(-1, keepdims=True) + 1e-5) * gain + bias

    def by_head(rows: Any) -> Any:
        return rows.reshape(-1, heads, dim).transpose(1, 0, 2)

    def forward(x: Any, keys: Any, values: Any, *weights: Any) -> Any:
        gain1, bias1, qkv, qkv_bias, out, out_bias, gain2, bias2, up, up_bias, down, down_bias = weights
        q, k, v = jnp.split(norm(x, gain1, bias1) @ qkv + qkv_bias, 3, axis=-1)
        k, v = jnp.concatenate([keys, k]), jnp.concatenate([values, v])
        scores = jnp.matmul(by_head(q), by_head(k).transpose(0, 2, 1)) * np.float32(dim**-0.5)
        mixed = jnp.matmul(jax.nn.softmax(scores, axis=-1), by_head(v))
        x = x + mixed.transpose(1, 0, 2).reshape(1, width) @ out + out_bias
        return x + jax.nn.gelu(norm(x, gain2, bias2) @ up + up_bias) @ down + down_bias

    ones, zeros = np.ones(width, np.float32), np.zeros(width, np.float32)
    matrices = [(width, 3 * width), (width, width), (width, ffn), (ffn, width)]
    qkv, out, up, down = [normal(*shape, scale=0.03) for shape in matrices]
    biases = [np.zeros(shape[1], np.float32) for shape in matrices]
    weights = [ones, zeros, qkv, biases[0], out, biases[1], ones, zeros, up, biases[2], down, biases[3]]
    cache = [normal(context, width, scale=0.5) for _ in range(2)]
    arguments = [(normal(1, width, scale=1.0), CLIENT), *((c, BOTH) for c in cache)]
    return forward, arguments + [(w, SERVER) for w in weights]


def configuration(libspu: Any) -> Any:
    """64-bit ring, 18 fractional bits; values that one party knows are used as such, which is faster."""
    config = libspu.RuntimeConfig()
    config.protocol = libspu.ProtocolKind.CHEETAH
    config.field = libspu.FieldType.FM64
    config.fxp_fraction_bits = 18
    config.experimental_enable_colocated_optimization = True
    return config


def party(rank: int, job: dict[str, Any], program: bytes, shares: list[Any], results: Any) -> None:
    """One of the two processes."""
    try:
        spu = importlib.import_module("spu")
        libspu = importlib.import_module("spu.libspu")
        description = libspu.link.Desc()
        description.recv_timeout_ms = description.http_timeout_ms = _PATIENCE_MS
        for other in range(2):
            description.add_party(f"party{other}", f"127.0.0.1:{_PORT + other}")
        link = libspu.link.create_brpc(description, rank)
        runtime = spu.Runtime(link, configuration(libspu))
        executable = libspu.Executable()
        executable.ParseFromString(program)
        for name, share in zip(executable.input_names, shares, strict=True):
            runtime.set_var(name, share)
        seconds, sizes, busy = [], [], []
        for _ in range(job["repeat"] + 1):  # the first one warms up
            link.barrier()
            before, start, cpu = loopback_bytes(), time.perf_counter(), time.process_time()
            runtime.run(executable)
            link.barrier()
            seconds.append(time.perf_counter() - start)
            busy.append(time.process_time() - cpu)
            sizes.append(loopback_bytes() - before)
        results.put((rank, seconds[1:], (sizes[1:], busy[1:]), runtime.get_var(executable.output_names[0])))
        time.sleep(1.0)  # the other party may still be in its last barrier
    except Exception:
        results.put((rank, traceback.format_exc(), None, None))


def loopback_bytes() -> int:
    """Bytes that the loopback interface has received: every byte between the parties, once."""
    with open("/proc/net/dev") as lines:
        for line in lines:
            if line.strip().startswith("lo:"):
                return int(line.split(":")[1].split()[0])
    return 0


def raise_loopback() -> None:
    """A fresh network namespace has its loopback interface down."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _UP_AND_RUNNING))


def run(job: dict[str, Any]) -> dict[str, Any]:
    if job["private"]:
        raise_loopback()
    spu = importlib.import_module("spu")
    libspu = importlib.import_module("spu.libspu")
    frontend = importlib.import_module("spu.utils.frontend")
    forward, inputs = block(job)
    arrays = [array for array, _ in inputs]
    names = [f"in{i}" for i in range(len(inputs))]
    secret = libspu.Visibility.VIS_SECRET
    options = libspu.CompilerOptions()
    options.enable_optimize_denominator_with_broadcast = True
    executable, _ = frontend.compile(
        frontend.Kind.JAX,
        forward,
        arrays,
        {},
        names,
        [secret] * len(inputs),
        lambda outputs: [f"out{i}" for i in range(len(outputs))],
        copts=options,
    )
    io = spu.Io(2, configuration(libspu))
    shares = [io.make_shares(array, secret, owner) for array, owner in inputs]
    context = multiprocessing.get_context("spawn")
    results: Any = context.Queue()
    program = executable.SerializeToString()
    processes = [
        context.Process(target=party, args=(r, job, program, [s[r] for s in shares], results))
        for r in range(2)
    ]
    for process in processes:
        process.start()
    try:
        reports: dict[int, Any] = {}
        while len(reports) < 2:
            rank, seconds, counted, output = results.get(timeout=_PATIENCE_MS / 1000)
            if counted is None:
                raise RuntimeError(seconds)
            reports[rank] = (seconds, *counted, output)
    finally:
        for process in processes:
            process.join(5.0)
            process.terminate()
    found = np.asarray(io.reconstruct([reports[r][3] for r in range(2)]))
    return {
        "version": getattr(spu, "__version__", None),
        "seconds": reports[SERVER][0],
        "bytes": reports[SERVER][1] if job["private"] else None,
        "cpu_seconds": [sum(both) for both in zip(reports[SERVER][2], reports[CLIENT][2], strict=True)],
        "max_error": float(np.abs(found - np.asarray(forward(*arrays))).max()),
    }


if __name__ == "__main__":
    print("\n" + json.dumps(run(json.loads(sys.argv[1]))))
