"""`sottovoce session`: saved sessions on this machine; and what `chat` and `generate` need of them."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import click

from .generate import connection_options, open_client
from .options import json_option, option, quiet_option
from .sessions import open_store, passphrase_of, passphrase_option, read_passphrase

_BY_FILE = option(
    "--file-passphrase-file",
    type=click.Path(exists=True, dir_okay=False),
    help="A file with the passphrase of the session's file; asked for on a terminal.",
)


@click.group()
def session() -> None:
    """Saved sessions: `chat` and `generate` make them with --session NAME, and go on with them."""


@session.command("ls")
@json_option
def ls(as_json: bool) -> None:
    """List the sessions that are saved on this machine. Their content stays sealed."""
    from .console import format_table, size_text

    entries = open_store(None, sealed=False).entries()
    if as_json:
        print(json.dumps([_described(entry) for entry in entries]))
        return
    rows = [
        [
            entry.name or entry.id[:12],
            _tokens(entry.facts),
            size_text(entry.size),
            time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.touched)),
            str(entry.facts.get("model_name", "")),
            f"{entry.facts.get('engine', '')} {entry.facts.get('kv', '')}",
            str(entry.facts.get("server", "")),
        ]
        for entry in entries
    ]
    headers = ["name", "tokens", "here", "last used", "model", "engine", "server"]
    print(format_table("", headers, rows).strip("\n"))


@session.command("status")
@click.argument("name")
@json_option
@passphrase_option
@connection_options
@quiet_option
def status(name: str, as_json: bool, quiet: bool, **flags: Any) -> None:
    """Ask its server about the saved session NAME: how far a step is that was left, what it holds."""
    from ..parties.saved import SavedSession, exclusive
    from .console import Console

    store = open_store(passphrase_of(flags))
    with exclusive(store, name):
        saved = SavedSession.open(store, name)
        found = _ask_status(Console(quiet), saved, flags)
    if as_json:
        print(json.dumps(found))
    elif found["state"] == "computing":
        print(f"{name}: the server is at a step, {found['done']} of {found['total']} parts done")
    elif found["state"] == "answered":
        print(f"{name}: an answer is waiting; go on with the session to collect it")
    else:
        line = f"{name}: the server holds {found['tokens']} tokens"
        lost = found["here"] - found["tokens"]
        print(line + (f"; {lost} others will be computed again" if lost else ""))


def _ask_status(console: Any, saved: Any, flags: dict[str, Any]) -> dict[str, Any]:
    """Nothing is changed by it."""

    class SeenError(Exception):
        pass

    def waiting(done: int, total: int) -> None:
        raise SeenError(done, total)

    flags = {**flags, "no_pool": True}
    if saved.entry.facts.get("engine") == "clear":
        flags["insecure_clear"] = True
    try:
        with open_client(console, saved.server, flags, saved=saved, waiting=waiting) as client:
            client.channel.close()  # that was all
            held, here = client.saved_tokens, len(saved.tokens)
            state = "answered" if saved.waiting and held == here else "idle"
            return {"state": state, "tokens": held, "here": here}
    except SeenError as seen:
        return {"state": "computing", "done": seen.args[0], "total": seen.args[1]}


def _tokens(facts: dict[str, Any]) -> str:
    """How many, and how many more were on their way."""
    waiting = facts.get("waiting")
    return f"{facts.get('tokens', 0)}" + (f" + {waiting} waiting" if waiting else "")


@session.command("rm")
@click.argument("name")
@option("--local", is_flag=True, help="Leave the server's half to the server, which deletes it in time.")
@passphrase_option
@connection_options
@quiet_option
def rm(name: str, local: bool, quiet: bool, **flags: Any) -> None:
    """Delete the saved session NAME, here and at its server."""
    from ..errors import PeerConnectionError, UsageError
    from ..parties.saved import exclusive
    from .console import Console

    console = Console(quiet)
    bare = open_store(None, sealed=False)
    entry = bare.find(name)
    if entry is None:
        raise UsageError(f"there is no saved session {name!r}; `sottovoce session ls` lists them")
    with exclusive(bare, entry.name or entry.id):  # whoever uses it now would have nothing to go on with
        if not local:
            try:
                _forget(console, name, flags)
            except (PeerConnectionError, UsageError) as error:
                console.warn(f"the server's half stays there until it is too old: {error}")
        bare.remove(entry.id)
    console.note(f"deleted {name}")


def _forget(console: Any, name: str, flags: dict[str, Any]) -> None:
    from ..parties.saved import SavedSession

    saved = SavedSession.open(open_store(passphrase_of(flags)), name)
    if not saved.server:
        return
    flags = {**flags, "no_pool": True}
    if saved.entry.facts.get("engine") == "clear":
        flags["insecure_clear"] = True
    with open_client(console, saved.server, flags, saved=saved, forget=True):
        pass


@session.command("save")
@click.argument("name")
@click.argument("file", type=click.Path())
@passphrase_option
@_BY_FILE
def save(name: str, file: str, file_passphrase_file: str | None, **flags: Any) -> None:
    """Write this machine's half of the session NAME to FILE, under a passphrase: to go on elsewhere."""
    from ..parties.portable import export_session
    from ..parties.saved import SavedSession, exclusive

    store = open_store(passphrase_of(flags))
    with exclusive(store, name):
        saved = SavedSession.open(store, name)
        export_session(saved, Path(file), _file_passphrase(file_passphrase_file, confirm=True))
    print(f"{name}: {len(saved.tokens)} tokens in {file}")


@session.command("load")
@click.argument("file", type=click.Path())
@option("--name", default=None, help="What to call it here.  [default: the file's name]")
@passphrase_option
@_BY_FILE
def load(file: str, name: str | None, file_passphrase_file: str | None, **flags: Any) -> None:
    """Take up a session that `session save` wrote to FILE."""
    from ..parties.portable import import_session
    from ..parties.saved import check_name

    path = Path(file)
    called = name or path.stem
    check_name(called)
    store = open_store(passphrase_of(flags))
    import_session(store, path, _file_passphrase(file_passphrase_file, confirm=False), called)
    print(f"{called}: go on with `sottovoce chat SERVER --session {called}`")


@session.command("protect")
@passphrase_option
@option("--new-passphrase-file", type=click.Path(exists=True, dir_okay=False), help="The new passphrase.")
@option("--keyring", is_flag=True, help="Keep the key in the operating system's keyring instead.")
def protect(new_passphrase_file: str | None, keyring: bool, **flags: Any) -> None:
    """Change what protects the saved sessions: a passphrase, the keyring, or neither (a file beside them)."""
    from ..parties.paths import sessions_dir
    from ..parties.vault import open_vault
    from ..parties.vault import protect as change

    old = passphrase_of(flags)
    open_vault(sessions_dir(), old)
    new = None if new_passphrase_file is None else read_passphrase(new_passphrase_file)
    print(f"the saved sessions are protected by: {change(sessions_dir(), old, new, keyring)}")


def _file_passphrase(path: str | None, confirm: bool) -> str:
    if path is None and sys.stdin.isatty():
        ask: Any = click.prompt
        entered: str = ask("Passphrase of the file", hide_input=True, confirmation_prompt=confirm, err=True)
        return entered
    return "" if path is None else read_passphrase(path)


def _described(entry: Any) -> dict[str, Any]:
    return {
        "name": entry.name,
        "id": entry.id,
        "created": entry.created,
        "used": entry.touched,
        "bytes": entry.size,
        **entry.facts,
    }
