"""The examples in deploy/ use commands and flags that exist. No container is run here: see tools/."""

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest

from sottovoce.cli.root import COMMANDS, cli

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"


def accepted(arguments):
    """Whether click takes a command line; the command is not run."""
    name, *rest = arguments
    command = cli.get_command(click.Context(cli), name)
    command.make_context(name, list(rest), resilient_parsing=False)
    return True


@pytest.mark.parametrize("name", ["sottovoce.service", "sottovoce-proxy.service"])
def test_units(name):
    text = (DEPLOY / name).read_text()
    (line,) = re.findall(r"^ExecStart=(.*)$", text, re.M)
    program, *arguments = shlex.split(line)
    assert program.endswith("/sottovoce") and accepted(arguments)
    keys = [line.partition("=")[0] for line in text.splitlines() if "=" in line and not line.startswith("#")]
    assert len(keys) == len(set(keys)) and "LimitCORE" in keys and "NoNewPrivileges" in keys


@pytest.mark.parametrize("name", ["sottovoce.service", "sottovoce-proxy.service"])
def test_systemd_takes_the_units(name, tmp_path):
    """Every key is one that systemd knows, with a value that it takes; the program stands for ours."""
    systemd = shutil.which("systemd-analyze")
    if systemd is None:
        pytest.skip("systemd-analyze is not installed")
    unit = tmp_path / name
    unit.write_text(
        re.sub(r"^ExecStart=\S+", f"ExecStart={sys.executable}", (DEPLOY / name).read_text(), flags=re.M)
    )
    done = subprocess.run([systemd, "verify", str(unit)], capture_output=True, text=True, timeout=240)
    own = [line for line in done.stderr.splitlines() if name in line]
    assert not own, own


def test_compose():
    yaml = pytest.importorskip("yaml")
    content = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    for service in content["services"].values():
        assert accepted(service["command"]) and service["read_only"] and service["cap_drop"] == ["ALL"]
    # Prompts are in the clear at this port.
    assert all(port.startswith("127.0.0.1:") for port in content["services"]["proxy"]["ports"])
    assert content["networks"]["between"]["internal"] is True


def test_containerfile():
    text = (DEPLOY / "Containerfile").read_text()
    for line in re.findall(r"^COPY (?!--)(.*)$", text, re.M):
        assert all((ROOT / name).exists() for name in line.split()[:-1])
    assert re.search(r"^USER (?!root)", text, re.M)
    stages = re.findall(r"^FROM \S+ AS (\S+)", text, re.M)
    assert set(re.findall(r"^COPY --from=(\S+)", text, re.M)) <= set(stages)
    joined = text.replace("\\\n", "")
    for line in re.findall(r"^RUN (.*)$", joined, re.M):
        done = subprocess.run(["sh", "-n", "-c", line], capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(re.findall(r"\.whl\)\[(\w+)\]", joined)) and set(
        re.findall(r"\.whl\)\[(\w+)\]", joined)
    ) <= set(extras)


@pytest.mark.parametrize("name", ["server.toml", "client.toml"])
def test_configurations(name):
    tables = tomllib.loads((DEPLOY / name).read_text())
    assert tables
    for command_name, table in tables.items():
        assert command_name in COMMANDS
        command = cli.get_command(click.Context(cli), command_name)
        names = {parameter.name for parameter in command.params}
        assert {key.replace("-", "_") for key in table} <= names


def test_wheels_are_tested_by_files_that_exist():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["cibuildwheel"]
    for name in re.findall(r"\{project\}/(\S+)", settings["test-command"]):
        assert (ROOT / name).is_file()
