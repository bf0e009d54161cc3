"""`sottovoce prepare`: do ahead what does not depend on the prompt."""

import json
from typing import Any

import click

from .generate import connection_options
from .options import json_option, option, quiet_option


@click.command()
@click.argument("server")
@option(
    "--tokens", "-n", type=click.IntRange(1), default=256, help="Tokens of prompts and answers to prepare."
)
@option(
    "--pool-limit",
    type=click.FloatRange(0.001),
    default=4.0,
    help="Gigabytes of prepared material at most, on this machine.",
)
@option(
    "--reset",
    is_flag=True,
    help="Delete what was prepared before, here and at the server; the way out if the pool is refused.",
)
@connection_options
@json_option
@quiet_option
def prepare(
    server: str, tokens: int, pool_limit: float, reset: bool, as_json: bool, quiet: bool, **flags: Any
) -> int:
    """Fill the pool that this machine shares with SERVER (host:port), so that answers come faster.

    Nothing about later prompts is needed or sent. What was made is kept on both machines until it is spent;
    Ctrl-C keeps what is complete.
    """
    from ..net.ledger import total
    from ..parties import Pools
    from ..parties.paths import pools_dir
    from .console import Console, seconds_text, size_text
    from .generate import open_client

    console = Console(quiet)
    console.note(f"connecting to {server} …")
    pools = Pools(pools_dir(), int(pool_limit * 1e9), make=True, reset=reset)
    with open_client(console, server, flags, pools) as client:
        tokens = min(tokens, client.card.config.context_length)
        client.setup(console.progress)
        before = ready(console, client, tokens)
        start = client.ledger.snapshot()
        if before < tokens:
            client.prepare(tokens, console.progress)
        after, cost = client.ready(tokens), total(client.ledger.since(start))
    if as_json:
        outcome = {
            "tokens_ready": after,
            "tokens_prepared": after - before,
            "seconds": cost.seconds,
            "bytes_up": cost.wire_up,
            "bytes_down": cost.wire_down,
        }
        print(json.dumps(outcome))
    console.note(
        f"{after} tokens are ready, {after - before} of them new: {seconds_text(cost.seconds)}, "
        f"{size_text(cost.wire_up)} up, {size_text(cost.wire_down)} down"
    )
    return 0


def ready(console: Any, client: Any, most: int) -> int:
    """How many tokens are ready; UsageError if this session cannot have a pool."""
    from ..errors import UsageError

    if not client.has_pool:
        raise UsageError(
            "the server keeps no prepared material; start it with the engine hybrid and without --no-pools"
        )
    count = int(client.ready(most))
    console.note(f"{count} tokens are ready")
    return count


def say_ready(console: Any, client: Any, tokens: int) -> None:
    """How many of the tokens to come are prepared, if this session has a pool."""
    if client.has_pool:
        count = client.ready(tokens)
        line = f"prepared ahead: {count} of at most {tokens} tokens"
        if count < tokens:
            line += "; the others take longer (`sottovoce prepare` makes more)"
        console.note(line)
