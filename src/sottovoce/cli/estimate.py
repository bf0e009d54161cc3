"""`sottovoce estimate`: what an answer would cost, before there is a server."""

import json
from dataclasses import asdict, replace
from typing import Any

import click

from .options import json_option, option, quiet_option

_ALL = "all"


@click.command()
@click.argument("model")
@option(
    "--engine",
    type=click.Choice([_ALL, "hybrid", "fhe", "scx", "clear"]),
    default=_ALL,
    help="What to estimate.",
)
@option(
    "--kv",
    type=click.Choice([_ALL, "ciphertext", "masked", "none"]),
    default=_ALL,
    help="The cache of the engine hybrid.",
)
@option("--prompt-tokens", type=click.IntRange(1), default=128, help="Private tokens of the prompt.")
@option("--public-tokens", type=click.IntRange(0), default=0, help="Tokens before them that may be read.")
@option("--new-tokens", "-n", type=click.IntRange(2), default=32, help="Tokens of the answer.")
@option(
    "--prepared",
    type=click.IntRange(0),
    default=None,
    help="Tokens prepared ahead of the prompt, for --kv masked.  [default: all of them]",
)
@option("--net", default="lan", help="local, lan, wan, or RTT,MBIT in milliseconds and megabits a second.")
@option(
    "--server-cores",
    type=click.IntRange(1),
    default=1,
    help="Cores of the server that share the products of matrices, as if nothing were lost.",
)
@option("--nodes", type=click.IntRange(1), help="The server is a cluster of so many machines (hybrid).")
@option("--cores-per-node", type=click.IntRange(1), default=16, help="Of the cluster's machines.")
@option("--cluster-net", default="0.1,10000", help="Between them: RTT,MBIT as for --net.")
@option("--no-calibration", is_flag=True, help="Speeds of the machine in the docs, not of this one.")
@option(
    "--from-weights",
    is_flag=True,
    help="Load the weights for the model's own ranges, instead of typical ones: exact to the last byte.",
)
@json_option
@quiet_option
def estimate(
    model: str,
    engine: str,
    kv: str,
    prompt_tokens: int,
    public_tokens: int,
    new_tokens: int,
    prepared: int | None,
    net: str,
    server_cores: int,
    nodes: int | None,
    cores_per_node: int,
    cluster_net: str,
    no_calibration: bool,
    from_weights: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """What an answer of MODEL would cost: bytes and rounds to the byte, seconds about, memory, keys.

    MODEL is a name, a model's path, or any Hugging Face config.json; weights are not needed. The session runs
    with zeros in place of cryptography, so that everything is counted that a real one would send.
    """
    from .console import Console

    console = Console(quiet)
    console.note(f"counting what {model} would send …")
    from ..engines.estimates import Network
    from ..models.nearest import nearest_model
    from ..parties.estimate import typical
    from ..parties.forecast import Course
    from ..parties.machine import MachineSpeed
    from ..parties.spread import Nodes

    cluster = None if nodes is None else Nodes.parse(nodes, cores_per_node, cluster_net)
    network = Network.parse(net)
    shapes, assumed = (None, None) if from_weights else nearest_model(model)
    public = _from_weights(model) if shapes is None else typical(shapes)
    _check_room(public.config.context_length, public_tokens + prompt_tokens + new_tokens)
    speed = MachineSpeed() if no_calibration else MachineSpeed.measured()
    course = Course(public_tokens, prompt_tokens, new_tokens)
    found = [
        estimate
        for name, cache in _variants(engine, kv)
        if (
            estimate := _one(
                public, name, cache, course, prepared, speed, cluster, engine == _ALL, console.progress
            )
        )
        is not None
    ]
    console.end_progress()
    if assumed is not None:
        found = [replace(one, exact=False, notes=(assumed, *one.notes)) for one in found]
    advice = _advise(found, network, server_cores)
    if as_json:
        answer: dict[str, Any] = {
            "model": model,
            "network": vars(network),
            "server_cores": server_cores,
            "cluster": None if cluster is None else vars(cluster),
            "speed": asdict(speed),
            "calibrated": not no_calibration,
            "estimates": [one.to_json(network, server_cores) for one in found],
            "advice": advice,
        }
        print(json.dumps(answer))
    else:
        _show(found, network, server_cores, advice)


def _variants(engine: str, kv: str) -> list[tuple[str, str]]:
    engines = ["hybrid", "fhe", "scx", "clear"] if engine == _ALL else [engine]
    caches = ["ciphertext", "masked"] if kv == _ALL else [kv]
    return [(name, cache) for name in engines for cache in (caches if name == "hybrid" else ["-"])]


def _one(
    public: Any,
    engine: str,
    kv: str,
    course: Any,
    prepared: int | None,
    speed: Any,
    cluster: Any,
    optional: bool,
    progress: Any,
) -> Any:
    from ..errors import UnsupportedModelError
    from ..parties.estimate import estimate as run
    from ..parties.spread import spread

    if kv == "masked":
        ahead = course.private + course.new if prepared is None else prepared
        course = replace(course, prepared=ahead)
    try:
        found = run(public, engine, kv, course, speed, progress)
        return found if cluster is None else spread(found, public.config, course, cluster, speed)
    except UnsupportedModelError:
        if not optional:
            raise
        return None  # one of several: the others are worth showing


def _from_weights(model: str) -> Any:
    from ..engines.public import PublicModel
    from ..models import load_model, quantize

    return PublicModel.of(quantize(load_model(model)))


def _check_room(context: int, tokens: int) -> None:
    from ..errors import PromptTooLongError

    if tokens > context:
        raise PromptTooLongError(
            f"{tokens} tokens do not fit the model's context of {context}; ask for fewer"
        )


def _show(found: list[Any], network: Any, cores: int, advice: list[str]) -> None:
    from .console import format_table, seconds_text, size_text

    rows = []
    for one in found:
        name = one.engine if one.kv == "-" else f"{one.engine}, {one.kv}"
        for phase in one.phases:
            if phase.tokens:
                rows.append(
                    [
                        name,
                        phase.name,
                        str(phase.tokens),
                        seconds_text(phase.seconds(network, cores) / phase.tokens),
                        seconds_text(phase.seconds(network, cores)),
                        size_text(phase.bytes_up),
                        size_text(phase.bytes_down),
                        str(phase.rounds),
                    ]
                )
                name = ""
    headers = ("engine", "phase", "tokens", "a token", "time", "up", "down", "rounds")
    title = (
        f"over {network.name} ({network.rtt_ms:g} ms, {network.mbit:g} Mbit/s)"
        if network.mbit
        else (f"over {network.name}")
    )
    print(format_table(title, headers, rows, left=2))
    cluster = any(one.node_memory for one in found)
    sizes = [
        [
            one.engine if one.kv == "-" else f"{one.engine}, {one.kv}",
            size_text(one.key_bytes),
            size_text(one.server_memory),
            size_text(one.session_memory),
            size_text(one.client_memory),
            size_text(one.client_disk),
            *([size_text(one.node_memory)] if cluster else []),
        ]
        for one in found
    ]
    names = ["engine", "keys", "server", "server a session", "client", "client's disk"]
    names += ["a node"] if cluster else []
    print("\n" + format_table("memory", names, sizes))
    print("\n" + "\n".join(advice))


def _advise(found: list[Any], network: Any, cores: int) -> list[str]:
    """Which engine, in words, from these numbers."""
    from .console import seconds_text

    def pace(one: Any) -> float:
        phase = one.phase("decode")
        return float(phase.seconds(network, cores) / phase.tokens)

    lines = [note for one in found for note in one.notes]
    lines = list(dict.fromkeys(lines))
    private = [one for one in found if one.engine in ("hybrid", "fhe")]
    if private:
        best = min(private, key=pace)
        name = best.engine if best.kv == "-" else f"{best.engine} --kv {best.kv}"
        lines.append(f"fastest with cryptographic privacy: {name}, {seconds_text(pace(best))} a token")
        decode = best.phase("decode")
        waiting = decode.rounds * network.rtt_ms / 1e3 / decode.tokens
        if waiting > pace(best) / 2:
            lines.append(
                f"{seconds_text(waiting)} of it is waiting for round trips: put the parties closer together, "
                "or guess ahead (--draft)"
            )
        if best.phase("prepare") is not None:
            ahead = best.phase("prepare")
            lines.append(
                f"it needs {seconds_text(ahead.seconds(network, cores))} of preparation before the prompt "
                "is known (`sottovoce prepare`); without that time take --kv ciphertext"
            )
    for one in found:
        if one.engine == "scx":
            lines.append(
                f"scx takes {seconds_text(pace(one))} a token; its privacy is statistical, and the user gets "
                "the weights"
            )
        if one.engine == "clear":
            lines.append(f"without any protection the model takes {seconds_text(pace(one))} a token")
    return lines
