"""The example in the README, run as it is printed, between two processes and the program."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("openai")

from test_cli import BASE, Serving  # noqa: E402
from tiny_model import save_tiny_model  # noqa: E402

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_the_readmes_example(tmp_path):
    (example,) = re.findall(r"```python\n(from openai.*?)```", README, re.S)
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("SOTTOVOCE_", "OPENAI_"))}
    env = {**clean, "SOTTOVOCE_CONFIG_DIR": str(tmp_path / "config"), "NO_COLOR": "1"}
    server = Serving(save_tiny_model(tmp_path), tmp_path, env)
    flags = ["--port", "0", "--insecure-clear", "--max-tokens", "8"]
    proxy = subprocess.Popen(
        [*BASE, "proxy", server.address, *flags], env=env, stderr=subprocess.PIPE, text=True
    )
    try:
        for line in proxy.stderr:
            if found := re.search(r"interface at (http://127\.0\.0\.1:\d+/v1)", line):
                break
        env = {**env, "OPENAI_BASE_URL": found[1], "OPENAI_API_KEY": "unused"}
        done = subprocess.run(
            [sys.executable, "-c", example], env=env, capture_output=True, text=True, timeout=240
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("the server sees every token") and len(done.stdout.splitlines()) > 1
    finally:
        proxy.terminate()
        proxy.communicate(timeout=120)
        server.process.terminate()
        server.process.communicate(timeout=120)
    assert proxy.returncode == 0


def test_collect_env_says_where_files_are():
    done = subprocess.run([*BASE, "collect-env", "--json"], capture_output=True, text=True, timeout=240)
    info = json.loads(done.stdout)
    assert info["packages"]["starlette"] != "not installed" and "configuration" in info["state"]
