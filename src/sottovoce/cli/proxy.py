"""`sottovoce proxy`: OpenAI's interface and a chat page, on the data owner's machine."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from .generate import connection_options, draft_options, pool_option, sampling_options
from .options import option, quiet_option
from .sessions import session_options


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
@option(
    "--token-file",
    type=click.Path(dir_okay=False),
    help="Answer only who shows the token in this file, as OpenAI's API key; made if there is no such file. "
    "For machines that other people use too.",
)
@sampling_options
@draft_options
@connection_options
@pool_option
@session_options
@quiet_option
def proxy(
    server: str,
    port: int,
    sessions: int,
    waiting: int,
    keep_ready: int,
    insecure_host: str | None,
    token_file: str | None,
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
        from ..proxy import app  # noqa: F401
    except ImportError as error:
        from ..errors import UsageError

        raise UsageError(
            f"the proxy needs {error.name}; install it with: pip install 'sottovoce[proxy]'"
        ) from None
    if flags["session"] is not None and sessions != 1:
        raise click.UsageError("--session keeps one session; leave --sessions at 1")
    token = None if token_file is None else _token(console, Path(token_file).expanduser())
    with _gateway(console, server, flags, sessions, waiting, keep_ready) as gateway:
        return _serve(console, gateway, insecure_host, port, token)


def _token(console: Any, path: Path) -> Any:
    from ..proxy.token import Token

    token = Token.of_file(path)
    if path.stat().st_mode & 0o077:
        console.warn(f"other users of this machine may read {path}: chmod 600 it")
    console.note(f"programs and the page must show the token in {path}")
    return token


def _serve(console: Any, gateway: Any, insecure_host: str | None, port: int, token: Any) -> int:
    from ..proxy.app import create_app
    from ..proxy.serving import WebServer

    web = WebServer(create_app(gateway, token=token), insecure_host or "127.0.0.1", port)
    if insecure_host is not None:
        console.warn(
            f"listening on {insecure_host}: whoever reaches this port can read and ask in the clear"
            + ("; --token-file keeps out who has no token" if token is None else ", with the token")
        )
    console.note(f"OpenAI's interface at {web.url}/v1, a chat page at {web.url}/ (Ctrl-C ends)")
    # The web server ends on SIGTERM, then sends it once more to whoever handled it before: a clean end.
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    web.run()
    if gateway.load[0]:
        # An answer in the middle of a long step: its native threads are not waited for.
        sys.stderr.flush()
        os._exit(0)
    return 0


@contextmanager
def _gateway(
    console: Any, server: str, flags: dict[str, Any], sessions: int, waiting: int, keep_ready: int
) -> Iterator[Any]:
    from ..parties import Address, CardCache
    from ..parties.paths import card_cache_dir, config_dir
    from ..proxy.gateway import Gateway, Plan
    from ..proxy.statement import StatementFile
    from .generate import build_speculation, generation_options
    from .sessions import Sessions

    address = str(Address.parse(server))
    keeping = Sessions(console, flags)
    with keeping.using(keeping.name) as saved:
        kept = Kept(console, server, flags, keeping, saved)
        yield Gateway(
            address,
            kept.connect,
            Plan(sessions, waiting, keep_ready, generation_options(flags)),
            statements=StatementFile(config_dir() / "proxy", address),
            cards=CardCache(card_cache_dir()),
            speculation=lambda card: build_speculation(console, flags, card),
            opened=kept.opened,
            failed=lambda error: console.warn(
                f"not connected yet, the first request tries again: {_said(error)}"
            ),
        )


def _said(error: Exception) -> str:
    """In its own words, unless they may quote what was said."""
    from ..errors import SottovoceError
    from .errors import describe

    return str(error) if isinstance(error, SottovoceError) else describe(error)


class Kept:
    """Connections of the proxy, the first one to the session that `--session` names."""

    def __init__(self, console: Any, server: str, flags: dict[str, Any], sessions: Any, saved: Any) -> None:
        self._console, self._server, self._flags = console, server, flags
        self._sessions, self._saved, self._next = sessions, saved, saved

    def connect(self) -> Any:
        """A session, handshake done."""
        from .generate import open_client

        saved, self._next = self._next, None
        return open_client(self._console, self._server, self._flags, saved=saved)

    def opened(self, client: Any) -> None:
        """Save it under the name, in place of an earlier one that was given up."""
        name = self._sessions.name
        if name is None:
            return
        store = self._sessions.store
        if not client.is_kept and (old := store.find(name)) is not None:
            store.remove(old.id)
        self._sessions.begin(client, self._server, name, self._saved if client.is_kept else None)
