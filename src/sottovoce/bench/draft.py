"""Draft and verify against plain decoding: the same answer twice, in two sessions of one server process.

Two processes over TCP on this machine, without TLS, as whole clients and servers run; optionally behind an
emulated network. Each session has fresh keys; setup and prefill are not part of the figures.
"""

from __future__ import annotations

import multiprocessing
import socket
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from sottovoce.bench.machine import header
from sottovoce.bench.shaped import LOOPBACK, Network, ShapedChannel
from sottovoce.engines.base import EngineOptions, Progress
from sottovoce.engines.registry import make_engine
from sottovoce.errors import UsageError
from sottovoce.models import Prompt, load_model
from sottovoce.net import Role
from sottovoce.parties import (
    Client,
    Completion,
    DraftLength,
    GenerationOptions,
    ServerSession,
    Speculation,
    Welcome,
    Wish,
    generate,
    make_drafter,
)

# An answer that repeats much of the question, where looking up works, and some that is new.
PROMPT = (
    "Correct the spelling: The libary van climbs the hil road every Thursday and stops besides the chapel, "
    "were four or five peple are already wating."
)
_START = 600.0  # seconds for the server to load and encode the model


def run(
    model: str = "smollm2-135m",
    engine: str = "hybrid",
    kv: str = "ciphertext",
    draft: str = "ngram",
    draft_tokens: int | None = None,
    prompt: str = PROMPT,
    new_tokens: int = 24,
    networks: Sequence[Network] = (LOOPBACK,),
    progress: Progress = lambda done, total, what: None,
) -> dict[str, Any]:
    """Seconds, bytes and rounds per token with and without drafts, and the acceptance; for each network."""
    options = EngineOptions(engine=engine, kv=kv)
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    server = context.Process(target=_serve, args=(options, model, tuple(networks), theirs), daemon=True)
    server.start()
    theirs.close()
    rows = []
    try:
        if not ours.poll(_START):
            raise UsageError(f"the benchmark's server was not ready after {_START:.0f} seconds")
        port = ours.recv()
        for network in networks:
            with_network = {"net": network.name, "rtt_ms": network.rtt_ms, "mbit": network.mbit or None}
            figures = compare(
                partial(_connect, port, network, engine),
                prompt,
                GenerationOptions(max_tokens=new_tokens),
                lambda client: Speculation(make_drafter(draft, client.card), DraftLength(draft_tokens)),
                progress,
            )
            rows.append(with_network | figures)
    except EOFError:
        raise UsageError("the benchmark's server died; its own message is above") from None
    finally:
        ours.close()
        server.join(10.0)
        server.terminate()
    return {
        **header(),
        "model": model,
        "engine": engine,
        "kv": kv,
        "draft": draft,
        "draft_tokens": draft_tokens,
        "new_tokens": new_tokens,
        "rows": rows,
    }


def compare(
    connect: Callable[[], Client],
    prompt: str,
    options: GenerationOptions,
    speculate: Callable[[Client], Speculation],
    progress: Progress = lambda done, total, what: None,
) -> dict[str, Any]:
    """One answer without and one with drafts, each in a session of its own that `connect` opens."""
    plain, tokens = _answer(connect, prompt, options, None, progress)
    drafted, _ = _answer(connect, prompt, options, speculate, progress)
    usage = drafted.usage
    one, other = per_token(plain), per_token(drafted)
    return {
        "prompt_tokens": len(tokens),
        "plain": one,
        "drafted": other,
        "speedup": one["seconds"] / other["seconds"] if other["seconds"] else None,
        "drafted_tokens": usage.drafted_tokens,
        "accepted_tokens": usage.accepted_tokens,
        "acceptance": usage.accepted_tokens / usage.drafted_tokens if usage.drafted_tokens else None,
        "verification_steps": usage.verification_steps,
        "same_tokens": plain.token_ids == drafted.token_ids,
    }


def per_token(answer: Completion) -> dict[str, float]:
    """Means over the tokens behind the first, which comes out of the prefill."""
    count = max(1, len(answer.per_token))
    rounds = sum(row.rounds for row in answer.rows if row.phase in ("decode", "verify", "truncate"))
    return {
        "seconds": sum(seconds for seconds, _ in answer.per_token) / count,
        "bytes": sum(size for _, size in answer.per_token) / count,
        "rounds": rounds / count,
    }


def _answer(
    connect: Callable[[], Client],
    prompt: str,
    options: GenerationOptions,
    speculate: Callable[[Client], Speculation] | None,
    progress: Progress,
) -> tuple[Completion, Prompt]:
    with connect() as client:
        tokens = client.card.prompt(prompt)
        speculation = None if speculate is None else speculate(client)
        client.setup(progress)
        return generate(client, tokens, options, progress=progress, speculation=speculation), tokens


def _connect(port: int, network: Network, engine: str) -> Client:
    sock = socket.create_connection(("127.0.0.1", port))
    return Client(ShapedChannel(Role.CLIENT, sock, network=network), Wish(engine))


def _serve(options: EngineOptions, model: str, networks: tuple[Network, ...], pipe: Any) -> None:
    """Two sessions for each network, one after the other."""
    loaded = load_model(model)
    engine = make_engine(options, loaded)
    engine.prepare()
    welcome = Welcome(options, engine.public(), loaded.card)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        pipe.send(listener.getsockname()[1])
        for network in networks:
            for _ in range(2):
                sock, _ = listener.accept()
                ServerSession(
                    ShapedChannel(Role.SERVER, sock, network=network), engine.session, welcome
                ).run()
