"""The command group, its lazily loaded commands, and the configuration file."""

import importlib
from functools import partial

import click

from .. import __version__
from .config import defaults, read_config, subtables

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

    def resolve_command(
        self, context: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """With the command's table of the configuration file, checked now that its flags are known."""
        name, command, rest = super().resolve_command(context, args)
        tables = read_config(COMMANDS)
        if name in tables and command is not None:
            if isinstance(command, click.Group):
                load = partial(command.get_command, context)
                tables[name] = subtables(tables[name], name, load)
            else:
                tables[name] = defaults(command, tables[name], name)
        context.default_map = tables
        return name, command, rest

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in COMMANDS.items()])


@click.group(
    cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__, message="%(prog)s %(version)s")
def cli() -> None:
    """Private text generation on somebody else's machine.

    Flags can also be given as environment variables SOTTOVOCE_*, or in config.toml in the configuration
    directory (one table per command). A flag beats the environment, which beats the file.
    """
