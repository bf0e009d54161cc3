"""The command group, its lazily loaded commands, and the configuration file."""

import importlib
from pathlib import Path
from typing import Any

import click

from .. import __version__

# Command -> (module, attribute, one line of help). The help stands here so that `--help` imports nothing.
COMMANDS = {
    "serve": ("serve", "serve", "Serve a model to clients that keep their prompts to themselves."),
    "generate": ("generate", "generate", "Answer a prompt that the server never sees."),
    "chat": ("chat", "chat", "A conversation of which the server sees nothing."),
    "prepare": ("prepare", "prepare", "Do ahead what does not depend on the prompt."),
    "proxy": ("proxy", "proxy", "OpenAI's interface and a chat page, on your own machine."),
    "demo": ("demo", "demo", "Server and client on this machine, explained."),
    "attack": ("attack", "attack", "Attack the engines, with controls that must break."),
    "bench": ("bench", "bench", "Measure: end to end, quality, homomorphic primitives."),
    "dealer": ("dealer", "dealer", "A third machine that deals one-time material (insecure if it colludes)."),
    "worker": ("scx", "worker", "The users' side of the engine scx, for users who trust this machine."),
    "estimate": ("estimate", "estimate", "What an answer would cost, with any engine, on any network."),
    "session": ("session", "session", "Saved sessions: list, carry elsewhere, delete."),
    "verify": ("verify", "verify", "What a server offers, and whether it is what you expect."),
    "keys": ("keys", "keys", "API keys, certificates, pins: make, list, remove."),
    "pull": ("pull", "pull", "Fetch a model from Hugging Face (optional)."),
    "models": ("models", "models", "Models that can be served by name."),
    "collect-env": ("environment", "collect_env", "Describe this machine and installation, for bug reports."),
}


class LazyGroup(click.Group):
    """Imports a command's module when the command is used."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[name]
        command = getattr(importlib.import_module(f"{__package__}.{module}"), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in COMMANDS.items()])


@click.group(
    cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__, message="%(prog)s %(version)s")
@click.pass_context
def cli(context: click.Context) -> None:
    """Private text generation on somebody else's machine.

    Flags can also be given as environment variables SOTTOVOCE_*, or in config.toml in the configuration
    directory (one table per command). A flag beats the environment, which beats the file.
    """
    context.default_map = _config_file()


def _config_file() -> dict[str, Any]:
    from ..parties.paths import config_dir

    path: Path = config_dir() / "config.toml"
    if not path.is_file():
        return {}
    import tomllib

    try:
        with path.open("rb") as file:
            tables = tomllib.load(file)
    except (OSError, ValueError, RecursionError) as error:
        raise click.UsageError(f"{path} cannot be read: {error}") from None
    for name, table in tables.items():
        if name not in COMMANDS or not isinstance(table, dict):
            raise click.UsageError(
                f"{path}: {name!r} is not a command; write one table per command, e.g. [serve]"
            )
    return {name: _parameters(table, path) for name, table in tables.items()}


def _parameters(table: dict[str, Any], path: Path, group: bool = True) -> dict[str, Any]:
    """Flags as parameters are called; a group's commands are tables in its table, and there it ends."""
    found = {}
    for key, value in table.items():
        if isinstance(value, dict):
            if not group:
                raise click.UsageError(f"{path}: {key!r} is a table inside a command's; commands take flags")
            value = _parameters(value, path, group=False)
        found[key.replace("-", "_")] = value
    return found
