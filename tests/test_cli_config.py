"""config.toml, and files that the system refuses: what is wrong is said, with where and what to do."""

import errno
import json

import click
import pytest

from hosted import certificate, hosted, model  # noqa: F401  (fixtures)
from sottovoce.cli.errors import run_guarded
from sottovoce.cli.generate import proper, public_text
from sottovoce.cli.root import cli
from sottovoce.errors import UsageError


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Writes the file."""
    monkeypatch.setenv("SOTTOVOCE_CONFIG_DIR", str(tmp_path))
    return (tmp_path / "config.toml").write_text


def run(*words):
    return run_guarded(lambda: cli.main(list(words), standalone_mode=False))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[generate]\nmax-tokens = [1]", "[generate]: max-tokens is a text or a number"),
        ("[generate]\nmax-tokens = true", "max-tokens is a text or a number"),
        ("[generate]\nmax-tokens = 1979-05-27", "max-tokens is a text or a number"),
        ('[generate]\nmax-tokens = "many"', "max-tokens: 'many' is not"),
        ("[generate]\nmax_token = 3", "max_token is not a flag of this command; did you mean max-tokens?"),
        ('[generate]\nquiet = "yes"', "quiet is true or false"),
        ("[generate]\napi-key = [5517]", "api-key is a text or a number"),
        ("[generate.more]\nn = 1", "more is not a flag"),
        ("[generates]\nn = 1", "'generates' is not a command"),
        ("[generate", "cannot be read"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(config, capsys, text, said):
    config(text)
    assert run("generate", "localhost:1", "hi") == 2
    shown = capsys.readouterr().err
    assert said in shown and "config.toml" in shown and "5517" not in shown


def test_groups_have_tables_of_their_commands(config, capsys):
    config("[bench.faults]\npoint = 3")
    assert run("bench", "faults") == 2 and "did you mean points?" in capsys.readouterr().err
    config("[bench.fault]\npoints = 3")
    assert run("bench", "faults") == 2 and "[bench.COMMAND]" in capsys.readouterr().err
    assert run("models") == 0  # another command's table is its own affair


def test_flags_by_their_names(config, capsys):
    """`json`, although the parameter is called otherwise; one text where several may stand."""
    config('[estimate]\njson = true\nengine = "clear"\nnew-tokens = 2\nprompt_tokens = 4')
    assert run("estimate", "smollm2-135m", "--no-calibration", "-q") == 0
    assert json.loads(capsys.readouterr().out)["estimates"][0]["engine"] == "clear"
    config('[generate]\nstop = "one"')
    context = click.Context(cli)
    with context:
        cli.resolve_command(context, ["generate"])
        assert context.default_map["generate"] == {"stop": ["one"]}


def test_a_directory_in_the_files_place(tmp_path, monkeypatch, capsys):
    (tmp_path / "config.toml").mkdir()
    monkeypatch.setenv("SOTTOVOCE_CONFIG_DIR", str(tmp_path))
    assert run("models") == 2 and "is a directory" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("number", "advice"),
    [(errno.EACCES, "permissions"), (errno.ENOSPC, "make room"), (errno.ENOENT, "check the name")],
)
def test_a_file_that_the_system_refuses_is_no_bug(number, advice, capsys):
    def refused():
        raise OSError(number, "Refused", "/some/file")

    assert run_guarded(refused) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: /some/file: refused; ") and advice in shown and shown.count("\n") == 1


@pytest.mark.parametrize(
    ("package", "how"), [("uvicorn.config", "'sottovoce[proxy]'"), ("tenseal", "pip install tenseal")]
)
def test_a_package_that_is_missing_is_named(package, how, capsys):
    def missing():
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)

    assert run_guarded(missing) == 2
    shown = capsys.readouterr().err
    assert how in shown and package.split(".")[0] in shown


def test_a_module_of_ours_that_is_missing_is_a_bug(capsys, monkeypatch):
    monkeypatch.delenv("SOTTOVOCE_DEBUG", raising=False)

    def missing():
        raise ModuleNotFoundError("No module named 'sottovoce.x'", name="sottovoce.x")

    assert run_guarded(missing) == 1 and "this is a bug" in capsys.readouterr().err


def test_other_errors_of_the_system_are_bugs(capsys, monkeypatch):
    monkeypatch.delenv("SOTTOVOCE_DEBUG", raising=False)

    def refused():
        raise OSError(errno.EBADF, "Bad file descriptor")

    assert run_guarded(refused) == 1 and "this is a bug" in capsys.readouterr().err


def test_a_port_in_use_is_said_before_the_model_is_loaded(capsys):
    from sottovoce.parties.server import listener

    with listener("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        assert run("serve", "no-such-model", "--port", str(port)) == 2
    assert "another program listens there" in capsys.readouterr().err


def test_what_is_no_text_is_refused(tmp_path):
    assert proper("näh 🦊") == "näh 🦊" and public_text(None) is None
    with pytest.raises(UsageError, match="not UTF-8"):
        proper(b"\xff".decode(errors="surrogateescape"))
    file = tmp_path / "page.txt"
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match=r"page.txt is not UTF-8"):
        public_text(str(file))


def test_plaintext_to_a_server_with_tls(hosted, config, capsys):  # noqa: F811
    assert run("generate", str(hosted.address), "hi", "--insecure-clear", "--insecure-plaintext", "-q") == 3
    assert "leave --insecure-plaintext out" in capsys.readouterr().err
