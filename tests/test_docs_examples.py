"""The commands in the documentation: all are accepted, and the first ones a reader meets are run.

The environment stands for what differs here: a tiny model, few tokens, a server on another port.
"""

import os
import re
import shlex
import subprocess
from pathlib import Path

import click
import pytest

from sottovoce.cli.root import cli
from test_cli import BASE, Serving
from tiny_model import save_tiny_model

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "tools").rglob("*.md")])
GENERATED = {ROOT / "docs" / "reference" / "cli.md"}


def code(page):
    """Lines of the indented and fenced blocks of a page; those that go on with \\ are joined."""
    lines, fenced = [], False
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            lines.append(line.strip())
    return re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines()


def examples(page):
    """Arguments of every command line of ours in a page."""
    found = []
    for line in code(page):
        if match := re.match(r"(?:\$ )?(?:\.venv/bin/)?sottovoce\s+(.*)", line):
            words = shlex.split(match[1].split(" >")[0], comments=True)
            found.append(words)
    return found


ALL = [(page, words) for page in PAGES if page not in GENERATED for words in examples(page)]


def name(value):
    return str(value.relative_to(ROOT)) if isinstance(value, Path) else " ".join(value)[:50]


@pytest.mark.parametrize(("page", "words"), ALL, ids=name)
def test_every_command_line_is_accepted(page, words, monkeypatch):
    monkeypatch.setattr(click.Path, "convert", lambda self, value, param, ctx: value)
    group, rest = cli, list(words)
    while isinstance(group, click.Group):
        command = group.get_command(click.Context(group), rest[0])
        assert command is not None, f"{page.name}: sottovoce {' '.join(words)}"
        name, *rest = rest
        if isinstance(command, click.Group) and not rest:
            return
        group = command
    group.make_context(name, rest)


def test_pages_have_examples():
    assert {page.name for page, _ in ALL} >= {"README.md", "quickstart.md", "sessions.md", "proxy.md"}
    assert len(ALL) > 30


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def environment(tmp_path, model_path):
    clean = {k: v for k, v in os.environ.items() if not k.startswith("SOTTOVOCE_")}
    passphrase = tmp_path / "passphrase"
    passphrase.write_text("correct horse\n")
    return {
        **clean,
        "NO_COLOR": "1",
        "SOTTOVOCE_CONFIG_DIR": str(tmp_path / "config"),
        "SOTTOVOCE_MODEL": str(model_path),
        "SOTTOVOCE_MAX_TOKENS": "3",
        "SOTTOVOCE_TOKENS": "8",
        "SOTTOVOCE_PASSPHRASE_FILE": str(passphrase),
    }


def run(words, address, environment, drop=()):
    """One example, with our server's address for theirs."""
    known = ("localhost:7443", "that-machine:7443", "SERVER:7443", "SERVER")
    words = [address if word in known else word for word in words]
    words = [word for i, word in enumerate(words) if word not in drop and words[i - 1] not in drop]
    done = subprocess.run(
        [*BASE, *words],
        env=environment,
        input="hello\n/cost\n/quit\n",
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, (words, done.stderr)
    return done.stdout


def served(page, environment, tmp_path, model_path, engine):
    """The page's own `serve` line, at a free port, and its other lines."""
    lines = examples(page)
    (serve,) = [words for words in lines if words[0] == "serve" and words[1] == "smollm2-135m"]
    flags = [word for word in serve[2:] if word not in ("--host", "0.0.0.0")]
    return Serving(model_path, tmp_path, environment, "--engine", engine, *flags), lines


@pytest.mark.parametrize(
    ("page", "engine", "commands"),
    [("README.md", "clear", ("generate", "chat")), ("docs/quickstart.md", "hybrid", ("prepare", "generate"))],
)
def test_the_first_examples_run(page, engine, commands, environment, tmp_path, model_path):
    if engine == "clear":
        environment["SOTTOVOCE_INSECURE_CLEAR"] = "1"
    server, lines = served(ROOT / page, environment, tmp_path, model_path, engine)
    try:
        # --tokens of `prepare` comes from the environment: the model's context is short.
        chosen = [words for words in lines if words[0] in commands]
        ran = [run(words, server.address, environment, drop=("--tokens", "-n")) for words in chosen]
        assert [words[0] for words in chosen] == list(commands) and any(text.strip() for text in ran)
    finally:
        server.stop()


def test_the_demo_of_the_quickstart(environment):
    (words,) = [words for words in examples(ROOT / "docs" / "quickstart.md") if words[0] == "demo"]
    assert run(words, "", environment, drop=("-n",)).strip()


def test_the_sessions_of_the_guide(environment, tmp_path, model_path):
    environment["SOTTOVOCE_INSECURE_CLEAR"] = "1"
    server = Serving(model_path, tmp_path, environment)
    try:
        outputs = {
            " ".join(words): run(words, server.address, environment)
            for words in examples(ROOT / "docs" / "guides" / "sessions.md")[:4]
        }
    finally:
        server.stop()
    assert any("diary" in text for words, text in outputs.items() if words == "session ls")


def test_the_python_examples_compile():
    blocks = [
        block
        for page in PAGES
        for block in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S)
    ]
    assert blocks
    for block in blocks:
        compile(block, "example", "exec")
