"""`sottovoce generate`: one private answer."""

import json
import sys
from pathlib import Path
from typing import Any

import click

from .dealer import connector, dealer_option
from .options import json_option, option, quiet_option, stack
from .pace import Pace
from .scx import client_options as scx_options
from .scx import say_statement
from .sessions import session_options
from .terminal import harmless

connection_options = stack(
    option(
        "--model-commitment",
        help="Insist on the model with this commitment, as printed by serve; 32 digits or more.",
    ),
    option("--fingerprint", help="Insist on the certificate with this fingerprint (as printed by serve)."),
    option(
        "--insecure-clear", is_flag=True, help="Accept a server without cryptography: it sees every token."
    ),
    option("--insecure-plaintext", is_flag=True, help="No TLS. Only for benchmarks on one machine."),
    option("--api-key", metavar="KEY|@FILE", help="For servers that want one; @FILE reads it from a file."),
    option(
        "--client-certificate",
        type=click.Path(exists=True, dir_okay=False),
        help="For servers that want one (PEM with its key); `sottovoce keys gen client NAME` makes it.",
    ),
    dealer_option,
    scx_options,
)
pool_option = option("--no-pool", is_flag=True, help="Leave alone what `sottovoce prepare` made ahead.")
sampling_options = stack(
    option("--max-tokens", "-n", type=click.IntRange(1), default=64, help="New tokens at most."),
    option("--temperature", type=float, default=0.0, help="0 is greedy; higher is more varied."),
    option(
        "--top-p", type=float, default=1.0, help="Sample from the most likely tokens that add up to this."
    ),
    option("--top-k", type=int, default=0, help="Sample from this many tokens at most; 0 for all."),
    option(
        "--seed", type=int, default=None, help="Repeat the same choices; otherwise they are fresh every time."
    ),
    option("--stop", multiple=True, help="End the answer before this text; may be given several times."),
)
prompt_options = stack(
    option("--system-prompt", default=None, help="A system message, private like the prompt."),
    option(
        "--public-file",
        type=click.Path(exists=True, dir_okay=False),
        help="Text that precedes the prompt and that the server MAY READ; it costs almost nothing.",
    ),
    option(
        "--chat/--raw",
        default=None,
        help="Use the model's chat template, or the text as it is.  [default: chat if there is one]",
    ),
)

draft_options = stack(
    option(
        "--draft",
        metavar="ngram|MODEL",
        help="Guess ahead and verify several tokens in one pass: ngram looks the text up in itself, MODEL "
        "is a small public model with the same tokenizer that runs here.",
    ),
    option(
        "--draft-tokens",
        type=click.IntRange(1, 63),
        help="Guesses verified at a time.  [default: up to 8, adapted to how many are right]",
    ),
)


@click.command()
@click.argument("server")
@click.argument("prompt")
@sampling_options
@prompt_options
@draft_options
@connection_options
@pool_option
@session_options
@json_option
@quiet_option
def generate(server: str, prompt: str, as_json: bool, quiet: bool, **flags: Any) -> int:
    """Answer PROMPT with the model of SERVER (host:port), which never sees it. PROMPT - reads stdin."""
    from .console import Console

    console = Console(quiet)
    console.note(f"connecting to {server} …")
    text = proper(sys.stdin.read() if prompt == "-" else prompt)
    from ..parties import generate as run
    from .prepare import say_ready

    if flags["session"] is not None:
        return _continue(console, server, text, flags, as_json)
    options = generation_options(flags)
    with open_client(console, server, flags) as client:
        pace = Pace(client, server)
        pace.say(console, options.max_tokens)
        tokens = build_prompt(client.card, text, flags)
        say_what_is_public(console, client, tokens)
        from ..parties.generation import check_room

        check_room(client, tokens, options)
        speculation = build_speculation(console, flags, client.card)
        client.setup(console.progress)
        say_ready(console, client, len(tokens.private) + options.max_tokens)
        writer = TextWriter(console, silent=as_json)
        done = run(client, tokens, options, writer.write, console.progress, speculation)
        writer.finish()
        pace.learn(done)
    return _ended(console, done, as_json)


def _ended(console: Any, done: Any, as_json: bool) -> int:
    if as_json:
        print(json.dumps(done.to_json(), ensure_ascii=False))
    say_cost(console, done)
    return 130 if done.finish_reason == "cancelled" else 0


def _continue(console: Any, server: str, text: str, flags: dict[str, Any], as_json: bool) -> int:
    """With --session: the prompt is the next message of a conversation that is saved."""
    from ..parties import Conversation
    from .prepare import say_ready
    from .sessions import Sessions

    options, sessions = generation_options(flags), Sessions(console, flags)
    public = public_text(flags["public_file"])
    with sessions.using(sessions.name) as saved, open_client(console, server, flags, saved=saved) as client:
        pace = Pace(client, server)
        pace.say(console, options.max_tokens)
        talk = Conversation(client, chat=flags["chat"], system=flags["system_prompt"], public=public)
        speculation = build_speculation(console, flags, client.card)
        sessions.begin_early(client, server, sessions.name, saved)
        client.setup(console.progress)
        sessions.begin(client, server, sessions.name, saved)
        say_what_is_public(console, client, talk.next_prompt(text))
        say_ready(console, client, options.max_tokens)
        writer = TextWriter(console, silent=as_json)
        done = talk.ask(text, options, writer.write, console.progress, speculation)
        writer.finish()
        pace.learn(done)
        if client.waiting:
            console.note(
                "the server goes on with the step it is at; the same command collects its answer, "
                f"`sottovoce session status {sessions.name}` says how far it is"
            )
    return _ended(console, done, as_json)


def generation_options(flags: dict[str, Any]) -> Any:
    from ..parties import GenerationOptions, SamplingOptions

    return GenerationOptions(
        flags["max_tokens"],
        SamplingOptions(flags["temperature"], flags["top_p"], flags["top_k"], flags["seed"]),
        tuple(flags["stop"]),
    )


def build_speculation(console: Any, flags: dict[str, Any], card: Any) -> Any:
    """The drafter asked for, or None; says what it lets the server see."""
    from ..parties import DraftLength, Speculation, make_drafter

    if flags["draft"] is None:
        return None
    drafter = make_drafter(flags["draft"], card)
    console.note(
        f"guesses by {drafter.name}: the server also learns how many each step verifies, "
        "and how many are right"
    )
    # With a seed the clock decides nothing, so that answers repeat.
    return Speculation(drafter, DraftLength(flags["draft_tokens"], timed=flags.get("seed") is None))


def open_client(
    console: Any,
    server: str,
    flags: dict[str, Any],
    pools: Any = None,
    saved: Any = None,
    forget: bool = False,
    waiting: Any = None,
) -> Any:
    """Connect and shake hands, saying who answered and who will see what. pools: None for what is there.
    saved: the session to go on with, or to delete at the server. waiting: called while the server is still at
    a step of it; a bar if None."""
    from ..engines.explain import (
        CLEAR_BANNER,
        DEALER_BANNER,
        PLAINTEXT_BANNER,
        engine_line,
        what_the_server_sees,
    )
    from ..errors import PeerGoneError
    from ..net.tls import KnownHosts
    from ..parties import Address, CardCache, Client, Pools, Wish
    from ..parties.paths import card_cache_dir, known_hosts_path, pools_dir

    address = Address.parse(server)
    dealer = connector(flags["insecure_dealer"])
    wish = Wish(
        _engine(flags),
        profile=flags["profile"],
        correlations="pair" if dealer is None else "dealer",
        model=flags["model_commitment"],
    )
    pin: Any = flags["fingerprint"] or KnownHosts(known_hosts_path())
    if pools is None and not flags["no_pool"]:
        pools = Pools(
            pools_dir(),
            in_use=lambda: console.note(
                "what was prepared is in use by another session; going on without it"
            ),
        )
    pin = None if flags["insecure_plaintext"] else pin
    certificate = flags.get("client_certificate")
    try:
        client = Client.connect(
            address,
            wish,
            pin,
            CardCache(card_cache_dir()),
            pools=pools,
            dealer=dealer,
            api_key=read_api_key(flags.get("api_key")),
            client_certificate=None if certificate is None else Path(certificate),
            saved=saved,
            forget=forget,
            waiting=waiting or (lambda done, total: console.progress(done, total, "the server ends a step")),
        )
    except PeerGoneError:
        if not flags["insecure_plaintext"]:
            raise
        raise PeerGoneError(
            f"{address} closed the connection at once, as servers with TLS do; leave --insecure-plaintext "
            "out, or start the server with it"
        ) from None
    client.notify = console.note
    options = client.welcome.options
    console.note(f"{client.card.name} at {address}: {engine_line(options)}")
    if flags["insecure_plaintext"]:
        console.warn(PLAINTEXT_BANNER)
    elif client.identity is not None and client.identity.first_use:
        console.note(
            f"first connection: pinned certificate {client.identity.fingerprint}; "
            "compare it with the server's"
        )
    if options.engine == "clear":
        console.warn(CLEAR_BANNER)
    say_statement(console, options, client.welcome.public)
    if options.correlations == "dealer":
        console.warn(DEALER_BANNER)
    console.note(what_the_server_sees(options))
    return client


def _engine(flags: dict[str, Any]) -> str:
    """The one engine that these flags accept."""
    if flags["insecure_clear"]:
        return "clear"
    return "scx" if flags["accept_statistical_privacy"] else "hybrid"


def read_api_key(text: str | None) -> str | None:
    """--api-key: the key itself, or @FILE."""
    from ..errors import UsageError

    if text is None or not text.startswith("@"):
        return text
    try:
        return Path(text[1:]).expanduser().read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the API key in {text[1:]} cannot be read ({error}); check --api-key") from None


def proper(text: str) -> str:
    """The text, if all of it is text: bytes that are not UTF-8 come from a command line as surrogates."""
    from ..errors import UsageError

    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError("the prompt is not UTF-8 text; convert it first (`iconv -t UTF-8`)") from None
    return text


def public_text(path: str | None) -> str | None:
    """What --public-file names; None if there is no such flag."""
    from ..errors import UsageError

    if path is None:
        return None
    try:
        return Path(path).expanduser().read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not UTF-8 text; convert it first (`iconv -t UTF-8`)") from None


def build_prompt(card: Any, text: str, flags: dict[str, Any]) -> Any:
    """Tokens of the prompt, public prefix and private rest.

    UsageError for combinations that make no sense.
    """
    from ..errors import UsageError
    from ..models.chat import Prompt

    public = public_text(flags["public_file"]) or ""
    system = flags["system_prompt"]
    if not text.strip():
        raise UsageError("the prompt is empty; write at least one word")
    chat = card.template is not None if flags["chat"] is None else flags["chat"]
    if not chat:
        if system:
            raise UsageError("--system-prompt needs a chat template; leave it away or drop --raw")
        plain = card.plain(text)
        return Prompt(plain.public + tuple(card.tokenizer.encode(public)), plain.private)
    if public and system:
        raise UsageError(
            "--public-file takes the place of the system message; give it or --system-prompt, not both"
        )
    messages = [{"role": "user", "content": text}]
    if public or system:
        messages.insert(0, {"role": "system", "content": public or system})
    return card.chat(messages, public_system=bool(public))


def say_what_is_public(console: Any, client: Any, prompt: Any) -> None:
    """The user is told what the server may read, before it can."""
    shown = client.card.tokenizer.decode(prompt.public, keep_special=True)
    shown = shown if len(shown) <= 160 else shown[:120] + " … " + shown[-30:]
    console.note(f"public: {len(prompt.public)} tokens that the server can read: {shown!r}")
    console.note(f"private: {len(prompt.private)} tokens of which the server learns only how many there are")


def say_cost(console: Any, done: Any) -> None:
    from statistics import median

    from .console import seconds_text, size_text

    usage = done.usage
    line = f"{usage.completion_tokens} tokens in {seconds_text(usage.seconds)}, "
    line += f"{size_text(usage.bytes_up)} up, {size_text(usage.bytes_down)} down, {usage.rounds} rounds"
    if done.per_token:
        seconds, sizes = median(s for s, _ in done.per_token), median(b for _, b in done.per_token)
        line += f" ({seconds_text(seconds)} and {size_text(sizes)} a token)"
    if usage.drafted_tokens:
        line += f"; {usage.accepted_tokens} of {usage.drafted_tokens} guesses right"
        line += f" in {usage.verification_steps} pass{'' if usage.verification_steps == 1 else 'es'}"
    if done.finish_reason == "cancelled":
        line = "stopped: " + line
    console.note(line)


class TextWriter:
    """Streams text to stdout; bars on stderr leave the line before text goes on it."""

    def __init__(self, console: Any, silent: bool) -> None:
        self._console = console
        self._silent = silent
        self._wrote = False

    def write(self, text: str) -> None:
        if not self._silent:
            self._console.end_progress()
            if sys.stdout.isatty():
                text = harmless(text)
            sys.stdout.write(text)
            sys.stdout.flush()
            self._wrote = True
            if sys.stdout.isatty():
                self._console.text_column = self._advance(text)

    def _advance(self, text: str) -> int:
        """The cursor's column after `text`, wrapped at the terminal's width."""
        import shutil

        from rich.cells import cell_len

        column = 0 if "\n" in text else self._console.text_column or 0
        return int(column + cell_len(text.rsplit("\n", 1)[-1])) % shutil.get_terminal_size().columns

    def finish(self) -> None:
        self._console.end_progress()
        self._console.text_column = None
        if not self._silent and self._wrote:
            sys.stdout.write("\n")
            sys.stdout.flush()
