"""`sottovoce chat`: a private conversation."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from .generate import connection_options, draft_options, pool_option, prompt_options, sampling_options
from .options import option, quiet_option
from .pace import Pace
from .sessions import Sessions, session_options

HELP = """\
/save NAME    save the conversation here and at the server, from now on
/load NAME    go on with a saved one
/public FILE  before the first message: text that the server MAY READ
/cost         what the session took so far
/new          forget the conversation, keep the session
/quit         leave
Ctrl-C stops an answer after the token it is at; twice leaves at once."""


@click.command()
@click.argument("server")
@sampling_options
@prompt_options
@draft_options
@connection_options
@pool_option
@session_options
@option(
    "--keep-ready",
    type=click.IntRange(0),
    default=64,
    help="Tokens to keep prepared while you read and type, if `sottovoce prepare` has made a pool.",
)
@quiet_option
def chat(server: str, keep_ready: int, quiet: bool, **flags: Any) -> int:
    """Talk with the model of SERVER (host:port), which never sees a word.

    Lines of input are messages; /help lists the commands. Later messages build on what the server keeps under
    your key: only new tokens are sent.
    """
    from .console import Console

    console = Console(quiet)
    console.note(f"connecting to {server} …")
    from ..parties import Conversation
    from .generate import build_speculation, generation_options, open_client, public_text
    from .prepare import say_ready

    options, sessions = generation_options(flags), Sessions(console, flags)
    public = public_text(flags["public_file"])
    name: str | None = sessions.name
    while True:
        # Once for every session: /load ends one and names the next.
        with sessions.using(name) as saved, open_client(console, server, flags, saved=saved) as client:
            pace = Pace(client, server)
            pace.say(console, options.max_tokens)
            talk = Conversation(client, chat=flags["chat"], system=flags["system_prompt"], public=public)
            speculation = build_speculation(console, flags, client.card)
            sessions.begin_early(client, server, name, saved)
            client.setup(console.progress)
            sessions.begin(client, server, name, saved)
            say_ready(console, client, options.max_tokens)
            chatting = Chat(console, talk, options, speculation, keep_ready, sessions, server)
            code = chatting.run()
            if chatting.answers:
                pace.learn(chatting.answers[-1])
        if chatting.next_session is None:
            return code
        name = chatting.next_session


class Chat:
    """Reads lines, answers them, obeys commands."""

    def __init__(
        self,
        console: Any,
        talk: Any,
        options: Any,
        speculation: Any,
        keep_ready: int = 0,
        sessions: Any = None,
        server: str = "",
    ) -> None:
        self.keep_ready, self.sessions, self.server = keep_ready, sessions, server
        self.console, self.talk, self.options, self.speculation = console, talk, options, speculation
        self.interactive = sys.stdin.isatty()
        self.answers: list[Any] = []
        self.next_session: str | None = None

    def run(self) -> int:
        """Until /quit or the end of input. In a script the first error ends it; a person may try again."""
        from ..errors import UsageError
        from .errors import fail

        self.console.note("type a message, or /help")
        for line in self._lines():
            try:
                if line.startswith("/"):
                    if self._obey(*line.split(maxsplit=1)):
                        return 0
                elif line.strip() and self._answer(line):
                    return 130
            except UsageError as error:
                if not self.interactive:
                    raise
                fail(str(error))
        return 0

    def _lines(self) -> Iterator[str]:
        if not self.interactive:
            yield from (line.rstrip("\n") for line in sys.stdin)
            return
        import readline  # noqa: F401  (line editing and history, in memory only)

        from ..parties import IdleFiller

        while True:
            try:
                with IdleFiller(self.talk.client, self.keep_ready):
                    line = input("> ")
                yield line
            except EOFError:
                return
            except KeyboardInterrupt:
                self.console.note("\n/quit leaves")

    def _obey(self, command: str, argument: str = "") -> bool:
        """Whether the command was the last one."""
        from ..errors import UsageError

        if command == "/quit":
            return True
        if command == "/cost":
            print(self.cost(), file=sys.stderr, flush=True)
        elif command == "/new":
            self.talk.forget()
            self.console.note("a new conversation; the session keeps its public beginning only")
        elif command == "/public":
            self._publish(argument)
        elif command == "/save":
            self._save(argument.strip())
        elif command == "/load":
            self._load(argument.strip())
            return True
        elif command == "/help":
            print(HELP, file=sys.stderr, flush=True)
        else:
            raise UsageError(f"unknown command {command}; /help lists them")
        return False

    def _save(self, name: str) -> None:
        from ..errors import UsageError

        if not name:
            raise UsageError("/save needs a name")
        if self.talk.client.is_kept:
            raise UsageError("this session is saved already, after every token")
        self.talk.client.keep(self.sessions.store, name, self.server)
        self.talk.note()
        self.console.note(f"session {name}: saved here and at the server from now on")

    def _load(self, name: str) -> None:
        from ..errors import UsageError

        if not name or self.sessions.store.find(name) is None:
            raise UsageError(f"there is no saved session {name!r}; `sottovoce session ls` lists them")
        self.next_session = name

    def _publish(self, name: str) -> None:
        from ..errors import UsageError
        from .generate import public_text

        try:
            text = public_text(name) or ""
        except OSError as error:
            raise UsageError(f"/public cannot read {name!r}: {error.strerror}") from None
        self.talk.make_public(text)
        self.console.note(f"{name}: {len(text)} characters that the server will be able to read")

    def _answer(self, text: str) -> bool:
        """Whether the user left in the middle: then the session is over."""
        from .generate import TextWriter, proper, say_cost, say_what_is_public

        proper(text)
        writer = TextWriter(self.console, silent=False)
        if not self.answers:
            say_what_is_public(self.console, self.talk.client, self.talk.next_prompt(text))
        with _interruptible(self.console.quiet) as presses:
            done = self.talk.ask(
                text,
                self.options,
                writer.write,
                self.console.progress,
                self.speculation,
                lambda: bool(presses),
            )
        writer.finish()
        self.answers.append(done)
        say_cost(self.console, done)
        return len(presses) > 1

    def cost(self) -> str:
        """The session so far, by phase."""
        from ..net.ledger import LedgerRow
        from .console import LEDGER_HEADERS, format_table, ledger_rows

        client = self.talk.client
        phases: dict[str, LedgerRow] = {}
        for row in client.ledger.rows():
            if row.phase:
                phases.setdefault(row.phase, LedgerRow(row.phase, "all")).add(row)
        sent = sum(a.usage.prompt_tokens for a in self.answers)
        new = sum(a.usage.completion_tokens for a in self.answers)
        room = f"the session holds {client.length} of {client.card.config.context_length}"
        lines = [f"{len(self.answers)} answers: {sent} tokens sent, {new} generated; {room}"]
        if self.speculation is not None:
            s = self.speculation
            lines.append(f"guesses: {s.drafted}, of which {s.accepted} accepted, in {s.steps} passes")
        return format_table("\n".join(lines), LEDGER_HEADERS, ledger_rows(list(phases.values())), left=2)


@contextmanager
def _interruptible(quiet: bool) -> Iterator[list[int]]:
    """Collects Ctrl-C: the first asks for an end at the next token, the second is a KeyboardInterrupt."""
    presses: list[int] = []

    def pressed(number: int, frame: Any) -> None:
        presses.append(number)
        if len(presses) > 1:
            raise KeyboardInterrupt
        if not quiet:
            # Not through the console: a handler may run in the middle of a write.
            os.write(sys.stderr.fileno(), b"\nstopping after this token (Ctrl-C again leaves)\n")

    before = signal.signal(signal.SIGINT, pressed)
    try:
        yield presses
    finally:
        signal.signal(signal.SIGINT, before)
