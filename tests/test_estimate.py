"""`sottovoce estimate`: sound figures for any model's shapes, and words that follow from them."""

import json

import pytest
from click.testing import CliRunner

from sottovoce.cli.estimate import estimate as command
from sottovoce.engines.base import EngineOptions
from sottovoce.engines.estimates import NAMED, Network, Phase
from sottovoce.engines.registry import make_engine
from sottovoce.errors import PromptTooLongError, UnknownModelError, UnsupportedModelError, UsageError
from sottovoce.models.describe import describe_model
from sottovoce.net import run_pair, socket_pair
from sottovoce.parties import Client, Welcome, Wish
from sottovoce.parties.estimate import estimate, typical
from sottovoce.parties.forecast import Course
from sottovoce.parties.machine import MachineSpeed
from sottovoce.parties.session import ServerSession
from tiny_model import CONFIG, save_tiny_model, tiny_model

COURSE = Course(public=2, private=5, new=4)


@pytest.fixture
def config_file(tmp_path):
    """A Hugging Face config.json alone, as anybody can fetch it."""
    whole = save_tiny_model(tmp_path)
    file = tmp_path / "only" / "config.json"
    file.parent.mkdir()
    file.write_text((whole / "config.json").read_text())
    return file


def run(*arguments):
    done = CliRunner().invoke(command, [str(a) for a in arguments], standalone_mode=False)
    if done.exception is not None:
        raise done.exception
    return done


def test_clear_sessions_to_the_byte():
    engine = make_engine(EngineOptions(engine="clear"), tiny_model())
    engine.prepare()
    welcome = Welcome(engine.options, engine.public(), engine._model.card)

    def server(channel):
        ServerSession(channel, engine.session, welcome).run()

    def client(channel):
        with Client(channel, Wish(engine="clear")) as session:
            session.setup()
            session.prefill([1, 2], [3, 4, 5, 6, 7])
            for token in (1, 2, 3):
                session.decode(token)
            return session.ledger

    ledger = run_pair(client, server, socket_pair())[0]
    for phase in estimate(typical(CONFIG), "clear", "-", COURSE).phases:
        real = ledger.total(phase.name)
        assert (phase.bytes_up, phase.bytes_down, phase.rounds) == (
            real.wire_up,
            real.wire_down,
            real.rounds,
        )


def test_phases_on_networks():
    phase = Phase("decode", 2, 1_000_000, 250_000, 100, 3.0)
    assert phase.seconds(Network("free")) == 3.0
    assert phase.seconds(Network.parse("10,100")) == pytest.approx(3.0 + 1.0 + 0.1)
    shared = Phase("prefill", 1, 0, 0, 0, compute=5.0, parallel=4.0)
    assert shared.seconds(Network("free")) == 5.0 and shared.seconds(Network("free"), cores=4) == 2.0
    assert Network.parse("lan") == NAMED["lan"]
    for text in ("moon", "1", "1,0", "-1,5", "1,2,3", "nan,1"):
        with pytest.raises(UsageError):
            Network.parse(text)


@pytest.mark.parametrize("kv", ["ciphertext", "masked"])
def test_more_of_everything_costs_more(kv):
    public = typical(CONFIG)

    def total(*course):
        found = estimate(public, "hybrid", kv, Course(*course), MachineSpeed())
        return sum(p.bytes_up + p.bytes_down for p in found.phases)

    # Material comes in batches, so that single tokens may cost nothing more.
    assert total(2, 4, 3) < total(2, 40, 3) < total(2, 40, 40)


def test_a_bare_config_is_enough(config_file):
    arguments = [config_file, "--prompt-tokens", 5, "-n", 3, "--no-calibration", "-q", "--net", "5,500"]
    answer = json.loads(run(*arguments, "--json").stdout)
    names = [(one["engine"], one["kv"]) for one in answer["estimates"]]
    assert {("hybrid", "ciphertext"), ("hybrid", "masked"), ("clear", "-")} <= set(names)
    for one in answer["estimates"]:
        assert one["server_memory"] > 0 and all(phase["seconds"] > 0 for phase in one["phases"])
    assert answer["network"] == {"name": "5,500", "rtt_ms": 5.0, "mbit": 500.0} and answer["advice"]
    text = run(*arguments, "--engine", "hybrid", "--kv", "masked").stdout
    assert "prepare" in text and "fastest with cryptographic privacy" in text


def test_the_directory_and_the_file_are_the_same(config_file):
    assert describe_model(config_file) == describe_model(config_file.parent)
    assert describe_model(config_file).width == CONFIG.width


def test_what_cannot_be_estimated(config_file, tmp_path):
    with pytest.raises(PromptTooLongError):
        run(config_file, "--prompt-tokens", 96, "-n", 2, "-q")
    with pytest.raises(UnknownModelError):
        describe_model(tmp_path / "nothing" / "config.json")
    with pytest.raises(UnsupportedModelError, match="no estimates"):
        estimate(typical(CONFIG), "other", "-", COURSE)
    mamba = tmp_path / "config.json"
    mamba.write_text('{"model_type": "mamba"}')
    with pytest.raises(UnsupportedModelError, match="mamba"):
        describe_model(mamba)


def test_a_calibration_gives_speeds():
    speed = MachineSpeed.measured(1)
    assert speed.lattice > 0 and speed.transfer > 0
