"""`sottovoce demo`: a server and a client on this machine, and what each of them saw."""

import json
import sys
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import click

from ..engines.registry import KV_STRATEGIES
from .generate import draft_options
from .options import json_option, option, quiet_option

PROMPT = "Write two sentences about the sea."


@click.command()
@click.argument("prompt", default=PROMPT)
@option("--model", default="smollm2-135m", help="Model to serve: a name or a path.")
@option(
    "--engine", type=click.Choice(["hybrid", "clear"]), default="hybrid", help="How the model is executed."
)
@option(
    "--kv",
    type=click.Choice(KV_STRATEGIES),
    default="masked",
    help="hybrid: how keys and values are kept.",
)
@option(
    "--prepare",
    type=click.IntRange(0),
    default=None,
    help="hybrid: tokens to prepare before the question; 0 for none.  [default: all that are needed]",
)
@option("--max-tokens", "-n", type=click.IntRange(1), default=16, help="New tokens at most.")
@draft_options
@json_option
@quiet_option
def demo(
    prompt: str,
    model: str,
    engine: str,
    kv: str,
    prepare: int | None,
    max_tokens: int,
    draft: str | None,
    draft_tokens: int | None,
    as_json: bool,
    quiet: bool,
) -> int:
    """Start a server in another process, ask it PROMPT privately, and show what it saw."""
    from .console import Console

    console = Console(quiet)
    console.note(f"sottovoce demo: serving {model} in another process, engine {engine} …")
    with TemporaryDirectory(prefix="sottovoce-demo-") as directory:
        show = _Demo(console, Path(directory), model, engine, kv, prepare)
        outcome = show.run(prompt, max_tokens, {"draft": draft, "draft_tokens": draft_tokens}, as_json)
    if as_json:
        print(json.dumps(outcome, ensure_ascii=False))
    return 130 if outcome["finish_reason"] == "cancelled" else 0


class _Demo:
    """Two processes, one answer, then the explanation."""

    def __init__(
        self, console: Any, directory: Path, model: str, engine: str, kv: str, prepare: int | None
    ) -> None:
        self.console = console
        self.directory = directory
        self.model, self.engine, self.kv = model, engine, kv
        self.prepare = prepare

    def run(self, prompt: str, max_tokens: int, draft: dict[str, Any], as_json: bool) -> dict[str, Any]:
        from ..parties import GenerationOptions, generate
        from .child import ServerProcess
        from .generate import TextWriter, build_prompt, build_speculation, say_cost, say_what_is_public

        with ServerProcess(self.directory, self.model, self.engine, self.kv, self.console) as server:
            client = server.connect(pools=self.engine == "hybrid" and self.prepare != 0)
            with client:
                tokens = build_prompt(
                    client.card, prompt, {"public_file": None, "system_prompt": None, "chat": None}
                )
                self.console.note(f"you ask: {prompt!r}")
                say_what_is_public(self.console, client, tokens)
                speculation = build_speculation(self.console, draft, client.card)
                client.setup(self.console.progress)
                self._fill_pool(client, len(tokens.private) + max_tokens)
                writer = TextWriter(self.console, silent=as_json)
                options = GenerationOptions(max_tokens)
                done = generate(client, tokens, options, writer.write, self.console.progress, speculation)
                writer.finish()
                agreed, rows = client.welcome.options, client.ledger.rows()
                card = client.card
            server.stop()
            received, report = server.received(), server.report()
        say_cost(self.console, done)
        _show_received(self.console, received)
        _show_who_learns(self.console, agreed, done, tokens)
        _show_ledger(self.console, rows)
        equal, compared = _compare(self.console, self.model, tokens, done)
        return _outcome(card, agreed, done, rows, received, report, equal, compared)

    def _fill_pool(self, client: Any, needed: int) -> None:
        """One-time material for the tokens to come, made while nothing of them is known to anybody."""
        from .console import seconds_text, size_text

        if not client.has_pool:
            return
        tokens = needed if self.prepare is None else self.prepare
        self.console.note(f"filling the pool: {tokens} tokens, before any of them is known …")
        client.prepare(tokens, self.console.progress)
        cost = client.ledger.total("prepare")
        cost.add(client.ledger.total("offline"))
        self.console.note(
            f"{client.ready(tokens)} tokens are prepared: {seconds_text(cost.seconds)}, "
            f"{size_text(cost.wire_up + cost.wire_down)}, of which most is fetched only once per server"
        )


def _show_received(console: Any, received: list[dict[str, Any]]) -> None:
    """What the server got, as it got it: sizes, and the first bytes of a few frames."""
    from .console import size_text

    total = sum(frame["size"] for frame in received)
    largest = sorted(range(len(received)), key=lambda i: -received[i]["size"])[:3]
    picks = sorted({*largest, *range(len(received) // 3, len(received), max(1, len(received) // 4))})[:7]
    rows = [[str(i + 1), size_text(received[i]["size"]), received[i]["first"]] for i in picks]
    title = f"\nwhat the server received: {len(received)} frames, {size_text(total)}; for example"
    console.table(title, ("frame", "size", "first bytes (hex)"), rows, left=3)


def _show_who_learns(console: Any, options: Any, done: Any, prompt: Any) -> None:
    from ..engines.explain import who_learns_what

    rows = who_learns_what(options, len(prompt.public), len(prompt.private), len(done.token_ids))
    if done.usage.drafted_tokens:
        rows.append(
            (f"guesses ({done.usage.drafted_tokens})", "knows them", "how many, and how many were right")
        )
    console.table("\nwho could learn what", ("", "you", "the server"), rows, left=3)


def _show_ledger(console: Any, rows: list[Any]) -> None:
    from .console import LEDGER_HEADERS, condense, ledger_rows

    shown = condense([row for row in rows if row.phase])
    console.table("\nthe ledger (client's side)", LEDGER_HEADERS, ledger_rows(shown), left=2)


def _compare(console: Any, model: str, prompt: Any, done: Any) -> tuple[bool, int]:
    """Are the tokens those of the plaintext model, each position given the same text so far?"""
    import numpy as np

    from ..models import load_model

    if not done.token_ids:
        return True, 0
    plain = load_model(model)
    text = [*prompt.tokens, *done.token_ids[:-1]]
    logits = plain.forward(text)[len(prompt.tokens) - 1 :]
    equal = int(np.sum(np.argmax(logits, axis=-1) == np.array(done.token_ids)))
    count = len(done.token_ids)
    verdict = "equal" if equal == count else "NOT all equal"
    console.note(f"\ntokens against the plaintext model: {equal} of {count} {verdict}")
    return equal == count, equal


def _outcome(
    card: Any,
    options: Any,
    done: Any,
    rows: list[Any],
    received: list[dict[str, Any]],
    report: dict[str, Any],
    equal: bool,
    compared: int,
) -> dict[str, Any]:
    """The JSON object: the stable keys first, then the rest."""
    from dataclasses import asdict

    from ..bench.machine import header

    setup = [row for row in rows if row.phase == "setup"]
    return {
        "text": done.text,
        "tokens": len(done.token_ids),
        "tokens_equal_plaintext": equal,
        "seconds_per_token": median(s for s, _ in done.per_token) if done.per_token else None,
        "bytes_per_token": median(b for _, b in done.per_token) if done.per_token else None,
        "tokens_equal": compared,
        "token_ids": done.token_ids,
        "finish_reason": done.finish_reason,
        "usage": done.usage.to_json(),
        "setup": {
            "seconds": sum(r.seconds for r in setup),
            "bytes": sum(r.wire_up + r.wire_down for r in setup),
        },
        "model": card.name,
        "engine": options.engine,
        "kv": options.kv,
        "server_received": {
            "frames": len(received),
            "bytes": sum(f["size"] for f in received),
            "sample": [f["first"] for f in received[-3:]],
        },
        "server": {k: report.get(k) for k in ("cpu_seconds", "peak_memory_bytes", "ended")},
        "ledger": [asdict(row) for row in rows],
        **header(),
    }


if __name__ == "__main__":
    sys.exit(demo())
