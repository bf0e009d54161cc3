"""Every flag of every command: it beats its environment variable, which beats the configuration file."""

import click
import pytest

from sottovoce.cli.root import cli

# What a flag's own check wants, where its type does not say it: three values that it takes.
SPECIAL = {
    "contexts": ("64", "64,128", "128"),
    "networks": ("loopback", "lan", "wan"),
    "tokens": ("16", "17", "18"),
    "kv": ("clear", "masked", "clear,masked"),
}


def commands(group=cli, path=()):
    for name in group.list_commands(click.Context(group)):
        command = group.get_command(click.Context(group), name)
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


COMMANDS = dict(commands())


def options(command):
    return [p for p in command.params if isinstance(p, click.Option)]


def values(option, folder):
    """Three different values that an option accepts, as one would write them."""
    kind = option.type
    if isinstance(kind, click.Choice):
        names = list(kind.choices)
        return (names * 3)[:3]
    if isinstance(kind, click.Path):
        paths = [folder / f"{option.name}{i}" for i in range(3)]
        for path in paths:
            path.exists() or path.mkdir() if kind.dir_okay and not kind.file_okay else path.write_text("x")
        return [str(path) for path in paths]
    low = getattr(kind, "min", None) or 1
    if isinstance(kind, click.types.IntParamType):
        return [str(low + i) for i in range(3)]
    if isinstance(kind, click.types.FloatParamType):
        high = getattr(kind, "max", None)
        return [str(low), str(low + 0.25), str(low + 0.5)] if high is None else ["0.25", "0.5", "0.75"]
    if option.callback is not None and option.name in SPECIAL:
        return list(SPECIAL[option.name])
    return ["1.5,10", "2.5,20", "3.5,30"]


def needed(command, option, folder):
    """Positional arguments, and other options that must be given."""
    words = []
    for number, parameter in enumerate(command.params):
        if not parameter.required or parameter is option:
            continue
        place = folder / f"needed{number}"
        place.mkdir(exist_ok=True)
        if isinstance(parameter, click.Option):
            words += [parameter.opts[0], values(parameter, place)[0]]
        elif isinstance(parameter.type, click.Choice):
            words.append(next(iter(parameter.type.choices)))
        else:
            (place / "argument").write_text("x")
            words.append(str(place / "argument"))
    return words


def parsed(path, command, option, given, environment, configured, folder, monkeypatch):
    monkeypatch.delenv(option.envvar, raising=False)
    if environment is not None:
        monkeypatch.setenv(option.envvar, environment)
    if option.multiple and configured is not None:
        configured = [configured]
    defaults = {} if configured is None else {option.name: configured}
    context = click.Context(command, info_name=path[-1], default_map=defaults)
    with context:
        words = [*needed(command, option, folder), *given]
        made = command.make_context(path[-1], words, default_map=defaults)
    return made.params[option.name]


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_flag_environment_file(path, tmp_path, monkeypatch):
    command = COMMANDS[path]
    for number, option in enumerate(options(command)):
        assert option.envvar and option.envvar.startswith("SOTTOVOCE_"), option.name
        folder = tmp_path / str(number)
        folder.mkdir()

        def value(given, environment, configured, option=option, folder=folder):
            return parsed(path, command, option, given, environment, configured, folder, monkeypatch)

        flag = option.opts[0]
        if option.is_flag:
            assert value([flag], "0", False) is True
            assert value([], "0", True) is False
            assert value([], "1", False) is True
            assert value([], None, True) is True
            assert not value([], None, None)
            continue
        one, two, three = values(option, folder)
        alone = [value([flag, one], None, None), value([flag, two], None, None)]
        alone.append(value([flag, three], None, None))
        assert value([flag, one], two, three) == alone[0], flag
        assert value([], two, three) == alone[1], flag
        assert value([], None, three) == alone[2], flag


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_names_are_used_once(path):
    names = [name for option in options(COMMANDS[path]) for name in (option.envvar, *option.opts)]
    assert len(names) == len(set(names))


def test_the_commands_of_the_product():
    wanted = "serve chat generate demo proxy estimate prepare session keys models pull bench attack verify"
    assert set(cli.list_commands(click.Context(cli))) >= {*wanted.split(), "collect-env"}
    for group, names in {"session": "ls save load rm", "keys": "ls rm"}.items():
        found = {path[1] for path in COMMANDS if path[0] == group}
        assert set(names.split()) <= found, (group, found)
