"""What the commands need for the engine scx: its flags, its banner, and `sottovoce worker`."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import click

from .options import option, quiet_option, stack

_PROFILES = ("paper", "hardened")  # `engines.scx.NAMES`, without loading the engine

accept_option = option(
    "--accept-statistical-privacy",
    is_flag=True,
    help="scx: go on although this engine has NO cryptography and the published profile hides nothing.",
)
serve_options = stack(
    option(
        "--profile", type=click.Choice(_PROFILES), default="hardened", help="scx: how activations are hidden."
    ),
    accept_option,
    option(
        "--worker",
        type=click.IntRange(0, 65535),
        metavar="PORT",
        help="scx: also run the users' side here, in a process that listens on this port and that its users "
        "must trust; 0 picks a free one.",
    ),
)
client_options = stack(
    accept_option,
    option("--profile", type=click.Choice(_PROFILES), help="scx: insist on this profile.  [default: any]"),
)


def check_accepted(engine: str, accepted: bool) -> None:
    """RefusedError unless whoever chose this engine has said that it knows what it is."""
    from ..errors import RefusedError

    if engine == "scx" and not accepted:
        raise RefusedError(
            "the engine scx has statistical privacy at best, and none in profile 'paper'; read "
            "docs/design/scx.md and docs/security, then add --accept-statistical-privacy"
        )


def say_statement(console: Any, options: Any, public: dict[str, Any]) -> None:
    """The banner: privacy statement of the profile, and whether a worker stands in between."""
    if options.engine != "scx":
        return
    from ..engines.scx import statement_lines

    for line in statement_lines(options.profile):
        console.warn(line)
    if public.get("worker"):
        console.warn("this is a worker: it sees every token, and hides them from the server behind it")


@click.command()
@click.argument("server")
@option("--host", default="127.0.0.1", help="Address to listen on; 0.0.0.0 for every interface.")
@option("--port", type=click.IntRange(0, 65535), default=7445, help="Port to listen on; 0 picks a free one.")
@option("--fingerprint", help="Insist on the server's certificate with this fingerprint.")
@option("--insecure-plaintext", is_flag=True, help="No TLS. Only for benchmarks on one machine.")
@option("--max-sessions", type=click.IntRange(1), default=8, help="Sessions at the same time.")
@client_options
@option("--ready-file", type=click.Path(), help="Write address, fingerprint and process id there.")
@option("--stop-with-parent", is_flag=True, hidden=True)
@quiet_option
def worker(
    server: str,
    host: str,
    port: int,
    fingerprint: str | None,
    insecure_plaintext: bool,
    max_sessions: int,
    accept_statistical_privacy: bool,
    profile: str | None,
    ready_file: str | None,
    stop_with_parent: bool,
    quiet: bool,
) -> None:
    """Run the users' side of the engine scx for SERVER (host:port), for users who trust this machine.

    Users connect to it as to a server, with --accept-statistical-privacy. It sees their tokens; SERVER does
    not, as far as the profile hides them.
    """
    from ..engines.scx import WorkerEngine
    from ..net.tls import Certificate, KnownHosts
    from ..parties import Address, Client, Server, Welcome, Wish
    from ..parties.paths import known_hosts_path, server_key_dir
    from .console import Console
    from .serve import stop_on_signals, watch_parent, write_ready

    check_accepted("scx", accept_statistical_privacy)
    console, parent = Console(quiet), os.getppid()
    pin: Any = None if insecure_plaintext else fingerprint or KnownHosts(known_hosts_path())
    address, wish = Address.parse(server), Wish("scx", profile=profile)

    def connect() -> Client:
        client = Client.connect(address, wish, pin)
        client.setup()
        return client

    with Client.connect(address, wish, pin) as asked:
        offered = asked.welcome
    engine = WorkerEngine(offered.options, offered.public, connect)
    certificate = None if insecure_plaintext else Certificate(server_key_dir())
    service = Server(
        engine.session,
        Welcome(engine.options, engine.public(), offered.card),
        host=host,
        port=port,
        tls=certificate.context() if certificate else None,
        max_sessions=max_sessions,
    )
    stop_on_signals(service, console)
    say_statement(console, engine.options, engine.public())
    console.note(f"worker for {address}, listening on {service.host}:{service.port}")
    if ready_file:
        shown = None if certificate is None else certificate.fingerprint
        write_ready(Path(ready_file), service.host, service.port, shown)
    if stop_with_parent:
        threading.Thread(target=watch_parent, args=(service, parent), daemon=True).start()
    service.serve_forever()


def start_worker(
    address: tuple[str, int], host: str, port: int, fingerprint: str | None, ready_file: str | None
) -> subprocess.Popen[bytes]:
    """`sottovoce worker` beside a server that listens at `address`; it ends with this process."""
    inside = "127.0.0.1" if address[0] in ("0.0.0.0", "::") else address[0]
    command = [sys.executable, "-m", "sottovoce", "worker", f"{inside}:{address[1]}", "--host", host]
    command += ["--port", str(port), "--accept-statistical-privacy", "--stop-with-parent"]
    command += ["--fingerprint", fingerprint] if fingerprint else ["--insecure-plaintext"]
    command += ["--ready-file", ready_file + ".worker"] if ready_file else []
    return subprocess.Popen(command, stdin=subprocess.DEVNULL)
