"""Options that behave alike everywhere: every flag has an environment variable SOTTOVOCE_NAME."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


def option(*names: str, **settings: Any) -> Callable[[F], F]:
    """click.option with SOTTOVOCE_<LONG NAME> and its default shown in the help."""
    long = next(name for name in names if name.startswith("--")).split("/")[0]
    settings.setdefault("envvar", "SOTTOVOCE_" + long[2:].replace("-", "_").upper())
    settings.setdefault("show_default", True)
    settings.setdefault("show_envvar", True)
    return click.option(*names, **settings)


def quiet_option(command: F) -> F:
    return option("--quiet", "-q", is_flag=True, help="No notes and no progress bars on stderr.")(command)


def json_option(command: F) -> F:
    return option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout instead of text.")(
        command
    )


def stack(*decorators: Callable[[F], F]) -> Callable[[F], F]:
    """Apply decorators so that the help lists them in this order."""

    def apply(command: F) -> F:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return apply
