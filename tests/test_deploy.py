"""The examples in deploy/ use commands and flags that exist. No container is run here: see tools/."""

import os
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
from sottovoce.cli.serve import _GRACE

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
        assert service["ulimits"] == {"core": 0}
        # What it asks is answered at a port that the command opens.
        (port,) = re.findall(r"http://127\.0\.0\.1:(\d+)/(?:health)?'", service["healthcheck"]["test"][1])
        assert port in service["command"]
    # Longer than `serve` waits for busy sessions.
    assert int(content["services"]["server"]["stop_grace_period"].removesuffix("s")) > _GRACE
    # Prompts are in the clear at this port.
    assert all(port.startswith("127.0.0.1:") for port in content["services"]["proxy"]["ports"])
    assert content["networks"]["between"]["internal"] is True
    # The server is on the proxy's network: it must not be one of those who may ask.
    assert "--token-file" in content["services"]["proxy"]["command"]


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


def test_the_instruction_set_can_be_lowered():
    """By whoever runs this where a process may be moved to a lesser machine."""

    def shows(isa):
        code = "import sottovoce.ring, sottovoce._native as n; print(n.active_isa())"
        environment = {**os.environ, "SOTTOVOCE_ISA": isa}
        return subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=240
        )

    assert shows("portable").stdout == "portable\n"
    assert "SOTTOVOCE_ISA: unknown instruction set sse" in shows("sse").stderr


def test_an_image_gets_what_a_wheel_is_made_of():
    """And what is not sent to the builder cannot end up in an image."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    sent = {line[1:] for line in lines if line.startswith("!")}
    copied = re.findall(r"^COPY (?!--)(.*)$", (DEPLOY / "Containerfile").read_text(), re.M)
    assert sent == {name for line in copied for name in line.split()[:-1]} and "*" in lines
    notices = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["license-files"]
    assert {name.partition("/")[0] for name in notices} <= sent
    assert all(list(ROOT.glob(name)) for name in notices)


def test_wheels_are_tested_by_files_that_exist():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["cibuildwheel"]
    names = re.findall(r"\{project\}/(\S+)", settings["test-command"])
    assert names
    there = {"numpy", "sottovoce", *sys.stdlib_module_names}
    there |= {name.removeprefix("python-").replace("-", "_") for name in settings["test-requires"]}
    for name in names:
        wanted = re.findall(r"^(?:import|from) (\w+)", (ROOT / name).read_text(), re.M)
        assert set(wanted) <= there, f"{name} needs {set(wanted) - there}"
