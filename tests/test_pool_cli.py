"""`sottovoce prepare` as a user meets it: two processes, pools in their configuration directories."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tiny_model import save_tiny_model

BASE = [sys.executable, "-m", "sottovoce"]


class Machine:
    """A client's and a server's configuration directory, and the server process."""

    def __init__(self, path, model):
        self.path, self.model = path, model
        clean = {k: v for k, v in os.environ.items() if not k.startswith("SOTTOVOCE_")}
        self.env = {**clean, "SOTTOVOCE_CONFIG_DIR": str(path / "client"), "NO_COLOR": "1"}
        self.client_pools, self.server_pools = path / "client" / "pools", path / "server" / "pools"
        self.process = None

    def serve(self, *more):
        ready = self.path / "ready.json"
        ready.unlink(missing_ok=True)
        command = [*BASE, "serve", str(self.model), "--port", "0", "--ready-file", str(ready), *more]
        env = {**self.env, "SOTTOVOCE_CONFIG_DIR": str(self.path / "server")}
        self.process = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 300
        while not ready.exists():
            assert self.process.poll() is None and time.monotonic() < deadline, self.process.stderr.read()
            time.sleep(0.02)
        self.address = f"127.0.0.1:{json.loads(ready.read_text())['port']}"

    def stop(self):
        if self.process is not None:
            self.process.terminate()
            self.process.communicate(timeout=300)
            self.process = None

    def run(self, command, *arguments):
        return subprocess.run(
            [*BASE, command, self.address, *map(str, arguments)],
            capture_output=True,
            text=True,
            env=self.env,
            timeout=240,
        )


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def machine(tmp_path, model):
    made = Machine(tmp_path, model)
    made.serve()
    yield made
    made.stop()


def test_prepare_then_generate_across_a_restart_of_the_server(machine):
    assert not list(machine.path.rglob("marks.db"))
    done = machine.run("prepare", "--tokens", 20, "--json")
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert outcome["tokens_ready"] == outcome["tokens_prepared"] == 20
    assert outcome["bytes_up"] > 0 and outcome["bytes_down"] > 0
    machine.stop()
    machine.serve()
    again = machine.run("prepare", "--tokens", 20)
    assert again.returncode == 0 and "20 tokens are ready, 0 of them new" in again.stderr
    answer = machine.run("generate", "hello", "-n", 4, "--raw")
    assert answer.returncode == 0, answer.stderr
    assert "prepared ahead: 9 of at most 9 tokens" in answer.stderr
    assert "10 tokens are ready" in machine.run("prepare", "--tokens", 10).stderr


def test_generate_without_a_pool_makes_none(machine):
    answer = machine.run("generate", "hello", "-n", 2, "--raw")
    assert answer.returncode == 0 and "prepared" not in answer.stderr
    assert not list(machine.path.rglob("marks.db"))


def test_a_restored_backup_is_refused_with_the_way_out(machine):
    assert machine.run("prepare", "--tokens", 8, "-q").returncode == 0
    backup = machine.path / "backup"
    shutil.copytree(machine.client_pools, backup)
    assert machine.run("generate", "a", "-n", 2, "--raw", "-q").returncode == 0
    shutil.rmtree(machine.client_pools)
    shutil.copytree(backup, machine.client_pools)
    refused = machine.run("generate", "a", "-n", 2, "--raw", "-q")
    assert refused.returncode == 4
    assert "restored from a backup" in refused.stderr and "prepare SERVER --reset" in refused.stderr
    assert machine.run("generate", "a", "-n", 2, "--raw", "-q", "--no-pool").returncode == 0
    reset = machine.run("prepare", "--tokens", 8, "--reset")
    assert reset.returncode == 0 and "8 tokens are ready, 8 of them new" in reset.stderr
    assert len(list(machine.server_pools.rglob("marks.db"))) == 1
    assert machine.run("generate", "a", "-n", 2, "--raw", "-q").returncode == 0


def test_a_full_pool(machine):
    full = machine.run("prepare", "--tokens", 90, "--pool-limit", "0.002")
    assert full.returncode == 2
    assert "is full" in full.stderr and "--pool-limit" in full.stderr
    assert machine.run("generate", "a", "-n", 2, "--raw", "-q").returncode == 0


def test_interrupted_preparation_keeps_what_is_complete(machine):
    command = [*BASE, "prepare", machine.address, "--tokens", "600"]
    process = subprocess.Popen(command, env=machine.env, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while len(list(machine.client_pools.rglob("*.items"))) < 3:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=300)
    # 0: on a busy machine the preparation can end before the signal comes.
    assert process.returncode in (130, 0)
    done = machine.run("prepare", "--tokens", 8)
    assert done.returncode == 0 and "8 tokens are ready, 0 of them new" in done.stderr


def test_a_server_that_keeps_no_pools(machine):
    machine.stop()
    machine.serve("--no-pools")
    refused = machine.run("prepare", "--tokens", 8)
    assert refused.returncode == 2 and "--no-pools" in refused.stderr
    assert machine.run("generate", "a", "-n", 2, "--raw", "-q").returncode == 0
