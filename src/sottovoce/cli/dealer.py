"""`sottovoce dealer`: the third party that `--insecure-dealer` trusts."""

from typing import Any

import click

from .options import option, quiet_option


@click.command()
@option("--host", default="127.0.0.1", help="Address to listen on; 0.0.0.0 for every interface.")
@option("--port", type=click.IntRange(0, 65535), default=7444, help="Port to listen on; 0 picks a free one.")
@option("--ready-file", type=click.Path(), help="Write address and process id there once listening.")
@quiet_option
def dealer(host: str, port: int, ready_file: str | None, quiet: bool) -> None:
    """Deal one-time material to pairs of parties that trust this machine not to collude with either.

    It sees nothing but how much they use. Whoever has what it dealt and one party's messages can read what
    the other party hides. Never run it on the machine of the server or of the client.
    """
    from pathlib import Path

    from ..engines.explain import DEALER_BANNER
    from ..net.tls import Certificate
    from ..parties.dealer import Dealer
    from ..parties.paths import config_dir
    from .console import Console
    from .serve import stop_on_signals, write_ready

    console = Console(quiet)
    certificate = Certificate(config_dir() / "dealer")

    def ended(reason: str) -> None:
        console.note(f"a session ended: {reason}")

    service = Dealer(host=host, port=port, tls=certificate.context(), on_end=ended)
    stop_on_signals(service, console)
    console.warn(DEALER_BANNER)
    console.note(f"TLS certificate {certificate.fingerprint}")
    console.note(f"dealing on {service.host}:{service.port}")
    if ready_file:
        write_ready(Path(ready_file), service.host, service.port, certificate.fingerprint)
    service.serve_forever()


dealer_option = option(
    "--insecure-dealer",
    metavar="HOST[:PORT]",
    help="Take one-time material from this third machine instead of making it with the other party: much"
    " faster, and secure only if nobody who runs it colludes with either party.",
)


def connector(address: str | None) -> Any:
    """Connects to the dealer named on the command line; None if there is none."""
    if address is None:
        return None
    from ..net.tls import KnownHosts
    from ..parties import Address
    from ..parties.dealer import DEALER_PORT, DealerAddress
    from ..parties.paths import known_hosts_path

    named = address if ":" in address else f"{address}:{DEALER_PORT}"
    return DealerAddress(Address.parse(named), KnownHosts(known_hosts_path())).connect
