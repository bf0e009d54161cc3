"""The example in the README, run as it is printed, between two processes and the program."""

import json
import os
import re
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("openai")

from test_cli import BASE, Serving  # noqa: E402
from tiny_model import save_tiny_model  # noqa: E402

README = (Path(__file__).parent.parent / "README.md").read_text()


@pytest.fixture
def environment(tmp_path):
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("SOTTOVOCE_", "OPENAI_"))}
    return {**clean, "SOTTOVOCE_CONFIG_DIR": str(tmp_path / "config"), "NO_COLOR": "1"}


@pytest.fixture
def server(tmp_path, environment):
    running = Serving(save_tiny_model(tmp_path), tmp_path, environment)
    yield running
    running.process.terminate()
    running.process.communicate(timeout=300)


@contextmanager
def proxy(server, environment, *more):
    """The URL of a proxy in a process of its own, which must end well."""
    flags = ["--port", "0", "--insecure-clear", "--max-tokens", "8", *more]
    process = subprocess.Popen(
        [*BASE, "proxy", server.address, *map(str, flags)], env=environment, stderr=subprocess.PIPE, text=True
    )
    try:
        for line in process.stderr:
            if found := re.search(r"interface at (http://127\.0\.0\.1:\d+)/v1", line):
                break
        yield found[1]
    finally:
        process.terminate()
        process.communicate(timeout=300)
    assert process.returncode == 0


def test_the_readmes_example(server, environment, tmp_path):
    (example,) = re.findall(r"```python\n(from openai.*?)```", README, re.S)

    def run(url, key):
        env = {**environment, "OPENAI_BASE_URL": url + "/v1", "OPENAI_API_KEY": key}
        command = [sys.executable, "-c", example]
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=240)

    with proxy(server, environment) as url:
        done = run(url, "unused")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("the server sees every token") and len(done.stdout.splitlines()) > 1
    token = tmp_path / "token"  # is made by the proxy
    with proxy(server, environment, "--token-file", token) as url:
        assert run(url, token.read_text().strip()).stdout == done.stdout
        assert "AuthenticationError" in run(url, "unused").stderr


def test_a_saved_session_survives_the_proxys_restart(server, environment, tmp_path):
    secret = tmp_path / "passphrase"
    secret.write_text("correct horse\n")
    flags = ("--session", "work", "--passphrase-file", secret)
    messages = [{"role": "user", "content": "remember this"}]

    def ask(url):
        with urlopen(url + "/v1/models", timeout=240) as reply:
            model = json.load(reply)["data"][0]["id"]
        body = json.dumps({"model": model, "messages": messages, "max_tokens": 4}).encode()
        request = Request(url + "/v1/chat/completions", body, {"Content-Type": "application/json"})
        with urlopen(request, timeout=240) as reply:
            return json.load(reply)

    with proxy(server, environment, *flags) as url:
        first = ask(url)
    said = first["choices"][0]["message"]["content"]
    messages += [{"role": "assistant", "content": said}, {"role": "user", "content": "go on"}]
    with proxy(server, environment, *flags) as url:
        usage = ask(url)["usage"]
        assert usage["prompt_tokens_details"]["cached_tokens"] == first["usage"]["prompt_tokens"] + 3
        # Another public beginning takes a new session, which then has the name.
        messages[:] = [{"role": "system", "content": "page", "private": False}, messages[0]]
        assert ask(url)["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    with proxy(server, environment, *flags) as url:
        assert ask(url)["usage"]["prompt_tokens_details"]["cached_tokens"] > 0


def test_collect_env_says_where_files_are():
    done = subprocess.run([*BASE, "collect-env", "--json"], capture_output=True, text=True, timeout=240)
    info = json.loads(done.stdout)
    assert info["packages"]["starlette"] != "not installed" and "configuration" in info["state"]
