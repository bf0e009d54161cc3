"""The command line as a user meets it: processes, exit codes, what goes to stdout and what to stderr."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import sottovoce
from tiny_model import save_tiny_model

BASE = [sys.executable, "-m", "sottovoce"]


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def environment(tmp_path):
    clean = {k: v for k, v in os.environ.items() if not k.startswith("SOTTOVOCE_")}
    return {**clean, "SOTTOVOCE_CONFIG_DIR": str(tmp_path / "config"), "NO_COLOR": "1"}


def run(*arguments, env=None, stdin=None, timeout=240):
    return subprocess.run(
        [*BASE, *map(str, arguments)], capture_output=True, text=True, env=env, input=stdin, timeout=timeout
    )


class Serving:
    """A server process with the engine without cryptography."""

    def __init__(self, model_path, tmp_path, env, *more):
        self.ready = tmp_path / "ready.json"
        self.report = tmp_path / "report.jsonl"
        self.process = subprocess.Popen(
            [
                *BASE,
                "serve",
                str(model_path),
                "--engine",
                "clear",
                "--port",
                "0",
                "--ready-file",
                str(self.ready),
            ]
            + ["--report-file", str(self.report), *more],
            env={**env, "SOTTOVOCE_CONFIG_DIR": str(tmp_path / "server-config")},
            stderr=subprocess.PIPE,
            text=True,
        )
        deadline = time.monotonic() + 300
        while not self.ready.exists():
            assert self.process.poll() is None and time.monotonic() < deadline, self.process.stderr.read()
            time.sleep(0.02)
        self.info = json.loads(self.ready.read_text())
        self.address = f"127.0.0.1:{self.info['port']}"

    def stop(self):
        self.process.terminate()
        return self.process.communicate(timeout=300)[1]

    def stop_behind_a_session(self):
        """Once the server has noticed that its client left."""
        while not self.report.exists() or not self.report.read_text().endswith("\n"):
            assert self.process.poll() is None
            time.sleep(0.02)
        return self.stop()


@pytest.fixture
def serving(model_path, tmp_path, environment):
    server = Serving(model_path, tmp_path, environment)
    yield server
    server.process.kill()
    server.process.communicate()


def test_help_is_complete():
    done = run("--help")
    assert done.returncode == 0
    for name in ("serve", "generate", "demo", "bench", "models", "collect-env"):
        assert name in done.stdout
    assert run("--version").stdout.strip().endswith(sottovoce.__version__)


def test_help_imports_nothing_heavy():
    code = """
import sys
from sottovoce.cli import main
try:
    main(["--help"])
except SystemExit:
    print(sorted(m for m in ("numpy", "rich", "tokenizers", "jinja2") if m in sys.modules), file=sys.stderr)
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr.strip() == "[]"


@pytest.mark.parametrize("command", ["serve", "generate", "demo", "bench", "models", "collect-env"])
def test_every_command_has_help_with_environment_variables(command):
    done = run(command, "--help")
    assert done.returncode == 0
    if command in ("serve", "generate", "demo"):
        assert "SOTTOVOCE_" in done.stdout


def test_generate_text_on_stdout_notes_on_stderr(serving, environment):
    done = run("generate", serving.address, "hello", "-n", "5", "--insecure-clear", env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("\n") and len(done.stdout) > 1
    assert "first connection: pinned" in done.stderr and "NO cryptography" in done.stderr
    assert "public: 7 tokens that the server can read" in done.stderr
    assert "expected: not known before the first answer" in done.stderr
    assert "\x1b" not in done.stderr + done.stdout
    again = run("generate", serving.address, "hello", "-n", "5", "--insecure-clear", "-q", env=environment)
    assert again.stdout == done.stdout
    assert [line for line in again.stderr.splitlines() if not line.startswith("warning:")] == []


def test_the_last_answer_tells_what_to_expect(serving, environment):
    base = ["generate", serving.address, "hello", "-n", "5", "--insecure-clear"]
    assert run(*base, env=environment).returncode == 0
    file = Path(environment["SOTTOVOCE_CONFIG_DIR"]) / "paces.json"
    assert file.stat().st_mode & 0o777 == 0o600 and "hello" not in file.read_text()
    said = run(*base, env=environment).stderr
    assert re.search(r"expected: 5 tokens in about [\d.]+ \S+ and [\d.]+ \S*B, as the last answer", said)
    file.write_text('{"x": [1, "y"], "' + serving.address + '": 3}')
    assert "expected: not known" in run(*base, env=environment).stderr


def test_generate_json(serving, environment):
    done = run(
        "generate",
        serving.address,
        "-",
        "-n",
        "4",
        "--json",
        "--insecure-clear",
        "--raw",
        env=environment,
        stdin="abc",
    )
    assert done.returncode == 0, done.stderr
    value = json.loads(done.stdout)
    assert set(value) == {"text", "token_ids", "finish_reason", "usage"}
    assert set(value["usage"]) == {
        "prompt_tokens",
        "public_tokens",
        "completion_tokens",
        "seconds",
        "bytes_up",
        "bytes_down",
        "rounds",
        "drafted_tokens",
        "accepted_tokens",
        "verification_steps",
        "cached_tokens",
    }
    assert value["usage"]["prompt_tokens"] == 4 and value["usage"]["public_tokens"] == 1
    assert len(value["token_ids"]) == value["usage"]["completion_tokens"] <= 4


def test_flags_from_environment_and_file(serving, environment, tmp_path):
    flagged = {
        **environment,
        "SOTTOVOCE_MAX_TOKENS": "2",
        "SOTTOVOCE_INSECURE_CLEAR": "1",
        "SOTTOVOCE_JSON": "1",
    }
    one = run("generate", serving.address, "abc", env=flagged)
    assert json.loads(one.stdout)["usage"]["completion_tokens"] <= 2
    config = Path(environment["SOTTOVOCE_CONFIG_DIR"])
    (config / "config.toml").write_text("[generate]\nmax-tokens = 3\ninsecure-clear = true\nas_json = true\n")
    two = run("generate", serving.address, "abc", env=environment)
    assert json.loads(two.stdout)["usage"]["completion_tokens"] <= 3
    (config / "config.toml").write_text("[nonsense]\n")
    assert run("generate", serving.address, "abc", env=environment).returncode == 2


def test_public_file_and_system_prompt(serving, environment, tmp_path):
    public = tmp_path / "public.txt"
    public.write_text("a public text")
    base = ["generate", serving.address, "q", "-n", "1", "--json", "--insecure-clear"]
    with_public = json.loads(run(*base, "--public-file", public, env=environment).stdout)["usage"]
    with_system = json.loads(run(*base, "--system-prompt", "a public text", env=environment).stdout)["usage"]
    assert with_public["prompt_tokens"] == with_system["prompt_tokens"]
    assert with_public["public_tokens"] > with_system["public_tokens"]
    raw = json.loads(run(*base, "--public-file", public, "--raw", env=environment).stdout)["usage"]
    assert raw["public_tokens"] == 1 + len("a public text")
    both = run(*base, "--public-file", public, "--system-prompt", "x", env=environment)
    assert both.returncode == 2 and "not both" in both.stderr


# --- bad input: an exit code and one line
# -----------------------------------------------------------------------------


def failed(done, code, *words):
    assert done.returncode == code, (done.returncode, done.stderr)
    assert "Traceback" not in done.stderr
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("error: "), line
    for word in words:
        assert word in line, line


def test_unknown_and_corrupt_models(environment, tmp_path):
    failed(run("serve", "no-such-model", env=environment), 2, "no-such-model")
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(100))
    failed(run("serve", broken, env=environment), 2)
    (tmp_path / "notes.txt").write_text("x")
    failed(run("serve", tmp_path / "notes.txt", env=environment), 2)


def test_connection_errors(environment):
    failed(run("generate", "127.0.0.1:1", "x", env=environment), 3, "cannot connect", "nothing listens there")
    failed(run("generate", "host:port", "x", env=environment), 2, "host:port")


def test_refusals(serving, environment):
    failed(run("generate", serving.address, "x", env=environment), 4, "engine 'hybrid'", "'clear'")
    failed(
        run(
            "generate",
            serving.address,
            "x",
            "--insecure-clear",
            "--model-commitment",
            "0" * 64,
            env=environment,
        ),
        4,
    )
    failed(
        run(
            "generate",
            serving.address,
            "x",
            "--insecure-clear",
            "--fingerprint",
            "sha256:00",
            env=environment,
        ),
        4,
    )
    plain = run("generate", serving.address, "x", "--insecure-clear", "--insecure-plaintext", env=environment)
    assert plain.returncode in (3, 5) and "Traceback" not in plain.stderr


def test_changed_certificate(serving, environment):
    first = run("generate", serving.address, "x", "-n", "1", "--insecure-clear", env=environment)
    assert first.returncode == 0
    pins = Path(environment["SOTTOVOCE_CONFIG_DIR"]) / "known_hosts"
    assert pins.stat().st_mode & 0o777 == 0o600
    pins.write_text(pins.read_text().replace("sha256:", "sha256:0"))
    failed(
        run("generate", serving.address, "x", "--insecure-clear", env=environment), 4, "not the one pinned"
    )


def test_prompt_longer_than_the_context(serving, environment):
    done = run("generate", serving.address, "x" * 200, "--insecure-clear", env=environment)
    failed(done, 2, "context of 96")


@pytest.mark.parametrize(
    "flags",
    [
        ["--temperature", "-1"],
        ["--top-p", "0"],
        ["-n", "0"],
        ["--top-k", "-3"],
        ["--no-such-flag"],
        ["--seed", "x"],
    ],
)
def test_bad_flags(serving, environment, flags):
    done = run("generate", serving.address, "x", "--insecure-clear", *flags, env=environment)
    assert done.returncode == 2 and "Traceback" not in done.stderr


def test_empty_prompt(serving, environment):
    failed(run("generate", serving.address, " ", "--insecure-clear", env=environment), 2, "empty")


def test_port_in_use(serving, environment, model_path):
    failed(
        run("serve", model_path, "--engine", "clear", "--port", serving.info["port"], env=environment),
        2,
        "listen",
    )


# --- endings
# ----------------------------------------------------------------------------------------------------------


def test_sigterm_stops_the_server_cleanly(serving, environment):
    run("generate", serving.address, "x", "-n", "1", "--insecure-clear", env=environment)
    log = serving.stop_behind_a_session()
    assert serving.process.returncode == 0 and "Traceback" not in log
    assert "opened" in log and "ended: client left" in log
    (report,) = [json.loads(line) for line in serving.report.read_text().splitlines()]
    assert report["private_tokens"] > 0 and report["peak_memory_bytes"] > 0 and report["ledger"]


def test_logs_hold_no_text(serving, environment):
    done = run(
        "generate", serving.address, "zanzibar", "-n", "8", "--insecure-clear", "--raw", env=environment
    )
    log = serving.stop() + serving.report.read_text()
    assert "zanzibar" not in log and done.stdout.strip() not in log


def test_ctrl_c_at_the_client_keeps_the_server(serving, environment):
    process = subprocess.Popen(
        [*BASE, "generate", serving.address, "x", "-n", "60", "--insecure-clear", "--temperature", "1"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    _, notes = process.communicate(timeout=300)
    # On a busy machine the answer can be whole before the signal comes: that meets the interpreter's end.
    assert process.returncode in (130, 0, -signal.SIGINT)
    assert process.returncode != 130 or "Traceback" not in notes
    assert (
        run("generate", serving.address, "x", "-n", "1", "--insecure-clear", env=environment).returncode == 0
    )


def test_ctrl_c_at_the_server(serving, environment):
    serving.process.send_signal(signal.SIGINT)
    log = serving.process.communicate(timeout=300)[1]
    assert serving.process.returncode == 0 and "Traceback" not in log


def test_reader_that_leaves(environment):
    done = subprocess.run(
        f"{sys.executable} -m sottovoce models | true", shell=True, capture_output=True, text=True
    )
    assert "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr


# --- the small commands
# -----------------------------------------------------------------------------------------------


def test_models_and_collect_env(environment):
    assert "smollm2-135m" in run("models", env=environment).stdout
    assert {row["name"] for row in json.loads(run("models", "--json", env=environment).stdout)} >= {
        "smollm2-135m"
    }
    info = json.loads(run("collect-env", "--json", env=environment).stdout)
    assert set(info) >= {"version", "machine", "packages"} and info["machine"]["cores"] >= 1
    assert "numpy" in run("collect-env", env=environment).stdout


def test_demo_json(model_path, environment):
    done = run("demo", "hi", "--model", model_path, "--engine", "clear", "-n", "6", "--json", env=environment)
    assert done.returncode == 0, done.stderr
    value = json.loads(done.stdout)
    assert {"text", "tokens", "tokens_equal_plaintext", "seconds_per_token", "bytes_per_token"} <= set(value)
    assert value["tokens_equal_plaintext"] is True and value["server_received"]["frames"] > value["tokens"]
    for words in (
        "what the server received",
        "who could learn what",
        "the ledger",
        "against the plaintext model",
    ):
        assert words in done.stderr


def test_a_server_does_not_outlive_a_parent_that_was_killed(model_path, tmp_path, environment):
    """Killed while the server loads its model, before anything watches."""
    ready = tmp_path / "ready.json"
    serve = [*BASE, "serve", str(model_path), "--engine", "clear", "--port", "0", "--stop-with-parent"]
    parent = "import subprocess, sys; print(subprocess.Popen(sys.argv[1:]).pid, flush=True); sys.stdin.read()"
    process = subprocess.Popen(
        [sys.executable, "-c", parent, *serve, "--ready-file", str(ready)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    child = int(process.stdout.readline())
    process.stderr.readline()  # "loading …"
    process.kill()
    # The pipe that both write to is at its end when both are gone.
    process.communicate(timeout=300)
    assert not Path(f"/proc/{child}/cmdline").exists() or not Path(f"/proc/{child}/cmdline").read_bytes()


def test_demo_relays_the_servers_error(environment):
    failed(run("demo", "--model", "no-such-model", "--engine", "clear", env=environment), 2, "no-such-model")
