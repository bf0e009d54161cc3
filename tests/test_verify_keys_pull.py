"""verify, keys, pull: what a server offers, what parties know each other by, where models come from."""

import json
import os
import stat
import sys
import types
from typing import NamedTuple

import pytest

from sottovoce.cli.errors import run_guarded
from sottovoce.cli.pull import fetch
from sottovoce.cli.root import cli
from sottovoce.errors import PeerConnectionError, UnknownModelError, UsageError
from sottovoce.parties.admission import ApiKeys
from test_cli import environment, model_path, run, serving  # noqa: F401  (fixtures)


def test_verify_says_who_answers_and_pins_nothing(serving, environment):  # noqa: F811
    done = run("verify", serving.address, "--json", env=environment)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["fingerprint"] == serving.info["fingerprint"] and not found["pinned"]
    assert found["engine"] == "clear" and "sees every token" in found["statement"][1]
    assert found["parameters"]["ring_degree"] == 8192 and found["context"] == 96
    text = run("verify", serving.address, env=environment).stdout
    assert "not pinned yet" in text and found["model_commitment"] in text
    run("generate", serving.address, "x", "-n", "1", "--insecure-clear", "-q", env=environment)
    assert "pinned here before" in run("verify", serving.address, env=environment).stdout
    good = ("--model-commitment", found["model_commitment"][:32], "--fingerprint", found["fingerprint"])
    done = run("verify", serving.address, *good, env=environment)
    assert done.returncode == 0 and "as you asked for" in done.stdout
    for wrong in (("--model-commitment", "0" * 64), ("--fingerprint", "sha256:" + "0" * 64)):
        assert run("verify", serving.address, *wrong, env=environment).returncode == 4
    assert "describe" in serving.report.read_text()


def test_another_certificate_is_refused_until_the_pin_is_removed(serving, environment, tmp_path):  # noqa: F811
    run("generate", serving.address, "x", "-n", "1", "--insecure-clear", "-q", env=environment)
    hosts = tmp_path / "config" / "known_hosts"
    hosts.write_text(hosts.read_text().replace("sha256:", "sha256:0")[:-2] + "\n")
    for command in (("verify",), ("generate", "x", "--insecure-clear")):
        done = run(command[0], serving.address, *command[1:], env=environment)
        assert done.returncode == 4 and "not the one pinned" in done.stderr
    assert run("keys", "rm", "host", serving.address, env=environment).returncode == 0
    assert run("verify", serving.address, env=environment).returncode == 0
    assert run("keys", "rm", "host", serving.address, env=environment).returncode == 2


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """A command in this process."""
    monkeypatch.setenv("SOTTOVOCE_CONFIG_DIR", str(tmp_path / "config"))

    def invoke(*arguments):
        code = run_guarded(lambda: cli.main([str(a) for a in arguments], standalone_mode=False))
        return Done(code, *capsys.readouterr())

    return invoke


def test_api_keys(command, tmp_path):
    path = tmp_path / "api-keys"
    made = [command("keys", "gen", "api", name, "--file", path) for name in ("ann", "bob")]
    keys = ApiKeys(path)
    assert [keys.account(done.stdout.strip()).name for done in made] == ["ann", "bob"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not any(done.stdout.strip() in path.read_text() for done in made)
    assert command("keys", "gen", "api", "ann", "--file", path).returncode == 2
    rows = json.loads(command("keys", "ls", "--file", path, "--json").stdout)
    assert [(row["kind"], row["name"]) for row in rows] == [("api", "ann"), ("api", "bob")]
    path.chmod(0o644)  # for a server that runs as somebody else
    assert command("keys", "rm", "api", "ann", "--file", path).returncode == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert [line.split()[0] for line in path.read_text().splitlines()] == ["bob"]
    assert command("keys", "rm", "api", "ann").returncode == 2
    done = command("keys", "gen", "api", "eve")
    assert done.stdout.startswith("sv-") and done.stderr.startswith(
        "for the server's --api-key-file: eve sha256:"
    )


def test_client_certificates(command, tmp_path):
    assert command("keys", "gen", "client", "../x").returncode == 2
    done = command("keys", "gen", "client", "laptop")
    private = tmp_path / "config" / "clients" / "laptop.pem"
    assert done.returncode == 0 and str(private) in done.stdout
    assert stat.S_IMODE(private.stat().st_mode) == 0o600 and "PRIVATE KEY" in private.read_text()
    assert "PRIVATE" not in private.with_suffix(".crt").read_text()
    assert "laptop" in command("keys", "ls").stdout
    assert command("keys", "gen", "client", "laptop").returncode == 2
    assert command("keys", "rm", "client", "laptop").returncode == 0 and not private.exists()
    assert command("keys", "rm", "server", "certificate").returncode == 2


def hub(**functions):
    module = types.ModuleType("huggingface_hub")
    vars(module).update(functions)
    return module


def failing(kind, base=OSError):
    def fail(*arguments, **options):
        raise type(kind, (base,), {})("https://somewhere")

    return fail


def test_pull(monkeypatch, tmp_path):
    asked = []

    def snapshot(repository, **options):
        asked.append((repository, options))
        return tmp_path

    monkeypatch.setitem(sys.modules, "huggingface_hub", hub(snapshot_download=snapshot))
    assert fetch("a/b", "main", None, None) == str(tmp_path)
    ((name, options),) = asked
    assert name == "a/b" and options["revision"] == "main" and "*.py" not in options["allow_patterns"]
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub(hf_hub_download=lambda *a, **o: "/x/" + a[1]))
    assert fetch("a/b", None, "m.gguf", None) == "/x/m.gguf"


@pytest.mark.parametrize(
    "kind, base, expected",
    [
        ("LocalEntryNotFoundError", OSError, PeerConnectionError),
        ("ConnectionError", OSError, PeerConnectionError),
        ("OfflineModeIsEnabled", ConnectionError, PeerConnectionError),
        ("RepositoryNotFoundError", OSError, UnknownModelError),
        ("GatedRepoError", OSError, UnknownModelError),
        ("HFValidationError", ValueError, UsageError),
    ],
)
def test_pull_says_why_not(monkeypatch, kind, base, expected):
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub(snapshot_download=failing(kind, base)))
    with pytest.raises(expected, match=kind):
        fetch("a/b", None, None, None)


def test_pull_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UsageError, match=r"sottovoce\[hub\]"):
        fetch("a/b", None, None, None)


def test_flags_beat_the_environment_beats_the_file(command, tmp_path, monkeypatch):
    """`keys gen api` with --file from each of the three."""
    config = tmp_path / "config" / "config.toml"
    config.parent.mkdir()
    config.write_text(f'[keys.gen]\nfile = "{tmp_path / "file"}"\n')
    places = {name: tmp_path / name for name in ("file", "environment", "flag")}

    def where(*more, **variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        done = command("keys", "gen", "api", "x", *more)
        assert done.returncode == 0, done.stderr
        (found,) = [name for name, path in places.items() if path.exists()]
        os.unlink(places[found])
        return found

    assert where() == "file"
    assert where(SOTTOVOCE_KEYS_FILE=str(places["environment"])) == "environment"
    assert where("--file", places["flag"], SOTTOVOCE_KEYS_FILE=str(places["environment"])) == "flag"
