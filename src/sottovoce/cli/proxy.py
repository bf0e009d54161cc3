"""`sottovoce proxy`: OpenAI's interface and a chat page, on the data owner's machine."""

import signal
from typing import Any

import click

from .generate import connection_options, draft_options, pool_option, sampling_options
from .options import option, quiet_option


@click.command()
@click.argument("server")
@option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8080,
    envvar="SOTTOVOCE_PROXY_PORT",
    help="Port on this machine; 0 picks a free one.",
)
@option("--sessions", type=click.IntRange(1, 64), default=1, help="Answers at the same time, a session each.")
@option("--waiting", type=click.IntRange(0), default=4, help="Requests that may wait; more are told 429.")
@option(
    "--keep-ready",
    type=click.IntRange(0),
    default=64,
    help="Tokens to keep prepared while nothing is asked, if `sottovoce prepare` has made a pool.",
)
@option(
    "--insecure-host",
    default=None,
    help="Listen on this address instead of 127.0.0.1: prompts are in the clear there. For containers whose "
    "port is published on the loopback interface only.",
)
@sampling_options
@draft_options
@connection_options
@pool_option
@quiet_option
def proxy(
    server: str,
    port: int,
    sessions: int,
    waiting: int,
    keep_ready: int,
    insecure_host: str | None,
    quiet: bool,
    **flags: Any,
) -> int:
    """Offer the model of SERVER (host:port) to programs that speak OpenAI's interface, and a chat page.

    Runs on the machine of the person with the secret and listens on 127.0.0.1 only: on this side of it,
    prompts and answers are in the clear. SERVER never sees them.
    """
    from .console import Console

    console = Console(quiet)
    console.note(f"starting a proxy to {server} …")
    try:
        from ..proxy.app import create_app
        from ..proxy.serving import WebServer
    except ImportError as error:
        from ..errors import UsageError

        raise UsageError(
            f"the proxy needs {error.name}; install it with: pip install 'sottovoce[proxy]'"
        ) from None
    gateway = _gateway(console, server, flags, sessions, waiting, keep_ready)
    web = WebServer(create_app(gateway), insecure_host or "127.0.0.1", port)
    if insecure_host is not None:
        console.warn(f"listening on {insecure_host}: whoever reaches this port can read and ask in the clear")
    console.note(f"OpenAI's interface at {web.url}/v1, a chat page at {web.url}/ (Ctrl-C ends)")
    # The web server ends on SIGTERM, then sends it once more to whoever handled it before: a clean end.
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    web.run()
    return 0


def _gateway(
    console: Any, server: str, flags: dict[str, Any], sessions: int, waiting: int, keep_ready: int
) -> Any:
    from ..parties import Address, CardCache
    from ..parties.paths import card_cache_dir, config_dir
    from ..proxy.gateway import Gateway, Plan
    from ..proxy.statement import StatementFile
    from .generate import build_speculation, generation_options, open_client

    address = str(Address.parse(server))
    return Gateway(
        address,
        lambda: open_client(console, server, flags),
        Plan(sessions, waiting, keep_ready, generation_options(flags)),
        statements=StatementFile(config_dir() / "proxy", address),
        cards=CardCache(card_cache_dir()),
        speculation=lambda card: build_speculation(console, flags, card),
    )
