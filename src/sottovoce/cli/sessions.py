"""`--session NAME`: where saved sessions are, what unseals them, and how a command goes on with one."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import click

from .options import option, stack

passphrase_option = option(
    "--passphrase-file",
    type=click.Path(exists=True, dir_okay=False),
    help="A file whose first line is the passphrase of the saved sessions; asked for on a terminal.",
)
session_options = stack(
    option("--session", metavar="NAME", help="Save the session under this name, or go on with it."),
    passphrase_option,
)


def passphrase_of(flags: dict[str, Any]) -> str | None:
    """The passphrase of the saved sessions, if they have one or are to have one."""
    from ..parties.paths import sessions_dir
    from ..parties.vault import Guard, guard_of

    if flags.get("passphrase_file"):
        return read_passphrase(flags["passphrase_file"])
    if guard_of(sessions_dir()) is Guard.PASSPHRASE and sys.stdin.isatty():
        entered: str = click.prompt("Passphrase of the saved sessions", hide_input=True, err=True)
        return entered
    return None


def read_passphrase(path: str) -> str:
    """The first line of a file."""
    from ..errors import UsageError

    lines = Path(path).read_text().splitlines()
    if not lines or not lines[0]:
        raise UsageError(f"{path} has no passphrase in its first line")
    return lines[0]


def open_store(passphrase: str | None, sealed: bool = True) -> Any:
    """The sessions of this user. sealed: with what unseals them, made if there is none yet."""
    from ..parties.paths import sessions_dir
    from ..parties.store import SessionStore
    from ..parties.vault import open_vault

    return SessionStore(sessions_dir(), open_vault(sessions_dir(), passphrase) if sealed else None)


class Sessions:
    """What `--session` means to a command; without the flag, nothing is opened."""

    def __init__(self, console: Any, flags: dict[str, Any]) -> None:
        self.console, self.name, self._flags = console, flags.get("session"), flags
        self._store: Any = None
        self._early = False

    @property
    def store(self) -> Any:
        if self._store is None:
            self._store = open_store(passphrase_of(self._flags))
        return self._store

    @contextmanager
    def using(self, name: str | None) -> Iterator[Any]:
        """The saved session of that name, locked; None if there is none yet, or no name."""
        from ..parties.saved import SavedSession, exclusive

        with ExitStack() as held:
            if name is None:
                yield None
                return
            held.enter_context(exclusive(self.store, name))
            yield SavedSession.open(self.store, name) if self.store.find(name) else None

    def begin_early(self, client: Any, server: str, name: str | None, saved: Any) -> None:
        """Before setup: keep a new session whose keys are worth it, in case their upload breaks off."""
        self._early = name is not None and saved is None and client.keep_early(self.store, name, server)

    def begin(self, client: Any, server: str, name: str | None, saved: Any) -> None:
        """After setup: keep a new session, say what an old one holds."""
        from ..parties.paths import sessions_dir
        from ..parties.vault import Guard, guard_of

        if name is None:
            return
        if saved is None:
            if not self._early:
                client.keep(self.store, name, server)
            self.console.note(f"session {name}: saved here and at the server after every token")
            if guard_of(sessions_dir()) is Guard.FILE:
                self.console.note(
                    "its key lies in a file beside it; `sottovoce session protect` puts it under a passphrase"
                )
        else:
            held, wanted = client.length, len(saved.tokens)
            line = f"session {name}: goes on behind {held} tokens"
            if held < wanted:
                line += f"; the server does not have {wanted - held} others, they will be computed again"
            self.console.note(line)
            if saved.waiting and held == wanted:
                self.console.note("the server has answered the last step meanwhile; its answer is collected")
