"""`sottovoce bench`: thin wrappers over the functions of `sottovoce.bench`."""

import importlib
import json
from typing import Any

import click

from .options import json_option, option, quiet_option


@click.group()
def bench() -> None:
    """Measure. Every command prints one JSON object with --json; docs/benchmarks is made from them."""


@bench.command()
@option(
    "--engine", type=click.Choice(["hybrid", "clear"]), default="hybrid", help="How the model is executed."
)
@option("--model", default="smollm2-135m", help="A name or a path.")
@option(
    "--context", type=click.IntRange(1), default=64, help="Private positions before the first measured token."
)
@option("--new-tokens", type=click.IntRange(1), default=4, help="Measured tokens.")
@option(
    "--kv",
    type=click.Choice(["ciphertext", "none"]),
    default="ciphertext",
    help="How keys and values are kept.",
)
@json_option
@quiet_option
def e2e(as_json: bool, quiet: bool, **settings: Any) -> None:
    """Seconds, bytes and rounds per token, by phase and operation; peak memory; agreement with plaintext."""
    _run("e2e", as_json, quiet, settings)


@bench.command()
@option(
    "--engine",
    type=click.Choice(["hybrid", "clear"]),
    default="hybrid",
    help="Engine of the encrypted sample.",
)
@option("--model", default="smollm2-135m", help="A name or a path.")
@option("--text", type=click.Path(exists=True, dir_okay=False), required=True, help="A text file.")
@option("--tokens", type=click.IntRange(2), default=1024, help="Tokens of the text to use.")
@json_option
@quiet_option
def quality(as_json: bool, quiet: bool, **settings: Any) -> None:
    """Perplexity, KL and top-1 agreement of the fixed-point engine and, on a sample, of the encrypted one."""
    _run("quality", as_json, quiet, settings)


@bench.command()
@json_option
@quiet_option
def he(as_json: bool, quiet: bool) -> None:
    """NTT, ct×pt+accumulate, rotate, ct×ct+relinearise against SEAL (through TenSEAL) in one run."""
    _run("he", as_json, quiet, {})


@bench.command("all")
@option(
    "--output", type=click.Path(file_okay=False), default="docs/benchmarks", help="Directory of the tables."
)
@quiet_option
def everything(output: str, quiet: bool) -> None:
    """Run every benchmark and rewrite the tables in the documentation."""
    from .console import Console

    importlib.import_module("sottovoce.bench.report").run_all(output=output, progress=Console(quiet).progress)


def _run(name: str, as_json: bool, quiet: bool, settings: dict[str, Any]) -> None:
    """Call sottovoce.bench.<name>.run(**settings, progress=…) and print the dictionary it returns."""
    from .console import Console

    console = Console(quiet)
    console.note(f"bench {name}: running …")
    module = importlib.import_module(f"sottovoce.bench.{name}")
    outcome = module.run(**settings, progress=console.progress)
    console.end_progress()
    print(json.dumps(outcome, ensure_ascii=False) if as_json else "\n".join(describe(outcome)))


def describe(value: Any, name: str = "", indent: int = 0) -> list[str]:
    """A JSON value as indented lines; lists of equal objects become tables."""
    from .console import format_table

    pad = "  " * indent
    if isinstance(value, dict):
        lines = [f"{pad}{name}"] if name else []
        for key, entry in value.items():
            lines += describe(entry, key, indent + bool(name))
        return lines
    if (
        isinstance(value, list)
        and value
        and all(isinstance(v, dict) and v.keys() == value[0].keys() for v in value)
    ):
        rows = [[_cell(v) for v in entry.values()] for entry in value]
        return format_table(f"{pad}{name}", list(value[0]), rows).splitlines()
    return [f"{pad}{name}: {_cell(value)}"]


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | dict):
        return json.dumps(value)
    return str(value)
