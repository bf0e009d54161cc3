"""Errors and notes may quote what the other side chose; none of it commands the terminal."""

import io

import pytest

from sottovoce.cli.console import Console
from sottovoce.cli.errors import run_guarded
from sottovoce.models.chat import ChatTemplate

ESCAPES = "\x1b]0;retitled\x07\x1b[2J\x9b2J\r"


def test_the_error_of_a_servers_template(capsys):
    template = ChatTemplate("{{ raise_exception('" + ESCAPES + "') }}")
    assert run_guarded(lambda: template.render([{"role": "user", "content": "x"}])) != 0
    said = capsys.readouterr().err
    assert "retitled" in said and said.removesuffix("\n").isprintable()


@pytest.mark.parametrize("say", [Console.note, Console.warn])
def test_notes_and_warnings(say):
    stream = io.StringIO()
    say(Console(stream=stream), f"first\n{ESCAPES}second")
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2 and all(line.isprintable() for line in lines) and lines[1].endswith("second")
