"""`sottovoce attack`: run an attack of the lab against an engine, with its controls."""

from __future__ import annotations

import json
from typing import Any

import click

from .options import json_option, option, quiet_option

ENGINES = ("scx", "hybrid", "fhe")


@click.command()
@click.argument("name", required=False)
@option("--engine", type=click.Choice(ENGINES), help="The target; every attack has one.  [default: its own]")
@option("--profile", help="Profile of the target.  [default: the attack's first]")
@option("--samples", type=click.IntRange(1), help="Prompts, trials or sessions.  [default: the attack's own]")
@option("--length", type=click.IntRange(12), default=24, help="Tokens of a prompt.")
@option("--model", default="smollm2-135m", help="The model under attack: a name or a path.")
@option(
    "--text",
    type=click.Path(exists=True, dir_okay=False),
    help="A file with prompts, one a paragraph, such as WikiText-2's test.txt.  [default: built-in text]",
)
@option(
    "--output",
    type=click.Path(file_okay=False),
    help="Also save the result in this directory, and make its table again.",
)
@json_option
@quiet_option
def attack(
    name: str | None,
    engine: str | None,
    profile: str | None,
    samples: int | None,
    length: int,
    model: str,
    text: str | None,
    output: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Attack an engine and print how much was read: of tokens, weights or trials. Controls, where a
    safeguard is left out, must break. Without NAME: the attacks that there are; `all` runs each against
    every profile.
    """
    from ..attacks.base import Setting, to_json
    from ..attacks.registry import attack_named
    from .console import Console

    if name is None:
        _list(as_json)
        return
    console = Console(quiet)
    if name == "all":
        from ..attacks.registry import ATTACKS

        every = [attack_named(known) for known in ATTACKS]
        jobs = [(a, p) for a in every for p in a.profiles if engine in (None, a.target)]
    else:
        chosen = attack_named(name)
        if engine not in (None, chosen.target):
            raise click.UsageError(f"{name} attacks the engine {chosen.target}, not {engine}")
        if profile not in (None, *chosen.profiles):
            raise click.UsageError(f"{name} knows the profiles {', '.join(chosen.profiles)}")
        jobs = [(chosen, profile or chosen.profiles[0])]
    for a, against in jobs:
        setting = Setting(against, samples or a.samples, model, text, length, console.progress)
        console.note(f"attack {a.name} on {a.target}, profile {against}: {a.says} …")
        outcome = to_json(a, setting, a.run(setting))
        console.end_progress()
        if output is not None:
            from ..attacks.report import save

            console.note(f"saved in {save(outcome, output)}")
        print(json.dumps(outcome, ensure_ascii=False) if as_json else "\n".join(_lines(outcome)))


def _list(as_json: bool) -> None:
    from ..attacks.registry import ATTACKS, attack_named

    known = [attack_named(name) for name in ATTACKS]
    if as_json:
        entries = [
            {"name": a.name, "target": a.target, "profiles": a.profiles, "says": a.says} for a in known
        ]
        print(json.dumps(entries, ensure_ascii=False))
        return
    for a in known:
        print(f"{a.name:22} {a.target:7} {', '.join(a.profiles):16} {a.says}")


def _lines(outcome: dict[str, Any]) -> list[str]:
    lines = [
        f"{outcome['attack']} on {outcome['target']} ({outcome['profile']}), {outcome['samples']} samples: "
        f"{100 * outcome['success_rate']:.1f} % recovered"
    ]
    for control in outcome["controls"]:
        lines.append(f"  control, {control['name']}: {100 * control['success_rate']:.1f} %")
    return [*lines, *(f"  {name}: {value}" for name, value in outcome["details"].items())]
