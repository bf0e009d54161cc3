"""`config.toml`: one table per command, flags by their names; checked when its command is used."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

import click


def config_path() -> Path:
    from ..parties.paths import config_dir

    return config_dir() / "config.toml"


def read_config(commands: Collection[str]) -> dict[str, Any]:
    """Its tables as they stand, {} if there is no such file. UsageError if it cannot be read."""
    path = config_path()
    import tomllib

    try:
        with path.open("rb") as file:
            tables = tomllib.load(file)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise click.UsageError(
            f"{path} cannot be read: {(error.strerror or str(error)).lower()}; check its permissions, or set "
            "SOTTOVOCE_CONFIG_DIR to a directory of yours"
        ) from None
    except (ValueError, RecursionError) as error:
        raise click.UsageError(f"{path} cannot be read: {error}") from None
    for name, table in tables.items():
        if name not in commands or not isinstance(table, dict):
            raise click.UsageError(
                f"{path}: {name!r} is not a command; write one table per command, e.g. [serve]"
                + _nearest(name, commands)
            )
    return tables


def defaults(command: click.Command, table: dict[str, Any], name: str) -> dict[str, Any]:
    """The values of a command's table by parameter, of the types that its flags take. name: of the table."""
    flags = {
        spelling: option
        for option in command.params
        if isinstance(option, click.Option)
        for spelling in _spellings(option)
    }
    found = {}
    for key, value in table.items():
        option = flags.get(key.replace("_", "-"))
        if option is None:
            raise _wrong(name, f"{key} is not a flag of this command" + _nearest(key, flags))
        assert option.name is not None
        found[option.name] = _value(option, value, f"{key}", name)
    return found


def subtables(table: dict[str, Any], name: str, load: Callable[[str], Any]) -> dict[str, Any]:
    """The tables of a group's commands, each checked. load: a command by its name, or None."""
    found = {}
    for key, value in table.items():
        command = load(key) if isinstance(value, dict) else None
        if command is None:
            raise _wrong(
                name, f"{key!r} is not one of its commands; write a table for each, [{name}.COMMAND]"
            )
        found[key] = defaults(command, value, f"{name}.{key}")
    return found


def _spellings(option: click.Option) -> Iterable[str]:
    yield from (long[2:] for long in (*option.opts, *option.secondary_opts) if long.startswith("--"))
    yield (option.name or "").replace("_", "-")


def _value(option: click.Option, value: Any, key: str, table: str) -> Any:
    if option.is_flag or option.is_bool_flag:
        if not isinstance(value, bool):
            raise _wrong(table, f"{key} is true or false")
        return value
    if option.multiple:
        values = value if isinstance(value, list) else [value]
        return [_single(option, one, key, table) for one in values]
    return _single(option, value, key, table)


def _single(option: click.Option, value: Any, key: str, table: str) -> Any:
    # The value is not repeated: it may be a key.
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise _wrong(table, f"{key} is a text or a number")
    try:
        option.type.convert(value, option, None)
    except click.UsageError as error:
        raise _wrong(table, f"{key}: {error.message}") from None
    return value


def _wrong(table: str, message: str) -> click.UsageError:
    return click.UsageError(f"{config_path()}, [{table}]: {message}")


def _nearest(name: str, names: Collection[str]) -> str:
    close = difflib.get_close_matches(name.replace("_", "-"), names, 1)
    return f"; did you mean {close[0]}?" if close else ""
