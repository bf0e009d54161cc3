"""Notes, bars and tables: what reaches a terminal, a pipe, and nobody with -q."""

import contextlib
import io
import os
import re
import subprocess
import sys

import pytest

from sottovoce import errors
from sottovoce.cli.bench import describe
from sottovoce.cli.console import Console, condense, format_table, ledger_rows, seconds_text, size_text
from sottovoce.cli.errors import run_guarded
from sottovoce.engines.base import EngineOptions
from sottovoce.engines.explain import who_learns_what
from sottovoce.net import LedgerRow


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_plain_lines_when_not_a_terminal():
    stream = io.StringIO()
    console = Console(stream=stream)
    console.note("hello")
    for i in range(100):
        console.progress(i, 100, "layers")
    console.end_progress()
    assert stream.getvalue() == "hello\n"


def test_quiet_says_only_warnings():
    stream = io.StringIO()
    console = Console(quiet=True, stream=stream)
    console.note("hello")
    console.progress(1, 2, "x")
    console.table("t", ("a",), [("b",)])
    console.warn("careful")
    assert stream.getvalue() == "warning: careful\n"


def test_bar_on_a_terminal_is_gone_before_the_next_note(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    console = Console(stream=stream)
    console.progress(1, 2, "encoding")
    console.note("done")
    assert "encoding" in stream.getvalue() and stream.getvalue().endswith("done\n")


def test_progress_behind_streamed_text_leaves_the_cursor(monkeypatch):
    stream = Terminal()
    console = Console(stream=stream)
    console.text_column = 10
    console.progress(1, 4, "layers")
    console.end_progress()
    assert stream.getvalue() == "\x1b7 [ 25%]\x1b8\x1b[K"
    stream.truncate(0)
    console.text_column = 78  # no room before the margin (80 columns)
    monkeypatch.setenv("COLUMNS", "80")
    console.progress(1, 4, "layers")
    console.end_progress()
    assert "%" not in stream.getvalue()


def test_sizes_and_times():
    assert [size_text(n) for n in (0, 999, 1500, 2.5e6, 3.21e9)] == [
        "0 B",
        "999 B",
        "1.5 kB",
        "2.5 MB",
        "3.21 GB",
    ]
    assert [seconds_text(s) for s in (5e-6, 0.02, 1.5, 90)] == ["5 µs", "20 ms", "1.50 s", "1.5 min"]


def test_tables_align():
    lines = format_table("title", ("name", "n"), [("a", "1"), ("long", "22")]).splitlines()
    assert lines == ["title", "  name   n", "  ----  --", "  a      1", "  long  22"]


def test_ledger_rows_condense_nested_operations():
    rows = [
        LedgerRow("decode", "norm", 10, 0, 1, 0, 1),
        LedgerRow("decode", "norm/correlations", 5, 7, 1, 1, 2),
    ]
    (row,) = condense(rows)
    assert (row.operation, row.bytes_up, row.bytes_down, row.rounds) == ("norm", 15, 7, 3)
    assert ledger_rows([row])[0][:2] == ["decode", "norm"]


def test_describe_makes_tables_of_lists():
    text = "\n".join(
        describe({"model": "m", "machine": {"cores": 2}, "rows": [{"a": 1, "b": 0.5}, {"a": 2, "b": 1e-9}]})
    )
    assert "model: m" in text and "  cores: 2" in text and "1e-09" in text


def test_who_learns_what_is_honest_about_the_clear_engine():
    hybrid = who_learns_what(EngineOptions(), 3, 4, 5)
    clear = who_learns_what(EngineOptions(engine="clear"), 3, 4, 5)
    assert all(row[2] != "everything" for row in hybrid)
    assert sum(row[2] == "everything" for row in clear) == 4


def test_bugs_are_one_line_without_their_text(capsys, monkeypatch):
    monkeypatch.delenv("SOTTOVOCE_DEBUG", raising=False)

    def broken():
        raise ValueError("the prompt was secret")

    assert run_guarded(broken) == 1
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1 and "ValueError" in shown and "secret" not in shown
    monkeypatch.setenv("SOTTOVOCE_DEBUG", "1")
    with pytest.raises(ValueError):
        run_guarded(broken)


def every_error(root=errors.SottovoceError):
    yield root
    for one in root.__subclasses__():
        yield from every_error(one)


@pytest.mark.parametrize("kind", [one for one in every_error() if one.__module__ == errors.__name__])
def test_every_error_has_the_exit_code_of_its_branch(kind, capsys):
    def failing():
        raise kind("what happened; what to do")

    branches = {
        errors.UsageError: 2,
        errors.PeerConnectionError: 3,
        errors.RefusedError: 4,
        errors.ProtocolError: 5,
    }
    wanted = next((code for branch, code in branches.items() if issubclass(kind, branch)), 1)
    assert run_guarded(failing) == wanted
    shown = capsys.readouterr()
    assert shown.err == "error: what happened; what to do\n" and not shown.out


@pytest.mark.parametrize("color", [True, False])
def test_colors_only_where_they_are_wanted(color):
    """On a terminal: bars and colors, unless NO_COLOR is set."""
    pty = pytest.importorskip("pty")
    environment = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")}
    environment |= {"TERM": "xterm-256color", **({} if color else {"NO_COLOR": "1"})}
    code = (
        "from sottovoce.cli.console import Console\n"
        "console = Console()\n"
        "for i in range(3): console.progress(i, 3, 'encoding')\n"
        "console.note('done')\n"
    )
    controller, terminal = pty.openpty()
    with subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=terminal) as process:
        assert process.wait(timeout=240) == 0
    os.close(terminal)
    shown = b""
    with contextlib.suppress(OSError):  # Linux says so when the other end is closed
        while piece := os.read(controller, 65536):
            shown += piece
    os.close(controller)
    assert b"encoding" in shown and b"done" in shown
    assert bool(re.search(rb"\x1b\[[0-9;]*[1-9][0-9;]*m", re.sub(rb"\x1b\[[01]m", b"", shown))) is color
