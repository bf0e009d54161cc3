"""`sottovoce serve`: one model, many sessions."""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import click

from ..engines.registry import KV_STRATEGIES
from .dealer import dealer_option
from .options import option, quiet_option, stack
from .scx import check_accepted, start_worker
from .scx import serve_options as scx_options

_GRACE = 30.0

network_options = stack(
    option("--host", default="127.0.0.1", help="Address to listen on; 0.0.0.0 for every interface."),
    option(
        "--port", type=click.IntRange(0, 65535), default=7443, help="Port to listen on; 0 picks a free one."
    ),
    option("--insecure-plaintext", is_flag=True, help="No TLS. Only for benchmarks on one machine."),
    option(
        "--idle-timeout",
        type=click.FloatRange(1),
        default=1800.0,
        help="Seconds until a silent client is dropped. A session that is saved goes on when it comes back.",
    ),
)
quota_options = stack(
    option("--max-sessions", type=click.IntRange(1), default=8, help="Sessions at the same time."),
    option("--max-sessions-per-client", type=click.IntRange(1), help="Of one API key, or of one address."),
    option(
        "--max-context",
        "--ctx-size",
        type=click.IntRange(2),
        help="Tokens of a session, if fewer than the model's.",
    ),
    option(
        "--max-waiting",
        type=click.IntRange(0),
        default=16,
        help="Clients that may wait for a session; the next one is told to come back.",
    ),
    option(
        "--queue-timeout", type=click.FloatRange(0, 50), default=20.0, help="Seconds that each of them waits."
    ),
    option(
        "--compute-slots",
        type=click.IntRange(1),
        help="Sessions that compute at the same time, in turns.  [default: one a processor]",
    ),
    option(
        "--api-key-file",
        type=click.Path(exists=True, dir_okay=False),
        help="Only clients with a key of this file may connect: lines NAME KEY [sessions=N] [context=N].",
    ),
    option(
        "--client-certificates",
        type=click.Path(exists=True, dir_okay=False),
        help="Only clients with one of these certificates (PEM) may connect.",
    ),
)
session_options = stack(
    option("--no-sessions", is_flag=True, help="Save no sessions for clients that ask for it."),
    option(
        "--sessions-limit",
        type=click.FloatRange(0.001),
        default=16.0,
        help="Gigabytes of saved sessions at most; above it, the client that takes most loses its oldest.",
    ),
    option(
        "--evict-after",
        type=click.FloatRange(1),
        default=300.0,
        help="Seconds until a saved session whose client is silent leaves memory; it goes on from the disk.",
    ),
    option(
        "--sessions-days",
        type=click.FloatRange(0.001),
        default=7.0,
        help="Days after which a saved session that nobody came back to is deleted.",
    ),
)
pool_options = stack(
    option("--no-pools", is_flag=True, help="Keep no prepared material for clients."),
    option(
        "--pool-limit",
        type=click.FloatRange(0.001),
        default=4.0,
        help="Gigabytes of prepared material at most, for each client.",
    ),
    option(
        "--pools-total",
        type=click.FloatRange(0.001),
        default=64.0,
        help="Gigabytes of prepared material at most, for all clients together.",
    ),
)
scale_options = stack(
    option(
        "--ray",
        metavar="ADDRESS|local",
        help="hybrid: multiply matrices on this Ray cluster. Its machines see what the server sees, and the "
        "weights.",
    ),
    option("--ray-workers", type=click.IntRange(1, 1024), default=2, help="Processes that share a matrix."),
    option(
        "--ray-teams",
        type=click.IntRange(1, 1024),
        default=1,
        help="So many times that many workers, each with the whole model; a session belongs to one team.",
    ),
    option("--ray-cpus", type=click.FloatRange(0.1), default=1.0, help="Cores reserved for each worker."),
)
audit_options = stack(
    option(
        "--metrics-port",
        type=click.IntRange(0, 65535),
        help="Serve /health and /metrics over HTTP on this port; 0 picks a free one.",
    ),
    option("--metrics-host", default="127.0.0.1", help="Address of --metrics-port."),
    option(
        "--log-format", type=click.Choice(["text", "json"]), default="text", help="Of the events on stderr."
    ),
    option("--log-file", type=click.Path(), help="Append the events there as lines of JSON."),
    option(
        "--ready-file",
        type=click.Path(),
        help="Write address, fingerprint and process id there once listening.",
    ),
    option(
        "--report-file", type=click.Path(), help="Append one line of JSON about every session that ended."
    ),
    option(
        "--record-received", type=click.Path(), help="Append size and first bytes of every frame received."
    ),
    option("--stop-with-parent", is_flag=True, hidden=True),
)


@click.command()
@click.argument("model")
@option(
    "--engine",
    type=click.Choice(["hybrid", "fhe", "scx", "clear"]),
    default="hybrid",
    help="How the model is executed.",
)
@option(
    "--kv",
    type=click.Choice(KV_STRATEGIES),
    default="ciphertext",
    help="hybrid: how keys and values are kept.",
)
@option(
    "--arithmetic", type=click.Choice(["float", "fixed"]), default="float", help="clear: kind of numbers."
)
@scx_options
@network_options
@quota_options
@dealer_option
@pool_options
@session_options
@scale_options
@audit_options
@quiet_option
def serve(
    model: str, worker: int | None, ready_file: str | None, stop_with_parent: bool, quiet: bool, **flags: Any
) -> None:
    """Serve MODEL (a name that `sottovoce models` lists, or a path) to clients that keep their prompts to
    themselves.

    Ctrl-C or SIGTERM stops: idle sessions end at once, busy ones after the step they are at; a second one at
    once. Without a terminal, SIGHUP reads --api-key-file again.
    """
    from .console import Console
    from .hosting import Hosting

    console, parent = Console(quiet), os.getppid()
    check_accepted(flags["engine"], flags["accept_statistical_privacy"])
    if worker is not None and flags["engine"] != "scx":
        raise click.UsageError("--worker belongs to --engine scx")
    hosting = Hosting(console, flags)
    console.note(f"sottovoce serve: loading {model} …")
    from ..parties.server import listener

    listener(flags["host"], flags["port"]).close()  # loading takes long: say now what would fail then
    hosting.load(model)
    server = hosting.listen()
    stop_on_signals(server, console)
    if flags["api_key_file"] and not sys.stderr.isatty():  # on a terminal SIGHUP says that it is gone
        signal.signal(signal.SIGHUP, lambda number, frame: hosting.reload())
    if ready_file:
        write_ready(Path(ready_file), server.host, server.port, hosting.fingerprint, hosting.metrics_port)
    if stop_with_parent:
        threading.Thread(target=watch_parent, args=(server, parent), daemon=True).start()
    if worker is not None:
        start_worker((server.host, server.port), flags["host"], worker, hosting.fingerprint, ready_file)
    server.serve_forever()
    hosting.stopping()
    console.note("stopping: waiting for busy sessions to finish their step (Ctrl-C again to cut them off)")
    if not server.wait(_GRACE):
        console.note("some sessions were cut off")
    hosting.close()


def stop_on_signals(server: Any, console: Any) -> None:
    """First SIGINT or SIGTERM: stop politely. Second: at once."""

    def handle(number: int, frame: Any) -> None:
        if stopping:
            os._exit(130 if number == signal.SIGINT else 143)
        stopping.append(number)
        server.stop()

    stopping: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handle)


def write_ready(
    path: Path, host: str, port: int, fingerprint: str | None, metrics_port: int | None = None
) -> None:
    """Say where a server listens. Atomically: whoever waits for the file never reads half of it."""
    temporary = path.with_suffix(".part")
    entries = {"host": host, "port": port, "fingerprint": fingerprint, "pid": os.getpid()}
    if metrics_port is not None:
        entries["metrics_port"] = metrics_port
    temporary.write_text(json.dumps(entries))
    temporary.replace(path)


def watch_parent(server: Any, parent: int) -> None:
    """A server that was started by `demo` must not outlive it. parent: its process when this one began, for
    it may have ended while the model was loaded."""
    while os.getppid() == parent:
        time.sleep(1.0)
    server.stop()
    time.sleep(5.0)
    os._exit(1)
