"""`sottovoce bench`: thin wrappers over the functions of `sottovoce.bench`."""

import importlib
import json
from collections.abc import Callable
from typing import Any

import click

from ..engines.registry import KV_STRATEGIES
from .options import F, json_option, option, quiet_option, stack

_context_option = option(
    "--context", type=click.IntRange(1), default=64, help="Private positions before the first measured token."
)
_model_option = option("--model", default="smollm2-135m", help="A name or a path.")
_kv_option = option(
    "--kv", type=click.Choice(KV_STRATEGIES), default="ciphertext", help="How keys and values are kept."
)
_profile_option = option(
    "--profile", type=click.Choice(["paper", "hardened"]), default="paper", help="scx: which profile."
)
_prepared_option = option(
    "--prepared",
    type=click.IntRange(0),
    default=0,
    help="Prepare products of matrices for so many tokens at a time; 0 makes them online.",
)


def _tokens_option(default: int) -> Callable[[F], F]:
    return option("--new-tokens", type=click.IntRange(1), default=default, help="Measured tokens.")


def _common(command: F) -> F:
    """Options of every benchmark."""
    output = option(
        "--output",
        type=click.Path(file_okay=False),
        envvar="SOTTOVOCE_BENCH_OUTPUT",
        help="Also save the result in this directory, and make its table again.",
    )
    return stack(output, json_option, quiet_option)(command)


def _ascending(ctx: click.Context, param: click.Parameter, value: str) -> tuple[int, ...]:
    """64,128,256 -> (64, 128, 256)."""
    try:
        numbers = tuple(int(part) for part in value.split(","))
    except ValueError:
        numbers = ()
    if not numbers or list(numbers) != sorted(set(numbers)) or numbers[0] < 1:
        raise click.BadParameter(f"{value!r} is not a list of ascending positive integers such as 64,128,256")
    return numbers


def _networks(ctx: click.Context, param: click.Parameter, value: str) -> tuple[Any, ...]:
    """loopback,lan -> the networks of these names."""
    known = {network.name: network for network in importlib.import_module("sottovoce.bench.shaped").NETWORKS}
    names = value.split(",")
    if not set(names) <= known.keys():
        raise click.BadParameter(f"{value!r}: known networks are {', '.join(known)}")
    return tuple(known[name] for name in names)


def _proxied(ctx: click.Context, param: click.Parameter, value: str) -> str:
    """clear,masked, or one of them."""
    if not set(value.split(",")) <= {"clear", "masked"}:
        raise click.BadParameter(f"{value!r}: known are clear and masked")
    return value


@click.group()
def bench() -> None:
    """Measure. Every command prints one JSON object with --json; docs/benchmarks is made from them."""


@bench.command()
@option(
    "--engine",
    type=click.Choice(["hybrid", "fhe", "scx"]),
    default="hybrid",
    help="How the model is executed; fhe writes its own answer to a prompt of two tokens.",
)
@_profile_option
@_model_option
@_context_option
@_tokens_option(4)
@_kv_option
@_prepared_option
@option("--text", type=click.Path(exists=True, dir_okay=False), help="A file to decode along.")
@option("--repeat", type=click.IntRange(1), default=1, help="Sessions with fresh keys; medians over all.")
@_common
def e2e(**settings: Any) -> None:
    """Seconds, bytes and rounds per token, by phase and operation; peak memory; agreement with plaintext."""
    _run_engine("e2e", settings, ("context", "new_tokens", "text", "repeat"))


@bench.command()
@_model_option
@_kv_option
@option("--contexts", default="64,128,256,512,1024", callback=_ascending, help="Where to measure.")
@_tokens_option(2)
@_prepared_option
@_common
def growth(**settings: Any) -> None:
    """Decode seconds, bytes and memory while the context grows."""
    _run("growth", settings)


@bench.command()
@_model_option
@_kv_option
@option("--tokens", type=click.IntRange(2), default=64, help="Private tokens that are passed together.")
@_common
def prefill(**settings: Any) -> None:
    """Private tokens in one pass: several of them in a ciphertext against one in a ciphertext."""
    _run("prefill", settings)


@bench.command()
@_model_option
@_kv_option
@_context_option
@_tokens_option(3)
@_prepared_option
@_common
def network(**settings: Any) -> None:
    """A decode step over loopback, an emulated LAN (1 Gbit/s, 0.5 ms) and WAN (100 Mbit/s, 40 ms)."""
    _run("network", settings)


@bench.command()
@option(
    "--spu-python",
    type=click.Path(exists=True, dir_okay=False),
    help="The Python of an environment that holds SPU 0.9.5; without it SPU is skipped.",
)
@_kv_option
@_context_option
@option("--repeat", type=click.IntRange(1), default=16, help="Tokens measured on our side.")
@_prepared_option
@_common
def peers(**settings: Any) -> None:
    """One decoder block against SPU Cheetah, and lattice operations against SEAL, in one run."""
    _run("peers", settings)


@bench.command()
@_model_option
@_kv_option
@option("--prompts", type=click.IntRange(1), default=20, help="How many of the built-in prompts.")
@_tokens_option(16)
@_prepared_option
@_common
def agreement(**settings: Any) -> None:
    """Greedy answers to built-in prompts: how often the private model's token is the float32 model's."""
    _run("agreement", settings)


@bench.command()
@option(
    "--engine",
    type=click.Choice(["hybrid", "clear", "scx"]),
    default="hybrid",
    help="Engine of the encrypted sample; scx reads all of the text.",
)
@_profile_option
@option("--start", type=click.IntRange(0), default=0, help="scx: token of the text to begin with.")
@_model_option
@_kv_option
@option(
    "--text",
    type=click.Path(exists=True, dir_okay=False),
    help="A text file, or a .jsonl file of LAMBADA's passages.",
)
@option(
    "--tokens", type=click.IntRange(2), help="Tokens of the text to use; without it 1,024, or all it has."
)
@option("--chain", type=click.IntRange(1), help="Instead of a text: the length of free-running answers.")
@option("--sample", type=click.IntRange(0), default=12, help="Positions of the encrypted sample.")
@_common
def quality(**settings: Any) -> None:
    """Perplexity, KL and top-1 agreement of the fixed-point engine and, on a sample, of the encrypted one."""
    _run_engine("quality", settings, ("text", "tokens", "start"))


@bench.command()
@_profile_option
@_model_option
@option(
    "--text",
    type=click.Path(exists=True, dir_okay=False),
    required=True,
    help="A text file to take contexts from.",
)
@option(
    "--tokens", type=click.IntRange(32), help="Tokens to predict, 32 behind each context.  [default: 512]"
)
@_common
def keys(**settings: Any) -> None:
    """What a session's cache of the engine scx is worth without the user's keys: perplexity behind it."""
    _run("scx", {"what": "keys", **settings})


@bench.command()
@_common
def he(**settings: Any) -> None:
    """NTT, ct×pt+accumulate, rotate, ct×ct+relinearise against SEAL (through TenSEAL) in one run."""
    _run("he", settings)


@bench.command()
@_common
def matrix(**settings: Any) -> None:
    """Products of matrices made ahead, by the number of tokens they are made for, against online ones."""
    _run("matrix", settings)


@bench.command()
@option("--slots", type=click.IntRange(2, 1 << 15), default=1 << 15, help="Slots in use, a power of two.")
@option(
    "--set",
    type=click.Choice(["boot16", "engine16", "full16"]),
    default="boot16",
    help="Our parameter set; boot16 is the peer's kind of secret.",
)
@option(
    "--message-ratio",
    type=click.IntRange(1, 10),
    default=4,
    help="Bits between the message and the modulus.",
)
@option("--threads", type=click.IntRange(1), default=1, help="Threads (and cores) of both sides.")
@option("--repeat", type=click.IntRange(1), default=3, help="Measured runs after a first one.")
@option(
    "--peer-python",
    type=click.Path(exists=True, dir_okay=False),
    help="A Python to load Lattigo with; this one if unset. LATTIGO_SO names the library.",
)
@_common
def bootstrap(**settings: Any) -> None:
    """A CKKS bootstrap beside Lattigo's (18 GB; skipped without LATTIGO_SO or the memory)."""
    _run("bootstrap", settings)


@bench.command()
@_common
def polynomials(**settings: Any) -> None:
    """Polynomials of ciphertexts: the slim method against Paterson and Stockmeyer's."""
    _run("polynomials", settings)


@bench.command()
@_model_option
@_kv_option
@option("--draft", default="ngram", help="Who guesses: ngram, or a model with the same tokenizer.")
@option("--draft-tokens", type=click.IntRange(1), help="Guesses per pass; adapted to their success if unset.")
@_tokens_option(24)
@option("--networks", default="loopback,lan,wan", callback=_networks, help="Networks to answer over.")
@_common
def draft(**settings: Any) -> None:
    """One answer with and without guessed tokens that are verified together."""
    _run("draft", settings)


_engine_option = option(
    "--kv",
    type=click.Choice(["clear", "paper", "hardened", *KV_STRATEGIES]),
    default="masked",
    help="The cache of the engine hybrid, a profile of scx, or the engine without cryptography.",
)


@bench.command()
@option("--points", type=click.IntRange(1), default=1000, help="Sessions in which something goes wrong.")
@option("--seed", type=int, default=0, help="Chooses the same points again.")
@option("--pool", is_flag=True, help="Sessions spend prepared material.")
@option("--jobs", type=click.IntRange(1), help="Points at the same time.  [default: one a processor]")
@_engine_option
@_common
def faults(**settings: Any) -> None:
    """Broken connections, damaged frames and killed processes at random points of kept sessions."""
    _run("faults", settings)


@bench.command()
@option("--sessions", type=click.IntRange(1), default=8, help="At the same time.")
@option("--tokens", type=click.IntRange(2), default=16, help="Of each answer.")
@option("--model", default="tiny", help="A name or a path; tiny is a random model.")
@option("--after", type=click.IntRange(0), default=50, help="Short sessions, for the server's memory.")
@_engine_option
@_common
def load(**settings: Any) -> None:
    """Sessions at the same time: do they finish together, and does the server give back its memory?"""
    _run("load", settings)


@bench.command()
@_model_option
@option("--kv", default="clear,masked", callback=_proxied, help="Engines behind the proxy, commas between.")
@_tokens_option(12)
@option("--repeat", type=click.IntRange(1), default=4, help="Answers each way.")
@_common
def proxy(**settings: Any) -> None:
    """The same answer through the proxy and without it, and /v1/models while the server is down."""
    _run("proxy", settings)


@bench.command()
@option("--model", default="stories260K", help="A name or a path.")
@option("--tokens", default="16,32", callback=_ascending, help="Private tokens of each chunk.")
@_common
def chunk(**settings: Any) -> None:
    """Private tokens through one layer under FHE: together, against one alone."""
    _run("chunk", settings)


@bench.command()
@option("--shape", type=click.Choice(["smollm2-135m", "gpt2"]), default="smollm2-135m", help="Whose layer.")
@option("--public", type=click.IntRange(0), default=0, help="Tokens of a public prefix.")
@option("--private", type=click.IntRange(2), default=32, help="Tokens behind it; the last one is timed.")
@_common
def layer(**settings: Any) -> None:
    """One decoder layer with a model's shapes under FHE, by operation; alone and behind a public prefix."""
    _run("layer", settings)


@bench.command()
@_model_option
@option("--texts", type=click.IntRange(1), default=6, help="Sequences of 48 tokens to look at.")
@_common
def ranges(**settings: Any) -> None:
    """Extremes in a model before and after outlier control: a public first token, rotations."""
    _run("ranges", settings)


@bench.command()
@option("--width", type=click.IntRange(256, 1 << 14), default=1024, help="Of the matrix, a power of two.")
@option("--repeat", type=click.IntRange(1), default=1, help="Medians over so many products.")
@_common
def packings(**settings: Any) -> None:
    """One private token times a matrix in four layouts: irp, plain diagonals, MOAI's, THOR's."""
    _run("packings", settings)


@bench.command()
@_model_option
@option("--ray", metavar="ADDRESS", help="A cluster to join; without it two nodes are made on this machine.")
@option("--workers", type=click.IntRange(1), default=2, help="That share every matrix.")
@option("--tokens", type=click.IntRange(1), default=64, help="Of a batch that is made ahead.")
@option("--repeat", type=click.IntRange(1), default=5, help="Measured products after a first one; medians.")
@_common
def ray(**settings: Any) -> None:
    """Products of matrices on a Ray cluster against one process, and whether their bits are the same."""
    _run("ray", settings)


@bench.command("all")
@option(
    "--output",
    type=click.Path(file_okay=False),
    default="docs/benchmarks",
    envvar="SOTTOVOCE_BENCH_OUTPUT",
    help="Directory of the tables.",
)
@option("--texts", type=click.Path(exists=True, file_okay=False), help="Directory of .txt files for quality.")
@quiet_option
def everything(output: str, texts: str | None, quiet: bool) -> None:
    """Run every benchmark (hours) and rewrite the tables in the documentation."""
    from .console import Console

    report = importlib.import_module("sottovoce.bench.report")
    report.run_all(output=output, progress=Console(quiet).progress, texts=texts)


def _run_engine(name: str, settings: dict[str, Any], for_scx: tuple[str, ...]) -> None:
    """A benchmark that the engine scx has its own way of, with these of the settings."""
    if settings["engine"] == "fhe":
        own = ("engine", "model", "new_tokens", "output", "as_json", "quiet")
        _run("fhe", {"what": name, **{key: settings[key] for key in own}})
        return
    if settings["engine"] == "scx":
        kept = ("engine", "model", "profile", "output", "as_json", "quiet", *for_scx)
        _run("scx", {"what": name, **{key: settings[key] for key in kept}})
        return
    for key in ("profile", "start"):
        settings.pop(key, None)
    _run(name, settings)


def _run(name: str, settings: dict[str, Any]) -> None:
    """Run sottovoce.bench.<name>, save what it returns if asked to, and print it."""
    from .console import Console

    output, as_json, quiet = (settings.pop(key) for key in ("output", "as_json", "quiet"))
    console = Console(quiet)
    console.note(f"bench {name}: running …")
    report = importlib.import_module("sottovoce.bench.report")
    outcome = report.run_one(name, settings, console.progress)
    console.end_progress()
    if output is not None:
        console.note(f"saved in {report.save(name, outcome, settings, output)}")
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
