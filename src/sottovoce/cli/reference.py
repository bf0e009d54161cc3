"""The reference of the command line, made from the commands themselves:

`python -m sottovoce.cli.reference`.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import click

from .root import cli

TARGET = Path("docs/reference/cli.md")
HEAD = """# Command line

Made by `python -m sottovoce.cli.reference`; do not edit. A flag beats its environment variable, which beats
`config.toml` in the configuration directory (`SOTTOVOCE_CONFIG_DIR`, by default `~/.config/sottovoce`).

Exit codes: 0 ok, 2 usage, 3 connection, 4 refused by policy, 5 protocol or integrity, 130 interrupted.
"""


def reference() -> str:
    """The whole page as Markdown."""
    return HEAD + "".join(_section(command, path) for path, command in _commands(cli, "sottovoce"))


def _commands(group: click.Group, path: str) -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield f"{path} {name}", command
        if isinstance(command, click.Group):
            yield from _commands(command, f"{path} {name}")


def _section(command: click.Command, path: str) -> str:
    context = click.Context(command, info_name=path)
    pieces = " ".join(piece for piece in command.collect_usage_pieces(context) if piece)
    lines = [f"\n## `{path}`\n", f"    {path} {pieces}\n", " ".join((command.help or "").split())]
    rows = [_row(p, context) for p in command.params if isinstance(p, click.Option) and not p.hidden]
    if rows:
        lines += ["", "| flag | environment | default | |", "|---|---|---|---|", *rows]
    return "\n".join(lines) + "\n"


def _row(option: click.Option, context: click.Context) -> str:
    flags = ", ".join([*option.opts, *option.secondary_opts])
    shown = f"`{option.default}`" if type(option.default) in (str, int, float) else ""
    help_text = " ".join((option.help or "").replace("|", "or").split())
    return f"| `{flags}{_kind(option)}` | `{option.envvar}` | {shown} | {help_text} |"


def _kind(option: click.Option) -> str:
    """What the flag takes; spelled here because releases of click word it differently."""
    if option.is_flag:
        return ""
    if isinstance(option.type, click.Choice):
        return " " + " or ".join(map(str, option.type.choices))
    return " " + option.type.name.upper().removesuffix(" RANGE")


def main(target: Path = TARGET) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(reference())


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else TARGET)
