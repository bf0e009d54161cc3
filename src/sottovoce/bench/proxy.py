"""What the proxy costs beside the engine: the same answer straight from a session and through HTTP, in turns.

Three processes on one machine, as in real life: the model server, the proxy, and a program that reads the
stream over a connection of its own. One session serves both ways. It is cut back to the same prompt before
every answer, so each computes the same tokens. Then the server is ended, and `/v1/models` is asked for.
"""

from __future__ import annotations

import http.client
import json
import multiprocessing
import statistics
import tempfile
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from sottovoce.bench.machine import header
from sottovoce.bench.served import ServerProcess
from sottovoce.engines.base import EngineOptions, Progress
from sottovoce.errors import ProtocolError, UsageError
from sottovoce.parties import GenerationOptions, generate
from sottovoce.proxy import Gateway, StatementFile
from sottovoce.proxy.app import create_app
from sottovoce.proxy.gateway import Plan
from sottovoce.proxy.serving import WebServer

PROMPT = "Tell a long story about a lighthouse keeper and her boat."
_WAYS = {"clear": EngineOptions("clear"), "masked": EngineOptions("hybrid", "masked")}
_MODELS_ASKED = 50


def run(
    model: str = "smollm2-135m",
    kv: str = "clear,masked",
    new_tokens: int = 12,
    repeat: int = 4,
    progress: Progress = lambda done, total, what: None,
) -> dict[str, Any]:
    """kv: engines to look at, with commas between. `new_tokens` of each answer, `repeat` answers each way.

    Rows: seconds per token both ways (medians), their difference, and CPU seconds of the proxy's web server
    per token. models: milliseconds of `/v1/models` while the server is down.
    """
    names = kv.split(",")
    rows, models = [], []
    for i, name in enumerate(names):
        progress(i, len(names), f"proxy in front of {name}")
        row, times = _measured(_WAYS[name], model, new_tokens, repeat)
        rows.append({"kv": name, **row})
        models += times
    progress(len(names), len(names), "proxy")
    return {
        "model": model,
        "new_tokens": new_tokens,
        "repeat": repeat,
        "rows": rows,
        "models_ms": statistics.median(models),
        "models_ms_worst": max(models),
        **header(),
    }


def _measured(
    options: EngineOptions, model: str, tokens: int, repeat: int
) -> tuple[dict[str, Any], list[float]]:
    """One engine's row, and the times of /v1/models behind its end."""
    with tempfile.TemporaryDirectory(prefix="sottovoce-bench-") as directory:
        server = ServerProcess(options, model)
        gateway = Gateway(
            "the server",
            server.connect,
            Plan(defaults=GenerationOptions(max_tokens=tokens)),
            statements=StatementFile(Path(directory), "the server"),
        )
        app = create_app(gateway, warm=False)
        with _Program() as program:
            with server, WebServer(app) as web:
                name = gateway.card().name
                row = _in_turns(gateway, program, web.port, name, tokens, repeat, options.engine == "hybrid")
            # Another proxy, which never met the server, only its statement.
            with WebServer(
                create_app(Gateway("the server", server.connect, statements=gateway._statements))
            ) as web:
                return row, [1e3 * program.models(web.port) for _ in range(_MODELS_ASKED)]


def _in_turns(
    gateway: Gateway, program: _Program, port: int, model: str, tokens: int, repeat: int, prepared: bool
) -> dict[str, Any]:
    program.answer(port, model, 1)  # sets the session up
    if prepared:
        prompt = gateway.card().chat(PROMPT)
        with gateway._live.lease(prompt.tokens, len(prompt.public)) as lease:
            lease.client.prepare(2 * repeat * (tokens + 1))
    web = next(thread for thread in threading.enumerate() if thread.name == "web")
    clock = time.pthread_getcpuclockid(web.ident or 0)
    direct, through, cpu = [], [], 0.0
    for _ in range(repeat):
        direct.append(_straight(gateway, tokens) / tokens)
        before = time.clock_gettime(clock)
        through.append(program.answer(port, model, tokens) / tokens)
        cpu += time.clock_gettime(clock) - before
    engine, whole = statistics.median(direct), statistics.median(through)
    return {
        "prepared": prepared,
        "seconds_direct": engine,
        "seconds_proxy": whole,
        "spread": (max(direct) - min(direct)) / engine,
        "overhead": whole / engine - 1.0,
        "cpu_seconds": cpu / (repeat * tokens),
        "cpu_overhead": cpu / (repeat * tokens) / engine,
    }


def _straight(gateway: Gateway, tokens: int) -> float:
    """Seconds of one answer without the proxy in between."""
    prompt = gateway.card().chat(PROMPT)
    start = time.perf_counter()
    with gateway._live.lease(prompt.tokens, len(prompt.public)) as lease:
        done = generate(lease.client, lease.prompt, GenerationOptions(tokens), lambda text: None)
    _whole(done.usage.completion_tokens, tokens)
    return time.perf_counter() - start


def _whole(tokens: int, expected: int) -> None:
    if tokens != expected:
        raise UsageError(f"the answer ended after {tokens} tokens; ask for fewer --new-tokens")


class _Program:
    """A process that uses the proxy as any program would."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_program, args=(theirs,), daemon=True)
        self._process.start()

    def answer(self, port: int, model: str, tokens: int) -> float:
        """Seconds from the request to the end of the stream."""
        body = {"model": model, "messages": [{"role": "user", "content": PROMPT}], "max_tokens": tokens}
        options = {"stream": True, "stream_options": {"include_usage": True}}
        self._pipe.send((port, "POST", "/v1/chat/completions", body | options))
        seconds, content = self._pipe.recv()
        *_, usage, end = [b"", *(x for x in content.split(b"\n\n") if not x.startswith(b":"))][:-1]
        if end != b"data: [DONE]":
            raise ProtocolError(f"the proxy's answer broke off: {end.decode():.300}")
        _whole(json.loads(usage[6:])["usage"]["completion_tokens"], tokens)
        return float(seconds)

    def models(self, port: int) -> float:
        """Seconds of one question for the models, over a new connection."""
        self._pipe.send((port, "GET", "/v1/models", None))
        seconds, content = self._pipe.recv()
        if not json.loads(content)["data"]:
            raise ProtocolError("the proxy knows no model")
        return float(seconds)

    def __enter__(self) -> _Program:
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.kill()
        self._process.join()


def _program(pipe: Connection) -> None:
    while True:
        port, method, path, body = pipe.recv()
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
        start = time.perf_counter()
        kind = {} if body is None else {"Content-Type": "application/json"}
        connection.request(method, path, None if body is None else json.dumps(body), kind)
        reply = connection.getresponse()
        content = b""
        while piece := reply.read1(1 << 16):  # as it comes, not as a whole
            content += piece
        pipe.send((time.perf_counter() - start, content))
        connection.close()
